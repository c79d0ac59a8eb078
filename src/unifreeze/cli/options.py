"""The words that commands share."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

TARGET = "package.module:callable, which returns a model, or a model there. The current directory can be imported from."
SELECTOR = "Which layers, as text: 'stem.*', first:2, kind:conv, before:mixed7, ~last:1. Several are joined by or; the whole model if left out."


class Format(str, Enum):  # noqa: UP042 - typer shows the values of a StrEnum differently from version to version
    """How to print."""

    table = "table"
    markdown = "markdown"
    json = "json"
    html = "html"


Target = Annotated[str, typer.Argument(help=TARGET, show_default=False)]
Selectors = Annotated[list[str] | None, typer.Argument(metavar="SELECTOR", help=SELECTOR, show_default=False)]
Layers = Annotated[list[str] | None, typer.Option("--layers", metavar="SELECTOR", help="The same as an option; may be repeated.", show_default=False)]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="NAME=VALUE", help="An argument for the callable; may be repeated. A Python literal, otherwise text.", show_default=False),
]
Form = Annotated[Format, typer.Option("--format", help="How to print.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json; errors are JSON, too.")]
PlainJson = Annotated[bool, typer.Option("--json", help="Print JSON; errors are JSON, too.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def place(file: Path | None) -> Path | None:
    """Looks, before anything is built, whether a file can be put there.

    Raises:
        typer.BadParameter: If there is no such folder, or a folder in its place.
    """
    if file is not None and not file.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.absolute().parent}")
    if file is not None and file.is_dir():
        raise typer.BadParameter(f"{file} is a folder; name a file in it")
    return file


def selector(texts: list[str] | None, more: list[str] | None) -> list[str] | None:
    """Joins the positional selectors and those of ``--layers``; none at all is the whole model."""
    return [*(texts or ()), *(more or ())] or None


def form(chosen: Format, json: bool) -> Format:
    """Returns the format that was asked for.

    Raises:
        typer.BadParameter: If ``--json`` and ``--format`` contradict each other.
    """
    if json and chosen not in {Format.table, Format.json}:
        raise typer.BadParameter(f"it is {chosen.value}, and --json asks for JSON; give one of the two", param_hint="--format")
    return Format.json if json else chosen
