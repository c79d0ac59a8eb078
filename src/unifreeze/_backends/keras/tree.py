"""Reads a Keras model as a tree of plain data. Nothing is called, built or changed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from math import prod
from typing import Any

import keras

from unifreeze.plugin import Layer, Parameter, State, Status, UnbuiltModelError, role

from . import attributes, pin

_CLASSES = {
    "dense": "Dense EinsumDense",
    "conv": "Conv1D Conv2D Conv3D SeparableConv1D SeparableConv2D",
    "depthwise_conv": "DepthwiseConv1D DepthwiseConv2D",
    "conv_transpose": "Conv1DTranspose Conv2DTranspose Conv3DTranspose",
    "embedding": "Embedding ReversibleEmbedding",
    "batch_norm": "BatchNormalization",
    "layer_norm": "LayerNormalization",
    "group_norm": "GroupNormalization",
    "rms_norm": "RMSNormalization",
    "attention": "MultiHeadAttention GroupQueryAttention Attention AdditiveAttention",
    "recurrent": "RNN LSTMCell GRUCell SimpleRNNCell StackedRNNCells ConvLSTM1D ConvLSTM2D ConvLSTM3D Bidirectional",
    "dropout": "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout",
    "activation": "Activation ReLU LeakyReLU PReLU ELU Softmax",
    "pooling": " ".join(name for name in dir(keras.layers) if re.search(r"Pool(ing)?\dD$", name)),
    "input": "InputLayer",
    "container": "TimeDistributed",
}
_KINDS: dict[type, str] = {getattr(keras.layers, name): kind for kind, names in _CLASSES.items() for name in names.split() if hasattr(keras.layers, name)}
_WRAPPER = "TorchModuleWrapper"
_ON_TORCH = keras.backend.backend() == "torch"  # which Keras settles once, when it is imported
_BUFFER_ROLES = {"moving_mean": "mean", "moving_variance": "variance", "running_mean": "mean", "running_var": "variance", "num_batches_tracked": "count"}


def read(model: Any) -> Layer:
    """Reads a model: an own stack instead of recursion, so that depth is no limit."""
    masked = not model.trainable
    nodes: list[tuple[Any, str, list[Layer]]] = []
    parents: list[int] = []
    pending: list[tuple[Any, str | None, int]] = [(model, "", -1)]
    above: set[int] = set()
    while pending:
        native, path, parent = pending.pop()
        if path is None:
            above.discard(id(native))
            continue
        place = len(nodes)
        nodes.append((native, path, []))
        parents.append(parent)
        direct = children(native)
        if not direct:
            continue
        above.add(id(native))
        pending.append((native, None, -1))
        below = _unique(list(attributes.named(native, [child for child in direct if id(child) not in above])))
        pending.extend((child, f"{path}.{name}".lstrip("."), place) for name, child in reversed(below))
    _need_built(model, (native for native, _, _ in nodes))
    for place in range(len(nodes) - 1, -1, -1):
        native, path, inner = nodes[place]
        layer = _layer(native, path, tuple(reversed(inner)), masked=masked)
        if place:
            nodes[parents[place]][2].append(layer)
    return layer


def state_now(root: Layer) -> State | None:
    """The state after flags and pins were set, read back from them; ``None`` where a variable's own flag decides whether it is a parameter at all."""
    nodes: list[Any] = list(root.walk())
    on = nodes[0].native.trainable
    parameters = [parameter for node in nodes for parameter in node.parameters]
    known = {id(variable) for node in nodes for variable in node.native._trainable_variables}
    if not known.issuperset([id(p.array) for p in parameters]) or any(getattr(b.array, "trainable", False) for node in nodes for b in node.buffers):
        return None
    return State(
        frozenset([p.path for p in parameters if not (on and trains(p.array))]),
        {node.path: how for node in nodes if (how := pin.held(node.native)) is not None},
    )


def children(layer: Any) -> list[Any]:
    """The layers right inside a layer, each once, in the order that ``model.layers`` has; then those that are no part of the graph."""
    if not layer._layers:
        return []
    listed = list(layer.layers) if isinstance(layer, keras.Model) else []
    known = {id(child) for child in listed}
    others = [child for child in layer._layers if id(child) not in known]
    if isinstance(layer, keras.Sequential):
        others = []
    return list({id(child): child for child in (*listed, *others)}.values())


def variables(layer: Any) -> list[tuple[str, tuple[Any, bool]]]:
    """A layer's own variables with their names, and whether they are parameters. One that a layer right inside owns as well counts there only."""
    if not layer._trainable_variables and not layer._non_trainable_variables:
        return []
    below = {id(variable) for child in layer._layers for variable in (*child._trainable_variables, *child._non_trainable_variables)} if layer._layers else ()
    named = _module_names(layer)
    found: dict[int, tuple[str, tuple[Any, bool]]] = {}
    for ours, trainables in ((layer._trainable_variables, True), (layer._non_trainable_variables, False)):
        for variable in ours:
            if id(variable) not in below:
                name = named.get(id(variable._value), variable.name) if named else variable.name
                found.setdefault(id(variable), (name, (variable, trainables or variable._trainable)))
    own = list(found.values())
    return attributes.renamed(layer, own) if any(attributes.is_counted(name) for name, _ in own) else own


def trains(variable: Any) -> bool:
    """Whether a variable would get updates; on torch, ``requires_grad`` may say no where the flag says yes."""
    return bool(variable._trainable) and not (_ON_TORCH and getattr(variable._value, "requires_grad", True) is False)


def module_buffers(layer: Any) -> Iterable[tuple[str, Any]]:
    """The buffers of a wrapped torch module: no Keras variables, and they move all the same."""
    return layer.module.named_buffers() if type(layer).__name__ == _WRAPPER else ()


