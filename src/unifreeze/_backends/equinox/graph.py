"""Traces a module to its weighted dataflow. Equinox computes one sample, channels first; here it is given batches, channels last, like any other model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from unifreeze._backends.jax.graph import Computation, like, parted, values
from unifreeze._backends.jax.tree import copied, is_array
from unifreeze.plugin import BackendError, Layer, Traced

from . import tree


def trace(model: Any, shape: Any, apply: Callable[..., Any] | None) -> Traced:
    """Traces a module, or the pair of a module and its State, that is called with one sample, or with which ``apply`` computes a batch."""
    if apply:
        return Module(model, apply).traced(shape)
    try:
        return Module(model, partial(sample_by_sample, signals=False)).traced(shape)
    except BackendError:
        sizes = shape.values() if isinstance(shape, dict) else shape if isinstance(shape, list) else [shape]
        if not any(len(size) == 3 for size in sizes):
            raise
        # A signal, not a sequence: its channels come first, too.
        return Module(model, partial(sample_by_sample, signals=True)).traced(shape)


def sample_by_sample(model: Any, *inputs: Any, signals: bool, **named: Any) -> Any:
    """Calls a module as its users do, under ``vmap``: with images (and, if it is said, signals) channels first, and with its State if it has one."""
    module, state = pair(model)
    least = 2 if signals else 3

    def one(samples: list[Any], called: dict[str, Any]) -> Any:
        moved = [jnp.moveaxis(sample, -1, 0) if sample.ndim >= least else sample for sample in samples]
        out = module(*moved, **called) if state is None else module(*moved, state, **called)
        leaves = [leaf for leaf in jax.tree.leaves(out if state is None else out[0]) if is_array(leaf)]
        return [jnp.moveaxis(leaf, 0, -1) if leaf.ndim >= least else leaf for leaf in leaves]

    return jax.vmap(one, axis_name=_axis_name(module))(list(inputs), named)


def _axis_name(module: Any) -> Any:
    """The name of the batch's axis that the module's normalisations ask for."""
    layers = jax.tree.leaves(module, is_leaf=lambda node: isinstance(node, eqx.nn.BatchNorm))
    return next((node.axis_name for node in layers if isinstance(node, eqx.nn.BatchNorm)), "batch")


class Module(Computation):
    """A module, or the pair of it and its State, and how it is called. What is written is a new one."""

    def __init__(self, model: Any, apply: Callable[..., Any]) -> None:
        super().__init__(model, apply)
        self._build = parted(model)[1]

    def arrays(self) -> list[Any]:
        """The arrays of the module and of its State."""
        return parted(self.model)[0]

    def build(self, arrays: Sequence[Any]) -> Any:
        """A model like it."""
        return self._build(arrays)

    def layers(self, model: Any) -> Layer:
        """Reads the model as a tree."""
        return tree.read(*pair(model))

    def call(self, model: Any, *inputs: Any, **named: Any) -> Any:
        """Computes the outputs in inference."""
        return self.apply(eqx.nn.inference_mode(model), *inputs, **named)

    def read(self, paths: Iterable[str]) -> dict[str, Any]:
        """The arrays at these paths; of a mean that is still accumulating, what it stands for."""
        tree_of = self.layers(self.model)
        known = {array.path: array.array for array in tree_of.arrays()}
        grown = {f"{path}.{name}": _grown(norm, known[f"{path}.batch_counter"]) for path, norm in _norms(tree_of, "batch") for name in ("mean", "var")}
        return {path: values(path, known[path]) / grown[path] if path in grown else values(path, known[path]) for path in paths}

    def write(self, new: dict[str, Any]) -> Any:
        """A module with other arrays at these paths; of a pair, a pair. The statistics then count as those of a run that has long begun."""
        tree_of = self.layers(self.model)
        known = {array.path: array.array for array in tree_of.arrays()}
        new = dict(new)
        for path, norm in _norms(tree_of, "batch"):
            counter: Any = known[f"{path}.batch_counter"]
            if f"{path}.mean" in new:
                new[f"{path}.batch_counter"] = max(int(counter), _long(norm))
        new |= {f"{path}.ema_first_time": False for path, _ in _norms(tree_of, "ema") if f"{path}.mean" in new}
        given = {id(known[path]): like(known[path], value) for path, value in new.items()}
        self.model = copied(self.model, lambda leaf: given.get(id(leaf), leaf))
        return self.model


def _norms(tree_of: Layer, mode: str) -> list[tuple[str, Any]]:
    """The batch normalisations of one mode, whose running statistics are given."""
    return [
        (layer.path, layer.native) for layer in tree_of.walk() if layer.buffers and isinstance(layer.native, eqx.nn.BatchNorm) and layer.native.mode == mode
    ]


def _grown(norm: Any, counter: Any) -> Any:
    """By what equinox divides the stored statistics (mode "batch"): how much of them has accumulated since they were zero."""
    count = int(values("batch_counter", counter))
    return np.float32(1 - np.float32(norm.momentum) ** np.float32(count)) if count else np.float32(1)


def _long(norm: Any) -> int:
    """After how many steps that is one, in single precision."""
    return math.ceil(25 * math.log(2) / -math.log(norm.momentum)) if 0 < norm.momentum < 1 else 1


def pair(model: Any) -> tuple[Any, Any]:
    """The module, and its State if it is given."""
    return model if isinstance(model, tuple) else (model, None)
