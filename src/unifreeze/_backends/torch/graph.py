"""Traces a module to its weighted dataflow: one run in inference on fake tensors, which allocates nothing, watched operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unifreeze.plugin import BackendError, Layer, Traced, Tracing, flow

from .operations import Recorder, flat


class _Watch(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._recorder.saw(func, args, kwargs or {}, out)
        return out


@dataclass(frozen=True, slots=True)
class _Call:
    """How the model is called: for each input its name (or none), its shape with channels last, whether it is ids, and the axis of its channels."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    ids: tuple[bool, ...]
    channels: tuple[int | None, ...]

    def given(self, make: Callable[[int], Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments, positional and by name."""
        made = [make(number) for number in range(len(self.shapes))]
        return [one for one, name in zip(made, self.names, strict=True) if not name], {name: one for one, name in zip(made, self.names, strict=True) if name}

    def shape(self, number: int) -> tuple[int, ...]:
        """The shape as the model takes it, one example at a time."""
        _, *rest = self.shapes[number]
        if self.channels[number] == 1 and len(rest) > 1:
            rest = [rest[-1], *rest[:-1]]
        return (1, *rest)


def _calls(shape: Any) -> Iterator[_Call]:
    """Every way in which inputs of these shapes may be meant: as numbers, or as ids; a signal with its channels last, or second."""
    named = dict(shape) if isinstance(shape, Mapping) else {}
    shapes = tuple(map(tuple, named.values())) if named else tuple(map(tuple, shape)) if isinstance(shape, list) else (tuple(shape),)
    names = tuple(named) or ("",) * len(shapes)
    kinds = sorted(product((False, True), repeat=len(shapes)), key=lambda kinds: (len(set(kinds)), kinds))
    for ids in kinds:
        if any(one and len(size) > 3 for one, size in zip(ids, shapes, strict=True)):
            continue
        for signal in (-1, 1) if any(len(size) == 3 for size in shapes) else (-1,):
            channels = tuple(None if one else 1 if len(size) > 3 else signal if len(size) == 3 else -1 for one, size in zip(ids, shapes, strict=True))
            yield _Call(names, shapes, ids, channels)


def trace(model: nn.Module, tree: Layer, shape: Any) -> Traced:
    """Traces a module; ``shape`` has channels last, and is one shape, a list of them, or a dictionary by the names of the arguments."""
    if shape is None:
        raise BackendError(f"A {type(model).__name__} does not say the shape of its input.\n  Give it, channels last: shape=(1, 224, 224, 3).")
    first: Exception | None = None
    for call in _calls(shape):
        try:
            return _trace(model, tree, call)
        except (TypeError, RuntimeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
            if isinstance(error, BackendError):
                raise
            first = first or error
    raise BackendError(f"A {type(model).__name__} can't be run on an input of shape {shape}.\n  {type(first).__name__}: {first}") from first


def _trace(model: nn.Module, tree: Layer, call: _Call) -> Traced:
    arrays: dict[str, Any] = {array.path: array.array for array in tree.arrays()}
    paths = {id(array): path for path, array in reversed(arrays.items())}
    tracing = Tracing({array.path: layer.path for layer in tree.walk() for array in (*layer.parameters, *layer.buffers)})
    recorder = Recorder(tracing)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), inference(model), torch.random.fork_rng(devices=[]):
        named = {name: (tensor, fake.from_tensor(tensor)) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        for tensor, stand_in in named.values():
            path = paths.get(id(tensor), "")
            if path and isinstance(tensor, nn.Parameter):
                recorder.keep(stand_in, flow.parameter(path, tensor.shape))
            elif path:
                recorder.statistics[id(stand_in)] = path

        def make(number: int) -> Any:
            x = torch.empty(call.shape(number), dtype=torch.int64 if call.ids[number] else dtype, device=device)
            recorder.keep(x, tracing.input(call.shape(number), call.channels[number]))
            return x

        args, kwargs = call.given(make)
        with _Watch(recorder):
            out = torch.func.functional_call(model, {name: pair[1] for name, pair in named.items()}, tuple(args), kwargs)
    ends = [recorder.of(one) for one in flat([out]) if isinstance(one, torch.Tensor)]
    ends = [end for end in ends if end.flows]
    graph = tracing.finish(ends, call.shapes)
    channels = [flow.own_axes(end) for end in ends]
    return Traced(
        graph,
        lambda wanted: {path: arrays[path].detach().cpu().numpy() for path in wanted},
        lambda new: _write(model, arrays, new),
        _runner(model, call, channels),
    )


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Puts every module in inference for a while; the flags themselves are set, since ``eval`` may be overridden. Attention is not fused then."""
    before = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in before:
            module.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in before:
            module.training = training


def _write(model: nn.Module, arrays: dict[str, Any], new: dict[str, Any]) -> nn.Module:
    import numpy as np  # PyTorch is installed without it, too, and only carrying weights over needs it

    with torch.no_grad():
        for path, value in new.items():
            arrays[path].copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return model


def _runner(model: nn.Module, call: _Call, channels: list[list[int]]) -> Callable[[list[Any]], list[Any]]:
    import numpy as np

    def run(inputs: list[Any]) -> list[Any]:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))

        def make(number: int) -> Any:
            x = np.asarray(inputs[number])
            x = x.astype("int64") if call.ids[number] else np.moveaxis(x, -1, 1) if call.channels[number] == 1 else x
            return torch.from_numpy(np.ascontiguousarray(x)).to(device)

        args, kwargs = call.given(make)
        with torch.no_grad(), inference(model):
            out = model(*args, **kwargs)
        found = [one.cpu().numpy() for one in flat([out]) if isinstance(one, torch.Tensor)]
        return [np.moveaxis(x, axes[0], -1) if len(axes) == 1 and axes[0] < x.ndim else x for x, axes in zip(found, channels, strict=False)]

    return run
