"""Reading a pytree: its containers as nodes, in the order in which the model defined them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax

from .refusals import refuse_optimizer_state, refuse_without_floats
from .tree import PASSING, inside, is_array, is_inexact, joined, leaf_name, loses_order, shelves, split, told_apart, unboxed


@dataclass(slots=True, eq=False)
class Node:
    """A container that holds arrays, while the tree is being read."""

    name: str = ""
    native: object = None
    keys: list[str] = field(default_factory=list)
    sorts: bool = True
    beside: bool = False  # stands in no collection of parameters, only in another
    arrays: list[tuple[str, Any, bool]] = field(default_factory=list)  # dotted path, array, whether it stands among the parameters
    children: dict[str, Node] = field(default_factory=dict)
    lost_order: str = ""
    mapped: bool = False


def read(tree: Any) -> Node:
    """Reads a tree as nodes in the model's order, each with the arrays that it owns. Containers without arrays are left out."""
    reader = Reader(tree)
    for shelf, part in shelves(tree):
        reader.add(shelf, part)
    root = reader.read()
    _arrange(root)
    return root


class Reader:
    """Lays the collections of a tree over each other, with an own stack, so that depth is no limit."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.root = Node()
        self.names: list[str] = []
        self.of: list[str] = []
        self.found: list[tuple[Node | None, Any]] = []

    def add(self, shelf: str, part: Any) -> None:
        """Reads a collection."""
        pending: list[tuple[Node, str, str | None, Any]] = [(self.root, "", None, part)]
        while pending:
            above, path, key, node = pending.pop()
            below = inside(node)
            if below is None:
                self._leaf(None, leaf_name(path, key, shelf), shelf, node)
                continue
            here = path if key is None else joined(path, key)
            refuse_optimizer_state(node, here)
            owner = above if key is None else _at(above, split(key))
            if owner.native is None:
                owner.native, owner.keys, owner.sorts = node, [name for name, _ in below], loses_order(node)
            later, short = [], shelf == "params"  # a short way for nearly all leaves, until one of this container needs the long way
            for name, child in below:
                if type(child) is dict:
                    later.append((owner, here, name, child))
                elif short and name and "." not in name and "/" not in name and is_array(child):
                    self._leaf(owner, f"{here}.{name}" if here else name, shelf, child)
                else:
                    later.append((owner, here, name, child))
                    short = False
            pending.extend(reversed(later))

    def _leaf(self, owner: Node | None, name: str, shelf: str, leaf: Any) -> None:
        if owner is None:
            leaf = unboxed(leaf)
            owner = _at(self.root, name.split(".")[:-1]) if is_array(leaf) and shelf not in PASSING else None
        self.names.append(name)
        self.of.append(shelf)
        self.found.append((owner, leaf))

    def read(self) -> Node:
        """Returns the root."""
        trains = False
        for name, shelf, (owner, leaf) in zip(told_apart(self.names, self.of, self.tree), self.of, self.found, strict=True):
            if owner is not None:
                owner.arrays.append((name, leaf, shelf == "params"))
                trains = trains or is_inexact(leaf.dtype)
        if not trains:
            leaves = jax.tree_util.tree_flatten_with_path(self.tree)[0]
            refuse_without_floats([f"{jax.tree_util.keystr(keys)} ({leaf.dtype})" for keys, leaf in leaves if is_array(leaf)])
        self.root.native = self.tree
        for node in reversed(_below(self.root)):
            if node.children:
                node.children = {name: child for name, child in node.children.items() if child.arrays or child.children}
            if not (node.arrays and node.arrays[0][2]):  # nearly always the first tells
                node.beside = not (any(ours for _, _, ours in node.arrays) or any(not child.beside for child in node.children.values()))
        return self.root


def _at(node: Node, parts: Sequence[str]) -> Node:
    """The node so far below another one, made where there is none."""
    for part in parts:
        if part not in node.children:
            node.children[part] = Node(part)
        node = node.children[part]
    return node


def _below(root: Node) -> list[Node]:
    """All nodes, parents first."""
    nodes = [root]
    for node in nodes:
        nodes.extend(node.children.values())
    return nodes


@lru_cache(maxsize=1 << 16)
def stem(name: str) -> tuple[str, int]:
    """Parts a numbered name.

    >>> stem("Dense_10"), stem("linear"), stem("block3")
    (('Dense', 10), ('linear', -1), ('block', 3))
    """
    match = re.fullmatch(r"(.*?)[_-]?(\d+)", name)
    return (match[1], int(match[2])) if match else (name, -1)


def _arrange(root: Node) -> None:
    """Brings numbered siblings into natural order, and says of each node whether the order of its children can be trusted.

    JAX sorts the keys of every dict that goes through ``jit`` or ``tree_map``. A dict with unsorted keys has not been there, and its order is the model's.
    """
    nodes = _below(root)
    for node in reversed(nodes):
        node.mapped = node.sorts and _bias_first(tuple(node.keys))
        if node.children and not node.mapped:
            node.mapped = (node.sorts and _numbers_sorted_as_text(list(node.children))) or any(child.mapped for child in node.children.values())
    untouched = any(node.sorts and node.keys != sorted(node.keys) for node in nodes)
    for node in nodes:
        if node.sorts and len(node.children) > 1:
            node.lost_order = _why_lost(node, untouched=untouched)
            node.children = _by_number(node.children)


_WEIGHTS = frozenset({"kernel", "w", "weight", "scale", "gamma", "embedding"})
_BIASES = frozenset({"bias", "b", "offset", "beta"})


@lru_cache(maxsize=1 << 10)
def _bias_first(keys: tuple[str, ...]) -> bool:
    """Whether keys bear the mark of sorting: every framework defines a layer's weight before its bias."""
    first = next((key for key in keys if key in _WEIGHTS or key in _BIASES), "")
    return first in _BIASES and not _WEIGHTS.isdisjoint(keys)


def _numbers_sorted_as_text(keys: list[str]) -> bool:
    return keys == sorted(keys) and list(_by_number(dict.fromkeys(keys))) != keys


def _by_number(children: dict[str, Any]) -> dict[str, Any]:
    """Orders those that differ in their number only, among the places that they have."""
    queues: dict[str, list[str]] = {}
    for name in sorted(children, key=stem):
        queues.setdefault(stem(name)[0], []).append(name)
    order = [queues[stem(name)[0]].pop(0) for name in children]
    return {name: children[name] for name in order}


def _why_lost(node: Node, *, untouched: bool) -> str:
    names = list(node.children)
    if len({stem(name)[0] for name in names}) == 1:
        return ""
    beside = [name for name, child in node.children.items() if child.beside]
    if beside and len(beside) < len(names):
        return f"{', '.join(beside[:3])}: only statistics are stored of it, and not its place among the layers that have parameters."
    if untouched and not node.mapped:
        return ""
    # A sorted dict may have been given more keys, and a new dict may be made of mapped ones: then its first keys tell.
    run = next((i for i in range(1, len(names)) if names[i] < names[i - 1]), len(names))
    if run < len(names) and len({stem(name)[0] for name in names[:run]}) == 1:
        return ""
    return "The keys of its dict are sorted. JAX sorts them under jit and tree_map, so they do not tell in which order the layers stand."
