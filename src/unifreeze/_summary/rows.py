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
        self._flags: list[int] = []
        rows = [self._own(layer, depth) for layer, depth, _ in nodes]
        for place in range(len(nodes) - 1, 0, -1):
            self._add(rows, place, nodes[place][2])
        for row, (layer, _, _), flags in zip(rows, nodes, self._flags, strict=True):
            row.status = _STATUSES[flags] if flags or layer.inference is None else _held(row)
        self.rows = tuple(rows)
        for (kept, dtype), (size, nbytes) in self._tally.items():
            self.totals.add(kept, size, nbytes, dtype)

    def _own(self, layer: Layer, depth: int) -> Row:
        """What the layer itself adds; what is in it follows."""
        path, owner, tally = layer.path, self.owner, self._tally
        parameters = buffers = nbytes = flags = frozen_rows = 0
        again = ""
        arrays = layer.parameters + layer.buffers if layer.buffers else layer.parameters
        self.arrays.extend(map(_remembered, arrays))
        for one in arrays:
            status, rows, key = one.status, one.rows, id(one.array)
            flags |= _FLAGS[status] if rows is None else _PARTIAL
            frozen_rows += 0 if rows is None else len(rows)
            if key in owner:  # also by a second name in the same layer
                again = again if owner[key] == path else owner[key] or "the root"
                continue
            owner[key] = path
            size = prod(one.shape)
            if rows is not None:
                self._count_rows(one, rows)
            elif found := tally.get((status, one.dtype)):
                found[0] += size
                found[1] += one.nbytes
            else:
                tally[status, one.dtype] = [size, one.nbytes]
            nbytes += one.nbytes
            if status == "buffer":
                buffers += size
            else:
                parameters += size
        self._flags.append(flags)
        drifts = bool(layer.buffers) and _drifts(layer)
        in_it = parameters, buffers, nbytes
        return Row(path, depth, layer.type, layer.kind, layer.output_shape, *in_it, "", again, layer.inference, drifts, frozen_rows)

    def _add(self, rows: list[Row], place: int, above: int) -> None:
        """Adds what is in a layer to the one that it is in."""
        row, outer = rows[place], rows[above]
        outer.parameters += row.parameters
        outer.buffers += row.buffers
        outer.nbytes += row.nbytes
        self._flags[above] |= self._flags[place]

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


def _held(row: Row) -> LayerStatus:
    """The status of a layer without parameters that is held."""
    return "held" if row.buffers or row.kind == "dropout" else ""


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
