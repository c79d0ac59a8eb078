"""Folding a large array on the accelerator where it lies, to what ``unifreeze.plugin.folded`` makes of it on the host, so that only that has to be copied."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import weights, width

_WORD = 8
# Of so many rows a copy may be made at once, in the device's memory, which training may need.
_ROWS = 1 << 12


def is_far(value: Any) -> bool:
    """Whether an array lies on one accelerator, and can be folded there."""
    way = _far.get(keras.backend.backend())
    return way is not None and bool(way(value))


def nbytes(value: Any) -> int:
    """The bytes of an array of any engine."""
    return int(value.nbytes) if hasattr(value, "nbytes") else int(np.prod(value.shape, dtype=np.int64)) * int(value.dtype.size)


def folded_there(value: Any) -> NDArray[np.uint8]:
    """Returns the bytes of the fold, and those that fill no word."""
    return _ways[keras.backend.backend()](value)


def _on_jax(value: Any) -> NDArray[np.uint8]:
    from unifreeze._backends.jax.fingerprint import folded_there as by_jax

    return by_jax(value)


def _far_on_jax(value: Any) -> bool:
    return _asked_of_jax()(value)


@cache
def _asked_of_jax() -> Callable[[Any], bool]:
    from unifreeze._backends.jax.fingerprint import is_far as far

    return far


def _on_torch(tensor: Any) -> NDArray[np.uint8]:
    from unifreeze._backends.torch.folding import folded_there as by_torch

    return by_torch(tensor).cpu().numpy()


def _on_tensorflow(variable: Any) -> NDArray[np.uint8]:
    import tensorflow as tf

    value = tf.convert_to_tensor(variable)
    octets = tf.reshape(tf.bitcast(tf.cast(value, tf.uint8) if value.dtype == tf.bool else value, tf.uint8), [-1])
    whole = octets.shape[0] // _WORD * _WORD
    words = tf.bitcast(tf.reshape(octets[:whole], [-1, _WORD]), tf.int64)
    columns = width(words.shape[0])
    rows = words.shape[0] // columns
    grid, weight = tf.reshape(words[: rows * columns], [rows, columns]), tf.constant(weights(columns).view(np.int64))
    down, across = tf.zeros_like(weight), []
    for start in range(0, rows, _ROWS):
        block = grid[start : start + _ROWS]
        across.append(tf.reduce_sum(block * weight, 1))
        down += tf.reduce_sum(block, 0)
    sums = tf.concat([*across, down, words[rows * columns :]], 0)
    return np.concatenate([sums.numpy().view(np.uint8), octets[whole:].numpy()])


_ways: dict[str, Callable[[Any], NDArray[np.uint8]]] = {"jax": _on_jax, "torch": _on_torch, "tensorflow": _on_tensorflow}
_far: dict[str, Callable[[Any], bool]] = {
    "jax": _far_on_jax,
    "torch": lambda tensor: tensor.device.type not in {"cpu", "meta"} and not hasattr(tensor, "__tensor_flatten__"),
    "tensorflow": lambda variable: ":CPU:" not in (variable.device or ":CPU:"),
}
