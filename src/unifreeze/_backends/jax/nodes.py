"""Reading a pytree: its containers as nodes, in the order in which the model defined them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any, Self

import jax
import numpy as np

from .refusals import refuse_optimizer_state, refuse_without_floats
from .tree import PASSING, inside, is_array, is_inexact, is_plain, leaf_name, loses_order, shelves, split, told_apart, unboxed


@dataclass(frozen=True, slots=True)
class Keys:
    """What the keys of a container tell; a large model has few that differ.

    Attributes:
        names: The keys as text.
        ours: ``True`` for each, for a container of parameters.
        plain: Whether each is one component of a path, and no two are the same.
        in_order: Whether they are sorted.
        bias_first: Whether they bear the mark of sorting: every framework defines a layer's weight before its bias.
    """

    names: tuple[str, ...] = ()
    ours: tuple[bool, ...] = ()
    plain: bool = True
    in_order: bool = True
    bias_first: bool = False

    @classmethod
    def of(cls, keys: Iterable[Any]) -> Self:
        """Reads the keys."""
        names = tuple([key if type(key) is str else str(key) for key in keys])
        plain = all(map(is_plain, names)) and len(set(names)) == len(names)
        return cls(names, (True,) * len(names), plain, list(names) == sorted(names), _bias_first(names))


@dataclass(slots=True, eq=False)
class Node:
    """A container that holds arrays, while the tree is being read."""

    name: str = ""
    path: str = ""
    native: object = None
    keys: Keys = Keys()
    sorts: bool = True
    beside: bool = False  # stands in no collection of parameters, only in another
    # Of the arrays that it owns: the last components of their paths, themselves, and whether they stand among the parameters.
    names: Sequence[str] = ()
    leaves: Sequence[Any] = ()
    ours: Sequence[bool] = ()
    children: dict[str, Node] = field(default_factory=dict)
    lost_order: str = ""
    mapped: bool = False

    def child(self, name: str) -> Node:
        """The node of that name in this one, made where there is none."""
        found = self.children.get(name)
        if found is None:
            found = self.children[name] = Node(name, f"{self.path}.{name}" if self.path else name)
        return found

    def at(self, parts: Iterable[str]) -> Node:
        """The node so far below this one, made where there is none."""
        node = self
        for part in parts:
            node = node.child(part)
        return node

    def take(self, names: Sequence[str], leaves: Sequence[Any], ours: Sequence[bool]) -> None:
        """Notes arrays as its own."""
        if not self.leaves:
            self.names, self.leaves, self.ours = names, leaves, ours
        elif isinstance(self.names, list) and isinstance(self.leaves, list) and isinstance(self.ours, list):
            self.names.extend(names)
            self.leaves.extend(leaves)
            self.ours.extend(ours)
        else:
            self.names, self.leaves, self.ours = [*self.names, *names], [*self.leaves, *leaves], [*self.ours, *ours]


def read(tree: Any) -> Node:
    """Reads a tree as nodes in the model's order, each with the arrays that it owns. Containers without arrays are left out."""
    reader = Reader(tree)
    for shelf, part in shelves(tree):
        reader.add(shelf, part)
    root = reader.read()
    _arrange(root)
    return root


class Shape(jax.ShapeDtypeStruct):
    """The shape of one array: where the same object stands twice, it is the array that is shared. A user's own shape may stand for any number of arrays."""

    __slots__ = ()


# What the short way need not ask about.
_EASY = frozenset({dict, jax.ShapeDtypeStruct, np.ndarray})


