"""``recipe``: what is frozen, as a file."""

from pathlib import Path
from typing import Annotated

import typer

from unifreeze import Recipe, Record, apply, port
from unifreeze._record import is_record
from unifreeze.errors import ArgumentError

from .options import TARGET, Arguments, Debug, Form, Format, Json, form, place
from .output import as_json, say, show
from .target import built

app = typer.Typer(help="Recipes: what is frozen, as a file.", no_args_is_help=True, rich_markup_mode=None)
Source = Annotated[Path, typer.Argument(help="A recipe, JSON or YAML.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option("--output", "--out", help="Where to write the recipe: .json, .yaml or .yml; printed if left out.", callback=place, show_default=False),
]
Model = Annotated[str, typer.Argument(help=TARGET, show_default=False)]


@app.command()
def record(
    target: Annotated[str, typer.Argument(help="package.module:callable, which returns the frozen model or a Freezing.", show_default=False)],
    out: Output = None,
    name: Annotated[str, typer.Option(help="What to call it.", show_default=False)] = "",
    arg: Arguments = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the shortest recipe that freezes exactly what is frozen in the model."""
    _deliver(Recipe.record(built(target, arg), name), out)


@app.command("show")
def show_it(file: Source, json: Json = False, debug: Debug = False) -> None:
    """Show a recipe as the calls that it is."""
    found = Recipe.read(file)
    print(found.to_json() if json else found.to_python())


@app.command()
def check(
    file: Source,
    target: Annotated[str | None, typer.Argument(help="A model that it must fit.", show_default=False)] = None,
    arg: Arguments = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that a recipe, or a record, can be read and, given a target, that it fits the model. Exits with 2 if not."""
    found = _read(file)
    what, count = ("layer", len(found.layers)) if isinstance(found, Record) else ("step", len(found.steps))
    fitted = apply(built(target, arg), found) if target else None
    if json:
        as_json({"file": str(file), f"{what}s": count, "frozen": None if fitted is None else list(fitted.frozen)})
    else:
        print(f"{file}: {count} {what}{'s' if count > 1 else ''}" + (f"; {fitted!r}" if fitted else ""))


@app.command("apply")
def apply_it(file: Source, target: Model, arg: Arguments = None, format: Form = Format.table, json: Json = False, debug: Debug = False) -> None:
    """Apply a recipe, or a record, to the model that the target makes, and print its summary."""
    how, found = form(format, json), _read(file)
    show(apply(built(target, arg), found).summary(), how)


@app.command("port")
def port_it(
    source: Annotated[str, typer.Option(metavar="TARGET", help="package.module:callable, which returns the model that the recipe is written for.")],
    target: Annotated[str, typer.Option(metavar="TARGET", help="package.module:callable, which returns the model to carry it to.")],
    file: Annotated[Path | None, typer.Argument(help="A recipe in the words of the source; what the source comes frozen with, if left out.")] = None,
    shape: Annotated[str, typer.Option(metavar="SHAPE", help="The shape of the input, channels last, such as 1,224,224,3.", show_default=False)] = "",
    out: Output = None,
    name: Annotated[str, typer.Option(help="What to call the recipe.", show_default=False)] = "",
    source_arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument for the source's callable; may be repeated.")] = None,
    target_arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument for the target's callable; may be repeated.")] = None,
    partly: Annotated[bool, typer.Option("--partly", help="Leave trainable what has no certain partner, instead of refusing.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Carry a recipe to another model, in whatever framework: write it in that model's words, and print a report."""
    given = None if file is None else Recipe.read(file)
    axes = _shape(shape)
    done = port(given, built(source, source_arg), built(target, target_arg), shape=axes, partly=partly)
    found = Recipe.record(done.freezing, name or (given.name if given else ""))
    if json:
        as_json({**done.to_dict(), "recipe": found.to_dict()})
        if out is not None:
            found.save(out)
    elif out is None:
        say(str(done))
        _deliver(found, None)
    else:
        _deliver(found, out)
        print(done)


def _read(file: Path) -> Recipe | Record:
    """A record looks different, and fits one architecture alone."""
    return Record.read(file) if is_record(file) else Recipe.read(file)


def _deliver(found: Recipe, out: Path | None) -> None:
    if out is None:
        print(found.to_json())
    else:
        found.save(out)
    say(*found.notes)


def _shape(text: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(word) for word in text.strip("() ").split(",") if word.strip()) or None
    except ValueError:
        raise ArgumentError(f"--shape {text} is no shape.\n  It reads like 1,224,224,3: the batch first, channels last.") from None