def kind_of(layer: Any) -> str:
    """The kind of a layer, from the nearest Keras class that it comes from; empty where that says nothing."""
    return _kind_of_class(type(layer))  # type: ignore[arg-type]  # for mypy, the class of an Any may have no hash


@lru_cache(1 << 10)
def _kind_of_class(one: type) -> str:
    return next((_KINDS[base] for base in one.__mro__ if base in _KINDS), "container" if issubclass(one, keras.Model) else "")


def _layer(native: Any, path: str, inner: tuple[Layer, ...], *, masked: bool) -> Layer:
    own = variables(native)
    kind = kind_of(native) or ("container" if inner and not own else "other")
    above = f"{path}." if path else ""
    parameters: list[Parameter] = []
    buffers: list[Parameter] = []
    for name, (variable, is_parameter) in _unique(own):
        quantized = "" if is_parameter else _quantized(native, variable)
        status: Status = "buffer" if not is_parameter and not quantized else "trainable" if trains(variable) and not (masked or quantized) else "frozen"
        its_role = _BUFFER_ROLES.get(name, name) if status == "buffer" else role(kind, name.rpartition(".")[2])
        (buffers if status == "buffer" else parameters).append(_parameter(above + name, variable, status, its_role, quantized))
    if native._seed_generators:
        seeds = [(generator.state.name, generator.state) for generator in native._seed_generators]
        buffers += [_parameter(above + name, state, "buffer", "rng") for name, state in _unique(seeds)]
    if type(native).__name__ == _WRAPPER:
        buffers += [_tensor(above + name, tensor) for name, tensor in module_buffers(native)]
    return Layer(
        path,
        kind,
        type(native).__name__,
        tuple(parameters),
        tuple(buffers),
        inner,
        pin.held(native),
        _output_shape(native),
        native,
        auto_named=_auto_named(native),
    )


def _parameter(path: str, variable: Any, status: Status, its_role: str, untrainable: str = "") -> Parameter:
    shape, dtype = tuple(variable._shape), variable._dtype  # TensorFlow makes an object of its own of the public one
    return Parameter(path, shape, dtype, prod(shape) * _width(dtype), status, its_role, variable, untrainable)


def _tensor(path: str, tensor: Any) -> Parameter:
    from unifreeze._backends.torch.stored import extent

    name = path.rpartition(".")[2]
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape, nbytes = extent(tensor)
    return Parameter(path, shape, dtype, nbytes, "buffer", _BUFFER_ROLES.get(name, name), tensor)


@cache
def _width(dtype: str) -> int:
    """Bytes of an element, from the name of its type; 0 for strings."""
    bits = re.search(r"\d+", dtype)
    return max(int(bits.group()) // 8, 1) if bits else int(dtype == "bool")


def _quantized(layer: Any, variable: Any) -> str:
    """Why a variable can't be trained, where quantisation made it of integers; scales stay buffers."""
    integers = variable._dtype.startswith(("int", "uint")) and layer.quantization_mode is not None
    return f"{variable._dtype} has no gradient" if integers else ""


def _module_names(layer: Any) -> dict[int, str]:
    if type(layer).__name__ != _WRAPPER:
        return {}
    return {id(tensor): name for name, tensor in layer.module.named_parameters()}


def _unique(named: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Tells siblings of one name apart, which Keras allows: ``fc``, ``fc_1``."""
    taken = {name for name, _ in named}
    if len(taken) == len(named):
        return named
    found: list[tuple[str, Any]] = []
    seen: dict[str, int] = {}
    for name, value in named:
        seen[name] = seen.get(name, 0) + 1
        fresh = name
        while seen[name] > 1 and fresh in taken:
            fresh = f"{name}_{seen[name] - 1}"
            seen[name] += fresh in taken
        taken.add(fresh)
        found.append((fresh, value))
    return found


def _auto_named(layer: Any) -> bool:
    """Whether a name reads like those that Keras counts up in a process: after the layer's class, inside a ``Bidirectional`` with a direction."""
    return _is_counted(layer.name, type(layer).__name__)


@lru_cache(1 << 14)
def _is_counted(name: str, word: str) -> bool:
    counted = re.fullmatch(r"(?:forward_|backward_)?(\w+?)(?:_\d+)?", name)
    return counted is not None and counted[1] == _counted_as(word)


@cache
def _counted_as(word: str) -> str:
    """What Keras makes of a class's name: ``Conv2DTranspose`` counts as ``conv2d_transpose``."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", word))).lower()


def _output_shape(layer: Any) -> tuple[int | None, ...] | None:
    """The shape at the layer's first symbolic call; a model's own outputs otherwise."""
    if layer._inbound_nodes:
        tensors: Any = layer._inbound_nodes[0].output_tensors
    else:
        tensors = getattr(getattr(layer, "_functional", layer), "_outputs", None) or ()
    return tuple(tensors[0].shape) if len(tensors) == 1 else None


def _need_built(model: Any, layers: Iterable[Any]) -> None:
    """Refuses a model with layers that have not made their variables yet."""
    missing = list({id(layer): layer for layer in layers if not layer.built and _makes_variables(layer)}.values())
    if not missing:
        return
    shown = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in missing[:5])
    rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise UnbuiltModelError(
        f"{type(model).__name__} {model.name!r} is not built: its parameters do not exist yet.\n"
        f"  unbuilt: {shown}{rest}\n"
        "  Start the model with keras.Input(shape), call model.build(input_shape), or call the model once on data; then freeze.\n"
        "  A layer that the model never calls can be built by itself, or taken out."
    )


def _makes_variables(layer: Any) -> bool:
    """Whether building makes variables of the layer's own; an unbuilt layer inside it is named by itself."""
    return not getattr(type(layer).build, "_is_default", False)
