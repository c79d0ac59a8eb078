"""What nnx modules are made of: arrays, and what holds them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx

#: Modules that only keep others together. One that keeps arrays alone is no layer.
BOXES = (nnx.List, nnx.Dict)

#: What a call leaves behind; no part of what a model is.
_SCRATCH = (nnx.Cache, nnx.Intermediate)


@cache
def is_layer_class(kind: Any) -> bool:
    """Whether its objects are layers, whatever they hold."""
    return issubclass(kind, nnx.Module) and not issubclass(kind, BOXES)


@cache
def holds(kind: Any) -> bool:
    """Whether its objects may hold arrays or layers."""
    return issubclass(kind, nnx.Pytree | list | tuple | dict)


def is_array(value: object) -> bool:
    """Whether a member is an array, wrapped in a variable or not, and part of the model's state."""
    return _array_class(class_of(value))


@cache
def _array_class(kind: Any) -> bool:
    if issubclass(kind, nnx.Variable):
        return not issubclass(kind, _SCRATCH)
    return issubclass(kind, jax.Array | np.ndarray | jax.ShapeDtypeStruct | jax.core.Tracer)


def class_of(value: Any) -> Any:
    """The class of a variable, also of a hijax variable, which is an object of another class; of anything else its own."""
    return value.var_type if type(value) is nnx.variablelib.HijaxVariable else type(value)


def raw(array: Any) -> Any:
    """The value inside a variable; a bare array is its own."""
    return array.get_raw_value() if issubclass(class_of(array), nnx.Variable) else array
