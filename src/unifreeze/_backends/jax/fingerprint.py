"""Telling whether an array is still what it was, byte by byte, without keeping a copy: on its own device, or on the host without a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import folded, weights, width

from .tree import is_key

_SMALL = 1 << 13


def fingerprint(array: Any) -> Hashable:
    """A digest of an array's bytes, the same on every device; ``None`` where there are none: abstract arrays, tracers, arrays that were donated."""
    if isinstance(array, jax.ShapeDtypeStruct | jax.core.Tracer):
        return None
    if isinstance(array, jax.Array):
        if array.is_deleted():
            return None
        array = jax.random.key_data(array) if is_key(array.dtype) else array
        parts = [array] if array.is_fully_addressable else [shard.data for shard in array.addressable_shards]
    else:
        parts = [array]
    digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    for part in parts:
        digest.update(_octets(part).data)
    return digest.digest()


def _octets(array: Any) -> NDArray[np.uint8]:
    """The bytes of a small array; of a large one, what they fold into: where it lies, if that is one accelerator."""
    if array.nbytes > _SMALL and is_far(array):
        return folded_there(array)
    octets = np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8)
    if octets.nbytes <= _SMALL:
        return octets
    whole = octets.nbytes // 8 * 8
    return np.concatenate([folded(octets[:whole].view(np.uint64)).view(np.uint8), octets[whole:]])


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
    """What an array folds into, and the bytes that fill no word, computed on its device."""
    with jax.enable_x64(True):
        sums, rest = _fold(array)
    return np.concatenate([np.asarray(sums).view(np.uint8), np.asarray(rest)])


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
