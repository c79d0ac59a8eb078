"""Pytrees: their leaves, and the dotted names of these."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from unifreeze.plugin import UnifreezeError

_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)

#: Linen collections that live for one call only. They are no part of a model.
PASSING = frozenset({"cache", "intermediates", "losses", "metrics", "perturbations", "summaries"})


def is_array(leaf: object) -> bool:
    """Whether a leaf is an array, with or without values. Python's own numbers are settings of a model, not its weights."""
    return type(leaf) is jax.ShapeDtypeStruct or isinstance(leaf, _ARRAYS)


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
    return is_frozen_dict_class(type(node))


def is_frozen_dict_class(kind: type) -> bool:
    """Whether this is the class of flax's FrozenDict."""
    module = sys.modules.get("flax.core")
    return module is not None and issubclass(kind, module.FrozenDict)


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


def copied(tree: Any, leaf_of: Callable[[Any], Any]) -> Any:
    """Maps over the leaves of a tree and, unlike JAX, keeps the order of every dict, and leaves one what is one."""
    return Copies(leaf_of).of(tree)


class Copies:
    """Copies of trees in which leaves are replaced.

    Args:
        leaf_of: What comes in the place of a leaf.
        kept: Classes of leaves that stay; they are not noted.

    Attributes:
        made: The copy of every node, by the node's identity.
    """

    def __init__(self, leaf_of: Callable[[Any], Any], kept: Iterable[type] = ()) -> None:
        self.made: dict[int, Any] = {}
        self._leaf_of, self._kept = leaf_of, frozenset(kept)
        self._alive: list[Any] = []

    def of(self, node: Any) -> Any:
        """The copy of a node."""
        found = self.made.get(id(node), self)
        if found is self:
            found = self.made[id(node)] = self._copied(node)
            self._alive.append(node)  # lest another gets its identity
        return found

    def _copied(self, node: Any) -> Any:
        if type(node) is dict:  # nearly always
            kept = self._kept
            alone = kept.issuperset(map(type, node.values()))
            return node.copy() if alone else {key: child if type(child) in kept else self.of(child) for key, child in node.items()}
        if type(node) is OrderedDict or is_frozen_dict(node):
            return type(node)({key: self.of(child) for key, child in node.items()})
        if type(node) is defaultdict:
            return defaultdict(node.default_factory, {key: self.of(child) for key, child in node.items()})
        if type(node) in {list, tuple}:
            return type(node)(map(self.of, node))
        below = entries(node)
        if below is None:
            return self._leaf_of(node)
        return jax.tree_util.tree_structure(node, is_leaf=lambda x: x is not node).unflatten([self.of(child) for _, child in below])


# Names.


def collections_of(tree: Any) -> frozenset[str]:
    """Returns the names of the collections, if the tree is made of them as linen's variables are (``params``, ``batch_stats``); otherwise nothing."""
    if not (isinstance(tree, dict) or is_frozen_dict(tree)) or "params" not in tree:
        return frozenset()
    return frozenset(tree) if all(isinstance(key, str) and entries(child) is not None for key, child in tree.items()) else frozenset()


def text(key: Any) -> str:
    """A key of a key path as it was written."""
    return str(key.key if hasattr(key, "key") else key.idx if hasattr(key, "idx") else key.name)


def is_plain(key: str) -> bool:
    """Whether a key is one component of a path, as nearly all are."""
    return bool(key) and "." not in key and "/" not in key


def split(key: str) -> tuple[str, ...]:
    """The components of a key: haiku's ``mlp/~/linear_0`` and a flat dict's ``mlp.0.weight`` are paths themselves.

    >>> split("mlp/~/linear_0")
    ('mlp', '~', 'linear_0')
    """
    if is_plain(key):
        return (key,)
    return tuple(part for part in key.replace(".", "/").split("/") if part) or ("_",)


def joined(path: str, key: str) -> str:
    """The dotted path of what lies under a key of the container at ``path``."""
    parts = key if is_plain(key) else ".".join(split(key))
    return f"{path}.{parts}" if path else parts


def leaf_name(path: str, key: str | None, shelf: str) -> str:
    """As ``joined``, for a leaf in a collection; but the own name of a buffer may hold slashes, and haiku keeps an average in a module below its layer."""
    if shelf == "params":
        return "" if key is None else joined(path, key)
    own = (shelf if key is None else key).replace(".", "/")
    above = path.split(".")
    if above[-2:-1] == ["~"] and above[-1].endswith("_ema"):
        path, own = ".".join(above[:-2]), f"{above[-1]}/{own}"
    return f"{path}.{own}" if path else own


