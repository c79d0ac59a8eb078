"""How the held layers of a module run as at inference inside the user's function, whatever switch they are given at the call.

A field ``inference`` is only a default in equinox: an argument of the call overrules it, and a layer of the user's own may have no such field. So the
layers that a function sees are of a subclass each, whose methods overrule the switch and give the layer's own state back as it came. What the function
returns is of the plain classes again.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import equinox as eqx
import jax
import numpy as np

from unifreeze._backends.jax.tree import is_key, split, text
from unifreeze.plugin import Inference

from .parts import entries

_STATE = {"use_running_average": True, "update_stats": False}
_MODES: Mapping[Inference, Mapping[str, bool]] = {
    "norm": {"inference": True, "training": False, "is_training": False, "train": False, **_STATE},
    "all": {"inference": True, "training": False, "is_training": False, "train": False, "deterministic": True, **_STATE},
}
_PLAIN = set(eqx.Module.__mro__)


def is_switch(leaf: Any) -> bool:
    """Whether this is a truth value; under plain ``jax.jit`` it is traced."""
    return isinstance(leaf, bool) or getattr(leaf, "dtype", None) == np.bool_


def hold(module: Any, held: Mapping[str, Inference]) -> Any:
    """Turns the held layers of a freshly built module into their holding classes, in place, and returns it."""
    for path, layer in _layers(module):
        if path in held:
            object.__setattr__(layer, "__class__", _holding(_plain_class(layer), held[path]))
    return module


def plain(result: Any) -> Any:
    """Returns what a function returned with every held layer in it of its own class again."""
    if not any(map(_is_held, jax.tree.leaves(result, is_leaf=_is_held))):
        return result
    copy = jax.tree.unflatten(*reversed(jax.tree.flatten(result, is_leaf=_is_leaf)))
    for _, layer in _layers(copy):
        if _is_held(layer):
            object.__setattr__(layer, "__class__", _plain_class(layer))
    return copy


def _is_held(node: Any) -> bool:
    return hasattr(type(node), "_unifreeze_plain")


def _is_leaf(node: Any) -> bool:
    """A State is handed on as it is: a copy would not notice that it is an old one."""
    return isinstance(node, eqx.nn.State)


def _plain_class(layer: Any) -> Any:
    return getattr(type(layer), "_unifreeze_plain", type(layer))


def _layers(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every module in a tree, with its dotted path."""
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        path, node = pending.pop()
        if isinstance(node, eqx.Module):
            yield path, node
        if not _is_leaf(node):
            pending.extend((".".join((*filter(None, [path]), *split(text(key)))), child) for key, child in entries(node) or [])


@cache
def _holding(kind: Any, how: Inference) -> Any:
    """A subclass like its parent, whose calls run as at inference and leave the layer's own state as it was."""
    members = {name: member for base in reversed(kind.__mro__) if base not in _PLAIN for name, member in vars(base).items()}
    body = {name: _quiet(member, how) for name, member in members.items() if _runs(name, member)}
    told = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what equinox has to say of the class, it has said
        return type(kind)(kind.__name__, (kind,), {**body, **told, "_unifreeze_plain": kind})


def _runs(name: str, member: Any) -> bool:
    """Whether a member of a class is a method that computes; decorated ones (``eqx.filter_jit``) are objects that bind like functions."""
    if name.startswith("_") and name != "__call__":
        return False
    return callable(member) and hasattr(member, "__get__") and not isinstance(member, type | staticmethod | classmethod)


def _quiet(method: Any, how: Inference) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(inspect.unwrap(method))
    def quiet(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _switched(signature, _MODES[how], self, args, kwargs)
        before = _values(self, how, (args, kwargs))
        return _restored(method.__get__(self, type(self))(*args, **kwargs), before)

    return quiet


def _switched(signature: inspect.Signature, modes: Mapping[str, bool], module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call, with every switch among them set that is given or has a truth value by default."""
    try:
        bound = signature.bind(module, *args, **kwargs)
    except TypeError:  # the call itself will say what is wrong with it
        return args, kwargs
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given = bound.arguments.get(name, {})
            bound.arguments[name] = given | {switch: value for switch, value in modes.items() if is_switch(given.get(switch))}
        elif name in modes and (is_switch(given := bound.arguments.get(name, parameter.default)) or (name == "inference" and given is None)):
            bound.arguments[name] = modes[name]
    return bound.args[1:], bound.kwargs


def _values(module: Any, how: Inference, arguments: Any) -> list[tuple[Any, Any]]:
    """The layer's own state in the State that it is given. Random keys go on, unless all is deterministic."""
    states = [leaf for leaf in jax.tree.leaves(arguments, is_leaf=_is_leaf) if _is_leaf(leaf)]
    found = [(index, _get(state, index)) for state in states[:1] for index in _own_indices(module)]
    return [(index, value) for index, value in found if value is not None and (how == "all" or not all(is_key(leaf.dtype) for leaf in jax.tree.leaves(value)))]


def _own_indices(module: Any) -> Iterator[Any]:
    """The places of a layer's state, also those in its lists and dicts; not those of the layers inside it."""
    for _, member in entries(module) or []:
        if isinstance(member, eqx.nn.StateIndex):
            yield member
        elif not isinstance(member, eqx.Module) and entries(member):
            yield from _own_indices(member)


def _get(state: Any, index: Any) -> Any:
    try:
        return state.get(index)
    except KeyError:  # a part of the State, of other layers
        return None


def _restored(result: Any, before: list[tuple[Any, Any]]) -> Any:
    """What a call returned, with the old values in the State that is among it."""
    if not before:
        return result

    def restored(leaf: Any) -> Any:
        for index, value in before if _is_leaf(leaf) else ():
            now = _get(leaf, index)
            if now is not None and any(new is not old for new, old in zip(jax.tree.leaves(now), jax.tree.leaves(value), strict=True)):
                leaf = leaf.set(index, value)
        return leaf

    return jax.tree.map(restored, result, is_leaf=_is_leaf)
