"""Makes a summary: what was asked for, on top of the count."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from unifreeze._backend import Backend
from unifreeze._resolve import resolve
from unifreeze._told import Reasons, Told
from unifreeze._tree import STATELESS, Layer

from .columns import COMPUTED, chosen
from .repeats import collapsed
from .rows import Count
from .shapes import output_shapes
from .table import Summary
from .training import needs
from .wanted import SORTS, Wanted


def summarise(backend: Backend, model: Any, tree: Layer, label: str, wanted: Wanted, *, told: Collection[Told] = ()) -> Summary:
    """Reads a summary off a tree. What was not asked for is not computed."""
    columns = chosen(wanted.columns)
    picked = None if wanted.layers is None else resolve(wanted.layers, tree, label).layers
    slots = None if wanted.optimizer is None else backend.slots(str(wanted.optimizer))
    shapes = output_shapes(backend, model, tree, wanted) if wanted.shapes else {}
    counted = Count(tree)
    rows = list(counted.rows)
    if shapes:
        rows = [replace(row, output_shape=shapes.get(row.path, row.output_shape)) for row in rows]
    computed = [column for column in columns if column in COMPUTED]
    if computed:
        extras = _extras(backend, tree, computed, told)
        rows = [replace(row, more=extras[row.path]) for row in rows]
    every = len(rows)
    if picked is not None or wanted.depth is not None:
        rows = [row for row in rows if (picked is None or row.path in picked) and (wanted.depth is None or row.depth <= wanted.depth)]
    if wanted.collapse:
        rows = collapsed(rows, tree)
    if wanted.sort != "model":
        rows = sorted(rows, key=SORTS[wanted.sort])
    return Summary(
        label,
        tuple(rows),
        counted.totals,
        backend.remarks(tree),
        columns=columns,
        training=None if slots is None else needs(str(wanted.optimizer), slots, tree),
        listed=picked is not None or wanted.sort != "model",
        layers=every,
        _arrays=tuple(counted.arrays),
    )


def _extras(backend: Backend, tree: Layer, columns: list[str], told: Collection[Told]) -> dict[str, Mapping[str, str]]:
    """What each computed column says of each layer."""
    reasons = Reasons(tree, told) if "why" in columns else None
    ways: dict[str, Callable[[Layer], str]] = {
        "dtype": lambda layer: ", ".join(dict.fromkeys(array.dtype for array in layer.parameters or layer.buffers)),
        "statistics": _statistics,
        "mode": lambda layer: f"held ({layer.inference})" if layer.inference else backend.mode(layer),
        "why": lambda layer: reasons.of(layer) if reasons else "",
    }
    return {layer.path: {column: ways[column](layer) for column in columns} for layer in tree.walk()}


def _statistics(layer: Layer) -> str:
    """Whether a training step moves the layer's own state; a random state moves by design and is none."""
    keeps = any(buffer.role not in STATELESS and buffer.role != "cache" for buffer in layer.buffers)
    return ("move" if layer.inference is None else "still") if keeps else ""
