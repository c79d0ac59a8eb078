"""The backend for equinox. A module is a pytree and can't carry a flag, so the ``Freezing`` carries the plan, as for any tree of JAX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, wraps
from math import prod
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from unifreeze.plugin import Applied, Backend, BackendError, Layer, Parameter, Request, UnifreezeWarning, hookimpl, role

from .jax import abstract, adopt, fingerprint
from .jax.plan import Plan, plan_of
from .jax.tree import entries, flat, is_array, is_inexact, is_key, split, text

T = TypeVar("T")

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


@jax.tree_util.register_static
class EquinoxPlan(Plan):
    """A plan for a module: held layers have ``inference=True`` wherever the user's function runs, whatever ``eqx.nn.inference_mode`` said before."""

    def _settled(self, tree: Any) -> Any:
        laid, switches = flat(tree), {f"{path}.inference".lstrip(".") for path in self._held}
        leaves = [True if name in switches and _is_switch(leaf) else leaf for name, leaf in zip(laid.names, laid.leaves, strict=True)]
        return laid.treedef.unflatten(leaves)

    def _holding(self, under: str | None = None) -> AbstractContextManager[None]:
        del under
        return nullcontext()

    def carry(self, tx: Any, state: Any, params: Any) -> Any:
        """Takes an optimizer's state over from an earlier freezing, or from a plain optimizer made with ``tx.init(eqx.filter(model, eqx.is_inexact_array))``.

        What stays trainable keeps its moments. What became trainable starts as if fresh, with a count of its own, while schedules go on.

        Args:
            tx: What ``optimizer`` of this freezing returned.
            state: The state so far.
            params: The module as it is now.
        """
        return super().carry(tx, state, eqx.filter(params, eqx.is_inexact_array))

    def hold(self, fn: Callable[..., T], *, under: str | None = None) -> Callable[..., T]:
        """Wraps a function whose first argument is the module, so that held layers run as at inference inside it.

        Args:
            fn: Any function of the module.
            under: Not used; a module is always the whole tree.
        """
        del under

        @wraps(fn)
        def call(tree: Any, *args: Any, **kwargs: Any) -> T:
            self._laid_out(tree, "The module")
            return fn(self._settled(tree), *args, **kwargs)

        return call


class EquinoxBackend(Backend):
    """Speaks for ``equinox.Module``, and for the pair of a module and its ``equinox.nn.State`` that ``make_with_state`` gives."""

    name = "equinox"
    in_place = False

    def layers(self, model: Any) -> Layer:
        """Reads the module in the order of its fields, with the state of each layer as its buffers."""
        module, state = _parted(model)
        return _Reader(module, state).read()

    def apply(self, model: Any, request: Request) -> Applied:
        """Returns the plan; the module itself is left alone."""
        module, _ = _parted(model)
        _warn_of_what_has_no_switch(request)
        return Applied(abstract(model), tools=plan_of(module, request, kind=EquinoxPlan))

    def fingerprint(self, array: Any) -> Hashable:
        """A digest of the array's bytes."""
        return fingerprint(array)

    def adopt(self, freezing: type) -> None:
        """Makes every Freezing a pytree without leaves."""
        adopt(freezing)


def _is_switch(leaf: Any) -> bool:
    """Whether this is a truth value; under plain ``jax.jit`` it is traced."""
    return isinstance(leaf, bool) or getattr(leaf, "dtype", None) == np.bool_


def _parted(model: Any) -> tuple[Any, Any]:
    return model if isinstance(model, tuple) else (model, None)


def _warn_of_what_has_no_switch(request: Request) -> None:
    """A module can be held only by its ``inference`` field; what it returns as its new state is the user's to drop."""
    wanted = [layer for layer in request.tree.walk() if layer.path in request.layers and request.state.inference.get(layer.path)]
    stateful = [layer for layer in wanted if any(buffer.role != "rng" for buffer in layer.buffers)]
    stuck = [layer.path or layer.type for layer in stateful if not _has_switch(layer.native)]
    if stuck:
        warnings.warn(
            f"{', '.join(stuck[:5])} keep buffers and have no field 'inference', so unifreeze can't hold them still.\n"
            "  Give the module such a field, or go on with the old state after each step; verify() tells whether they moved.",
            UnifreezeWarning,
            stacklevel=6,
        )


def _has_switch(native: Any) -> bool:
    """Whether a module has the field, and not as a static one, which is no leaf."""
    return any(text(key) == "inference" and _is_switch(leaf) for key, leaf in entries(native) or [])


@cache
def _kind_of(kind: Hashable) -> str:
    return next((_KINDS[base] for base in getattr(kind, "__mro__", ()) if base in _KINDS), "")


def kind_of(native: Any) -> str:
    """The kind of a module from the nearest class of equinox that it comes from; nothing for the user's own."""
    kind = _kind_of(native.__class__)
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
                if isinstance(member, eqx.nn.StateIndex):
                    node.arrays.extend(self._state(node, name, member))
                    node.hidden_state = self.state is None
                elif is_array(member):
                    node.arrays.append(_parameter(self.names[place], node.kind, member))
                elif member is not None and entries(member) is not None:
                    child = _Node(
                        member, ".".join((*filter(None, [node.path]), *split(name))), kind_of(member) or ("" if isinstance(member, eqx.Module) else node.kind)
                    )
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
    return Parameter(path, tuple(array.shape), str(array.dtype), prod(array.shape) * array.dtype.itemsize, status, its_role, array)


def _built(nodes: list[_Node]) -> Layer:
    """Makes layers from the bottom up. A container without modules is none: its arrays belong to whoever holds it."""
    done: dict[int, Layer] = {}
    for node in reversed(nodes):
        for child in node.children:
            if id(child) not in done:
                node.arrays.extend(child.arrays)
        children = tuple(done[id(child)] for child in node.children if id(child) in done)
        if not (children or isinstance(node.native, eqx.Module)):
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
        )
    return done[id(nodes[0])]


BACKEND = EquinoxBackend()


@hookimpl
def unifreeze_backend(model: object) -> Backend | None:
    """Answers for modules, and for pairs of a module and its state."""
    pair = isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], eqx.Module) and isinstance(model[1], eqx.nn.State)
    return BACKEND if pair or isinstance(model, eqx.Module) else None
