"""Pytrees: their leaves, the dotted names of these, and the order in which a model defined them."""

from __future__ import annotations

import re
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from unifreeze.plugin import UnifreezeError

from .refusals import refuse_optimizer_state, refuse_without_floats

KeyPath = tuple[Any, ...]

#: Linen collections that live for one call only. They are no part of a model.
PASSING = frozenset({"cache", "intermediates", "losses", "metrics", "perturbations", "summaries"})


def is_array(leaf: object) -> bool:
    """Whether a leaf is an array, with or without values. Python's own numbers are settings of a model, not its weights."""
    return isinstance(leaf, np.ndarray | np.generic | jax.ShapeDtypeStruct | jax.Array)


@cache
def is_inexact(dtype: Any) -> bool:
    """Whether arrays of this type can have a gradient."""
    return bool(jax.dtypes.issubdtype(dtype, np.inexact))


@cache
def dtype_name(dtype: Any) -> str:
    """The framework-neutral name of a type."""
    return str(dtype)


@cache
def is_key(dtype: Any) -> bool:
    """Whether arrays of this type hold typed random keys."""
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def is_frozen_dict(node: object) -> bool:
    """Whether this is flax's FrozenDict."""
    module = sys.modules.get("flax.core")
    return module is not None and isinstance(node, module.FrozenDict)


def absent(node: object) -> bool:
    """Whether this stands where a masked tree leaves something out: ``None``, or optax's MaskedNode."""
    return node is None or type(node).__name__ == "MaskedNode"


def loses_order(node: object) -> bool:
    """Whether JAX sorts this container's keys whenever it maps over it."""
    return type(node) in {dict, defaultdict} or is_frozen_dict(node)


def entries(node: Any) -> list[tuple[Any, Any]] | None:
    """Returns the keys and children of a container in its own order (JAX's flattening would sort a dict), or ``None`` for a leaf."""
    if node is None:
        return []
    if is_array(node):
        return None
    if loses_order(node) or type(node) is OrderedDict:
        return [(DictKey(key), child) for key, child in node.items()]
    if type(node) in {list, tuple}:
        return [(SequenceKey(i), child) for i, child in enumerate(node)]
    below = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    return None if any(not keys for keys, _ in below) else [(keys[0], child) for keys, child in below]


def copied(node: Any, leaf_of: Callable[[Any], Any]) -> Any:
    """Maps over the leaves of a tree and, unlike JAX, keeps the order of every dict."""
    if type(node) in {dict, OrderedDict} or is_frozen_dict(node):
        return type(node)({key: copied(child, leaf_of) for key, child in node.items()})
    if type(node) is defaultdict:
        return defaultdict(node.default_factory, {key: copied(child, leaf_of) for key, child in node.items()})
    if type(node) in {list, tuple}:
        return type(node)(copied(child, leaf_of) for child in node)
    below = entries(node)
    if below is None:
        return leaf_of(node)
    return jax.tree_util.tree_structure(node, is_leaf=lambda x: x is not node).unflatten([copied(child, leaf_of) for _, child in below])


# Names.


def collections_of(tree: Any) -> frozenset[str]:
    """Returns the names of the collections, if the tree is made of them as linen's variables are (``params``, ``batch_stats``); otherwise nothing."""
    if not (isinstance(tree, dict) or is_frozen_dict(tree)) or "params" not in tree:
        return frozenset()
    return frozenset(tree) if all(isinstance(key, str) and entries(child) is not None for key, child in tree.items()) else frozenset()


def text(key: Any) -> str:
    """A key of a key path as it was written."""
    return str(key.key if hasattr(key, "key") else key.idx if hasattr(key, "idx") else key.name)


@lru_cache(maxsize=1 << 16)
def split(key: str) -> tuple[str, ...]:
    """The components of a key: haiku's ``mlp/~/linear_0`` and a flat dict's ``mlp.0.weight`` are paths themselves.

    >>> split("mlp/~/linear_0")
    ('mlp', '~', 'linear_0')
    """
    return tuple(part for part in key.replace(".", "/").split("/") if part) or ("_",)


def components(keys: KeyPath, collections: frozenset[str]) -> tuple[str, ...]:
    """The dotted path of a node, in components, without its collection."""
    return tuple(part for key in keys[bool(collections) :] for part in split(text(key)))


def _component_of_leaf(keys: KeyPath, collections: frozenset[str]) -> tuple[str, ...]:
    """As ``components``; but the own name of a buffer may hold slashes, and haiku keeps an average in a module below the layer that it belongs to."""
    if not collections or text(keys[0]) == "params":
        return components(keys, collections)
    above, last = components(keys[:-1], collections), text(keys[-1])
    if above[-2:-1] == ("~",) and above[-1].endswith("_ema"):
        above, last = above[:-2], f"{above[-1]}/{last}"
    return (*above, last.replace(".", "/"))


