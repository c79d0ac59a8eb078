"""Rows as a tree again, whichever of them are shown and in whatever order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .rows import Row


@dataclass(slots=True)
class Node:
    """A row and the rows inside it.

    Attributes:
        row: The row; ``None`` for what holds the others where the model's own row is not shown.
        children: Those right inside it, in the order of the rows.
    """

    row: Row | None
    children: list[Node] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """The elements that it stands for, all equal ones together."""
        return sum(child.parameters for child in self.children) if self.row is None else self.row.parameters * self.row.repeat

    def walk(self) -> Iterator[tuple[Node, int]]:
        """Yields this node and everything below it with its depth, parents first."""
        pending = [(self, 0)]
        while pending:
            node, depth = pending.pop()
            yield node, depth
            pending.extend((child, depth + 1) for child in reversed(node.children))


def nested(rows: Sequence[Row]) -> Node:
    """Puts every row into the nearest one above it that is shown."""
    nodes = {row.path: Node(row) for row in rows}
    root = nodes.get("") or Node(None)
    for row in rows:
        if row.path:
            _above(row.path, nodes, root).children.append(nodes[row.path])
    return root


def _above(path: str, nodes: dict[str, Node], root: Node) -> Node:
    while path:
        path = path.rpartition(".")[0]
        if path in nodes:
            return nodes[path]
    return root
