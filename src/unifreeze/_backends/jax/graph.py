"""Traces what computes on arrays to its weighted dataflow: the jaxpr of its call on abstract values, followed from its weights and its input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from unifreeze.plugin import ArgumentError, BackendError, Graph, Layer, Traced, Tracing, flow

from .calls import Call, first_that_runs
from .follow import Follower
from .tree import absent, copied, is_array, is_inexact
from .units import Scribe
from .values import Const, Data, Expr


class Computation(ABC):
    """A model of JAX as tracing needs it: arrays, how to make the model of them, and how it computes.

    Attributes:
        model: The model. Where what is written makes a new one, this goes on with the new one.
        apply: How the outputs are computed of a model and inputs.
    """

    def __init__(self, model: Any, apply: Callable[..., Any]) -> None:
        self.model, self.apply = model, apply

    @abstractmethod
    def arrays(self) -> list[Any]:
        """The model's arrays."""

    @abstractmethod
    def build(self, arrays: Sequence[Any]) -> Any:
        """A model like it, of other arrays."""

    @abstractmethod
    def layers(self, model: Any) -> Layer:
        """Reads a model as a tree."""

    def call(self, model: Any, *inputs: Any, **named: Any) -> Any:
        """Computes the outputs in inference."""
        return self.apply(model, *inputs, **named)

    def raw(self, array: Any) -> Any:
        """What is stored in an array of the tree."""
        return array

    @abstractmethod
    def write(self, new: dict[str, Any]) -> Any:
        """Puts arrays at these paths, and returns the model that has them."""

    def read(self, paths: Iterable[str]) -> dict[str, Any]:
        """The arrays at these paths."""
        known = {array.path: array.array for array in self.layers(self.model).arrays()}
        return {path: values(path, self.raw(known[path])) for path in paths}

    def traced(self, shape: Any) -> Traced:
        """The dataflow, and how to carry weights; nothing is allocated for the dataflow.

        Args:
            shape: The shape of the input, channels last; a list of them, or a dictionary by the names of the arguments.
        """
        if shape is None:
            raise BackendError("A model of JAX does not say the shape of its input.\n  Give it, channels last: shape=(1, 224, 224, 3).")
        call, found = first_that_runs(shape, self._jaxpr, lambda error: _unrunnable(self.model, shape, error))
        jitted = jax.jit(lambda arrays, inputs: _floats(self._called(self.build(arrays), call, inputs)))

        def run(inputs: list[Any]) -> list[Any]:
            # At full precision, also where the device has a faster one.
            with jax.default_matmul_precision("highest"):
                return [np.asarray(one) for one in jitted(self.arrays(), call.given(inputs))]

        return Traced(_followed(call, *found), self.read, self.write, run)

    def _called(self, model: Any, call: Call, inputs: list[Any]) -> Any:
        args, named = call.bound(inputs)
        return self.call(model, *args, **named)

    def _jaxpr(self, call: Call) -> tuple[Any, list[tuple[str, str, tuple[int, ...]]]]:
        """The jaxpr of a call on abstract values, and for each array its path, its layer's, and its shape."""
        found: dict[int, tuple[str, str]] = {}

        def run(arrays: list[Any], inputs: list[Any]) -> Any:
            built = self.build(arrays)
            places = {id(array): place for place, array in enumerate(arrays)}
            for layer in self.layers(built).walk():
                for array in (*layer.parameters, *layer.buffers):
                    found.setdefault(places.get(id(self.raw(array.array)), -1), (array.path, layer.path))
            return _floats(self._called(built, call, inputs))

        abstract = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self.arrays()]
        jaxpr = jax.make_jaxpr(run)(abstract, call.abstract())
        return jaxpr, [(*found.get(place, ("", "")), tuple(array.shape)) for place, array in enumerate(abstract)]


def _followed(call: Call, jaxpr: Any, arrays: list[tuple[str, str, tuple[int, ...]]]) -> Graph:
    """The weighted dataflow of a jaxpr."""
    tracing = Tracing({path: layer for path, layer, _ in arrays})
    scribe = Scribe(tracing)
    weights = [Expr(view=flow.parameter(path, shape)) if path else Const(shape) for path, _, shape in arrays]
    inputs = [tracing.input(one.shape, None if ids else -1) for one, ids in zip(call.abstract(), call.ids, strict=True)]
    ends = Follower(scribe).run(jaxpr, [*weights, *map(scribe.data, inputs)])
    return tracing.finish([scribe.value(end) for end in ends if isinstance(end, Data)], call.shapes)


def _unrunnable(model: Any, shape: Any, error: Exception) -> BackendError:
    return BackendError(f"A {type(model).__name__} can't be run on an input of shape {shape}.\n  {type(error).__name__}: {error}")


def _floats(outputs: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(outputs) if is_array(leaf) and is_inexact(leaf.dtype)]


# Trees of arrays, which a function computes with.


def trace(model: Any, layers: Callable[[Any], Layer], shape: Any, apply: Callable[..., Any] | None) -> Traced:
    """Traces a tree of arrays, by the function that computes with it."""
    if apply is None:
        raise ArgumentError(
            "A tree of arrays does not say what it computes, so its dataflow is unknown.\n"
            "  Give the function, called with the tree and an input: apply=lambda variables, x: module.apply(variables, x)."
        )
    return Tree(model, layers, apply).traced(shape)


class Tree(Computation):
    """A tree of arrays and the function that computes with it. What is written is a new tree."""

    def __init__(self, model: Any, layers: Callable[[Any], Layer], apply: Callable[..., Any]) -> None:
        super().__init__(model, apply)
        self._layers, self._build = layers, parted(model)[1]

    def arrays(self) -> list[Any]:
        """The arrays in the order of their leaves."""
        return parted(self.model)[0]

    def build(self, arrays: Sequence[Any]) -> Any:
        """A tree like it."""
        return self._build(arrays)

    def layers(self, model: Any) -> Layer:
        """Reads the tree as a model."""
        return self._layers(model)

    def write(self, new: dict[str, Any]) -> Any:
        """A tree with other arrays at these paths."""
        known = {array.path: array.array for array in self.layers(self.model).arrays()}
        given = {id(known[path]): like(known[path], value) for path, value in new.items()}
        self.model = copied(self.model, lambda leaf: given.get(id(leaf), leaf))
        return self.model


def parted(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, one that stands in two places once, and how to make the tree of other ones."""
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=absent)
    # A user's own shape may stand for any number of arrays.
    keys = [place if isinstance(leaf, jax.ShapeDtypeStruct) else -1 - id(leaf) for place, leaf in enumerate(leaves)]
    arrays = {key: leaf for key, leaf in zip(keys, leaves, strict=True) if is_array(leaf)}

    def build(new: Sequence[Any]) -> Any:
        given = dict(zip(arrays, new, strict=True))
        return jax.tree_util.tree_unflatten(treedef, [given.get(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])

    return list(arrays.values()), build


def values(path: str, array: Any) -> Any:
    """An array's values, as numpy has them."""
    if isinstance(array, jax.ShapeDtypeStruct):
        raise BackendError(
            f"{path} has a shape, but no values yet.\n  Weights are carried between models that have them; this one is abstract, as from jax.eval_shape."
        )
    return np.asarray(array)


def like(array: Any, value: Any) -> Any:
    """Values as an array like another: of its type, and where that one lies."""
    value = np.asarray(value).astype(array.dtype)
    return jax.device_put(value, array.sharding) if isinstance(array, jax.Array) else value
