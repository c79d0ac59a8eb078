"""Summary: what a model is made of and what of it is frozen; data first, rendering apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from ._rows import Rows
from ._tree import Inference, Layer, Parameter, Status
from .errors import ArgumentError

if TYPE_CHECKING:
    from rich.table import Table

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

    def cells(self, indent: str) -> tuple[str, ...]:
        """Returns the row as text, its name indented by depth."""
        name = indent * self.depth + (self.path.rpartition(".")[2] or self.type)
        count = f"{self.parameters:,}" if self.parameters or not self.shared_with else ""
        notes = [f"{self.frozen_rows:,} rows frozen"] if self.frozen_rows else []
        if self.shared_with:
            notes.append(f"shared with {self.shared_with}")
        if self.drifts:
            notes.append("statistics move")
        return name, self.type, _shape(self.output_shape), count, self.status + (f" ({', '.join(notes)})" if notes else "")


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


@dataclass(frozen=True, slots=True)
class Summary:
    """A table of a model's layers and true totals.

    Attributes:
        label: The model, such as ``Sequential (torch)``.
        rows: A row for each layer, parents first, in the model's order. The root's row stands first.
        totals: Sums over the whole model.
        notes: What the backend adds: the framework's own figures, where they differ.
    """

    label: str
    rows: tuple[Row, ...]
    totals: Totals
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, tree: Layer, label: str, *, depth: int | None = None, notes: tuple[str, ...] = ()) -> Summary:
        """Reads a summary off a tree, in one pass: linear in the number of layers.

        Raises:
            ArgumentError: If ``depth`` is no whole number from 0.
        """
        if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
            raise ArgumentError(f"depth={depth!r} is no depth.\n  It is a whole number from 0 (the model's own row), or None for all layers.")
        counted = _Count(tree)
        return cls(label, tuple(row for row in counted.rows if depth is None or row.depth <= depth), counted.totals, notes)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: ``model``, ``layers`` (one object for each row), ``totals``, and ``notes`` where there are any."""
        plain = {"model": self.label, "layers": [asdict(row) for row in self.rows], "totals": asdict(self.totals)}
        return plain | ({"notes": list(self.notes)} if self.notes else {})

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns ``to_dict()`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_markdown(self) -> str:
        """Returns a Markdown table and the totals below it."""
        head, *rows = ([cell.replace("|", "\\|") for cell in line] for line in self._table("&nbsp;&nbsp;"))
        rule = ["--:" if word == _COUNT else "---" for word in head]
        table = [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]
        return "\n".join([*table, "", *(f"- {line}" for line in self.sentences())])

    def sentences(self) -> list[str]:
        """Returns the totals in words, and the notes."""
        t = self.totals
        by_dtype = ", ".join(f"{dtype} {_bytes(size)}" for dtype, size in sorted(t.bytes_by_dtype.items()))
        return [
            f"Parameters: {t.parameters:,} ({_bytes(t.bytes_trainable + t.bytes_frozen)})",
            f"trainable: {t.trainable:,} ({_bytes(t.bytes_trainable)})",
            f"frozen: {t.frozen:,} ({_bytes(t.bytes_frozen)})",
            f"Buffers: {t.buffers:,} ({_bytes(t.bytes_buffers)})",
            f"Bytes by type: {by_dtype or 'none'}",
            *self.notes,
        ]

    def _table(self, indent: str) -> Iterator[list[str]]:
        """The head and the rows as text. A column that would be empty in every row (output shapes in PyTorch) is left out."""
        shapes = any(row.output_shape is not None for row in self.rows)
        kept = [place for place, word in enumerate(_HEAD) if shapes or word != "Output shape"]
        for cells in (_HEAD, *(row.cells(indent) for row in self.rows)):
            yield [cells[place] for place in kept]

    def _repr_html_(self) -> str:
        import html

        head, *rows = self._table("\u2003")
        align = ["right" if word == _COUNT else "left" for word in head]
        lines = [
            "".join(f"<{tag} style='text-align:{side}'>{html.escape(cell)}</{tag}>" for cell, side in zip(line, align, strict=True))
            for tag, line in [("th", head), *(("td", row) for row in rows)]
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines[1:])
        totals = "<br>".join(map(html.escape, self.sentences()))
        return f"<table><caption>{html.escape(self.label)}</caption><thead><tr>{lines[0]}</tr></thead><tbody>{body}</tbody></table><p>{totals}</p>"

    def __rich__(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        head, *rows = self._table("  ")
        table = Table(title=self.label, caption="\n".join(self.sentences()), caption_justify="left", box=box.SIMPLE_HEAD)
        for word in head:
            table.add_column(word, justify="right" if word == _COUNT else "left", overflow="fold")
        for *cells, status in rows:
            table.add_row(*map(Text, cells), Text(status, style=_STYLE.get(status.partition(" ")[0], "dim")))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = StringIO()
        Console(file=out, width=_width(), color_system=None).print(self)
        return out.getvalue().rstrip()


_HEAD = ("Layer", "Type", "Output shape", "Parameters", "Status")
_COUNT = "Parameters"
_STYLE = {"trainable": "green", "frozen": "cyan", "partial": "yellow", "held": "cyan"}


class _Count:
    """Counts every array at the first layer that reaches it, then adds up from the leaves."""

    def __init__(self, tree: Layer) -> None:
        self.totals = Totals()
        self.owner: dict[int, str] = {}
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
        for parameter in (*layer.parameters, *layer.buffers) if layer.buffers else layer.parameters:
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


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return "" if shape is None else "(" + ", ".join("-" if axis is None else str(axis) for axis in shape) + ")"


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:,.2f} {unit}"
        amount /= 1024
    raise AssertionError


def _width() -> int:
    import shutil

    return max(shutil.get_terminal_size((100, 24)).columns, 60)
