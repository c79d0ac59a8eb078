"""Telling whether an array is still what it was, byte by byte, without keeping a copy: on its own device, or on the host without a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import folded_bytes, spread, weights, width

from .tree import is_key

_SMALL = 1 << 13


def fingerprint(array: Any) -> Hashable:
    """A digest of an array's bytes, the same on every device; ``None`` where there are none: abstract arrays, tracers, arrays that were donated."""
    return _ended(_begun(array))


def fingerprints(arrays: Sequence[Any]) -> list[Hashable]:
    """The fingerprint of each. An accelerator folds them all while the host waits for the first; one by one, each would wait for the other."""
    begun = [_begun(array) for array in arrays]
    return spread(_ended, begun, map(_host_bytes, begun))


def _begun(array: Any) -> tuple[str, list[tuple[Any, ...]]] | None:
    """An array's type and shape, and of each part the pieces whose bytes stand for it: on their way to the host, if they come from a device."""
    if type(array) is jax.ShapeDtypeStruct or isinstance(array, jax.ShapeDtypeStruct | jax.core.Tracer):  # the first alone is quick, and there are many
        return None
    if isinstance(array, jax.Array):
        if array.is_deleted():
            return None
        array = jax.random.key_data(array) if is_key(array.dtype) else array
        parts = [array] if array.is_fully_addressable else [shard.data for shard in array.addressable_shards]
    else:
        parts = [array]
    return f"{array.dtype}{array.shape}", [_pieces(part) for part in parts]


def _host_bytes(begun: tuple[str, list[tuple[Any, ...]]] | None) -> int:
    """How much the host has to fold."""
    return 0 if begun is None else sum(pieces[0].nbytes for pieces in begun[1] if len(pieces) == 1)


def _pieces(array: Any) -> tuple[Any, ...]:
    if not is_far(array):
        return (array,)
    pieces = _folding(array) if array.nbytes > _SMALL else (array,)
    for piece in pieces:
        piece.copy_to_host_async()
    return pieces


def _ended(begun: tuple[str, list[tuple[Any, ...]]] | None) -> Hashable:
    if begun is None:
        return None
    digest = hashlib.blake2b(begun[0].encode(), digest_size=16)
    for pieces in begun[1]:
        if len(pieces) == 1:
            digest.update(_octets(pieces[0]).data)
        else:
            for piece in pieces:
                digest.update(np.asarray(piece).view(np.uint8).data)
    return digest.digest()


def _octets(array: Any) -> NDArray[np.uint8]:
    """The bytes of a small array; of a large one, what they fold into on the host."""
    octets = np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8)
    return octets if octets.nbytes <= _SMALL else folded_bytes(octets)


def is_far(array: Any) -> bool:
    """Whether an array lies on one accelerator. One that several share is gathered on the host, so that its fingerprint does not depend on how it is shared."""
    if not isinstance(array, jax.Array) or not _on_one_accelerator(array.sharding):
        return False
    return not str(array.dtype).startswith(("int2", "uint2", "int4", "uint4", "float4"))


@lru_cache(1 << 6)
def _on_one_accelerator(sharding: Any) -> bool:
    devices = sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform != "cpu"


def folded_there(array: Any) -> NDArray[np.uint8]:
    """The bytes of what an array folds into, and those that fill no word, computed on its device."""
    return np.concatenate([np.asarray(piece).view(np.uint8) for piece in _folding(array)])


def _folding(array: Any) -> tuple[Any, Any]:
    with jax.enable_x64(True):
        return _fold(array)


@jax.jit
def _fold(array: Any) -> tuple[Any, Any]:
    plain = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    if jnp.issubdtype(plain.dtype, jnp.complexfloating):
        plain = jnp.stack([plain.real, plain.imag], -1)
    octets = jax.lax.bitcast_convert_type(plain, jnp.uint8).reshape(-1)
    whole = octets.size // 8 * 8
    words = jax.lax.bitcast_convert_type(octets[:whole].reshape(-1, 8), jnp.uint64)
    columns = width(words.size)
    whole_rows = words.size // columns * columns
    grid = words[:whole_rows].reshape(-1, columns)
    across, down = (grid * jnp.asarray(weights(columns))).sum(1), grid.sum(0)
    return jnp.concatenate([across, down, words[whole_rows:]]), octets[whole:]