class Reader:
    """Lays the collections of a tree over each other, with an own stack, so that depth is no limit."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.root = Node()
        # What was found at a time: whose it is, the last components of the paths, the leaves, and the collection.
        self.finds: list[tuple[Node | None, Sequence[str], Sequence[Any], str]] = []
        self.unlike = True  # whether no two paths can be the same, because every container went the short way
        self._keys: dict[tuple[Any, ...], Keys] = {}

    def add(self, shelf: str, part: Any) -> None:
        """Reads a collection."""
        pending: list[tuple[Node, str | None, Any]] = [(self.root, None, part)]
        while pending:
            above, key, node = pending.pop()
            inner = _inside(node)
            if inner is None:
                self._leaf(leaf_name(above.path, key, shelf), shelf, node)
                continue
            raw, below = inner
            owner = above if key is None else above.at(split(key))
            keys = self._named(owner, node, raw)
            if shelf == "params" and keys.plain and (_EASY.issuperset(map(type, below)) or all(type(one) is dict or is_array(one) for one in below)):
                pending.extend(self._short(owner, keys, below))
            else:
                self.unlike = False
                pending.extend([(owner, name, child) for name, child in zip(reversed(keys.names), reversed(below), strict=True)])

    def _named(self, owner: Node, node: Any, raw: tuple[Any, ...]) -> Keys:
        """Notes what a node was read of, the first time."""
        keys = self._keys.get(raw)
        if keys is None:
            keys = self._keys[raw] = Keys.of(raw)
        if owner.native is None:
            owner.native, owner.keys, owner.sorts = node, keys, type(node) is dict or loses_order(node)
        if type(node) is not dict:
            refuse_optimizer_state(node, owner.path)
        return keys

    def _short(self, owner: Node, keys: Keys, below: list[Any]) -> list[tuple[Node, str | None, Any]]:
        """A short way for nearly all containers, which hold arrays and dicts alone, under plain keys; returns the dicts, the last one first."""
        if dict not in map(type, below):
            self._found(owner, keys.names, below, keys.ours, "params")
            return []
        inner = list(zip(keys.names, below, strict=True))
        arrays = [(name, child) for name, child in inner if type(child) is not dict]
        if arrays:
            names, leaves = zip(*arrays, strict=True)
            self._found(owner, names, leaves, (True,) * len(arrays), "params")
        dicts: list[tuple[Node, str | None, Any]] = [(owner.child(name), None, child) for name, child in inner if type(child) is dict]
        return dicts[::-1]

    def _leaf(self, name: str, shelf: str, leaf: Any) -> None:
        leaf = unboxed(leaf)
        if is_array(leaf) and shelf not in PASSING:
            *parts, own = name.split(".")
            self._found(self.root.at(parts), (own,), (leaf,), (shelf == "params",), shelf)
        else:
            self.finds.append((None, (name,), (leaf,), shelf))

    def _found(self, owner: Node, names: Sequence[str], leaves: Sequence[Any], ours: Sequence[bool], shelf: str) -> None:
        owner.take(names, leaves, ours)
        self.finds.append((owner, names, leaves, shelf))

    def read(self) -> Node:
        """Returns the root."""
        if not self.unlike:
            self._tell_apart()
        self.root.native = self.tree
        nodes = below(self.root)
        if not any(is_inexact(leaf.dtype) for node in nodes for leaf in node.leaves):
            leaves = jax.tree_util.tree_flatten_with_path(self.tree)[0]
            refuse_without_floats([f"{jax.tree_util.keystr(keys)} ({leaf.dtype})" for keys, leaf in leaves if is_array(leaf)])
        _part(nodes)
        for node in reversed(nodes):
            if node.children:
                node.children = {name: child for name, child in node.children.items() if child.leaves or child.children}
        for node in nodes[::-1] if any(shelf != "params" for *_, shelf in self.finds) else ():
            node.beside = not (any(node.ours) or any(not child.beside for child in node.children.values()))
        return self.root

    def _tell_apart(self) -> None:
        """Gives leaves of the same path different ones."""
        names = [f"{owner.path}.{own}" if owner and owner.path else own for owner, owns, _, _ in self.finds for own in owns]
        told = told_apart(names, [shelf for _, owns, _, shelf in self.finds for _ in owns], self.tree)
        if told is names:
            return
        for owner, *_ in self.finds:
            if owner is not None:
                owner.leaves = ()
        one = iter(told)
        for owner, owns, leaves, shelf in self.finds:
            anew = [next(one).rpartition(".")[2] for _ in owns]
            if owner is not None:
                owner.take(anew, leaves, (shelf == "params",) * len(leaves))


def _inside(node: Any) -> tuple[tuple[Any, ...], list[Any]] | None:
    """The keys and the children of a container, or ``None`` for a leaf."""
    if type(node) is dict:  # nearly always
        return tuple(node), list(node.values())
    inner = inside(node)
    return None if inner is None else (tuple([name for name, _ in inner]), [child for _, child in inner])


def _part(nodes: list[Node]) -> None:
    """A user's own shape that stands for several arrays becomes several shapes."""
    leaves = [leaf for node in nodes for leaf in node.leaves]
    if len(set(map(id, leaves))) == len(leaves):
        return
    known: set[int] = set()
    for node in nodes:
        node.leaves = [leaf if type(leaf) is not jax.ShapeDtypeStruct or _new(leaf, known) else Shape(leaf.shape, leaf.dtype) for leaf in node.leaves]


