"""Traces a module to its weighted dataflow. What is traced and run is a copy in evaluation mode, which shares the arrays; the module itself is not touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from unifreeze._backends.jax.graph import Computation, graph, like, outputs, values
from unifreeze.plugin import Traced

from . import tree
from .parts import raw
from .swap import put


def trace(model: nnx.Module, shape: tuple[int, ...] | None, apply: Callable[..., Any] | None) -> Traced:
    """Traces a module that is called with an input, or with which ``apply`` computes."""
    return Module(model, apply or (lambda module, *inputs: module(*inputs))).traced(shape)


@dataclass(frozen=True, slots=True)
class Module:
    """A module and how it is called."""

    model: nnx.Module
    apply: Callable[..., Any]

    def traced(self, shape: tuple[int, ...] | None) -> Traced:
        """The dataflow, and how to carry weights."""
        definition, state = nnx.split(self.model)
        arrays, structure = jax.tree.flatten(state)

        def build(new: Sequence[Any]) -> Any:
            copy = nnx.merge(definition, jax.tree.unflatten(structure, new))
            copy.eval()
            return copy

        return Traced(graph(Computation(arrays, build, tree.read, self.apply, raw), shape), self.read, self.write, self.run)

    def read(self, paths: Iterable[str]) -> dict[str, Any]:
        """The arrays at these paths."""
        known = self._variables()
        return {path: values(path, raw(known[path])) for path in paths}

    def write(self, new: dict[str, Any]) -> nnx.Module:
        """Puts arrays at these paths."""
        known = self._variables()
        for path, value in new.items():
            put(known[path], like(raw(known[path]), value))
        return self.model

    def run(self, inputs: list[Any]) -> list[Any]:
        """The outputs in evaluation mode."""
        copy = nnx.merge(*nnx.split(self.model))
        copy.eval()
        return outputs(self.apply, copy, inputs)

    def _variables(self) -> dict[str, Any]:
        return {array.path: array.array for array in tree.read(self.model).arrays()}
