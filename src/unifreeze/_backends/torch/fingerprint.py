"""Telling whether a tensor is still what it was, byte by byte, without keeping a copy."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from unifreeze.plugin import BackendError, Mark, folded_bytes, mark, spread

from .folding import folded_there
from .stored import extent, parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_TINY = 64
# One reader for each size: made once, it reads in a third of the time that ctypes.string_at takes.
_READERS = [(ctypes.c_char * size).from_address for size in range(_TINY + 1)]
_STRIDED = torch.strided
_TYPES = [one for one in vars(torch).values() if isinstance(one, torch.dtype)]
_REAL = {one for one in _TYPES if not one.is_complex and not str(one).startswith(("torch.qint", "torch.quint"))}
_SMALL = 1 << 14
_view = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(("PyMemoryView_FromMemory", ctypes.pythonapi))
_READ = 0x100  # PyBUF_READ
# Under a mode that only pretends to compute, whatever has to be copied first would come out without memory.
_really = unset_fake_temporarily()


@_really
def fingerprint(array: object) -> Hashable:
    """Returns a value that changes with any byte of the tensor, the same on every device; ``None`` for a tensor that holds no values."""
    tiny = _tiny(array)
    if tiny is not None:
        return tiny
    if not isinstance(array, torch.Tensor):
        return None
    if not _is_dense(array):
        return _of_another_kind(array)
    return _digest(_folded(array) if array.nbytes > _SMALL else _bytes(array))


def _of_another_kind(array: Any) -> Hashable:
    if array.is_meta or isinstance(array, FakeTensor):
        return None
    made_of = parts(array)
    if made_of is not None:
        return (str(array.layout), extent(array)[0], *map(fingerprint, made_of))
    if type(array) not in _PLAIN and hasattr(array, "__tensor_flatten__"):  # a sharded or quantised tensor, made of plain ones
        return tuple(fingerprint(getattr(array, name)) for name in array.__tensor_flatten__()[0])
    if array.is_mkldnn:
        return fingerprint(array.detach().to_dense())
    has_no_memory = type(array) in _PLAIN and not array.is_quantized  # it was given back
    return None if has_no_memory else _digest(_saved(array))


def fingerprints(arrays: Sequence[object]) -> list[Hashable]:
    """The fingerprint of each, several large ones at a time."""
    found: list[Hashable] = [_tiny(array) for array in arrays]
    rest = [array for array, tiny in zip(arrays, found, strict=True) if tiny is None]
    if not rest:
        return found
    others = iter(spread(fingerprint, rest, map(_host_bytes, rest)))
    return [next(others) if tiny is None else tiny for tiny in found]


def marks(arrays: Sequence[object], like: Sequence[Hashable]) -> list[Hashable]:
    """A mark of each tensor that lies on the CPU, and fingerprints of the others and of the very small; each in the way of ``like``, wherever it lies now."""
    found: list[Hashable] = [_tiny(array) for array in arrays]
    rest = [place for place, tiny in enumerate(found) if tiny is None]
    asked = [(arrays[place], like[place] if like else None) for place in rest]
    for place, made in zip(rest, spread(_marked, asked, [_host_bytes(array) for array, _ in asked]), strict=True):
        found[place] = made
    return found


@_really
def _marked(asked: tuple[object, Hashable]) -> Hashable:
    array, like = asked
    if not isinstance(array, torch.Tensor) or not _is_dense(array) or array.nbytes <= _TINY:
        return fingerprint(array)
    if not (array.is_cpu if like is None else isinstance(like, Mark)):
        return fingerprint(array)
    plain = _laid_out(array).cpu()
    return mark(_view(plain.data_ptr(), plain.nbytes, _READ))


def _is_dense(array: torch.Tensor) -> bool:
    """Whether it is a block of numbers in memory."""
    own_kind = type(array) not in _PLAIN
    made_of_others = own_kind and (hasattr(array, "__tensor_flatten__") or isinstance(array, FakeTensor))
    if made_of_others or array.is_meta or array.layout is not _STRIDED or array.is_quantized:
        return False
    return not (own_kind or array.is_cpu) or bool(array.data_ptr()) or not array.nbytes


def _laid_out(array: torch.Tensor) -> torch.Tensor:
    """The numbers side by side, as they are meant: a view may say of its memory that it is conjugated or negated."""
    return array.detach().resolve_conj().resolve_neg().contiguous()


def _tiny(array: object) -> bytes | None:
    """The bytes of a very small plain tensor on the CPU: the short way, for models that have very many."""
    plain: Any = array
    if (
        type(array) in _PLAIN
        and plain.is_cpu
        and plain.layout is _STRIDED
        and plain.dtype in _REAL
        and (size := plain.nbytes) <= _TINY
        and plain.is_contiguous()
        and not plain.is_neg()
        and ((address := plain.data_ptr()) or not size)
    ):
        return _READERS[size](address).raw
    return None


def _host_bytes(array: object) -> int:
    """How much the CPU has to read. What lies on a device is read in the caller's own thread, and so in its stream, after what is still being written there."""
    return array.nbytes if isinstance(array, torch.Tensor) and array.is_cpu and _is_dense(array) else 0


def _folded(array: torch.Tensor) -> bytes:
    """What a large tensor folds into: on its own device; on the CPU by NumPy, which reads the memory once, where PyTorch would read it three times."""
    if array.is_cpu:
        with contextlib.suppress(ImportError, RuntimeError, TypeError):  # no NumPy; a tensor that it can't show
            return folded_bytes(_laid_out(array).view(-1).view(torch.uint8).numpy()).tobytes()
    return _bytes(folded_there(_laid_out(array)))


def _bytes(plain: torch.Tensor) -> bytes:
    plain = _laid_out(plain).cpu()
    return ctypes.string_at(plain.data_ptr(), plain.nbytes)


def _digest(data: bytes) -> bytes:
    return data if len(data) <= _TINY else hashlib.blake2b(data, digest_size=16).digest()


def _saved(array: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(array.detach(), file)
    return file.getvalue()


@_really
def values(array: object) -> NDArray[Any] | None:
    """Returns a copy of a tensor's values in NumPy; ``None`` for a tensor that holds none, or that NumPy can't show (sparse, quantised)."""
    if not isinstance(array, torch.Tensor) or array.is_meta or isinstance(array, FakeTensor):
        return None
    plain = array.detach()
    plain = plain.to_local() if hasattr(plain, "to_local") else plain
    if not _is_dense(plain):
        return None
    _need_numpy()
    narrow = plain.is_floating_point() and plain.dtype not in {torch.float16, torch.float32, torch.float64}
    with contextlib.suppress(TypeError, NotImplementedError):  # of a type that NumPy does not know
        found: NDArray[Any] = (plain.float() if narrow else plain).cpu().resolve_conj().resolve_neg().numpy().copy()
        return found
    return None


def _need_numpy() -> None:
    try:
        import numpy as np  # noqa: F401
    except ImportError:
        raise BackendError("Copies are kept as arrays of NumPy, which is not installed.\n  pip install numpy; or leave out exact=True.") from None
