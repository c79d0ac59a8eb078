"""Reads an nnx module as a tree of plain data. Nothing is called, split or changed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unifreeze._backends.jax.stacks import told
from unifreeze.plugin import Layer, Parameter, Status, role

from . import swap
from .parts import class_of, holds, is_array, is_layer_class, raw

_CLASSES = {
    "dense": "Linear LinearGeneral Einsum LoRA",
    "conv": "Conv",
    "conv_transpose": "ConvTranspose",
    "embedding": "Embed",
    "batch_norm": "BatchNorm",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
    "instance_norm": "InstanceNorm",
    "rms_norm": "RMSNorm",
    "attention": "MultiHeadAttention",
    "recurrent": "RNNCellBase RNN Bidirectional",
    "dropout": "Dropout",
    "activation": "PReLU",
    "container": "Sequential List Dict",
    "other": "SpectralNorm WeightNorm",
}
_KINDS: dict[type, str] = {getattr(nnx, name): kind for kind, names in _CLASSES.items() for name in names.split() if hasattr(nnx, name)}
_BUFFER_ROLES = {"mean": "mean", "var": "variance"}


class _Node:
    """A module, or a container of modules and arrays, on the way to becoming a layer."""

    def __init__(self, native: Any, path: str, owner: int, kind: str) -> None:
        self.native, self.path, self.owner, self.kind = native, path, owner, kind
        self.items: list[Parameter | int] = []


def read(model: nnx.Module) -> Layer:
    """Reads a module: an own stack instead of recursion, so that depth is no limit."""
    nodes: list[_Node] = []
    pending: list[tuple[Any, str | None, int]] = [(model, "", -1)]
    above: set[int] = set()
    while pending:
        native, path, owner = pending.pop()
        if path is None:
            above.discard(id(native))
            continue
        if owner >= 0:
            nodes[owner].items.append(len(nodes))
        kind = kind_of(native) or (nodes[owner].kind if owner >= 0 and not is_layer_class(class_of(native)) else "")
        node = _Node(native, path, owner, kind)
        nodes.append(node)
        above.add(id(native))
        inner: list[tuple[Any, str | None, int]] = []
        for name, value in members(native):
            place = f"{path}.{name}" if path else name
            if is_array(value):
                node.items.extend(_parameters(node.kind, place, value))
            elif id(value) not in above:
                inner.append((value, place, len(nodes) - 1))
        pending.append((native, None, -1))
        pending.extend(reversed(inner))
    return _built(nodes)


def members(native: Any) -> Iterator[tuple[str, Any]]:
    """What a module or container holds, by name, in the order of its definition: arrays, modules and further containers.

    nnx allows neither arrays nor modules in an attribute that it does not count as data, such as a tuple of numbers.
    """
    return ((name, value) for name, value in _items(native) if is_array(value) or holds(class_of(value)))


@cache
def _kind_of(kind: Any) -> str:
    return next((_KINDS[base] for base in kind.__mro__ if base in _KINDS), "")


def kind_of(native: Any) -> str:
    """The kind of a module from the nearest class of nnx that it comes from; nothing for the user's own."""
    kind = _kind_of(class_of(native))
    if kind == "conv":
        groups = getattr(native, "feature_group_count", 1)
        return "depthwise_conv" if groups > 1 and groups == getattr(native, "in_features", 0) else "conv"
    return kind


