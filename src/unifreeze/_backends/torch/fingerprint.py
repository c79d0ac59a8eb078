"""Telling whether a tensor is still what it was, byte by byte, without keeping a copy."""

from __future__ import annotations

import ctypes
import hashlib
import io
from collections.abc import Hashable
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_TINY = 64
# One reader for each size: made once, it reads in a third of the time that ctypes.string_at takes.
_READERS = [(ctypes.c_char * size).from_address for size in range(_TINY + 1)]
_STRIDED = torch.strided
_SMALL = 1 << 16
_WIDEST = 1 << 17
# An odd number stays odd, so invertible modulo 2**64, in every power.
_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)


def fingerprint(array: object) -> Hashable:
    """Returns a value that changes with any byte of the tensor, the same on every device; ``None`` for a tensor that holds no values."""
    plain: Any = array
    if (
        type(array) in _PLAIN
        and plain.is_cpu
        and plain.layout is _STRIDED
        and not plain.is_quantized
        and (size := plain.nbytes) <= _TINY
        and plain.is_contiguous()
    ):
        return _READERS[size](plain.data_ptr()).raw  # the short way, for models of very many small arrays
    if not isinstance(array, torch.Tensor) or array.is_meta or isinstance(array, FakeTensor):
        return None
    if type(array) not in _PLAIN and hasattr(array, "__tensor_flatten__"):  # a sharded or quantised tensor, made of plain ones
        return tuple(fingerprint(getattr(array, name)) for name in array.__tensor_flatten__()[0])
    if array.layout is not torch.strided or array.is_quantized:
        return _digest(_saved(array))
    plain = _folded(array) if array.nbytes > _SMALL else array
    if not (plain.is_cpu and plain.is_contiguous()):
        plain = plain.detach().contiguous().cpu()
    return _digest(ctypes.string_at(plain.data_ptr(), plain.nbytes))


@torch.no_grad()
def _folded(array: torch.Tensor) -> torch.Tensor:
    """Folds a large tensor into a small one, on its own device and at the speed of its memory.

    Rows of 32-bit words are added up as 64-bit numbers, the sum being multiplied by an odd constant before each. A difference that is confined to one word
    is smaller than 2**32 and multiplied by an odd number, so it can't vanish modulo 2**64; differences of several words vanish together only by a chance of
    about 2**-32 or less. Plain sums would miss a swap, and sums of 64-bit words an even number of flipped signs, for multiplication does not spread a word's
    highest bit.
    """
    octets = array.detach().contiguous().view(-1).view(torch.uint8)
    if octets.storage_offset() % 4:
        octets = octets.clone()
    whole = octets.numel() // 4 * 4
    words = octets[:whole].view(torch.int32)
    width = min(32 * isqrt(words.numel()), _WIDEST)  # neither many short rows nor a long sum to hash
    sums = torch.zeros(width, dtype=torch.int64, device=array.device)
    for row in words.split(width):
        part = sums[: row.numel()]
        torch.add(row.to(torch.int64), part, alpha=_FACTOR, out=part)
    return torch.cat([sums.view(torch.uint8), octets[whole:]])


def _digest(data: bytes) -> bytes:
    return data if len(data) <= _TINY else hashlib.blake2b(data, digest_size=16).digest()


def _saved(array: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(array.detach(), file)
    return file.getvalue()


def values(array: object) -> NDArray[Any] | None:
    """Returns a copy of a tensor's values in NumPy; ``None`` for a tensor that holds none, or that NumPy can't show (sparse, quantised)."""
    if not isinstance(array, torch.Tensor) or array.is_meta or isinstance(array, FakeTensor):
        return None
    plain = array.detach()
    plain = plain.to_local() if hasattr(plain, "to_local") else plain
    if plain.layout is not torch.strided or plain.is_quantized or hasattr(plain, "__tensor_flatten__"):
        return None
    narrow = plain.is_floating_point() and plain.dtype not in {torch.float16, torch.float32, torch.float64}
    found: NDArray[Any] = (plain.float() if narrow else plain).cpu().resolve_conj().resolve_neg().numpy().copy()
    return found
