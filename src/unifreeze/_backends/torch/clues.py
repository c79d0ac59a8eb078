"""What tells why a frozen tensor moved: gradients that were left on it, and living optimizers that hold it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from unifreeze.plugin import Clue, Layer


def clues(tree: Layer, optimizer: object, *, living: bool) -> dict[str, Clue]:
    """Returns the clues of every parameter; to search the optimizers among all living objects takes a moment."""
    holders = dict(_holders(optimizer, living=living))
    return {p.path: _clue(p.array, holders.get(id(p.array))) for layer in tree.walk() for p in layer.parameters}


def _holders(given: object, *, living: bool) -> Iterator[tuple[int, tuple[Optimizer, float]]]:
    """Each parameter that an optimizer holds, with the optimizer and its decay there; the given one last, for it counts most."""
    found = [one for one in gc.get_objects() if issubclass(type(one), Optimizer)] if living else []
    for optimizer in [*found, *([given] if isinstance(given, Optimizer) else [])]:
        for group in getattr(optimizer, "param_groups", ()):
            for array in group["params"]:
                yield id(array), (optimizer, float(group.get("weight_decay", 0.0) or 0.0))


def _clue(array: Any, holder: tuple[Optimizer, float] | None) -> Clue:
    optimizer, decay = holder or (None, 0.0)
    moments = optimizer is not None and any(isinstance(one, torch.Tensor) and one.numel() for one in optimizer.state.get(array, {}).values())
    gradient = array.grad
    left = "" if gradient is None else "some" if bool(gradient.detach().abs().sum()) else "zero"
    return Clue(left, "" if optimizer is None else type(optimizer).__name__, moments, decay)
