"""The rows and the totals: every array counted once, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from operator import attrgetter
from typing import Literal

from unifreeze._rows import Rows
from unifreeze._tree import Inference, Layer, Parameter, Status

#: One array as a summary remembers it, so that it keeps no model alive: path, shape, element type, status, frozen rows.
Array = tuple[str, tuple[int, ...], str, Status, Rows | None]
LayerStatus = Literal["trainable", "frozen", "partial", "held", ""]


@dataclass(slots=True)
class Row:
    """One layer, with everything inside it. Never changed once made.

    Attributes:
        path: Dotted path; empty for the root.
        depth: How deep it lies; 0 for the root.
        type: The framework's own type.
        kind: What it does.
        output_shape: Where it is known without computing anything.
        parameters: Number of parameter elements in it that no earlier row counts.
        buffers: Number of buffer elements, counted alike.
        nbytes: Their bytes.
        status: ``trainable``, ``frozen`` or ``partial``; ``held`` for a layer without parameters whose state is kept still; empty for one that has nothing.
        shared_with: Path of the first layer that reaches the same array, where this one only reaches it again.
        inference: How the layer itself is held: ``norm`` or ``all``; ``None`` where it follows the model's mode.
        drifts: Whether all parameters of the layer itself are frozen while its statistics go on moving (``inference="none"``).
        frozen_rows: Frozen rows of the layer's own parameters of which only some rows are frozen.
        repeat: How many equal layers this row stands for, itself among them (``collapse=True``); its counts are those of one.
        last: Path of the last of them.
        more: What was computed for a column that was asked for: ``dtype``, ``statistics``, ``mode``, ``why``; ``None`` where nothing was.
    """

    path: str
    depth: int
    type: str
    kind: str
    output_shape: tuple[int | None, ...] | None
    parameters: int
    buffers: int
    nbytes: int
    status: LayerStatus
    shared_with: str = ""
    inference: Inference | None = None
    drifts: bool = False
    frozen_rows: int = 0
    repeat: int = 1
    last: str = ""
    more: Mapping[str, str] | None = None


@dataclass(slots=True)
class Totals:
    """Sums over unique arrays, so that a shared one counts once.

    Attributes:
        parameters: Elements of all parameters: trainable plus frozen.
        trainable: Elements an optimizer will train.
        frozen: Elements that are frozen, also those of frozen rows.
        buffers: Elements of buffers (statistics, random state), which are no parameters.
        bytes: Bytes of all arrays.
        bytes_trainable: Bytes of the trainable parameters.
        bytes_frozen: Bytes of the frozen parameters.
        bytes_buffers: Bytes of the buffers.
        bytes_by_dtype: Bytes of all arrays by element type.
    """

    parameters: int = 0
    trainable: int = 0
    frozen: int = 0
    buffers: int = 0
    bytes: int = 0
    bytes_trainable: int = 0
    bytes_frozen: int = 0
    bytes_buffers: int = 0
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)

    def add(self, status: Status, size: int, nbytes: int, dtype: str) -> None:
        """Counts arrays of one status and element type."""
        if status == "trainable":
            self.trainable += size
            self.bytes_trainable += nbytes
        elif status == "frozen":
            self.frozen += size
            self.bytes_frozen += nbytes
        else:
            self.buffers += size
            self.bytes_buffers += nbytes
        self.parameters = self.trainable + self.frozen
        self.bytes += nbytes
        self.bytes_by_dtype[dtype] = self.bytes_by_dtype.get(dtype, 0) + nbytes


class Count:
    """Counts every array at the first layer that reaches it, then adds up from the leaves."""

    def __init__(self, tree: Layer) -> None:
        self.totals = Totals()
        self.owner: dict[int, str] = {}
        self.arrays: list[Array] = []
        self._tally: dict[tuple[Status, str], list[int]] = {}
        nodes = list(_placed(tree))
        sums = [self._own(layer) for layer, _, _ in nodes]
        for place in range(len(nodes) - 1, 0, -1):
            sums[nodes[place][2]].add(sums[place])
        self.rows = tuple([_row(layer, depth, counts) for (layer, depth, _), counts in zip(nodes, sums, strict=True)])
        for (kept, dtype), (size, nbytes) in self._tally.items():
            self.totals.add(kept, size, nbytes, dtype)

    def _own(self, layer: Layer) -> _Sums:
        """What the layer itself adds."""
        counts = _Sums()
        path, owner, tally = layer.path, self.owner, self._tally
        arrays = layer.parameters + layer.buffers if layer.buffers else layer.parameters
        self.arrays.extend(map(_remembered, arrays))
        for parameter in arrays:
            status, rows, key = parameter.status, parameter.rows, id(parameter.array)
            counts.statuses |= _FLAGS[status] if rows is None else _PARTIAL
            counts.frozen_rows += 0 if rows is None else len(rows)
            if key in owner:  # also by a second name in the same layer
                counts.again = counts.again if owner[key] == path else owner[key] or "the root"
                continue
            owner[key] = path
            size, nbytes = prod(parameter.shape), parameter.nbytes
            if rows is not None:
                self._count_rows(parameter, rows)
            elif found := tally.get((status, parameter.dtype)):
                found[0] += size
                found[1] += nbytes
            else:
                tally[status, parameter.dtype] = [size, nbytes]
            counts.nbytes += nbytes
            if status == "buffer":
                counts.buffers += size
            else:
                counts.parameters += size
        return counts

    def _count_rows(self, parameter: Parameter, kept: Rows) -> None:
        """Counts frozen rows as frozen."""
        length, frozen = parameter.shape[0], len(kept)
        parts: tuple[tuple[Status, int], ...] = ("frozen", frozen), ("trainable", length - frozen)
        for status, rows in parts:
            found = self._tally.setdefault((status, parameter.dtype), [0, 0])
            found[0] += parameter.size // length * rows
            found[1] += parameter.nbytes // length * rows


_remembered: Callable[[Parameter], Array] = attrgetter("path", "shape", "dtype", "status", "rows")
_FLAGS = {"buffer": 0, "trainable": 1, "frozen": 2}
_PARTIAL = 3
_STATUSES: tuple[LayerStatus, ...] = ("", "trainable", "frozen", "partial")


@dataclass(slots=True)
class _Sums:
    """What is in a layer; ``again`` and ``frozen_rows`` are of the layer itself: who else reaches its arrays, and how many of their rows are frozen."""

    parameters: int = 0
    buffers: int = 0
    nbytes: int = 0
    statuses: int = 0
    again: str = ""
    frozen_rows: int = 0

    def add(self, other: _Sums) -> None:
        self.parameters += other.parameters
        self.buffers += other.buffers
        self.nbytes += other.nbytes
        self.statuses |= other.statuses


def _row(layer: Layer, depth: int, counts: _Sums) -> Row:
    held = layer.inference is not None and not counts.statuses and (counts.buffers > 0 or layer.kind == "dropout")
    status = "held" if held else _STATUSES[counts.statuses]
    in_it = counts.parameters, counts.buffers, counts.nbytes
    drifts = bool(layer.buffers) and _drifts(layer)
    return Row(layer.path, depth, layer.type, layer.kind, layer.output_shape, *in_it, status, counts.again, layer.inference, drifts, counts.frozen_rows)


def _placed(tree: Layer) -> Iterator[tuple[Layer, int, int]]:
    """Yields each layer with its depth and the place of the one that it is in, parents first."""
    pending = [(tree, 0, -1)]
    place = 0
    while pending:
        layer, depth, above = pending.pop()
        yield layer, depth, above
        if layer.children:
            pending.extend([(child, depth + 1, place) for child in reversed(layer.children)])
        place += 1


def _drifts(layer: Layer) -> bool:
    if layer.inference is not None or not layer.parameters:
        return False
    return all(parameter.status == "frozen" for parameter in layer.parameters) and any(buffer.role in {"mean", "variance"} for buffer in layer.buffers)