def _new(leaf: object, known: set[int]) -> bool:
    """Whether an object is seen for the first time."""
    found = id(leaf) in known
    known.add(id(leaf))
    return not found


def below(root: Node) -> list[Node]:
    """All nodes, parents first."""
    nodes = [root]
    for node in nodes:
        if node.children:
            nodes.extend(node.children.values())
    return nodes


@lru_cache(maxsize=1 << 16)
def stem(name: str) -> tuple[str, int]:
    """Parts a numbered name.

    >>> stem("Dense_10"), stem("linear"), stem("block3")
    (('Dense', 10), ('linear', -1), ('block', 3))
    """
    base = name.rstrip("0123456789")
    if len(base) == len(name):
        return name, -1
    return base[:-1] if base[-1:] in {"_", "-"} else base, int(name[len(base) :])


def _arrange(root: Node) -> None:
    """Brings numbered siblings into natural order, and says of each node whether the order of its children can be trusted.

    JAX sorts the keys of every dict that goes through ``jit`` or ``tree_map``. A dict with unsorted keys has not been there, and its order is the model's.
    """
    nodes = below(root)
    for node in reversed(nodes):
        node.mapped = node.sorts and node.keys.bias_first
        if node.children and not node.mapped:
            node.mapped = (node.sorts and _numbers_sorted_as_text(node.children)) or any(child.mapped for child in node.children.values())
    untouched = any(node.sorts and not node.keys.in_order for node in nodes)
    for node in nodes:
        if node.sorts and len(node.children) > 1:
            node.lost_order = _why_lost(node, untouched=untouched)
            node.children = _by_number(node.children)


_WEIGHTS = frozenset({"kernel", "w", "weight", "scale", "gamma", "embedding"})
_BIASES = frozenset({"bias", "b", "offset", "beta"})


def _bias_first(keys: tuple[str, ...]) -> bool:
    first = next((key for key in keys if key in _WEIGHTS or key in _BIASES), "")
    return first in _BIASES and not _WEIGHTS.isdisjoint(keys)


def _numbers_sorted_as_text(children: dict[str, Node]) -> bool:
    return list(children) == sorted(children) and list(_by_number(children)) != list(children)


def _by_number(children: dict[str, Node]) -> dict[str, Node]:
    """Orders those that differ in their number only, among the places that they have."""
    stems = list(map(stem, children))
    if _counts_up(stems):
        return children
    queues: dict[str, list[tuple[int, str]]] = {}
    for (base, number), name in zip(stems, children, strict=True):
        queues.setdefault(base, []).append((number, name))
    in_order = {base: iter(sorted(queue, key=itemgetter(0))) for base, queue in queues.items()}
    order = [next(in_order[base])[1] for base, _ in stems]
    return {name: children[name] for name in order}


def _counts_up(stems: list[tuple[str, int]]) -> bool:
    last: dict[str, int] = {}
    for base, number in stems:
        if number < last.get(base, -1):
            return False
        last[base] = number
    return True


def _why_lost(node: Node, *, untouched: bool) -> str:
    names = list(node.children)
    bases = [stem(name)[0] for name in names]
    if len(set(bases)) == 1:
        return ""
    beside = [name for name, child in node.children.items() if child.beside]
    if beside and len(beside) < len(names):
        return f"{', '.join(beside[:3])}: only statistics are stored of it, and not its place among the layers that have parameters."
    if untouched and not node.mapped:
        return ""
    # A sorted dict may have been given more keys, and a new dict may be made of mapped ones: then its first keys tell.
    run = next((i for i in range(1, len(names)) if names[i] < names[i - 1]), len(names))
    if run < len(names) and len(set(bases[:run])) == 1:
        return ""
    return "The keys of its dict are sorted. JAX sorts them under jit and tree_map, so they do not tell in which order the layers stand."
