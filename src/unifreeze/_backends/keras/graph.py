"""Traces a functional or sequential model to its weighted dataflow. Nothing is called: Keras keeps the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import keras
import numpy as np

from unifreeze.plugin import BackendError, Graph, Layer, Sources, Traced, Unit, Weight, concatenated, merged

L = keras.layers
_PLAIN_NAMES = (
    "InputLayer Activation ReLU LeakyReLU ELU Softmax Dropout SpatialDropout1D SpatialDropout2D GaussianNoise GaussianDropout ActivityRegularization "
    "Identity ZeroPadding1D ZeroPadding2D Cropping2D UpSampling2D Rescaling Normalization"
)
_PLAIN_LAYERS = tuple(getattr(L, name) for name in dir(L) if name in _PLAIN_NAMES.split() or "Pooling" in name)
# Operations written in Python, such as ``x + 3.0``, by the name of their class.
_PLAIN_OPERATIONS = {
    "Add",
    "Subtract",
    "Multiply",
    "TrueDivide",
    "Divide",
    "Relu",
    "Relu6",
    "Sigmoid",
    "Tanh",
    "Silu",
    "Gelu",
    "HardSwish",
    "HardSigmoid",
    "Softmax",
    "Mean",
}
_PLAIN_OPERATIONS |= {"Negative", "Square", "Sqrt", "Exp", "Abs", "Clip", "Cast", "Identity", "Swish"}


@dataclass(frozen=True, slots=True)
class _Value:
    """Where a tensor comes from; of a flattened one, the axes that it had (height, width, channels)."""

    sources: Sources
    flat: tuple[int, ...] = ()


@dataclass(slots=True)
class _Tracer:
    layers: dict[int, str]
    paths: dict[int, str]
    units: list[Unit] = field(default_factory=list)

    def model(self, model: Any, inputs: list[_Value]) -> list[_Value]:
        """Walks the nodes of a functional graph, parents first; a model inside it is walked in its place."""
        functional = getattr(model, "_functional", model)
        if not hasattr(functional, "_nodes_by_depth"):
            raise BackendError(
                f"{type(model).__name__} {model.name!r} is no functional graph, so unifreeze can't trace it.\n"
                "  Build it from keras.Input, or give the functional model inside it."
            )
        known = {id(tensor): value for tensor, value in zip(functional._inputs, inputs, strict=True)}
        for depth in sorted(functional._nodes_by_depth, reverse=True):
            for node in functional._nodes_by_depth[depth]:
                if not node.is_input:
                    given = [known[id(tensor)] for tensor in node.input_tensors]
                    for tensor, value in zip(node.outputs, self.operation(node, given), strict=True):
                        known[id(tensor)] = value
        return [known[id(tensor)] for tensor in functional._outputs]

    def operation(self, node: Any, given: list[_Value]) -> list[_Value]:
        op, tensors = node.operation, node.input_tensors
        if isinstance(op, keras.Model):
            return self.model(op, given)
        handler = next((found for cls, found in _HANDLERS.items() if isinstance(op, cls)), None)
        if handler:
            return [handler(self, op, given, tensors)]
        if isinstance(op, L.Flatten | L.Reshape):
            return [self._reshaped(op, given[0], tuple(tensors[0].shape), tuple(node.outputs[0].shape))]
        word = {"Add": "+", "Multiply": "*"}.get(type(op).__name__, "")
        if word and type(op).__module__.startswith("keras."):
            return [_Value(merged(word, *(value.sources for value in given)), given[0].flat)]
        plain = isinstance(op, _PLAIN_LAYERS) or (not isinstance(op, L.Layer) and type(op).__name__ in _PLAIN_OPERATIONS)
        if plain and len(given) == 1:
            return given
        raise BackendError(
            f"{type(op).__name__} {op.name!r} is a layer that unifreeze can't trace.\n"
            "  Correspondence covers convolutions, dense layers, norms, embeddings, and what is elementwise, pools, pads, reshapes or joins between them."
        )

    def _reshaped(self, op: Any, value: _Value, shape: tuple[Any, ...], new: tuple[Any, ...]) -> _Value:
        if [n for n in shape[1:] if n != 1] == [n for n in new[1:] if n != 1]:
            return value
        if len(new) == 2 and not value.flat:
            return _Value(value.sources, shape[1:] if prod(shape[1:-1]) > 1 else ())
        raise BackendError(f"{type(op).__name__} {op.name!r} reshapes {shape} to {new}, which mixes axes in a way that unifreeze can't trace.")

    def weight(self, variable: Any, shape: tuple[int, ...], split: tuple[int, ...] = ()) -> Weight:
        return Weight(self.paths[id(variable)], split, (), shape)

    def vectors(self, **variables: Any) -> dict[str, Weight]:
        return {role: self.weight(variable, (prod(variable.shape),)) for role, variable in variables.items() if variable is not None}

    def unit(self, op: Any, kind: str, x: _Value, shape: tuple[int, ...], weights: dict[str, Weight], **settings: object) -> _Value:
        self.units.append(Unit(self.layers[id(op)], kind, shape, x.sources, weights, settings))
        return _Value(frozenset({(len(self.units) - 1, 0, ())}))


def _need_channels_last(op: Any) -> None:
    if op.data_format != "channels_last":
        raise BackendError(
            f"{type(op).__name__} {op.name!r} has channels first, which unifreeze can't trace.\n  Build the model with data_format='channels_last'."
        )


def _dense(tracer: _Tracer, op: Any, given: list[_Value], _: Any) -> _Value:
    shape = tuple(op.kernel.shape)
    return tracer.unit(op, "dense", given[0], shape, {"kernel": tracer.weight(op._kernel, shape)} | tracer.vectors(bias=op.bias))


def _conv(tracer: _Tracer, op: Any, given: list[_Value], _: Any) -> _Value:
    _need_channels_last(op)
    *window, ins, outs = op.kernel.shape
    settings = {"stride": tuple(op.strides), "padding": op.padding, "dilation": tuple(op.dilation_rate)}
    kind, shape, array = "conv", (*window, ins, outs), (*window, ins, outs)
    if ins == 1 < op.groups:
        kind, shape = "depthwise_conv", (*window, op.groups, outs // op.groups)
        array = shape
    elif op.groups == 1 and prod(window) == 1:
        kind, shape, array = "dense", (ins, outs), (ins, outs)
    elif op.groups > 1:
        shape = (*shape, op.groups)
    return tracer.unit(op, kind, given[0], shape, {"kernel": tracer.weight(op._kernel, array)} | tracer.vectors(bias=op.bias), **settings)


def _depthwise(tracer: _Tracer, op: Any, given: list[_Value], _: Any) -> _Value:
    _need_channels_last(op)
    shape = tuple(op.kernel.shape)
    weights = {"kernel": tracer.weight(op.kernel, shape)} | tracer.vectors(bias=op.bias)
    kind, shape = ("dense", shape[-2:]) if prod(shape[:-1]) == 1 else ("depthwise_conv", shape)
    return tracer.unit(op, kind, given[0], shape, weights, stride=tuple(op.strides), padding=op.padding, dilation=tuple(op.dilation_rate))


def _separable(tracer: _Tracer, op: Any, given: list[_Value], _: Any) -> _Value:
    _need_channels_last(op)
    depth, point = tuple(op.depthwise_kernel.shape), tuple(op.pointwise_kernel.shape)[-2:]
    inner = tracer.unit(
        op, "depthwise_conv", given[0], depth, {"kernel": tracer.weight(op.depthwise_kernel, depth)}, stride=tuple(op.strides), padding=op.padding
    )
    return tracer.unit(op, "dense", inner, point, {"kernel": tracer.weight(op.pointwise_kernel, point)} | tracer.vectors(bias=op.bias))


def _batch_norm(tracer: _Tracer, op: Any, given: list[_Value], tensors: Any) -> _Value:
    if op.axis not in (-1, len(tensors[0].shape) - 1):
        raise BackendError(f"BatchNormalization {op.name!r} normalises axis {op.axis}, not the last, which unifreeze can't trace.")
    arrays = tracer.vectors(scale=op.gamma, bias=op.beta, mean=op.moving_mean, variance=op.moving_variance)
    return tracer.unit(op, "batch_norm", given[0], tuple(op.moving_mean.shape), arrays, epsilon=op.epsilon, momentum=op.momentum)


def _layer_norm(tracer: _Tracer, op: Any, given: list[_Value], tensors: Any) -> _Value:
    axes = [op.axis] if isinstance(op.axis, int) else list(op.axis)
    arrays = tracer.vectors(scale=op.gamma, bias=op.beta)
    return tracer.unit(op, "layer_norm", given[0], (prod(tensors[0].shape[axis] for axis in axes),), arrays, epsilon=op.epsilon)


def _embedding(tracer: _Tracer, op: Any, given: list[_Value], _: Any) -> _Value:
    shape = tuple(op.embeddings.shape)
    return tracer.unit(op, "embedding", given[0], shape, {"embedding": tracer.weight(op._embeddings, shape)})


def _concatenation(_tracer: _Tracer, op: Any, given: list[_Value], tensors: Any) -> _Value:
    rank = len(tensors[0].shape)
    if any(value.flat for value in given):
        raise BackendError(f"{type(op).__name__} {op.name!r} joins flattened values, which unifreeze can't trace.")
    axis = op.axis % rank
    return _Value(concatenated([(value.sources, x.shape[axis]) for value, x in zip(given, tensors, strict=True)], "" if axis == rank - 1 else "axis"))


_HANDLERS: dict[type, Callable[[_Tracer, Any, list[_Value], Any], _Value]] = {
    L.Dense: _dense,
    **dict.fromkeys((L.SeparableConv1D, L.SeparableConv2D), _separable),
    **dict.fromkeys((L.DepthwiseConv1D, L.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((L.Conv1D, L.Conv2D, L.Conv3D), _conv),
    L.BatchNormalization: _batch_norm,
    L.LayerNormalization: _layer_norm,
    L.Embedding: _embedding,
    L.Concatenate: _concatenation,
}


def trace(model: Any, tree: Layer, shape: tuple[int, ...] | None) -> Traced:
    """Traces a functional or sequential model."""
    arrays: dict[str, Any] = {array.path: array.array for array in tree.arrays()}
    tracer = _Tracer({id(layer.native): layer.path for layer in reversed(list(tree.walk()))}, {id(array): path for path, array in reversed(arrays.items())})
    functional = getattr(model, "_functional", model)
    inputs = list(getattr(functional, "_inputs", ()))
    outputs = tracer.model(model, [_Value(frozenset({(-1 - i, 0, ())})) for i in range(len(inputs))])
    given = shape or (tuple(n or 1 for n in inputs[0].shape) if len(inputs) == 1 and None not in inputs[0].shape[1:] else ())
    graph = Graph(tuple(tracer.units), tuple(value.sources for value in outputs), (tuple(given),) if given else ())
    return Traced(
        graph, lambda wanted: {path: keras.ops.convert_to_numpy(arrays[path].value) for path in wanted}, lambda new: _write(model, arrays, new), _runner(model)
    )


def _write(model: Any, arrays: dict[str, Any], new: dict[str, Any]) -> Any:
    for path, value in new.items():
        arrays[path].assign(value)
    return model


def _runner(model: Any) -> Callable[[list[Any]], list[Any]]:
    def run(inputs: list[Any]) -> list[Any]:
        out = model(inputs[0] if len(inputs) == 1 else inputs, training=False)
        return [np.asarray(keras.ops.convert_to_numpy(one)) for one in (out if isinstance(out, list | tuple) else [out])]

    return run
