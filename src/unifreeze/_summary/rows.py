"""The rows and the totals: every array counted once, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
        """Counts one array."""
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
        nodes = list(_with_depth(tree))
        own = [self._own(layer) for layer, _ in nodes]
        sums: dict[str, _Sums] = {}
        rows: list[Row] = []
        for (layer, depth), (counts, again, frozen_rows) in zip(reversed(nodes), reversed(own), strict=True):
            for child in layer.children:
                counts.add(sums[child.path])
            sums[layer.path] = counts
            status = _status(counts.statuses, held=layer.inference is not None and (counts.buffers > 0 or layer.kind == "dropout"))
            sums_of_row = counts.parameters, counts.buffers, counts.nbytes
            behaviour = layer.inference, bool(layer.buffers) and _drifts(layer), frozen_rows
            rows.append(Row(layer.path, depth, layer.type, layer.kind, layer.output_shape, *sums_of_row, status, again, *behaviour))
        self.rows = tuple(reversed(rows))

    def _own(self, layer: Layer) -> tuple[_Sums, str, int]:
        """What the layer itself adds, who else reaches its arrays, and how many rows of them are frozen."""
        counts = _Sums()
        again, frozen_rows = "", 0
        remember = self.arrays.append
        for parameter in (*layer.parameters, *layer.buffers) if layer.buffers else layer.parameters:
            remember((parameter.path, parameter.shape, parameter.dtype, parameter.status, parameter.rows))
            counts.statuses |= _FLAGS[parameter.status] if parameter.rows is None else _PARTIAL
            frozen_rows += 0 if parameter.rows is None else len(parameter.rows)
            key = id(parameter.array)
            first = self.owner.get(key)
            if first is not None:  # also by a second name in the same layer
                again = again if first == layer.path else first or "the root"
                continue
            self.owner[key] = layer.path
            size = parameter.size
            if parameter.rows is None:
                self.totals.add(parameter.status, size, parameter.nbytes, parameter.dtype)
            else:
                self._add_rows(parameter, parameter.rows, size)
            counts.nbytes += parameter.nbytes
            if parameter.status == "buffer":
                counts.buffers += size
            else:
                counts.parameters += size
        return counts, again, frozen_rows

    def _add_rows(self, parameter: Parameter, kept: Rows, size: int) -> None:
        """Counts frozen rows as frozen."""
        length, frozen = parameter.shape[0], len(kept)
        parts: tuple[tuple[Status, int], ...] = ("frozen", frozen), ("trainable", length - frozen)
        for status, rows in parts:
            self.totals.add(status, size // length * rows, parameter.nbytes // length * rows, parameter.dtype)


_FLAGS = {"buffer": 0, "trainable": 1, "frozen": 2}
_PARTIAL = 3


@dataclass(slots=True)
class _Sums:
    parameters: int = 0
    buffers: int = 0
    nbytes: int = 0
    statuses: int = 0

    def add(self, other: _Sums) -> None:
        self.parameters += other.parameters
        self.buffers += other.buffers
        self.nbytes += other.nbytes
        self.statuses |= other.statuses


def _with_depth(tree: Layer) -> Iterable[tuple[Layer, int]]:
    pending = [(tree, 0)]
    while pending:
        layer, depth = pending.pop()
        yield layer, depth
        if layer.children:
            pending.extend((child, depth + 1) for child in reversed(layer.children))


def _drifts(layer: Layer) -> bool:
    if layer.inference is not None or not layer.parameters:
        return False
    return all(parameter.status == "frozen" for parameter in layer.parameters) and any(buffer.role in {"mean", "variance"} for buffer in layer.buffers)


def _status(flags: int, *, held: bool) -> LayerStatus:
    status: tuple[LayerStatus, ...] = ("held" if held else "", "trainable", "frozen", "partial")
    return status[flags]
