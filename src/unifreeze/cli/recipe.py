"""``recipe``: what is frozen, as a file."""

from pathlib import Path
from typing import Annotated

import typer

from unifreeze import Recipe, apply

from .options import TARGET, Arguments, Debug, Format, Json
from .output import as_json, say, show
from .target import built

app = typer.Typer(help="Recipes: what is frozen, as a file.", no_args_is_help=True, rich_markup_mode=None)
Source = Annotated[Path, typer.Argument(help="A recipe, JSON or YAML.", show_default=False)]
Model = Annotated[str, typer.Argument(help=TARGET, show_default=False)]


@app.command()
def record(
    target: Annotated[str, typer.Argument(help="package.module:callable, which returns the frozen model or a Freezing.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to write it: .json, .yaml or .yml; printed if left out.", show_default=False)] = None,
    name: Annotated[str, typer.Option(help="What to call it.", show_default=False)] = "",
    arg: Arguments = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the shortest recipe that freezes exactly what is frozen in the model."""
    found = Recipe.record(built(target, arg), name)
    if out is None:
        print(found.to_json())
    else:
        found.save(out)
    say(*found.notes)


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
    """Check that a recipe can be read and, given a target, that it fits the model. Exits with 2 if not."""
    found = Recipe.read(file)
    fitted = apply(built(target, arg), found) if target else None
    if json:
        as_json({"file": str(file), "steps": len(found.steps), "frozen": None if fitted is None else list(fitted.frozen)})
    else:
        print(f"{file}: {len(found.steps)} steps" + (f"; {fitted!r}" if fitted else ""))


@app.command("apply")
def apply_it(file: Source, target: Model, arg: Arguments = None, json: Json = False, debug: Debug = False) -> None:
    """Apply a recipe to the model that the target makes, and print its summary."""
    found = Recipe.read(file)
    show(apply(built(target, arg), found).summary(), Format.json if json else Format.table)