def names(paths: Sequence[KeyPath], collections: frozenset[str]) -> list[str]:
    """Returns the dotted name of every leaf, from the key paths of all leaves of a tree.

    A box with a single ``value`` (flax's partitioned parameters) is no component of its own.

    Raises:
        UnifreezeError: If two leaves get the same name.
    """
    boxed = {keys[:-1] for keys in paths if len(keys) > 1 and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value"}
    alone = Counter(keys[:depth] for keys in paths for depth in range(len(keys)) if keys[:depth] in boxed) if boxed else {}
    bare = [keys[:-1] if boxed and keys[:-1] in boxed and alone[keys[:-1]] == 1 else keys for keys in paths]
    found = [".".join(_component_of_leaf(keys, collections)) for keys in bare]
    times = Counter(found)
    if len(times) < len(found) and collections:
        found = [f"{name}@{text(keys[0])}" if times[name] > 1 and text(keys[0]) != "params" else name for name, keys in zip(found, bare, strict=True)]
        times = Counter(found)
    if len(times) < len(found):
        double = next(name for name, count in times.items() if count > 1)
        both = [jax.tree_util.keystr(keys) for name, keys in zip(found, paths, strict=True) if name == double]
        repair = "Rename one of them: '.' and '/' in a key part a path."
        raise UnifreezeError(f"Two leaves have the same dotted path {double!r}.\n  {both[0]} and {both[1]}\n  {repair}")
    return found


@dataclass(frozen=True, slots=True)
class Flat:
    """A tree laid out as JAX flattens it. What a masked tree leaves out counts as a leaf, so that it has the shape of the whole."""

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    treedef: Any

    @property
    def by_name(self) -> dict[str, Any]:
        """The leaves that are there."""
        return {name: leaf for name, leaf in zip(self.names, self.leaves, strict=True) if not absent(leaf)}


_known_names: dict[Hashable, tuple[str, ...]] = {}


def flat(tree: Any) -> Flat:
    """Lays a tree out. Its names are worked out once for each tree structure."""
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=absent)
    try:
        found = _known_names.get(treedef)
    except TypeError:  # a node with unhashable static fields
        return Flat(_names_of(tree), tuple(leaves), treedef)
    if found is None:
        if len(_known_names) > 256:
            _known_names.clear()
        found = _known_names[treedef] = _names_of(tree)
    return Flat(found, tuple(leaves), treedef)


def _names_of(tree: Any) -> tuple[str, ...]:
    paths = [keys for keys, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=absent)[0]]
    return tuple(names(paths, collections_of(tree)))


# Nodes, and their order.


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
    collections = collections_of(tree)
    found, containers = _gathered(tree, collections)
    root = containers.pop((), Node())
    root.native = tree
    for path, (keys, leaf) in zip(names([keys for keys, _ in found], collections), found, strict=True):
        if not is_array(leaf) or (collections and text(keys[0]) in PASSING):
            continue
        owner, ours, above = root, not collections or text(keys[0]) == "params", tuple(path.split(".")[:-1])
        for depth, part in enumerate(above, 1):
            if part not in owner.children:
                child = owner.children[part] = containers.get(above[:depth]) or Node()
                child.name, child.beside = part, not ours
            owner = owner.children[part]
        owner.arrays.append((path, leaf, ours))
    if not any(is_array(leaf) and is_inexact(leaf.dtype) for _, leaf in found):
        refuse_without_floats([f"{jax.tree_util.keystr(keys)} ({leaf.dtype})" for keys, leaf in found if is_array(leaf)])
    _arrange(root)
    return root


def _gathered(tree: Any, collections: frozenset[str]) -> tuple[list[tuple[KeyPath, Any]], dict[tuple[str, ...], Node]]:
    """The leaves of a tree, those of the collection of parameters first, and its containers by their path."""
    leaves: list[tuple[KeyPath, Any]] = []
    containers: dict[tuple[str, ...], Node] = {}
    shelves = sorted(tree, key=lambda name: name != "params") if collections else []
    starts = [((DictKey(name),), tree[name]) for name in shelves] if collections else [((), tree)]
    for start, part in starts:
        pending: list[tuple[KeyPath, tuple[str, ...], Any]] = [(start, (), part)]
        while pending:
            keys, path, node = pending.pop()
            below = entries(node)
            if below is None or absent(node):
                leaves.append((keys, node))
                continue
            refuse_optimizer_state(node, path)
            names = [text(key) for key, _ in below]
            if path not in containers:
                containers[path] = Node(native=node, keys=names, sorts=loses_order(node))
            pending.extend([((*keys, key), (*path, *split(name)), child) for (key, child), name in zip(reversed(below), reversed(names), strict=True)])
    return leaves, containers


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
    nodes = [root]
    for node in nodes:
        nodes.extend(node.children.values())
    for node in reversed(nodes):
        node.mapped = node.sorts and (_bias_first(node.keys) or (bool(node.children) and _numbers_sorted_as_text(list(node.children))))
        node.mapped = node.mapped or any(child.mapped for child in node.children.values())
    untouched = any(node.sorts and node.keys != sorted(node.keys) for node in nodes)
    for node in nodes:
        if node.sorts and len(node.children) > 1:
            node.lost_order = _why_lost(node, untouched=untouched)
            node.children = _by_number(node.children)


_WEIGHTS = frozenset({"kernel", "w", "weight", "scale", "gamma", "embedding"})
_BIASES = frozenset({"bias", "b", "offset", "beta"})


def _bias_first(keys: list[str]) -> bool:
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
