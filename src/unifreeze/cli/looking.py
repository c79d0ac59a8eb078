"""``layers``, ``summary``, ``freeze``: the verbs, for a look. No model is trained and none is written; what ``freeze`` writes is a recipe or a record."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

import unifreeze
from unifreeze import Freezing, Recipe, Step
from unifreeze._summary.columns import COLUMNS
from unifreeze._summary.wanted import SORTS
from unifreeze.plugin import Layer

from .options import Arguments, Debug, Form, Format, Json, Layers, Selectors, Target, form, place, selector
from .output import Lines, as_json, say, show
from .target import built

Depth = Annotated[int | None, typer.Option(min=0, help="Show layers down to this depth; totals are of the whole model.", show_default=False)]


class Held(str, Enum):  # noqa: UP042 - as Format
    """What is kept still beside parameters."""

    norm = "norm"
    all = "all"
    none = "none"


def layers(
    target: Target,
    selectors: Selectors = None,
    more: Layers = None,
    arg: Arguments = None,
    format: Form = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the weighted layers that a selector picks, in the model's order: what counting words count."""
    how = form(format, json)
    model = built(target, arg)
    found = unifreeze.layers(model, selector(selectors, more))
    rows = [(layer.path or "(the model)", layer.kind, layer.type, f"{_size(layer):,}", _status(layer)) for layer in found]
    Lines(("Layer", "Kind", "Type", "Parameters", "Status"), rows, frozenset({"Parameters"})).show(how, {"layers": list(map(_plain, found))})


def summary(
    target: Target,
    selectors: Selectors = None,
    more: Layers = None,
    depth: Depth = None,
    columns: Annotated[str | None, typer.Option(metavar="NAMES", help=f"What to show, with commas between: {', '.join(COLUMNS)}.", show_default=False)] = None,
    sort: Annotated[str, typer.Option(metavar="COLUMN", help=f"The order: model, {', '.join(SORTS)}.")] = "model",
    collapse: Annotated[bool, typer.Option("--collapse", help="Show equal neighbours, such as blocks 0 to 31, as one row.")] = False,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(metavar="SHAPE", help="The shape of an input, such as 1,3,224,224: shows output shapes; may be repeated.", show_default=False),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help="Add what training needs with it, such as adamw.", show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the page of --format html to a file: it needs nothing else.", callback=place, show_default=False)
    ] = None,
    arg: Arguments = None,
    format: Form = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the layers, their parameters and status, and the totals."""
    how = form(format, json)
    words: dict[str, Any] = {"depth": depth, "sort": sort, "collapse": collapse, "optimizer": optimizer, "layers": selector(selectors, more)}
    words |= {"columns": columns.replace(" ", "").split(",") if columns else None, "input_shape": _shapes(input_shape)}
    seen = unifreeze.summary(built(target, arg), **words)
    if output:
        seen.to_html(output)
        say(f"wrote {output}")
    if not output or how is not Format.html:
        show(seen, how)


def _shapes(texts: list[str] | None) -> object:
    """One shape, or a list of several."""
    try:
        shapes = [tuple(None if axis in {"-", "None"} else int(axis) for axis in text.strip("() ").replace(" ", "").split(",") if axis) for text in texts or ()]
    except ValueError:
        raise typer.BadParameter(f"{' '.join(texts or ())} is no shape; it reads like 1,3,224,224", param_hint="--input-shape") from None
    return shapes[0] if len(shapes) == 1 else shapes or None


def freeze(
    target: Target,
    selectors: Selectors = None,
    more: Layers = None,
    params: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Narrow to parameters: a role or a glob, such as bias.", show_default=False)] = None,
    inference: Annotated[Held, typer.Option(help="What is kept still beside parameters: statistics (norm), all behaviour, or nothing.")] = Held.norm,
    output: Annotated[Path | None, typer.Option(help="Write this freeze as a recipe: .yaml, .yml or .json.", callback=place, show_default=False)] = None,
    record: Annotated[Path | None, typer.Option(help="Write what is frozen then as a record of this model: .json.", callback=place, show_default=False)] = None,
    depth: Depth = None,
    arg: Arguments = None,
    format: Form = Format.table,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a freeze would do: freezes layers of the model that the target makes, and prints its summary."""
    how = form(format, json)
    model = built(target, arg)
    picked, narrowed = selector(selectors, more), params or None
    fresh = not unifreeze.summary(model).totals.frozen
    freezing = unifreeze.freeze(model, picked, params=narrowed, inference=inference.value)
    if output:
        _recipe(freezing, picked, narrowed, inference.value if fresh else "").save(output)
    if record:
        record.write_text(unifreeze.record(freezing).to_json() + "\n", encoding="utf-8")
    if how is Format.json:
        as_json({"freezing": _told(freezing), "summary": freezing.summary(depth=depth).to_dict()})
    else:
        show(freezing.summary(depth=depth), how)
        say(repr(freezing).strip("<>"))
    say(*(f"wrote {path}" for path in (output, record) if path))


def _recipe(freezing: Freezing, picked: list[str] | None, narrowed: list[str] | None, inference: str) -> Recipe:
    """The words that were given, where they say it all; otherwise what was found frozen."""
    if not inference or len(narrowed or ()) > 1:
        return Recipe.record(freezing)
    layers = " | ".join(f"({text})" if len(picked) > 1 else text for text in picked) if picked else "**"
    return Recipe((Step("freeze", layers, narrowed[0] if narrowed else None, inference),))  # type: ignore[arg-type]


def _told(freezing: Freezing) -> dict[str, object]:
    words = {name: list(getattr(freezing, name)) for name in ("layers", "frozen", "trainable", "held", "changed")}
    return {"model": freezing._label, **words, "skipped": dict(freezing.skipped)}


def _plain(layer: Layer) -> dict[str, object]:
    told = {"path": layer.path, "kind": layer.kind, "type": layer.type, "parameters": _size(layer), "status": _status(layer)}
    arrays = [
        {"path": one.path, "role": one.role, "shape": list(one.shape), "dtype": one.dtype, "status": one.status} for one in (*layer.parameters, *layer.buffers)
    ]
    return {**told, "arrays": arrays}


def _size(layer: Layer) -> int:
    return sum(parameter.size for parameter in layer.parameters)


def _status(layer: Layer) -> str:
    found = {"partial" if parameter.rows is not None else parameter.status for parameter in layer.parameters}
    return "partial" if len(found) > 1 else found.pop() if found else "held" if layer.inference else ""
