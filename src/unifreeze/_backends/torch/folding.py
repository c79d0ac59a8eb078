"""Folding a large tensor on the device where it lies, to what ``unifreeze.plugin.folded`` makes of its bytes on the host: only that has to be copied."""

from __future__ import annotations

import torch

from unifreeze.plugin import FACTOR, width

_WORD = 8
# Of so many rows a copy may be made at once, in the device's memory, which training may need.
_ROWS = 1 << 11
# PyTorch knows 64-bit words with a sign alone; they are added and multiplied as those without.
_SIGNED = FACTOR - (1 << 64)


@torch.no_grad()
def folded_there(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of the fold, and those that fill no word, on the tensor's device."""
    octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
    octets = octets.clone() if octets.storage_offset() % _WORD else octets
    whole = octets.numel() // _WORD * _WORD
    words = octets[:whole].view(torch.int64)
    columns = width(words.numel())
    rows = words.numel() // columns
    weight = torch.full((columns,), _SIGNED, dtype=torch.int64, device=tensor.device).cumprod(0)
    down, across = torch.zeros_like(weight), []
    for block in words[: rows * columns].view(rows, columns).split(_ROWS):
        across.append((block * weight).sum(1))
        down += block.sum(0)
    return torch.cat([torch.cat([*across, down, words[rows * columns :]]).view(torch.uint8), octets[whole:]])
