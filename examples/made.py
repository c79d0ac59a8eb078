"""What the examples share: made images, a loop that shows its progress, and a proof. Nothing in here knows unifreeze."""

import argparse
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

CLASSES = 8
CONSOLE = Console()
Arrays = Mapping[str, Any]


def batch(number: int, size: int = 32) -> tuple[Any, Any]:
    """Returns gratings (size, 32, 32, 3), float32, in one of eight directions, under noise, and their directions (size,)."""
    draw = np.random.default_rng(number)
    labels = draw.integers(CLASSES, size=size)
    angle, phase = np.pi * labels / CLASSES, draw.uniform(0, 2 * np.pi, size)
    row, column = np.mgrid[:32, :32]
    waves = np.sin(0.8 * (np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column) + phase[:, None, None])
    return (waves[..., None] + draw.normal(scale=0.5, size=(size, 32, 32, 3))).astype(np.float32), labels.astype(np.int32)


def train(title: str, steps: int, step: Callable[[Any, Any], float], first: int = 0) -> None:
    """Calls ``step(images, labels)``, which returns the loss, and shows how far it is."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        task = progress.add_task("the first step compiles", total=steps)
        for number in range(first, first + steps):
            progress.update(task, advance=1, description=f"loss {step(*batch(number)):.3f}")


def prove(before: Arrays, after: Arrays, still: Collection[str]) -> bool:
    """Says what moved, and returns whether nothing moved in the parts called ``still`` and everything trained moved.

    Args:
        before: Every parameter and statistic by path, as the framework hands them out.
        after: The same, later.
        still: The first letters of the paths that must not move.
    """

    def change(path: str) -> float:
        return float(np.max(np.abs(np.subtract(after[path], before[path], dtype=np.float64))))

    frozen = [path for path in before if path.startswith(tuple(still))]
    rest = [path for path in before if path not in frozen]
    moved = [path for path in rest if change(path) > 0]
    same = all(np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes() for path in frozen)
    CONSOLE.print(f"  frozen: {len(frozen)} arrays, largest change {max(map(change, frozen)):g}, {'every byte the same' if same else 'BYTES DIFFER'}")
    largest = max(change(path) for path in rest if np.issubdtype(before[path].dtype, np.floating))  # not of counters
    CONSOLE.print(f"  the rest: {len(moved)} of {len(rest)} arrays moved, largest change {largest:.2g}", highlight=False)
    return same and bool(frozen) and len(moved) == len(rest)


def steps_asked() -> int:
    """Reads ``--steps`` from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100, help="training steps in each of the two phases")
    return int(parser.parse_args().steps)
