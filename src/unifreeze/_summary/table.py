"""The summary as data; each rendering is a room of its own, opened when it is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from unifreeze._tree import Layer
from unifreeze.errors import ArgumentError

from .rows import Count, Row, Totals

if TYPE_CHECKING:
    from rich.table import Table


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
        counted = Count(tree)
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
        from .text import markdown

        return markdown(self)

    def sentences(self) -> list[str]:
        """Returns the totals in words, and the notes."""
        from .text import sentences

        return sentences(self)

    def _repr_html_(self) -> str:
        from .html import table

        return table(self)

    def __rich__(self) -> Table:
        from .text import rich_table

        return rich_table(self)

    def __str__(self) -> str:
        from .text import plain

        return plain(self)
