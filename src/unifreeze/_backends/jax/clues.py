"""What tells why a frozen leaf moved: an optimizer's state that keeps moments for it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from unifreeze.plugin import Clue, Layer

from .tree import absent, is_array, split, text

Slots = set[tuple[tuple[str, ...], tuple[int, ...]]]


def clues(tree: Layer, state: Any) -> dict[str, Clue]:
    """Returns the clues of every parameter that a state keeps an array of the same shape and name for, or a mask leaves out; none without a state."""
    inner = getattr(state, "opt_state", state)
    found, left = _slots(inner), _left_out(inner)
    given = ((p.path, _clue(p.path, p.shape, found, left)) for layer in tree.walk() for p in layer.parameters)
    return {path: clue for path, clue in given if clue is not None}


def _clue(path: str, shape: tuple[int, ...], found: Slots, left: set[tuple[str, ...]]) -> Clue | None:
    if _kept(path, shape, found):
        return Clue(optimizer="the optimizer", moments=True)
    parts = tuple(path.split("."))
    out = any(keys[-depth:] == parts[:depth] for keys in left for depth in range(1, len(parts) + 1))
    return Clue(left_out=True) if out else None


def _left_out(state: Any) -> set[tuple[str, ...]]:
    """Where the state has a ``MaskedNode``, the mask of an ``optax.masked`` is ``False``."""
    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=absent)[0] if state is not None else []
    return {tuple(part for key in keys for part in split(text(key))) for keys, leaf in leaves if absent(leaf) and leaf is not None}


def _slots(state: Any) -> Slots:
    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=absent)[0] if state is not None else []
    return {(tuple(part for key in keys for part in split(text(key))), np.shape(leaf)) for keys, leaf in leaves if is_array(leaf) and np.ndim(leaf)}


def _kept(path: str, shape: tuple[int, ...], slots: Slots) -> bool:
    parts = tuple(path.split("."))
    return any(shape == there and tuple(part for part in keys if part != "value")[-len(parts) :] == parts for keys, there in slots)


def values(array: Any) -> Any:
    """A copy on the host; of an array that other processes share, the parts that this one holds. ``None`` where there are no values."""
    if isinstance(array, jax.ShapeDtypeStruct | jax.core.Tracer) or (isinstance(array, jax.Array) and array.is_deleted()):
        return None
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.concatenate([_widened(np.array(shard.data)).reshape(-1) for shard in array.addressable_shards])
    return _widened(np.array(array))


def _widened(array: Any) -> Any:
    """NumPy's own types as they are; what JAX adds to them (``bfloat16``, ``float8``, ``int4``) in one that holds each of its values."""
    return array if array.dtype.isbuiltin else array.astype(np.float32)
