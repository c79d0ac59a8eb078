"""``backends`` and ``demo``: what is here, and what it looks like at work."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from unifreeze import backends as known_backends
from unifreeze.demo import SCENES, run

from .ending import FOUND
from .options import Debug, Form, Format, Json, PlainJson, form
from .output import Lines, as_json


def backends(format: Form = Format.table, json: Json = False, debug: Debug = False) -> None:
    """List the backends: what is installed, and how to install the rest."""
    known = known_backends()
    rows = [(info.name, info.version, "installed" if info.installed else info.install) for info in known]
    Lines(("backend", "version", "state"), rows).show(form(format, json), {"backends": list(map(asdict, known))})


def demo(
    framework: Annotated[str | None, typer.Option(help=f"One of {', '.join(SCENES)}; the first installed one if left out.", show_default=False)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 5,
    json: PlainJson = False,
    debug: Debug = False,
) -> None:
    """Freeze the first two layers of a GoogLeNet, train it, and prove what moved. Exits with 1 if the proof fails."""
    if framework is not None and framework not in SCENES:
        raise typer.BadParameter(f"{framework!r} has no demo; it is one of {', '.join(SCENES)}", param_hint="--framework")
    played = run(Console(stderr=json), framework, steps)
    if json:
        as_json(asdict(played))
    raise typer.Exit(0 if played.held else FOUND)
