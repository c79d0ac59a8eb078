"""Telling whether a variable is still what it was, byte by byte, without keeping a copy: on its own device, or on the host without a copy."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import folded

from .folding import folded_there, is_far, nbytes

_SMALL = 1 << 15


def fingerprint(array: Any) -> Hashable:
    """Returns a value that changes with any byte of a variable, or of a wrapped torch module's buffer; ``None`` where a running fit holds the values."""
    value = getattr(array, "_value", array)
    if value is None:
        return None
    return hashlib.blake2b(_octets(value).data, digest_size=16).digest()


def _octets(value: Any) -> NDArray[np.uint8]:
    """The bytes of a small array; of a large one, what they fold into: where it lies, if that is one accelerator."""
    if is_far(value) and nbytes(value) > _SMALL:
        with contextlib.suppress(Exception):  # of a type that the engine can't take apart; each has its own way to say so
            return folded_there(value)
    octets = np.ascontiguousarray(_as_numpy(value)).reshape(-1).view(np.uint8)
    if octets.nbytes <= _SMALL:
        return octets
    whole = octets.nbytes // 8 * 8
    return np.concatenate([folded(octets[:whole].view(np.uint64)).view(np.uint8), octets[whole:]])


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
