"""What JAX's users write to say what trains: a mask, labels, or a filter, for a whole tree or for a part of it at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from unifreeze.plugin import ArgumentError, Layer

from .record import StructureError
from .tree import absent, flat, is_array

_LABELS = {"trainable": True, "frozen": False, "buffer": False}


def trainable(model: Any, tree: Layer, said: Any) -> Iterator[str]:
    """Yields the paths of the parameters that train.

    Raises:
        ArgumentError: For labels of other words, whose meaning is in an optimizer.
        StructureError: If it has not the structure of the tree.
    """
    laid = flat(_spread(said, model))
    known = {parameter.path for layer in tree.walk() for parameter in layer.parameters}
    for name, verdict in zip(laid.names, laid.leaves, strict=True):
        if name in known and not absent(verdict) and _trains(name, verdict):
            yield name


def _spread(said: Any, model: Any) -> Any:
    """A verdict for each leaf. A function is one of the whole tree (optax) or of a leaf (equinox); what is said of a node is said of all below."""
    if callable(said) and jax.tree_util.all_leaves([said]):  # a module of equinox is callable, too, and a tree
        given = said(model)
        if isinstance(given, bool) and not is_array(model):
            return jax.tree_util.tree_map(lambda leaf: bool(said(leaf)), model)
        said = given
    try:
        return jax.tree_util.tree_map(lambda verdict, part: jax.tree_util.tree_map(lambda _: verdict, part), said, model, is_leaf=absent)
    except (ValueError, TypeError) as error:
        raise StructureError(f"trainable= has not the structure of the tree.\n  {error}\n  Make it from the tree: jax.tree.map(…, params).") from error


def _trains(name: str, verdict: Any) -> bool:
    if isinstance(verdict, str):
        if verdict not in _LABELS:
            repair = "Labels are 'trainable' and 'frozen'; of others make a mask: jax.tree.map(lambda label: label != 'none', labels)."
            raise ArgumentError(f"The label {verdict!r} of {name} does not say whether it trains.\n  {repair}")
        return _LABELS[verdict]
    return bool(verdict)
