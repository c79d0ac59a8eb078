"""The icicle of parameters by layer, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unifreeze.errors import BackendError

from .nest import Node, nested

if TYPE_CHECKING:
    from .table import Summary

# Colours that people tell apart who see no red or no green (Okabe and Ito, "Color Universal Design", 2008); what is partial has stripes besides.
_COLOURS = {"frozen": "#0072b2", "trainable": "#e69f00", "partial": "#999999", "held": "#0072b2", "": "#dddddd"}
_WORDS = {"frozen": "frozen", "trainable": "trainable", "partial": "partial: some of it frozen"}
# A name is written where its block takes more than this share of the width.
_NAMED = 0.03
_LEAST = 0.0005


def plot(summary: Summary, axes: Any) -> Any:
    """Draws the icicle and returns the axes.

    Raises:
        BackendError: If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
        from matplotlib.patches import Patch, Rectangle
    except ImportError:
        raise BackendError("plot() needs matplotlib, which is not installed.\n  install it with pip install 'unifreeze[plot]'") from None
    if axes is None:
        _, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    deepest = 0
    for node, x, width, depth in _blocks(nested(summary.rows)):
        status = "" if node.row is None else node.row.status
        hatch = "////" if status == "partial" else None
        axes.add_patch(Rectangle((x, -depth - 1), width, 1, facecolor=_COLOURS[status], edgecolor="white", linewidth=0.5, hatch=hatch))
        name = summary.label if node.row is None or not node.row.path else node.row.path.rpartition(".")[2]
        if width > _NAMED:
            _write(axes, name, x + width / 2, -depth - 0.5, status)
        deepest = max(deepest, depth)
    axes.set(xlim=(0, 1), ylim=(-deepest - 1, 0), xlabel="share of the parameters", yticks=[], title=_title(summary))
    axes.legend(handles=[Patch(facecolor=_COLOURS[word], hatch="////" if word == "partial" else None, label=label) for word, label in _WORDS.items()])
    return axes


def _write(axes: Any, name: str, x: float, y: float, status: str) -> None:
    """Writes a name as it is: a dollar sign in it begins no formula."""
    colour = "white" if status in {"frozen", "held"} else "black"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1} if status == "partial" else None
    axes.text(x, y, name, ha="center", va="center", fontsize=7, color=colour, clip_on=True, parse_math=False, bbox=box)


def _title(summary: Summary) -> str:
    return f"{summary.totals.trainable:,} trainable, {summary.totals.frozen:,} frozen".replace("$", r"\$")


def _blocks(root: Node) -> Iterator[tuple[Node, float, float, int]]:
    """Each layer's place: its left edge, its width as a share of the whole, and its depth. What can't be seen is left out."""
    pending = [(root, 0.0, 1.0, 0)]
    while pending:
        node, x, width, depth = pending.pop()
        if width < _LEAST or not node.parameters:
            continue
        yield node, x, width, depth
        for child in node.children:
            share = width * child.parameters / node.parameters
            pending.append((child, x, share, depth + 1))
            x += share
