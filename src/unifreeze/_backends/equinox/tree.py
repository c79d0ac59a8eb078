"""Reads an equinox module as a tree of plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import equinox as eqx
import jax

from unifreeze._backends.jax.stacks import told
from unifreeze._backends.jax.tree import dtype_name, flat, is_array, is_inexact, is_key, split, text
from unifreeze.plugin import BackendError, Layer, Parameter, role

from .parts import entries

_CLASSES = {
    "dense": "Linear",
    "conv": "Conv",
    "conv_transpose": "ConvTranspose",
    "embedding": "Embedding",
    "batch_norm": "BatchNorm",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
    "rms_norm": "RMSNorm",
    "attention": "MultiheadAttention",
    "recurrent": "LSTMCell GRUCell",
    "dropout": "Dropout",
    "activation": "PReLU Lambda",
    "pooling": "Pool AdaptivePool",
    "container": "Sequential MLP Shared",
    "other": "SpectralNorm WeightNorm Identity",
}
_KINDS: dict[type, str] = {getattr(eqx.nn, name): kind for kind, names in _CLASSES.items() for name in names.split() if hasattr(eqx.nn, name)}
_KINDS |= {base: "pooling" for base in eqx.nn.MaxPool1d.__mro__ if base.__name__ == "Pool"}
_KINDS |= {base: "pooling" for base in eqx.nn.AdaptiveAvgPool1d.__mro__ if base.__name__ == "AdaptivePool"}
_STATE_NAMES = {"BatchNorm": ("mean", "var"), "SpectralNorm": ("u", "v")}
_BUFFER_ROLES = {"mean": "mean", "var": "variance", "batch_counter": "count"}


def read(module: Any, state: Any) -> Layer:
    """Reads a module and, if it is given, its State."""
    return _Reader(module, state).read()


@cache
def _kind_of(kind: Any) -> str:
    return next((_KINDS[base] for base in kind.__mro__ if base in _KINDS), "")


def kind_of(native: Any) -> str:
    """The kind of a module from the nearest class of equinox that it comes from; nothing for the user's own."""
    its_class: Any = type(native)
    kind = _kind_of(its_class)
    return "depthwise_conv" if kind == "conv" and native.groups > 1 and native.groups == native.in_channels else kind


@dataclass(eq=False)
class _Node:
    native: Any
    path: str
    kind: str
    arrays: list[Parameter] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)
    hidden_state: bool = False


class _Reader:
    """Reads a module with an own stack, so that depth is no limit. Leaves have the names that the plan knows."""

    def __init__(self, module: Any, state: Any) -> None:
        self.state = state
        laid = flat(module)
        paths = jax.tree_util.tree_flatten_with_path(module, is_leaf=lambda leaf: leaf is None)[0]
        self.names = {keys: name for (keys, _), name in zip(paths, laid.names, strict=True)}
        self.root = _Node(module, "", kind_of(module))

    def read(self) -> Layer:
        nodes = [self.root]
        pending: list[tuple[_Node, tuple[Any, ...]]] = [(self.root, ())]
        while pending:
            node, keys = pending.pop()
            for key, member in entries(node.native) or []:
                name, place = text(key), (*keys, key)
                module = issubclass(type(member), eqx.Module)
                if type(member) is eqx.nn.StateIndex:
                    node.arrays.extend(self._state(node, name, member))
                    node.hidden_state = self.state is None
                elif not module and is_array(member):
                    node.arrays.append(_parameter(self.names[place], node.kind, member))
                elif module or (member is not None and entries(member) is not None):
                    child = _Node(member, ".".join((*filter(None, [node.path]), *split(name))), kind_of(member) or ("" if module else node.kind))
                    node.children.append(child)
                    nodes.append(child)
                    pending.append((child, place))
        return _built(nodes)

    def _state(self, node: _Node, name: str, index: eqx.nn.StateIndex) -> Iterator[Parameter]:
        if self.state is None:
            return
        try:
            value = self.state.get(index)
        except (KeyError, ValueError) as error:
            raise BackendError(
                f"The State does not hold the state of {node.path or type(node.native).__name__}.\n"
                "  it is another model's, or one that a step has replaced\n"
                "  Give the pair of the model and its newest State."
            ) from error
        leaves = jax.tree.leaves(value)
        known = next((_STATE_NAMES[base.__name__] for base in type(node.native).__mro__ if base.__name__ in _STATE_NAMES), ())
        whole = name.removesuffix("_index")
        names = known if len(leaves) == len(known) else [whole] if len(leaves) == 1 else [f"{whole}.{i}" for i in range(len(leaves))]
        for own, leaf in zip(names, leaves, strict=True):
            yield _described(f"{node.path}.{own}".lstrip("."), leaf, "buffer", "rng" if is_key(leaf.dtype) else _BUFFER_ROLES.get(own, own))


def _parameter(path: str, kind: str, array: Any) -> Parameter:
    name = path.rpartition(".")[2]
    if not is_inexact(array.dtype):
        return _described(path, array, "buffer", "rng" if is_key(array.dtype) else name)
    return _described(path, array, "trainable", role(kind, name))


def _described(path: str, array: Any, status: Any, its_role: str) -> Parameter:
    return Parameter(path, tuple(array.shape), dtype_name(array.dtype), prod(array.shape) * array.dtype.itemsize, status, its_role, array)


def _built(nodes: list[_Node]) -> Layer:
    """Makes layers from the bottom up. A container without modules is none: its arrays belong to whoever holds it."""
    done: dict[int, Layer] = {}
    for node in reversed(nodes):
        for child in node.children:
            if id(child) not in done:
                node.arrays.extend(child.arrays)
        children = tuple(done[id(child)] for child in node.children if id(child) in done)
        if not (children or issubclass(type(node.native), eqx.Module)):
            continue
        parameters = tuple(p for p in node.arrays if p.status != "buffer")
        done[id(node)] = Layer(
            node.path,
            node.kind or ("container" if children and not parameters else "other"),
            type(node.native).__name__,
            parameters,
            tuple(p for p in node.arrays if p.status == "buffer"),
            children,
            native=node.native,
            hidden_state=node.hidden_state,
            stack=told(_axes(node.native), parameters, children),
        )
    return done[id(nodes[0])]


def _axes(native: Any) -> dict[str, int]:
    """How many axes the parameters of equinox's own layers have in a single layer, by name: they have more in a module that ``filter_vmap`` made."""
    if isinstance(native, eqx.nn.Linear):
        return {"weight": 2, "bias": 1}
    if isinstance(native, eqx.nn.Conv | eqx.nn.ConvTranspose):
        return {"weight": 2 + native.num_spatial_dims, "bias": 1 + native.num_spatial_dims}
    if isinstance(native, eqx.nn.LayerNorm | eqx.nn.RMSNorm):
        return dict.fromkeys(("weight", "bias"), len(native.shape))
    if isinstance(native, eqx.nn.BatchNorm | eqx.nn.GroupNorm):
        return {"weight": 1, "bias": 1}
    return {"weight": 2} if isinstance(native, eqx.nn.Embedding) else {}
