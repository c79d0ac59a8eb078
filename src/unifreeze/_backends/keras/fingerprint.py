"""Telling whether a variable is still what it was, byte by byte, without keeping a copy: on its own device, or on the host without a copy."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from unifreeze.plugin import Mark, folded_bytes, mark, spread

from .folding import folded_there, is_far, nbytes

_SMALL = 1 << 13


def fingerprint(array: Any) -> Hashable:
    """Returns a value that changes with any byte of a variable, or of a wrapped torch module's buffer; ``None`` where a running fit holds the values."""
    return _digest(_seen(_value(array)))


def fingerprints(arrays: Sequence[Any]) -> list[Hashable]:
    """Returns the fingerprint of each."""
    seen = _all_seen(arrays)
    # What lies on a device is read in the caller's own thread, after what is still being written there.
    return spread(_digest, seen, _sizes(seen))


def marks(arrays: Sequence[Any], like: Sequence[Hashable]) -> list[Hashable]:
    """Returns a mark of each that is read on the host, and fingerprints of the others; each in the way of ``like``, wherever it lies now."""
    seen = _all_seen(arrays)
    asked = list(zip(seen, like, strict=True)) if like else [(one, None) for one in seen]
    return spread(_marked, asked, _sizes(seen))


def _all_seen(arrays: Sequence[Any]) -> list[Any]:
    """TensorFlow shows all of them at once, without a copy: reading them one by one would take it as long as the digests."""
    values = [_value(array) for array in arrays]
    if keras.backend.backend() == "tensorflow":
        with contextlib.suppress(Exception):  # the operation is an inner one of TensorFlow's, and can't be where variables lie on several devices
            values = _shown_together(values)
    return [_seen(value) for value in values]


def _sizes(seen: Sequence[Any]) -> list[int]:
    """How much of each the host has to read."""
    return [one.nbytes if isinstance(one, np.ndarray) else 0 for one in seen]


def _marked(asked: tuple[Any, Hashable]) -> Hashable:
    seen, like = asked
    if seen is None or (_stays_there(seen) if like is None else not isinstance(like, Mark)):
        return _digest(seen)
    plain = _read_whole(seen)
    if plain.flags.c_contiguous:
        with contextlib.suppress(ValueError):  # of a type that no buffer can say, such as bfloat16
            return mark(plain.data)
    return mark(_plain(plain).data)


def _value(array: Any) -> Any:
    return array._value if isinstance(array, keras.Variable) else array


def _seen(value: Any) -> Any:
    """An array on the host as NumPy sees it, without the copy that Keras would make, which takes longer than the digest; itself where that can't be."""
    if value is None or is_far(value):
        return value
    try:
        return _ways[keras.backend.backend()](value)
    except (AttributeError, BufferError, KeyError, RuntimeError, TypeError, ValueError):  # sparse, sharded, of a type that NumPy does not know
        return value


def _stays_there(seen: Any) -> bool:
    return not isinstance(seen, np.ndarray) and is_far(seen)


def _digest(seen: Any) -> Hashable:
    return None if seen is None else hashlib.blake2b(_octets(seen).data, digest_size=16).digest()


def _shown_together(values: Sequence[Any]) -> list[Any]:
    plain = [value for value in values if type(value).__name__ == "ResourceVariable"]
    shown = dict(zip(map(id, plain), _read(plain), strict=True))
    return [shown.get(id(value), value) for value in values]


def _read(plain: Sequence[Any]) -> Sequence[Any]:
    from tensorflow.python.eager import context, execute

    kinds = [variable.dtype.as_datatype_enum for variable in plain]
    inputs = [variable.handle for variable in plain]
    tensors: Sequence[Any] = execute.execute(b"_ReadVariablesOp", len(plain), inputs, ("N", len(plain), "dtypes", kinds), context.context())
    return tensors


def _octets(seen: Any) -> NDArray[np.uint8]:
    """The bytes of a small array; of a large one, what they fold into: where it lies, if that is one accelerator."""
    if _stays_there(seen) and nbytes(seen) > _SMALL:
        with contextlib.suppress(Exception):  # of a type that the engine can't take apart; each has its own way to say so
            return folded_there(seen)
    octets = _plain(_read_whole(seen))
    return octets if octets.nbytes <= _SMALL else folded_bytes(octets)


def _plain(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def values(array: Any) -> NDArray[Any] | None:
    """Returns a copy of a variable's values; ``None`` where a running fit holds them, of strings, and of what NumPy can't show."""
    value = _seen(_value(array))
    if value is None:
        return None
    try:
        found = np.array(_as_numpy(value))
    except (RuntimeError, TypeError):
        if _on_torch(value):
            return None
        raise
    if found.dtype.hasobject:
        return None
    return found.astype(np.float32) if found.dtype.kind == "V" or found.dtype.name.startswith(("bfloat16", "float8")) else found


def _read_whole(seen: Any) -> NDArray[Any]:
    """An array of numbers with the bytes that count; of strings, which are kept elsewhere, and of a tensor that NumPy can't show, bytes that tell of them."""
    try:
        found = _as_numpy(seen)
    except (RuntimeError, TypeError):
        if not _on_torch(seen):
            raise
        from unifreeze._backends.torch.fingerprint import fingerprint as by_torch

        return np.frombuffer(repr(by_torch(seen)).encode(), np.uint8)
    return np.frombuffer(repr(found.tolist()).encode(), np.uint8) if found.dtype.hasobject else found


def _on_torch(seen: Any) -> bool:
    """Whether it is a tensor of PyTorch, of which NumPy can't show every kind: sparse ones, conjugated views, eight-bit floating point."""
    return keras.backend.backend() == "torch" and not isinstance(seen, np.ndarray)


def _as_numpy(seen: Any) -> NDArray[Any]:
    return seen if isinstance(seen, np.ndarray) else keras.ops.convert_to_numpy(seen)


_ways: dict[str, Callable[[Any], NDArray[Any]]] = {
    "jax": np.asarray,
    "tensorflow": lambda value: np.asarray(memoryview(value if type(value).__name__ == "EagerTensor" else value.read_value())),
    "torch": lambda tensor: tensor.detach().numpy(),
}
