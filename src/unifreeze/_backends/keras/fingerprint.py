"""Telling whether a variable is still what it was, byte by byte, without keeping a copy; at the speed of memory, since every freeze does it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import folded

_SMALL = 1 << 15


def fingerprint(array: Any) -> Hashable:
    """Returns a value that changes with any byte of a variable, or of a wrapped torch module's buffer; ``None`` where a running fit holds the values."""
    value = getattr(array, "_value", array)
    if value is None:
        return None
    octets = np.ascontiguousarray(_as_numpy(value)).reshape(-1).view(np.uint8)
    if octets.nbytes > _SMALL:
        whole = octets.nbytes // 8 * 8
        octets = np.concatenate([folded(octets[:whole].view(np.uint64)).view(np.uint8), octets[whole:]])
    return hashlib.blake2b(octets.data, digest_size=16).digest()


def values(array: Any) -> NDArray[Any] | None:
    """Returns a copy of a variable's values; ``None`` where a running fit holds them."""
    value = getattr(array, "_value", array)
    if value is None:
        return None
    found = np.array(_as_numpy(value))
    return found.astype(np.float32) if found.dtype.kind == "V" or found.dtype.name.startswith(("bfloat16", "float8")) else found


def _as_numpy(value: Any) -> NDArray[Any]:
    """Shows what an array holds without the copy that Keras would make, which takes longer than the digest; by Keras's own way where that can't be."""
    try:
        return _shown[keras.backend.backend()](value)
    except (AttributeError, BufferError, KeyError, RuntimeError, TypeError, ValueError):  # sparse, sharded, on another device, of a type NumPy does not know
        return keras.ops.convert_to_numpy(value)


_shown: dict[str, Callable[[Any], NDArray[Any]]] = {
    "jax": np.asarray,
    "tensorflow": lambda variable: np.asarray(memoryview(variable.read_value())),
    "torch": lambda tensor: tensor.detach().numpy(),
}
