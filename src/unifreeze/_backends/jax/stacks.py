"""Which parts of a tree are stacks: layers that ``nn.scan``, ``jax.lax.scan`` or ``vmap`` run over, with one array for all of them.

A pytree does not say so. Every array of a stack has one axis of the same length, and then so have those that are vectors in a single layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .tree import Node

_VECTORS = {"bias", "b", "scale", "offset", "gamma", "beta"}
_STACKED_NAMES = {"layers", "blocks", "stack", "cells", "h", "encoder_layers", "decoder_layers", "encoderblocks", "decoderblocks"}


@dataclass(slots=True)
class Common:
    """What the parameters of a sub-tree have in common.

    Attributes:
        count: How many they are.
        lengths: The length that all of them have on their first axis, and on their second; 0 where they differ.
        rank: The highest number of axes.
        vector: The lowest number of axes of those that are vectors in a single layer; 0 if there is none.
    """

    count: int = 0
    lengths: tuple[int, int] = (0, 0)
    rank: int = 0
    vector: int = 0

    def add(self, other: Common) -> None:
        """Adds another sub-tree."""
        if not self.count:
            self.count, self.lengths, self.rank, self.vector = other.count, other.lengths, other.rank, other.vector
        elif other.count:
            self.count += other.count
            self.lengths = tuple(mine if mine == theirs else 0 for mine, theirs in zip(self.lengths, other.lengths, strict=True))  # type: ignore[assignment]
            self.rank = max(self.rank, other.rank)
            self.vector = min(self.vector or other.vector, other.vector or self.vector)


def stacks(order: list[tuple[str, Node]]) -> dict[int, int]:
    """For every node that lies in a stack: how many layers the stack holds, by the node's identity.

    Args:
        order: All nodes of a tree with their paths, parents first.
    """
    if not any(map(_hints_at_a_stack, (node for _, node in order))):
        return {}
    common: dict[int, Common] = {}
    for _, node in reversed(order):
        sums = common[id(node)] = Common()
        for path, array, ours in node.arrays:
            if ours:
                sums.add(_of(path.rpartition(".")[2], array))
        for child in node.children.values():
            sums.add(common[id(child)])
    found: dict[int, int] = {}
    for _, node in order:
        length = found.get(id(node)) or _length(node, common[id(node)])
        if length:
            found[id(node)] = length
            found |= dict.fromkeys((id(child) for child in node.children.values()), length)
    return found


def _hints_at_a_stack(node: Node) -> bool:
    """Whether a node itself could tell; most trees have no such node."""
    if _is_name_of_stacks(node.name):
        return True
    return any(len(array.shape) > 1 and path.rpartition(".")[2] in _VECTORS for path, array, ours in node.arrays if ours)


def _is_name_of_stacks(name: str) -> bool:
    plain = name.lower()
    return plain in _STACKED_NAMES or "scan" in plain or "stack" in plain


def _of(name: str, array: Any) -> Common:
    shape = array.shape
    return Common(1, (shape[0] if shape else 0, shape[1] if len(shape) > 1 else 0), len(shape), len(shape) if name in _VECTORS else 0)


def _length(node: Node, common: Common) -> int:
    """How many layers are stacked in a sub-tree; 0 for an ordinary one."""
    if common.count < 2 or common.rank < 2 or not any(length > 1 for length in common.lengths):
        return 0
    by_vectors = common.vector > 1 and common.rank > common.vector
    by_name = _is_name_of_stacks(node.name) and common.vector != 1 and not any(name[-1:].isdigit() for name in node.children)
    return next((length for length in common.lengths if length > 1), 0) if by_vectors or by_name else 0
