"""The demo: freeze the first two layers of a GoogLeNet, train it, and prove what moved.

Each framework has a scene in a module of its own, which may import that framework. The proof is made here, from arrays that the scene reads without
unifreeze.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from unifreeze import Freezing, Summary, UnifreezeError, summary

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

Arrays = Mapping[str, "NDArray[Any]"]

#: The scenes in the order in which they are tried, and what each needs.
SCENES = {"keras": ("keras",), "torch": ("torch",), "jax": ("jax", "optax")}

NEXT = """[bold]Next[/bold]
  from unifreeze import freeze, unfreeze, summary
  from unifreeze.select import first, last, kind, before

  f = freeze(model, layers=before({mark!r}))    # everything in front of a layer
  unfreeze(model, layers=kind("batch_norm"))    # let the normalisations train again
  print(summary(model)); f.undo()               # look, take back

[dim]unifreeze backends   lists the frameworks that are here and how to get the others[/dim]"""


class Scene(Protocol):
    """A real model in a framework, with a real training step."""

    title: str
    code: str

    @property
    def model(self) -> object:
        """The model, or what ``summary`` takes for it."""

    def freeze(self) -> Freezing:
        """Freezes the first two weighted layers."""

    def step(self) -> float:
        """Takes one real training step on made data, and returns the loss."""

    def values(self) -> Arrays:
        """Returns a copy of every parameter and buffer by path, read without unifreeze."""


@dataclass(frozen=True)
class Played:
    """What came of the demo.

    Attributes:
        framework: Where it played.
        steps: Number of training steps.
        held: Whether nothing frozen moved and the rest did.
        frozen: For each array of the frozen layers, its largest change.
        moved: How many of the other arrays moved.
        others: How many others there are.
    """

    framework: str
    steps: int
    held: bool
    frozen: Mapping[str, float]
    moved: int
    others: int


def run(console: Console, framework: str | None = None, steps: int = 5) -> Played:
    """Plays the demo, and returns what came of it.

    Args:
        console: Where to print.
        framework: ``keras``, ``torch`` or ``jax``; ``None`` takes the first that is installed.
        steps: Number of training steps.

    Raises:
        UnifreezeError: If the framework, or any, is not installed.
    """
    chosen = framework or _at_hand()
    with console.status(f"building a GoogLeNet in {chosen} …"):
        scene: Scene = import_module(f"{__name__}.{chosen}").build()
    console.rule(f"[bold]{scene.title}")
    console.print(f"\n[dim]# what you type[/dim]\n{scene.code.strip()}\n", highlight=False)
    freezing = scene.freeze()
    before = scene.values()
    _train(console, scene, steps)
    after = scene.values()
    console.print(f"first(2) is {' and '.join(freezing.layers)}: the first two layers of the model that hold weights or statistics", highlight=False)
    console.print(_shortened(summary(freezing), freezing))
    held, changes, moved = _prove(console, scene, freezing, before, after)
    console.print("\n" + NEXT.format(mark=freezing.layers[-1]), highlight=False)
    return Played(chosen, steps, held, changes, moved, len(before) - len(changes))


def _at_hand() -> str:
    for name, needs in SCENES.items():
        if all(find_spec(need) for need in needs):
            return name
    raise UnifreezeError("No framework is installed for the demo.\n  it plays on Keras 3, PyTorch or JAX\n  install one with pip install 'unifreeze[demo]'")


def _train(console: Console, scene: Scene, steps: int) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("the first step compiles", total=steps)
        for _ in range(steps):
            progress.update(task, advance=1, description=f"loss {scene.step():.3f}")


def _shortened(seen: Summary, freezing: Freezing) -> Summary:
    """The rows of the frozen layers and the few that follow; the totals stay whole."""
    last = max(place for place, row in enumerate(seen.rows) if row.path in freezing.layers)
    shown = seen.rows[: last + 6]
    return replace(seen, rows=shown, label=f"{seen.label}: the first {len(shown) - 1} of {len(seen.rows) - 1} layers")


def _prove(console: Console, scene: Scene, freezing: Freezing, before: Arrays, after: Arrays) -> tuple[bool, dict[str, float], int]:
    import numpy as np
    from rich import box
    from rich.table import Table

    def change(path: str) -> float:
        return float(np.max(np.abs(after[path].astype(np.float64) - before[path].astype(np.float64)), initial=0))

    def inside(path: str) -> bool:
        return any(path.startswith(f"{layer}.") for layer in freezing.layers)

    table = Table(title="Proof: the arrays of the frozen layers, read without unifreeze", box=box.SIMPLE_HEAD)
    for word in ("array", "shape", "largest change", "bytes"):
        table.add_column(word, justify="right" if word == "largest change" else "left")
    frozen = [path for path in before if inside(path)]
    same = {path: before[path].tobytes() == after[path].tobytes() for path in frozen}
    for path in frozen:
        table.add_row(path, str(tuple(before[path].shape)), f"{change(path):g}", "identical" if same[path] else "[red]changed")
    console.print(table)
    rest = [path for path in before if not inside(path)]
    moved = [path for path in rest if before[path].tobytes() != after[path].tobytes()]
    largest = max((path for path in rest if np.issubdtype(before[path].dtype, np.floating)), key=change)
    console.print(f"of the other {len(rest)} arrays {len(moved)} moved; the largest change is {change(largest):.2g}, in {largest}", highlight=False)
    held = bool(frozen) and all(same.values()) and bool(moved)
    console.print(f"freezing.verify(): {freezing.verify(scene.model)}" if held else "", highlight=False)
    console.print("[bold green]frozen stayed frozen, the rest trained" if held else "[bold red]the promise was not kept")
    return held, {path: change(path) for path in frozen}, len(moved)
