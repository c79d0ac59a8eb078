"""Turning the nodes of a tree into layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from unifreeze.plugin import Layer, Parameter, Status, role

from .kinds import Seen, is_parameter, kind_of, state_role, type_of
from .nodes import Node, below, stem
from .stacks import hints_at_a_stack, stacks
from .tree import dtype_name, is_inexact

Traits = tuple[str, tuple[int, ...], str, int, Status, str, str]


@dataclass(frozen=True, slots=True)
class Form:
    """What is the same for all layers of a name with arrays of the same names, shapes and types; a large model has few of these.

    Attributes:
        kind: What such a layer does.
        type: Its class name.
        traits: Of each array: name, shape, element type, bytes, status, role, and why it can't be trained.
        plain: Whether none of the arrays is a buffer.
        keeps_state: Whether such a layer may keep state in another tree.
        hints_at_a_stack: Whether its name or one of the arrays hints at a stack.
    """

    kind: str
    type: str
    traits: tuple[Traits, ...]
    plain: bool
    keeps_state: bool
    hints_at_a_stack: bool


def layer_of(root: Node, *, bare: bool) -> Layer:
    """Turns nodes into layers, from the leaves up.

    Args:
        root: The root.
        bare: Whether the tree has no collections, so that state may lie in another tree.
    """
    nodes = below(root)
    forms = [_form_of(node) for node in nodes]
    stacked = stacks(nodes) if any(form.hints_at_a_stack for form in forms) else {}
    done: dict[int, Layer] = {}
    for node, form in zip(reversed(nodes), reversed(forms), strict=True):
        above = f"{node.path}." if node.path else ""
        arrays = tuple(
            [
                Parameter(above + name, shape, dtype, nbytes, status, its_role, leaf, untrainable)
                for (name, shape, dtype, nbytes, status, its_role, untrainable), leaf in zip(form.traits, node.leaves, strict=True)
            ]
        )
        done[id(node)] = Layer(
            node.path,
            form.kind,
            form.type,
            arrays if form.plain else tuple([array for array in arrays if array.status != "buffer"]),
            () if form.plain else tuple([array for array in arrays if array.status == "buffer"]),
            tuple([done[id(child)] for child in node.children.values()]) if node.children else (),
            None,
            None,
            node.native,
            node.lost_order,
            bare and form.keeps_state,
            stacked.get(id(node), 0),
        )
    return done[id(root)]


def _form_of(node: Node) -> Form:
    base, number = stem(node.name)
    shapes, dtypes = tuple([leaf.shape for leaf in node.leaves]), tuple([leaf.dtype for leaf in node.leaves])
    native: Any = type(node.native)
    return _form(base, number >= 0, native, (tuple(node.names), shapes, dtypes, tuple(node.ours)))


@lru_cache(maxsize=1 << 12)
def _form(base: str, numbered: bool, native: type, arrays: tuple[tuple[Any, ...], ...]) -> Form:
    seen: list[Seen] = list(zip(*arrays, strict=True))
    kind = kind_of(base, seen)
    traits = tuple([_traits(kind, one) for one in seen])
    return Form(
        kind,
        type_of(base, kind, native, numbered=numbered),
        traits,
        plain=all(status != "buffer" for _, _, _, _, status, _, _ in traits),
        keeps_state=kind not in {"dense", "conv", "embedding"},
        hints_at_a_stack=hints_at_a_stack(base, seen, numbered=numbered),
    )


def _traits(kind: str, seen: Seen) -> Traits:
    name, shape, dtype, ours = seen
    size = prod(shape) * dtype.itemsize
    if not is_parameter(name, dtype, kind, ours=ours):
        return name, shape, dtype_name(dtype), size, "buffer", state_role(name, dtype), ""
    untrainable = "" if is_inexact(dtype) else f"{dtype} has no gradient"
    return name, shape, dtype_name(dtype), size, "frozen" if untrainable else "trainable", role(kind, name), untrainable
