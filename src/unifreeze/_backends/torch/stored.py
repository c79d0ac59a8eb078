"""What is stored of tensors that are no block of numbers, sparse and jagged ones: PyTorch tells neither the bytes of the first nor all sizes of the second."""

from __future__ import annotations

from typing import Any

import torch

_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}
_STRIDED, _JAGGED = torch.strided, torch.jagged


def parts(array: Any) -> list[torch.Tensor] | None:
    """Returns the indices and values of a sparse tensor, the values and places of a jagged one; ``None`` for any other."""
    if array.layout is _JAGGED:  # not those by which it is flattened: among them are lengths that PyTorch notes when it first needs them
        return [part for part in (array._values, array._offsets, array._lengths) if part is not None]
    names = _SPARSE.get(array.layout)
    return None if names is None else [getattr(array, name)() for name in names]


def extent(array: Any) -> tuple[tuple[int, ...], int]:
    """Returns the shape and the bytes: of a sparse or jagged tensor, the bytes of its parts; a jagged one has the shape of all its rows together."""
    if array.layout is _STRIDED:
        return tuple(array.shape), array.nbytes
    made_of = parts(array)
    shape = tuple(array._values.shape if array.layout is _JAGGED else array.shape)
    return shape, array.nbytes if made_of is None else sum(part.nbytes for part in made_of)