def _items(native: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(native, dict):
        return ((".".join(map(str, key)) if isinstance(key, tuple) else str(key), value) for key, value in native.items())
    if isinstance(native, list | tuple):
        names = getattr(native, "_fields", None) or map(str, range(len(native)))
        return zip(names, native, strict=True)
    own, noted = vars(native), native._pytree__nodes
    strict = native._pytree__is_pytree
    names = [name for name, value in own.items() if not (strict and isinstance(value, list | tuple | dict) and not noted.get(name))]
    if native._pytree__has_int_keys:
        names = sorted(filter(str.isdigit, names), key=int)
    elif not _in_order(native):
        place = {name: place for place, name in enumerate(noted)}
        names.sort(key=lambda name: place.get(name, len(place)))
    return ((name, own[name]) for name in names)


def _in_order(native: Any) -> bool:
    """Whether the attributes still stand in the order in which ``__init__`` set them; ``merge``, ``clone`` and ``jit`` sort them."""
    names = iter(vars(native))
    return (next(names, ""), next(names, "")) == ("_pytree__state", "_pytree__nodes")


def _lost_order(native: Any) -> str:
    """Empty where the order can be read back from what nnx notes of every attribute: not if the class declares some of them, or is no pytree."""
    if not isinstance(native, nnx.Pytree) or native._pytree__has_int_keys or _in_order(native):
        return ""
    inside = [name for name, value in vars(native).items() if isinstance(value, nnx.Module)]
    declared = [name for name in inside if name in type(native)._pytree__nodes]
    if len(inside) < 2 or (native._pytree__is_pytree and len(declared) in {0, len(inside)}):
        return ""
    return f"this {type(native).__name__} went through split and merge, which sort attributes, and nnx keeps no note of their order for such a class"


def _parameters(kind: str, path: str, array: Any) -> Iterator[Parameter]:
    variable = class_of(array)
    value = raw(array)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        leaves = jax.tree.leaves(value)
        if not leaves:
            return
        value = jax.ShapeDtypeStruct((sum(int(np.size(leaf)) for leaf in leaves),), jnp.result_type(leaves[0]))
    shape, (dtype, itemsize, able) = value.shape, _element(value.dtype)
    status = _status(variable, able=able)
    its_role = _role(kind, path.rpartition(".")[2], variable, status)
    untrainable = "" if status == "buffer" or able else f"{dtype} has no gradient"
    yield Parameter(path, shape, dtype, prod(shape) * itemsize, status, its_role, array, untrainable)


@cache
def _element(dtype: Any) -> tuple[str, int, bool]:
    """The name of an element type, its size, and whether it can have a gradient."""
    return str(dtype), dtype.itemsize, bool(jnp.issubdtype(dtype, jnp.inexact))


@cache
def _status(variable: Any, *, able: bool) -> Status:
    if issubclass(variable, nnx.Param):
        return "trainable" if able else "frozen"
    return "frozen" if issubclass(variable, swap.FrozenParam) else "buffer"


@cache
def _role(kind: str, name: str, variable: Any, status: Status) -> str:
    if status != "buffer":
        return role(kind, name)
    return "rng" if issubclass(variable, nnx.RngState) else _BUFFER_ROLES.get(name, name)


def _built(nodes: list[_Node]) -> Layer:
    """Makes layers from the bottom up. A container without modules is none: its arrays belong to whoever holds it."""
    done: list[Layer | list[Parameter]] = [[] for _ in nodes]
    for place in range(len(nodes) - 1, -1, -1):
        node = nodes[place]
        arrays: list[Parameter] = []
        children: list[Layer] = []
        for item in node.items:
            part = item if isinstance(item, Parameter) else done[item]
            if isinstance(part, Layer):
                children.append(part)
            else:
                arrays.extend([part] if isinstance(part, Parameter) else part)
        is_layer = children or place == 0 or is_layer_class(class_of(node.native))
        done[place] = _layer(node, arrays, tuple(children)) if is_layer else arrays
    root = done[0]
    assert isinstance(root, Layer)
    return root


def _layer(node: _Node, arrays: list[Parameter], children: tuple[Layer, ...]) -> Layer:
    parameters = tuple(p for p in arrays if p.status != "buffer")
    return Layer(
        node.path,
        node.kind or ("container" if children and not parameters else "other"),
        type(node.native).__name__,
        parameters,
        tuple(p for p in arrays if p.status == "buffer"),
        children,
        inference=swap.held(node.native),
        native=node.native,
        lost_order=_lost_order(node.native),
        stack=told(_axes(node.native), parameters, children),
    )


_VECTORS = {"bias": 1, "scale": 1}


def _axes(native: Any) -> dict[str, int]:
    """How many axes the parameters of nnx's own layers have in a single layer, by name: they have more in a module that ``nnx.vmap`` made."""
    if isinstance(native, nnx.Linear):
        return {"kernel": 2, "bias": 1}
    if isinstance(native, nnx.Conv | nnx.ConvTranspose):
        return {"kernel": 2 + (1 if isinstance(native.kernel_size, int) else len(native.kernel_size)), "bias": 1}
    if isinstance(native, nnx.LinearGeneral) and not native.batch_axis:
        outputs = _count(native.out_features)
        return {"kernel": _count(native.in_features) + outputs, "bias": outputs}
    if isinstance(native, nnx.Embed):
        return {"embedding": 2}
    return _VECTORS if isinstance(native, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm | nnx.GroupNorm) else {}


def _count(features: Any) -> int:
    return len(features) if isinstance(features, tuple | list) else 1
