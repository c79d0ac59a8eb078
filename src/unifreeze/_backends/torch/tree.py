"""Reading a module as a tree of plain data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin
from torch.nn.utils.parametrize import type_before_parametrizations

from unifreeze.plugin import BackendError, Layer, Parameter, Rows, State, Status, UnbuiltModelError
from unifreeze.plugin import role as common_role

from .pin import held, parametrizations
from .rows import frozen_rows
from .stored import extent
from .wrappers import unwrapped

_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("conv_transpose", (nn.modules.conv._ConvTransposeNd,)),
    ("conv", (nn.modules.conv._ConvNd,)),
    ("dense", (nn.Linear, nn.Bilinear)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("batch_norm", (nn.modules.batchnorm._BatchNorm,)),
    ("layer_norm", (nn.LayerNorm,)),
    ("group_norm", (nn.GroupNorm,)),
    ("instance_norm", (nn.modules.instancenorm._InstanceNorm,)),
    ("rms_norm", (nn.RMSNorm,)),
    ("attention", (nn.MultiheadAttention,)),
    ("recurrent", (nn.RNNBase, nn.RNNCellBase)),
    ("dropout", (nn.modules.dropout._DropoutNd,)),
    ("container", (nn.Sequential, nn.ModuleList, nn.ModuleDict)),
)
_HOMES = {"torch.nn.modules.activation": "activation", "torch.nn.modules.pooling": "pooling"}
# What other libraries call modules that derive from none of these. Transformers' Conv1D is a dense layer with its kernel transposed.
_LEAF_NAMES = (("rmsnorm", "rms_norm"), ("layernorm", "layer_norm"), ("groupnorm", "group_norm"), ("dropout", "dropout"), ("droppath", "dropout"))
_VAGUE = ("other", "container")
_UNSURE = ("conv", *_VAGUE)
_BUFFER_ROLES = {"running_mean": "mean", "running_var": "variance", "num_batches_tracked": "count"}

Named = Mapping[str, torch.Tensor | None]
Found = tuple[str, int, nn.Module]


def read(model: nn.Module) -> Layer:
    """Reads the model: one pass over its modules and one back, without recursion, so that neither length nor depth matters."""
    found, kept = _modules(model), frozen_rows()
    children: list[list[Layer] | None] = [None] * len(found)
    for place in range(len(found) - 1, 0, -1):
        path, parent, native = found[place]
        layer = _layer(path, native, children[place], kept)
        siblings = children[parent]
        if siblings is None:
            children[parent] = [layer]
        else:
            siblings.append(layer)
    return _layer("", model, children[0], kept)


def state_now(tree: Layer) -> State:
    """The state after flags were set and modules held, read back from the flags and the modules; what setting them can't change is not read again."""
    kept = frozen_rows()
    nodes: list[Any] = list(tree.walk())
    modules = [(layer.path, unwrapped(layer.native) if layer.native._modules else layer.native) for layer in nodes]
    pairs = [(parameter.path, parameter.array) for layer in nodes for parameter in layer.parameters]
    return State(
        frozenset([path for path, array in pairs if not array.requires_grad]),
        {path: how for path, module in modules if (how := held(module)) is not None},
        {path: kept[id(array)] for path, array in pairs if id(array) in kept and array.requires_grad} if kept else {},
    )


def _modules(model: nn.Module) -> list[Found]:
    """Lists every module with its path and the place of its parent in the list, parents first; a shared one at each of its paths."""
    found: list[Found] = []
    seen: set[int] = set()
    pending: list[Found] = [("", -1, model)]
    while pending:
        one = pending.pop()
        path, _, native = one
        place = len(found)
        found.append(one)
        seen.add(id(native))
        if not native._modules:
            continue
        module = unwrapped(native)
        prefix, inner = f"{path}." if path else "", parametrizations(module)
        for name, child in reversed(module._modules.items()):
            if child is not None and child is not inner and not (id(child) in seen and _is_above(child, place, found)):
                pending.append((prefix + name, place, child))
    return found


def _is_above(module: nn.Module, place: int, found: list[Found]) -> bool:
    """Whether a module is its own ancestor, which would never end."""
    while place >= 0:
        _, place, above = found[place]
        if above is module:
            return True
    return False


def _layer(path: str, native: nn.Module, children: list[Layer] | None, kept: dict[int, Rows]) -> Layer:
    """Makes one layer; its children come last first."""
    inside = native._modules
    module = unwrapped(native) if inside else native
    inner = parametrizations(module) if inside else None
    cls: type = type(module) if inner is None else type_before_parametrizations(module)
    kind = _kind(cls, not children)
    if kind in _UNSURE:
        kind = _settled(kind, module)
    prefix = f"{path}." if path else ""
    parameters, buffers = (module._parameters, module._buffers) if inner is None else _with_parametrizations(module, inner)
    try:
        return Layer(
            path,
            kind,
            cls.__name__,
            tuple(_parameters(prefix, kind, parameters, kept)) if parameters else (),
            tuple([_buffer(prefix + name, _buffer_role(module, name, array), array) for name, array in buffers.items() if array is not None])
            if buffers
            else (),
            tuple(reversed(children)) if children else (),
            held(module),
            None,
            native,
        )
    except RuntimeError as error:
        raise _unbuilt(path, module) or _nested(path, module) or error from None


