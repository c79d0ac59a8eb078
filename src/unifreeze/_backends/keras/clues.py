"""What tells why a frozen variable moved: optimizers that still hold it, and on PyTorch a gradient that was left on it."""

from __future__ import annotations

from typing import Any

import keras

from unifreeze.plugin import Clue, Layer


def clues(tree: Layer, optimizer: Any) -> dict[str, Clue]:
    """Returns the clues of every parameter, from the optimizers of the compiled models in the tree and from the given one."""
    compiled = (getattr(layer.native, "optimizer", None) for layer in tree.walk() if isinstance(layer.native, keras.Model))
    holders: dict[int, Any] = {}
    for one in [*compiled, optimizer]:
        if isinstance(one, keras.optimizers.Optimizer) and one.built:
            holders |= {id(variable): one for variable in one._trainable_variables}
    return {p.path: _clue(p.array, holders.get(id(p.array))) for layer in tree.walk() for p in layer.parameters}


def _clue(variable: Any, optimizer: Any) -> Clue:
    gradient = getattr(getattr(variable, "_value", None), "grad", None) if keras.backend.backend() == "torch" else None
    left = "" if gradient is None else "some" if bool(gradient.detach().abs().sum()) else "zero"
    if optimizer is None:
        return Clue(left)
    moments = any(variable.ndim and tuple(slot.shape) == tuple(variable.shape) for slot in optimizer.variables)
    return Clue(left, type(optimizer).__name__, moments, float(optimizer.weight_decay or 0.0))
