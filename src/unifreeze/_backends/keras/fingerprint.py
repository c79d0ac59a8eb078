"""Telling whether a variable is still what it was, byte by byte, without keeping a copy: on its own device, or on the host without a copy."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import folded

from .folding import folded_there, is_far, nbytes

_SMALL = 1 << 13


def fingerprint(array: Any) -> Hashable:
    """Returns a value that changes with any byte of a variable, or of a wrapped torch module's buffer; ``None`` where a running fit holds the values."""
    value = getattr(array, "_value", array)
    if value is None:
        return None
    return hashlib.blake2b(_octets(value).data, digest_size=16).digest()


def together(arrays: Sequence[Any]) -> Sequence[Any]:
    """Has TensorFlow show all variables at once, without copying any, since each read takes it longer than the digest; elsewhere, the arrays as they are."""
    if keras.backend.backend() != "tensorflow":
        return arrays
    plain = [one for one in (getattr(array, "_value", array) for array in arrays) if type(one).__name__ == "ResourceVariable"]
    try:
        shown = dict(zip(map(id, plain), _read(plain), strict=True))
    except Exception:  # noqa: BLE001 - the operation is an inner one of TensorFlow's, and on several devices it can't be; each variable can read itself
        return arrays
    return [shown.get(id(getattr(array, "_value", array)), array) for array in arrays]


def _read(plain: Sequence[Any]) -> Sequence[Any]:
    from tensorflow.python.eager import context, execute

    kinds = [variable.dtype.as_datatype_enum for variable in plain]
    inputs = [variable.handle for variable in plain]
    tensors: Sequence[Any] = execute.execute(b"_ReadVariablesOp", len(plain), inputs, ("N", len(plain), "dtypes", kinds), context.context())
    return tensors


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
    "tensorflow": lambda value: np.asarray(memoryview(value.read_value() if hasattr(value, "read_value") else value)),
    "torch": lambda tensor: tensor.detach().numpy(),
}
