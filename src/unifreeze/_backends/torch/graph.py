"""Traces a module to its weighted dataflow: one run in inference on fake tensors, which allocates nothing, watched operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unifreeze.plugin import BackendError, Graph, Layer, Sources, Traced, Unit, Weight, concatenated, merged

_NONE: Sources = frozenset()
# What gives each output element from the elements of one channel of one operand.
_PLAIN = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _softmax _to_copy abs adaptive_avg_pool1d alias avg_pool1d avg_pool2d avg_pool3d
    bernoulli clamp clamp_max clamp_min clone constant_pad_nd contiguous detach div dropout elu exp expand gelu hardsigmoid hardswish hardtanh
    leaky_relu lift_fresh lift_fresh_copy log max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices mean mish native_dropout neg
    pow relu relu6 rsqrt sigmoid silu softmax softplus sqrt square sum tanh
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_SHAPES = {"view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze"}
_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm", "batch_norm", "_batch_norm_no_update"}


@dataclass(slots=True)
class _Value:
    """What is known of a tensor: where it comes from, and of a flattened one the axes that it had (channels, height, width)."""

    sources: Sources = _NONE
    weight: str = ""
    turned: bool = False
    flat: tuple[int, ...] = ()


@dataclass(slots=True)
class _Recorder:
    owners: dict[str, str]
    units: list[Unit] = field(default_factory=list)
    values: dict[int, _Value] = field(default_factory=dict)
    alive: list[object] = field(default_factory=list)

    def of(self, tensor: object) -> _Value:
        return self.values.get(id(tensor), _Value())

    def keep(self, tensor: object, value: _Value) -> None:
        # An id is good only as long as its tensor lives.
        self.values[id(tensor)] = value
        self.alive.append(tensor)

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = func.overloadpacket.__name__
        name = name.rstrip("_") if not name.startswith("_") else name
        tensors = [x for x in _flat([*args, *kwargs.values()]) if isinstance(x, torch.Tensor)]
        known = [value for value in map(self.of, tensors) if value.sources or value.weight]
        if not known or not any(isinstance(one, torch.Tensor) for one in _flat([out])):
            return
        value = self._value(name, args, tensors, out)
        for one in _flat([out]):
            if isinstance(one, torch.Tensor):
                self.keep(one, value)

    def _value(self, name: str, args: tuple[Any, ...], tensors: list[Any], out: Any) -> _Value:
        first = self.of(tensors[0])
        if name in _HANDLERS:
            return _HANDLERS[name](self, args)
        weights = [value for value in map(self.of, tensors) if value.weight]
        if len(tensors) == 1 and first.weight:
            if name in {"t", "transpose"}:
                return _Value(weight=first.weight, turned=not first.turned)
            if name in {"detach", "alias", "_to_copy", "clone"}:
                return first
        if not weights:
            values = [self.of(x) for x in tensors if self.of(x).sources]
            if len(values) > 1 and name in {"add", "mul"}:
                return _Value(merged("+" if name == "add" else "*", *(value.sources for value in values)), flat=values[0].flat)
            if len(values) == 1 and name in _SHAPES:
                return self._reshaped(values[0], tensors[0], out)
            if len(values) == 1 and name in {"add", "mul", "sub", *_PLAIN}:
                return values[0]
        raise BackendError(
            f"{name} of {', '.join(str(tuple(x.shape)) for x in tensors)} is an operation that unifreeze can't trace.\n"
            f"  it reads {', '.join(value.weight for value in weights) or 'what comes out of ' + self._last()}\n"
            "  Correspondence covers convolutions, dense layers, norms, embeddings, and what is elementwise, pools, pads, reshapes or joins between them."
        )

    def _last(self) -> str:
        return self.units[-1].layer if self.units else "the input"

    def _reshaped(self, value: _Value, before: Any, out: Any) -> _Value:
        shape, new = tuple(before.shape), tuple(out.shape)
        if [n for n in shape[1:] if n != 1] == [n for n in new[1:] if n != 1]:
            return value
        if len(new) == 2 and len(shape) > 2 and not value.flat:
            return _Value(value.sources, flat=shape[1:] if prod(shape[2:]) > 1 else ())
        raise BackendError(f"A reshape from {shape} to {new}, after {self._last()}, mixes axes in a way that unifreeze can't trace.")

    def unit(self, kind: str, x: _Value, shape: tuple[int, ...], arrays: dict[str, Weight], settings: Mapping[str, object]) -> _Value:
        if not arrays:
            raise BackendError(f"A {kind} after {self._last()} has no weight of its own in the model.\n  It may be computed, as by a parametrization.")
        if x.flat and not (kind == "dense" and arrays["kernel"].split):
            raise BackendError(f"A {kind} of flattened values, after {self._last()}, can't be traced: the order of its channels depends on the layout.")
        owner = self.owners[next(iter(arrays.values())).path]
        self.units.append(Unit(owner, kind, shape, x.sources, arrays, settings))
        return _Value(frozenset({(len(self.units) - 1, 0, ())}))

    def vector(self, tensor: Any, role: str) -> dict[str, Weight]:
        path = self.of(tensor).weight if isinstance(tensor, torch.Tensor) else ""
        return {role: Weight(path, (), (), (tensor.numel(),))} if path else {}


def _convolution(rec: _Recorder, args: tuple[Any, ...]) -> _Value:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed:
        raise BackendError(f"A transposed convolution, after {rec._last()}, is an operation that unifreeze can't trace.")
    path, (outs, ins, *window) = rec.of(weight).weight, weight.shape
    spatial = tuple(range(2, 2 + len(window)))
    kind: str = "conv"
    shape: tuple[int, ...] = (*window, ins, outs)
    kernel = Weight(path, (), (*spatial, 1, 0), shape)
    if 1 < groups == x.shape[1]:
        kind, shape = "depthwise_conv", (*window, groups, outs // groups)
        kernel = Weight(path, (groups, outs // groups, *window), (*spatial, 0, 1), shape)
    elif groups == 1 and prod(window) == 1:
        kind, shape = "dense", (ins, outs)
        kernel = Weight(path, (), (*spatial, 1, 0), shape)
    elif groups > 1:
        shape = (*shape, groups)
    settings = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    return rec.unit(kind, rec.of(x), shape, ({"kernel": kernel} if path else {}) | rec.vector(bias, "bias"), settings)


def _dense(rec: _Recorder, x: Any, weight: Any, bias: Any) -> _Value:
    """A dense layer; ``weight`` is as the matrix product sees it, (in, out)."""
    value, kernel = rec.of(x), rec.of(weight)
    ins, outs = weight.shape
    array = Weight(kernel.weight, (), (1, 0) if kernel.turned else (), (ins, outs))
    if value.flat and kernel.turned and kernel.weight:
        channels, *window = value.flat
        array = Weight(kernel.weight, (outs, channels, *window), (*range(2, 2 + len(window)), 1, 0), (ins, outs))
    return rec.unit("dense", value, (ins, outs), ({"kernel": array} if kernel.weight else {}) | rec.vector(bias, "bias"), {})


def _batch_norm(rec: _Recorder, args: tuple[Any, ...]) -> _Value:
    x, scale, bias, mean, variance, *rest = args
    numbers = [value for value in rest if isinstance(value, float)]
    arrays = rec.vector(scale, "scale") | rec.vector(bias, "bias") | rec.vector(mean, "mean") | rec.vector(variance, "variance")
    settings = {"momentum": 1 - numbers[0], "epsilon": numbers[1]}
    return rec.unit("batch_norm", rec.of(x), (x.shape[1],), arrays, settings)


def _layer_norm(rec: _Recorder, args: tuple[Any, ...]) -> _Value:
    x, shape, scale, bias, epsilon = args[:5]
    return rec.unit("layer_norm", rec.of(x), (prod(shape),), rec.vector(scale, "scale") | rec.vector(bias, "bias"), {"epsilon": epsilon})


def _embedding(rec: _Recorder, args: tuple[Any, ...]) -> _Value:
    table, x = args[:2]
    shape = tuple(table.shape)
    return rec.unit("embedding", rec.of(x), shape, {"embedding": Weight(rec.of(table).weight, (), (), shape)}, {})


def _concatenation(rec: _Recorder, args: tuple[Any, ...]) -> _Value:
    tensors, axis = args[0], (args[1] if len(args) > 1 else 0) % args[0][0].dim()
    values = [rec.of(x) for x in tensors]
    if any(value.flat or not value.sources for value in values):
        raise BackendError(f"A concatenation of flattened or constant values, after {rec._last()}, is an operation that unifreeze can't trace.")
    channels = 1 if tensors[0].dim() != 3 else 2
    return _Value(concatenated([(value.sources, x.shape[axis]) for value, x in zip(values, tensors, strict=True)], "" if axis == channels else "axis"))


_HANDLERS: dict[str, Callable[[_Recorder, tuple[Any, ...]], _Value]] = {
    "convolution": _convolution,
    "addmm": lambda rec, args: _dense(rec, args[1], args[2], args[0]),
    "mm": lambda rec, args: _dense(rec, args[0], args[1], None),
    "native_layer_norm": _layer_norm,
    "embedding": _embedding,
    "cat": _concatenation,
    **dict.fromkeys(_NORMS, _batch_norm),
}


class _Watch(TorchDispatchMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._recorder.saw(func, args, kwargs or {}, out)
        return out


def trace(model: nn.Module, tree: Layer, shape: tuple[int, ...] | None) -> Traced:
    """Traces a module that takes one tensor; ``shape`` has channels last."""
    if shape is None:
        raise BackendError(f"A {type(model).__name__} does not say the shape of its input.\n  Give it, channels last: shape=(1, 224, 224, 3).")
    arrays: dict[str, Any] = {array.path: array.array for array in tree.arrays()}
    paths = {id(array): path for path, array in reversed(arrays.items())}
    recorder = _Recorder({array.path: layer.path for layer in tree.walk() for array in (*layer.parameters, *layer.buffers)})
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), inference(model):
        named = {name: (tensor, fake.from_tensor(tensor)) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        for tensor, stand_in in named.values():
            recorder.keep(stand_in, _Value(weight=paths.get(id(tensor), "")))
        x = torch.empty(channels_first(shape), dtype=next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32))
        recorder.keep(x, _Value(frozenset({(-1, 0, ())})))
        with _Watch(recorder):
            out = torch.func.functional_call(model, {name: pair[1] for name, pair in named.items()}, (x,))
    ends = [one for one in _flat([out]) if isinstance(one, torch.Tensor)]
    graph = Graph(tuple(recorder.units), tuple(recorder.of(one).sources for one in ends), (tuple(shape),))
    return Traced(graph, lambda wanted: {path: arrays[path].detach().cpu().numpy() for path in wanted}, lambda new: _write(model, arrays, new), _runner(model))


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Puts every module in inference for a while; the flags themselves are set, since ``eval`` may be overridden."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as torch has it, from the shape with channels last."""
    return (shape[0], shape[-1], *shape[1:-1]) if len(shape) > 3 else tuple(shape)


def _write(model: nn.Module, arrays: dict[str, Any], new: dict[str, Any]) -> nn.Module:
    with torch.no_grad():
        for path, value in new.items():
            arrays[path].copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return model


def _runner(model: nn.Module) -> Callable[[list[Any]], list[Any]]:
    def run(inputs: list[Any]) -> list[Any]:
        with torch.no_grad(), inference(model):
            out = model(*(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim > 3 else x)) for x in inputs))
        found = [one.cpu().numpy() for one in _flat([out]) if isinstance(one, torch.Tensor)]
        return [np.moveaxis(x, 1, -1) if x.ndim > 3 else x for x in found]

    return run


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        elif isinstance(value, dict):
            yield from _flat(value.values())
        else:
            yield value
