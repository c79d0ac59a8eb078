"""Telling whether a variable is still what it was, byte by byte, without keeping a copy; at the speed of memory, since every freeze does it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from math import isqrt
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 15
_WIDEST = 1 << 13
# Odd, so that multiplying by it loses nothing modulo 2**64.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def fingerprint(array: Any) -> Hashable:
    """Returns a value that changes with any byte of a variable, or of a wrapped torch module's buffer; ``None`` where a running fit holds the values."""
    value = getattr(array, "_value", array)
    if value is None:
        return None
    octets = np.ascontiguousarray(_as_numpy(value)).reshape(-1).view(np.uint8)
    if octets.nbytes > _SMALL:
        whole = octets.nbytes // 8 * 8
        octets = np.concatenate([_folded(octets[:whole].view(np.uint64)).view(np.uint8), octets[whole:]])
    return hashlib.blake2b(octets.data, digest_size=16).digest()


def values(array: Any) -> NDArray[Any] | None:
    """Returns a copy of a variable's values; ``None`` where a running fit holds them."""
    value = getattr(array, "_value", array)
    if value is None:
        return None
    found = np.array(_as_numpy(value))
    return found.astype(np.float32) if found.dtype.kind == "V" or found.dtype.name.startswith(("bfloat16", "float8")) else found


def _as_numpy(value: Any) -> NDArray[Any]:
    """JAX shows its arrays without a copy, which Keras would make."""
    return np.asarray(value) if keras.backend.backend() == "jax" else keras.ops.convert_to_numpy(value)


def _folded(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Folds a large array into a short one, eight times as fast as a digest of the whole.

    Every column is a chain: its sum is stirred, then the next word is added. Both lose nothing modulo 2**64, so a difference in one word of a column can't
    vanish; differences in several vanish together only by chance. Without the shift, an even number of flipped signs would, since multiplication does not
    spread a word's highest bit.
    """
    width = min(8 * isqrt(words.size), _WIDEST)  # neither many short rows nor a long sum to digest
    sums, high = np.zeros(width, np.uint64), np.empty(width, np.uint64)
    for start in range(0, words.size, width):
        row = words[start : start + width]
        part, top = sums[: row.size], high[: row.size]
        np.right_shift(part, _HALF, out=top)
        np.bitwise_xor(part, top, out=part)
        np.multiply(part, _FACTOR, out=part)
        np.add(part, row, out=part)
    return sums