def inside(node: Any, *, sort: bool = False) -> list[tuple[str, Any]] | None:
    """Returns the keys and children of a container, or ``None`` for a leaf and for what a masked tree leaves out.

    A box with a single ``value`` (flax's partitioned parameters) counts as the leaf in it.

    Args:
        node: Any node of a tree.
        sort: Whether in the order in which JAX flattens, rather than in the container's own.
    """
    if type(node) is dict:  # nearly always
        items = sorted(node.items(), key=itemgetter(0)) if sort else node.items()
        return [(key if type(key) is str else str(key), child) for key, child in items]
    if is_array(node) or absent(node):
        return None
    found = entries(node)
    if found is None or _boxes(node, found):
        return None
    if sort and loses_order(node):
        found.sort(key=lambda entry: entry[0].key)
    return [(text(key), child) for key, child in found]


def _boxes(node: Any, found: list[tuple[Any, Any]]) -> bool:
    inner = next((child for key, child in found if type(key) is GetAttrKey and key.name == "value"), node)
    return inner is not node and inside(inner) is None and len(jax.tree_util.tree_leaves(node, is_leaf=absent)) == 1


def unboxed(node: Any) -> Any:
    """The leaf in a box, or the leaf itself."""
    return node if is_array(node) or absent(node) or not entries(node) else jax.tree_util.tree_leaves(node, is_leaf=absent)[0]


def shelves(tree: Any) -> list[tuple[str, Any]]:
    """The collections of a tree with their names, that of the parameters first; a tree without them is one of parameters."""
    return [(name, tree[name]) for name in sorted(tree, key=lambda name: name != "params")] if collections_of(tree) else [("params", tree)]


def told_apart(found: list[str], of: list[str], tree: Any) -> list[str]:
    """Names with their collection where two collections have the same.

    Args:
        found: The dotted name of every leaf.
        of: The collection of every leaf.
        tree: The tree.

    Raises:
        UnifreezeError: If two leaves still have the same name.
    """
    if len(set(found)) == len(found):
        return found
    times = Counter(found)
    apart = [f"{name}@{shelf}" if times[name] > 1 and shelf != "params" else name for name, shelf in zip(found, of, strict=True)]
    times = Counter(apart)
    if len(times) == len(apart):
        return apart
    double = next(name for name, count in times.items() if count > 1)
    keys = [keys for keys, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=absent)[0]]
    both = [jax.tree_util.keystr(at) for name, shelf, at in zip(*_names_in(tree), keys, strict=True) if double in {name, f"{name}@{shelf}"}]
    repair = "Rename one of them: '.' and '/' in a key part a path."
    raise UnifreezeError(f"Two leaves have the same dotted path {double!r}.\n  {both[0]} and {both[1]}\n  {repair}")


@dataclass(frozen=True, slots=True)
class Flat:
    """A tree laid out as JAX flattens it. What a masked tree leaves out counts as a leaf, so that it has the shape of the whole.

    Attributes:
        names: The dotted name of each leaf.
        leaves: The leaves.
        treedef: JAX's structure of the tree.
        whole: Whether nothing is left out.
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    treedef: Any
    whole: bool

    @property
    def by_name(self) -> dict[str, Any]:
        """The leaves that are there."""
        return {name: leaf for name, leaf in zip(self.names, self.leaves, strict=True) if not absent(leaf)}


_known_names: dict[Hashable, tuple[str, ...]] = {}


def flat(tree: Any) -> Flat:
    """Lays a tree out. Its names are worked out once for each tree structure."""
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    found = _known(treedef)
    if found is not None:  # a structure is noted with a leaf where something is left out, so nothing is left out here
        return Flat(found, tuple(leaves), treedef, whole=True)
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=absent)
    found = _known(treedef) or _noted(treedef, _names_of(tree))
    return Flat(found, tuple(leaves), treedef, whole=not any(map(absent, leaves)))


def _known(treedef: Any) -> tuple[str, ...] | None:
    try:
        return _known_names.get(treedef)
    except TypeError:  # a node with unhashable static fields
        return None


def _noted(treedef: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(_known_names) > 256:
        _known_names.clear()
    with suppress(TypeError):
        _known_names[treedef] = names
    return names


def _names_of(tree: Any) -> tuple[str, ...]:
    return tuple(told_apart(*_names_in(tree), tree))


def _names_in(tree: Any) -> tuple[list[str], list[str]]:
    """The dotted name and the collection of every leaf, in the order in which JAX flattens."""
    found, of = [], []
    parts = (inside(tree, sort=True) if collections_of(tree) else None) or [("params", tree)]
    pending: list[tuple[str, str | None, str, Any]] = [("", None, name, part) for name, part in reversed(parts)]
    while pending:
        path, key, shelf, node = pending.pop()
        below = inside(node, sort=True)
        if below is None:
            found.append(leaf_name(path, key, shelf))
            of.append(shelf)
        else:
            here = path if key is None else joined(path, key)
            pending.extend([(here, name, shelf, child) for name, child in reversed(below)])
    return found, of
