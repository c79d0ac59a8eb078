"""The summary as data; each rendering is a room of its own, opened when it is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any

from unifreeze.errors import ArgumentError

from .columns import DEFAULT
from .rows import Array, Row, Totals
from .training import Training

if TYPE_CHECKING:
    from rich.table import Table

    from .diff import Difference

#: The version of the form of ``to_dict`` and ``to_json``; it counts up when a field changes its meaning or goes.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Summary:
    """A table of a model's layers and true totals.

    Attributes:
        label: The model, such as ``Sequential (torch)``.
        rows: A row for each layer that was asked for, parents first, in the model's order unless another was asked for.
        totals: Sums over the whole model, whichever rows are shown.
        notes: What the backend adds: the framework's own figures, where they differ.
        columns: What the table shows, in this order.
        training: What training will need with the optimizer that was named, or ``None``.
        listed: Whether the rows are a list rather than a tree, so that each is called by its whole path.
        layers: The number of layers of the whole model, its own row among them.
    """

    label: str
    rows: tuple[Row, ...]
    totals: Totals
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = DEFAULT
    training: Training | None = None
    listed: bool = False
    layers: int = 0
    _arrays: tuple[Array, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, of the form that the JSON schema in the docs tells: ``version``, ``model``, ``layers``, ``totals``, and so on."""
        plain: dict[str, Any] = {"version": VERSION, "model": self.label, "layers": list(map(row_data, self.rows)), "totals": asdict(self.totals)}
        if self.training is not None:
            plain["training"] = asdict(self.training)
        return plain | ({"notes": list(self.notes)} if self.notes else {})

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns ``to_dict()`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_markdown(self) -> str:
        """Returns a Markdown table and the totals below it."""
        from .text import markdown

        return markdown(self)

    def to_pandas(self) -> Any:
        """Returns a ``pandas.DataFrame`` with a line for each row and the columns of ``to_dict()``'s layers.

        Raises:
            BackendError: If pandas is not installed.
        """
        from .frame import frame

        return frame(self)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Returns one self-contained page, which needs no network, and writes it to ``path``.

        It shows an icicle of the parameters by layer, coloured by status, the totals, and the layers as a tree to fold and to search, light or dark as
        the reader's system is.
        """
        from .page import page

        return page(self, path)

    def plot(self, axes: Any = None) -> Any:
        """Draws the icicle of parameters by layer with matplotlib (``pip install 'unifreeze[plot]'``) and returns its axes.

        Args:
            axes: Where to draw; new axes if left out.

        Raises:
            BackendError: If matplotlib is not installed.
        """
        from .plot import plot

        return plot(self, axes)

    def diff(self, other: object) -> Difference:
        """Returns what changed from this state to another: what became frozen or trainable, what appeared, went, or changed its shape.

        Args:
            other: A ``Summary``, a ``Freezing`` or a model, as it is later.

        Example:
            >>> import pytest; torch = pytest.importorskip("torch")
            >>> from unifreeze import freeze, summary
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> before = summary(model)
            >>> f = freeze(model, layers="0")
            >>> before.diff(model).frozen
            ('0.weight', '0.bias')
        """
        from .diff import difference

        return difference(self, other)

    def show(self, file: IO[str] | None = None) -> None:
        """Prints the table as rich does: in colour and as wide as the terminal, plain where it is piped or ``NO_COLOR`` is set."""
        from rich.console import Console

        Console(file=file).print(self)

    def sentences(self) -> list[str]:
        """Returns the totals in words, and the notes."""
        from .text import sentences

        return sentences(self)

    def _repr_html_(self) -> str:
        from .html import tree

        return tree(self)

    def __rich__(self) -> Table:
        from .text import rich_table

        return rich_table(self)

    def __str__(self) -> str:
        from .plain import plain, terminal_width

        return plain(self, terminal_width())


_readers: list[Callable[[object], Summary]] = []


def read_by(verb: Callable[[object], Summary]) -> None:
    """Says how a model is read, for ``diff``: the verb stands above this room, which can't import it."""
    _readers[:] = [verb]


def summary_of(model: object) -> Summary:
    """Reads a model, or a Freezing."""
    return _readers[0](model)


def row_data(row: Row) -> dict[str, Any]:
    """Returns a row as plain data; what was computed for a column stands beside the rest."""
    shape = None if row.output_shape is None else list(row.output_shape)
    plain = {name: getattr(row, name) for name in _PLAIN}
    return {**plain, "output_shape": shape, **(row.more or {})}


_PLAIN = tuple(name for name in Row.__slots__ if name not in {"output_shape", "more"})


def checked_depth(depth: object) -> None:
    """Refuses what is no depth.

    Raises:
        ArgumentError: If it is no whole number from 0.
    """
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
        raise ArgumentError(f"depth={depth!r} is no depth.\n  It is a whole number from 0 (the model's own row), or None for all layers.")
