"""Which parts of a tree are stacks: layers that ``nn.scan``, ``jax.lax.scan`` or ``vmap`` run over, with one array for all of them.

The modules of nnx and equinox tell how many axes their arrays have in a single layer (``told``). A pytree does not say so, and is guessed at: every array of
a stack has one axis of the same length, and then so have those that are vectors in a single layer. A guess never freezes anything: a stack is refused where
layers are counted, and whatever it is, its parts can be picked by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unifreeze.plugin import Layer, Parameter

from .kinds import Seen
from .nodes import Node, stem

_VECTORS = {"bias", "b", "scale", "offset", "gamma", "beta"}
_KERNELS = ("kernel", "w", "weight")
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


def told(axes: Mapping[str, int], parameters: Sequence[Parameter], children: Sequence[Layer]) -> int:
    """Returns how many layers are stacked in a module; 0 for an ordinary one.

    Args:
        axes: For the parameters of which it is known, by name: the number of their axes in a single layer.
        parameters: What the module owns itself.
        children: The layers in it, told already.
    """
    if any(len(parameter.shape) <= axes[parameter.name] for parameter in parameters if parameter.name in axes):
        return 0
    inside = {child.stack for child in children if child.parameters or child.children}
    known = any(parameter.name in axes for parameter in parameters)
    if len(inside) > 1 or 0 in inside or not (inside or known):
        return 0
    shared = [{parameter.shape[axis] for parameter in parameters if len(parameter.shape) > axis} for axis in (0, 1)]
    lengths = [inside | found for found in shared if len(inside | found) == 1]
    return min(lengths[0]) if lengths else 0


def stacks(nodes: list[Node]) -> dict[int, int]:
    """For every node that lies in a stack: how many layers the stack holds, by the node's identity.

    Args:
        nodes: All nodes of a tree, parents first.
    """
    common: dict[int, Common] = {}
    for node in reversed(nodes):
        sums = common[id(node)] = Common()
        own = {name: leaf.shape for name, leaf, ours in zip(node.names, node.leaves, node.ours, strict=True) if ours}
        kernel = next((own[name] for name in _KERNELS if name in own), ())
        for name, shape in own.items():
            sums.add(_of(shape, _axes_of_vector(shape, kernel) if name in _VECTORS else 0))
        for child in node.children.values():
            sums.add(common[id(child)])
    found: dict[int, int] = {}
    for node in nodes:
        length = found.get(id(node)) or _length(node, common[id(node)])
        if length:
            found[id(node)] = length
            found |= dict.fromkeys((id(child) for child in node.children.values()), length)
    return found


def hints_at_a_stack(base: str, arrays: Iterable[Seen], *, numbered: bool) -> bool:
    """Whether a layer itself could tell of a stack; most trees have no such layer, and no stack.

    Args:
        base: Its name without its number.
        arrays: The arrays that it owns itself.
        numbered: Whether its name has a number.
    """
    if _is_name_of_stacks(base, numbered=numbered):
        return True
    return any(ours and len(shape) > 1 and name in _VECTORS for name, shape, _, ours in arrays)


def _is_name_of_stacks(base: str, *, numbered: bool) -> bool:
    plain = base.lower()
    return (plain in _STACKED_NAMES and not numbered) or "scan" in plain or "stack" in plain


def _of(shape: tuple[int, ...], vector: int) -> Common:
    return Common(1, (shape[0] if shape else 0, shape[1] if len(shape) > 1 else 0), len(shape), vector)


def _axes_of_vector(shape: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """How many axes an array has that is a vector in a single layer; 0 where they tell nothing.

    The bias of a convolution may have axes of length 1 for its pixels, and that of a general dense layer one for each axis of its output.
    """
    if len(shape) < 2 or not kernel:
        return len(shape)
    if shape == kernel[-len(shape) :] and shape[0] != kernel[0]:
        return 0
    pixels = shape[-1] == 1 and (len(shape) > 2 or 1 not in kernel[1:]) and set(shape[1:]) == {1}
    return 1 if pixels else len(shape)


def _length(node: Node, common: Common) -> int:
    """How many layers are stacked in a sub-tree; 0 for an ordinary one."""
    if common.count < 2 or common.rank < 2 or not any(length > 1 for length in common.lengths):
        return 0
    by_vectors = common.vector > 1 and common.rank > common.vector
    base, number = stem(node.name)
    named = _is_name_of_stacks(base, numbered=number >= 0) and not any(name[-1:].isdigit() for name in node.children)
    by_name = named and common.rank > 2 and common.vector != 1
    return next((length for length in common.lengths if length > 1), 0) if by_vectors or by_name else 0
