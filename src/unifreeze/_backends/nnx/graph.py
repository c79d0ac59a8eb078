"""Traces a module to its weighted dataflow. What is traced and run is a copy in evaluation mode, which shares the arrays; the module itself is not touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from unifreeze._backends.jax.graph import Computation, like
from unifreeze.plugin import Layer, Traced

from . import tree
from .parts import raw
from .swap import put


def trace(model: nnx.Module, shape: Any, apply: Callable[..., Any] | None) -> Traced:
    """Traces a module that is called with an input, or with which ``apply`` computes."""
    return Module(model, apply or (lambda module, *inputs, **named: module(*inputs, **named))).traced(shape)


class Module(Computation):
    """A module and how it is called."""

    def __init__(self, model: nnx.Module, apply: Callable[..., Any]) -> None:
        super().__init__(model, apply)
        self._definition, state = nnx.split(model)
        self._structure = jax.tree.structure(state)

    def arrays(self) -> list[Any]:
        """The arrays of the module's state."""
        return jax.tree.leaves(nnx.split(self.model)[1])

    def build(self, arrays: Sequence[Any]) -> Any:
        """A copy in evaluation mode."""
        copy = nnx.merge(self._definition, jax.tree.unflatten(self._structure, arrays))
        copy.eval()
        return copy

    def layers(self, model: Any) -> Layer:
        """Reads the module as a tree."""
        return tree.read(model)

    def raw(self, array: Any) -> Any:
        """The value of a variable."""
        return raw(array)

    def write(self, new: dict[str, Any]) -> nnx.Module:
        """Puts arrays at these paths."""
        known = {array.path: array.array for array in tree.read(self.model).arrays()}
        for path, value in new.items():
            put(known[path], like(raw(known[path]), value))
        return self.model