def _with_parametrizations(module: nn.Module, inner: nn.ModuleDict) -> tuple[Named, Named]:
    """What a parametrization keeps belongs to the layer whose weight it makes: else one spectrally normalised convolution would count as three layers."""
    parameters = inner.named_parameters("parametrizations", remove_duplicate=False)
    buffers = inner.named_buffers("parametrizations", remove_duplicate=False)
    return {**module._parameters, **dict(parameters)}, {**module._buffers, **dict(buffers)}


def _parameters(prefix: str, kind: str, named: Named, kept: dict[int, Rows]) -> list[Parameter]:
    made = []
    for name, array in named.items():
        if array is not None:
            dtype, untrainable, role = _described(kind, name, array.dtype)
            status: Status = "trainable" if array.requires_grad else "frozen"
            shape, nbytes = extent(array)
            made.append(Parameter(prefix + name, shape, dtype, nbytes, status, role, array, untrainable))
            if kept and array.requires_grad:
                made[-1].rows = kept.get(id(array))
    return made


def _buffer(path: str, role: str, array: torch.Tensor) -> Parameter:
    shape, nbytes = extent(array)
    return Parameter(path, shape, _dtype(array.dtype)[0], nbytes, "buffer", role, array)


def _buffer_role(module: nn.Module, name: str, array: torch.Tensor) -> str:
    if name in _BUFFER_ROLES or name not in module._non_persistent_buffers_set:
        return _BUFFER_ROLES.get(name, name.rpartition(".")[2])
    return "cache" if array.is_floating_point() or array.is_complex() else "constant"


@cache
def _dtype(dtype: torch.dtype) -> tuple[str, str]:
    """The name of an element type, and why it can't be trained, if it can't."""
    name = str(dtype).removeprefix("torch.")
    return name, "" if dtype.is_floating_point or dtype.is_complex else f"{name} has no gradient"


@lru_cache(maxsize=1024)
def _described(kind: str, name: str, dtype: torch.dtype) -> tuple[str, str, str]:
    """All that follows from a parameter's name and type, in one look."""
    return *_dtype(dtype), _role(kind, name)


def _role(kind: str, name: str) -> str:
    """The role of a parameter; the ``original`` of a parametrization plays the role of what it is made into."""
    _, _, inner = name.partition("parametrizations.")
    made, _, own = inner.partition(".")
    return common_role(kind, made if own.startswith("original") else own or name)


def _settled(kind: str, module: nn.Module) -> str:
    """What a class alone does not tell of the kind."""
    if kind == "conv":
        return "depthwise_conv" if 1 < module.groups == module.in_channels else "conv"
    return "batch_norm" if kind in _VAGUE and "running_mean" in module._buffers else kind


@lru_cache(maxsize=1024)
def _kind(cls: type, leaf: bool) -> str:
    for kind, parents in _KINDS:
        if issubclass(cls, parents):
            return kind
    for base in cls.__mro__:
        if base.__module__ in _HOMES:
            return _HOMES[base.__module__]
    name = cls.__name__.lower()
    if "attention" in name:
        return "attention"
    if not leaf:
        return "container"
    return "dense" if cls.__name__ == "Conv1D" else next((kind for word, kind in _LEAF_NAMES if word in name), "other")


def _unbuilt(path: str, module: nn.Module) -> UnbuiltModelError | None:
    lazy = [name for name, array in [*module._parameters.items(), *module._buffers.items()] if isinstance(array, UninitializedTensorMixin)]
    if not lazy:
        return None
    return UnbuiltModelError(
        f"{type(module).__name__}{f' at {path!r}' if path else ''} is not built yet.\n"
        f"  {', '.join(lazy)}: no shape before the first forward pass\n"
        "  Run the model once on a batch, model(x), and then freeze."
    )


def _nested(path: str, module: nn.Module) -> BackendError | None:
    nested = [name for name, array in [*module._parameters.items(), *module._buffers.items()] if array is not None and array.is_nested]
    if not nested:
        return None
    return BackendError(
        f"{type(module).__name__}{f' at {path!r}' if path else ''} has nested tensors, of which PyTorch tells no shape.\n"
        f"  {', '.join(nested)}: nested, with layout=torch.strided\n"
        "  Make them with layout=torch.jagged, which can be read."
    )
