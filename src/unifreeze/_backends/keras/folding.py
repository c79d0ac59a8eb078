"""Folding a large array on the accelerator where it lies, to what ``unifreeze.plugin.folded`` makes of it on the host, so that only that has to be copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import FACTOR, width

_WORD = 8


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
    from unifreeze._backends.jax.fingerprint import is_far as far

    return far(value)


def _on_torch(tensor: Any) -> NDArray[np.uint8]:
    """Folds 64-bit words, which PyTorch knows with a sign alone; they are added and multiplied as those without."""
    import torch

    with torch.no_grad():
        octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
        octets = octets.clone() if octets.storage_offset() % _WORD else octets
        whole = octets.numel() // _WORD * _WORD
        words = octets[:whole].view(torch.int64)
        sums = torch.zeros(width(words.numel()), dtype=torch.int64, device=tensor.device)
        for row in words.split(len(sums)):
            part = sums[: len(row)]
            turned = part.view(torch.uint8).view(-1, _WORD).flip(1).view(torch.int64).view(-1)
            part.copy_(turned * (FACTOR - (1 << 64)) + row)
        return torch.cat([sums.view(torch.uint8), octets[whole:]]).cpu().numpy()


def _on_tensorflow(variable: Any) -> NDArray[np.uint8]:
    import tensorflow as tf

    value = tf.convert_to_tensor(variable)
    octets = tf.reshape(tf.bitcast(tf.cast(value, tf.uint8) if value.dtype == tf.bool else value, tf.uint8), [-1])
    whole = octets.shape[0] // _WORD * _WORD
    words = tf.bitcast(tf.reshape(octets[:whole], [-1, _WORD]), tf.uint64)
    sums = tf.zeros(width(words.shape[0]), tf.uint64)
    factor = tf.constant(FACTOR, tf.uint64)
    for start in range(0, words.shape[0], sums.shape[0]):
        row = words[start : start + sums.shape[0]]
        part = sums[: row.shape[0]]
        turned = tf.bitcast(tf.reverse(tf.bitcast(part, tf.uint8), [1]), tf.uint64)
        sums = tf.concat([turned * factor + row, sums[row.shape[0] :]], 0)
    return np.concatenate([sums.numpy().view(np.uint8), octets[whole:].numpy()])


_ways: dict[str, Callable[[Any], NDArray[np.uint8]]] = {"jax": _on_jax, "torch": _on_torch, "tensorflow": _on_tensorflow}
_far: dict[str, Callable[[Any], bool]] = {
    "jax": _far_on_jax,
    "torch": lambda tensor: tensor.device.type not in {"cpu", "meta"} and not hasattr(tensor, "__tensor_flatten__"),
    "tensorflow": lambda variable: ":CPU:" not in (variable.device or ":CPU:"),
}
