"""Running held layers of linen and haiku models as at inference, whatever the loss asks for, and without a change to the model's code.

Both libraries let one intercept the methods of their modules. A module is recognised by its path: that of a held layer or, for a module without arrays
(dropout), that of the nearest layer above it.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from unifreeze.plugin import Inference, UnifreezeError

from .tree import PASSING, flat, split

# How modules are told to run as at inference, by argument or by attribute. The first concern nothing but a layer's own state.
_STATE_FLAGS = {"use_running_average": True, "update_stats": False}
_MODE_FLAGS = {"train": False, "training": False, "is_training": False}

#: The plans in whose name code runs now, each with the sub-tree that it was told to look under.
_active: ContextVar[tuple[tuple[Any, str | None], ...]] = ContextVar("unifreeze_active", default=())

# Interception happens while JAX traces. This makes it a part of jit's cache key: a function traced outside is not reused inside, nor the other way round.
_traced_under = jax.make_user_context(())


@contextlib.contextmanager
def held_at_inference(plan: Any, held: Mapping[str, Inference], layers: Mapping[str, str], statuses: Mapping[str, str], under: str | None) -> Iterator[None]:
    """Runs the held layers as at inference, in the linen and haiku models that run inside.

    Args:
        plan: Stands for all that follows, in jit's cache key.
        held: How each held layer is held, by path.
        layers: The kind of each layer, by path.
        statuses: The status of every array, by dotted name.
        under: The path of the model's parameters in the tree, if it is known.
    """
    if not held:
        yield
        return
    around = _active.get()
    token = _active.set((*around, (plan, under)))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_traced_under(_active.get()))
            if not any(other == plan for other, _ in around):
                holder = Holder(plan, held, layers, statuses)
                for library, interceptor in (("flax.linen", holder.linen), ("haiku", holder.haiku)):
                    if library in sys.modules:
                        stack.enter_context(sys.modules[library].intercept_methods(interceptor))
            yield
    finally:
        _active.reset(token)


@dataclass(slots=True)
class Holder:
    """Decides how a module runs, and sees to it."""

    plan: Any
    held: Mapping[str, Inference]
    layers: Mapping[str, str]
    statuses: Mapping[str, str]
    roots: list[str | None] = field(default_factory=list)
    known: dict[int, tuple[tuple[str, ...], str | None]] = field(default_factory=dict)

    def linen(self, run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Intercepts a method of a linen module."""
        module = context.module
        if module.scope is None or module.is_initializing():
            return run(*args, **kwargs)
        with self._rooted(module):
            kind, how = self._how(self.roots[-1] if self.roots else "", module.scope.path)
            if how is None:
                return run(*args, **kwargs)
            before = _linen_state(module)
            result = _flagged(run, context, _flags(module, kind, how), args, kwargs)
            for (collection, name), value in before.items():
                if module.is_mutable_collection(collection) and module.get_variable(collection, name) is not value:
                    module.put_variable(collection, name, value)
            return result

    def haiku(self, run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Intercepts a method of a haiku module."""
        hk, module = sys.modules["haiku"], context.module
        if context.method_name == "__init__" or hk.running_init():
            return run(*args, **kwargs)
        kind, how = self._how(self._root(hk.get_params()), (module.module_name,))
        if how is None:
            return run(*args, **kwargs)

        def keep(following: Callable[[Any], Any], value: Any, state: Any) -> Any:
            return hk.get_state(state.name) if state.module is module else following(value)

        with hk.custom_setter(keep):
            return _flagged(run, context, _flags(module, kind, how), args, kwargs)

    @contextlib.contextmanager
    def _rooted(self, module: Any) -> Iterator[None]:
        """Remembers, while the outermost module of a model runs, where in the tree its parameters are."""
        if module.scope.path:
            yield
            return
        self.roots.append(self._root(module.variables.get("params", {})))
        try:
            yield
        finally:
            self.roots.pop()

    def _root(self, params: Any) -> str | None:
        """The path of a model's parameters in the tree; ``None`` if the model is not in it."""
        told = next((under for plan, under in reversed(_active.get()) if under is not None and plan == self.plan), None)
        if told is not None:
            return told
        names = flat(params).names
        if id(names) not in self.known:
            self.known[id(names)] = (names, self._found(frozenset(names)))
        return self.known[id(names)][1]

    def _found(self, names: frozenset[str]) -> str | None:
        if not names:
            return None
        probe = min(names)
        roots = [name[: -len(probe) - 1] for name in self.statuses if name.endswith(f".{probe}")] + ([""] if probe in self.statuses else [])
        fitting = [root for root in roots if self._fits(root, names)]
        if len({tuple((path.removeprefix(root), how) for path, how in self.held.items() if _inside(path, root)) for root in fitting}) > 1:
            raise UnifreezeError(
                "A model that runs here fits several parts of the tree.\n"
                f"  parts: {', '.join(fitting)}\n"
                f"  Say where the model is applied which part it is: f.hold(model.apply, under={fitting[0]!r})(…)."
            )
        return fitting[0] if fitting else None

    def _fits(self, root: str, names: frozenset[str]) -> bool:
        """Whether a model's parameters are those below ``root``, no more and no fewer."""
        below = {name.removeprefix(f"{root}.") if root else name: status for name, status in self.statuses.items() if _inside(name, root)}
        return names <= below.keys() and all(name in names for name, status in below.items() if status != "buffer")

    def _how(self, root: str | None, names: tuple[str, ...]) -> tuple[str, Inference | None]:
        """The kind of a module's layer in the tree, and how it or the nearest layer above is held."""
        if root is None:
            return "", None
        parts = [*(root.split(".") if root else []), *(part for name in names for part in split(name))]
        kind = self.layers.get(".".join(parts), "")
        while parts and ".".join(parts) not in self.layers:
            parts.pop()
        return kind, self.held.get(".".join(parts))


def _flags(module: Any, kind: str, how: Inference) -> dict[str, bool]:
    """How a module is told to run as at inference. A mode may concern dropout, too, unless the module is a normalisation."""
    if how == "all":
        return {**_STATE_FLAGS, **_MODE_FLAGS, "deterministic": True}
    normalises = kind.endswith("_norm") or any("BatchNorm" in base.__name__ for base in type(module).__mro__)
    return {**_STATE_FLAGS, **_MODE_FLAGS} if normalises else _STATE_FLAGS


def _flagged(run: Callable[..., Any], context: Any, flags: Mapping[str, bool], args: Any, kwargs: Any) -> Any:
    """Runs a method with flags set, whether the module takes them as arguments or has them as attributes."""
    module = context.module
    function = getattr(type(module), context.method_name, None)  # haiku intercepts properties, too
    signature = inspect.signature(function) if callable(function) else inspect.Signature()
    args, kwargs = _with_flags(signature, flags, module, args, kwargs)
    with contextlib.ExitStack() as stack:
        for name in [name for name in flags if _is_switch(vars(module).get(name, ...))]:
            stack.callback(object.__setattr__, module, name, vars(module)[name])
            # A module that takes the same flag as an argument refuses both at a time.
            object.__setattr__(module, name, None if name in signature.parameters else flags[name])
        return run(*args, **kwargs)


def _with_flags(signature: inspect.Signature, flags: Mapping[str, bool], module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call with every switch among them set."""
    try:
        bound = signature.bind_partial(module, *args, **kwargs)
    except TypeError:  # the call itself will say what is wrong with it
        return args, kwargs
    for name, parameter in signature.parameters.items():
        given = bound.arguments.get(name, None if parameter.default is parameter.empty else parameter.default)
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.arguments[name] = {**(given or {}), **{flag: value for flag, value in flags.items() if flag in (given or {})}}
        elif name in flags and _is_switch(given):
            bound.arguments[name] = flags[name]
    return bound.args[1:], bound.kwargs


def _is_switch(value: object) -> bool:
    """Whether a value turns something on or off; a flag's name may stand for something else in a user's module."""
    return value is None or isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_


def _linen_state(module: Any) -> dict[tuple[str, str], Any]:
    """The variables that a module owns itself and that are neither parameters nor passing."""
    shelves = {name: shelf for name, shelf in module.variables.items() if name != "params" and name not in PASSING}
    return {(shelf, name): value for shelf, content in shelves.items() for name, value in content.items() if not isinstance(value, Mapping)}


def _inside(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")
