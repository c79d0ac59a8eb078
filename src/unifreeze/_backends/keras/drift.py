"""Notices flags that were set by hand after a freeze.

Keras would ignore them on TensorFlow, and lose the weights over them on JAX; its own warning about it can't fire. A model that unifreeze has handled compares
its flags where each way into training and inference passes: where Keras makes the compiled function or, on JAX, hands the values over. What differs is said
once, and obeyed.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

from unifreeze.plugin import ExitStack, UnbuiltModelError, UnifreezeWarning

from . import legacy, living, tree

_WATCH = "_unifreeze_watch"
_ENTRIES = ("make_train_function", "make_test_function", "make_predict_function", "_get_jax_state")
_SYNC = "jax_state_sync"
_FILES = ("save", "load_weights")
_NOT_YET = object()


class _Watch:
    """The flags of a model as they were last brought about, how often it was asked to be watched, and the models that it is watched along with."""

    def __init__(self, model: Any, obey: Callable[[Any], None]) -> None:
        self.model, self.obey = model, obey
        self.times = 0
        self.beside: list[ref[Any]] = []
        self.layers: list[Any] = []
        self.owned: list[Any] = []
        self.flags: list[bool] = []
        self.compiled: Any = None

    def note(self, layers: list[Any]) -> None:
        self.layers = layers
        self.owned = []
        for layer in layers:
            self.owned += layer._trainable_variables
            self.owned += layer._non_trainable_variables
        self.flags = self._now()
        self.compiled = getattr(self.model, "_loss_tracker", None)

    def _now(self) -> list[bool]:
        return [layer._trainable for layer in self.layers] + [variable._trainable for variable in self.owned]

    def stands(self) -> bool:
        """Whether anyone still asks for it."""
        others = [vars(other).get(_WATCH) for one in self.beside if (other := one()) is not None]
        return self.times > 0 or any(other is not None and other.times > 0 for other in others)

    def check(self) -> None:
        """Says what was set by hand, and obeys it. After a new ``compile``, Keras's own way to say it, there is nothing to say."""
        if not self.stands():
            _end(self.model)
        elif self.compiled is not getattr(self.model, "_loss_tracker", None):
            self.obey(self.model)
        elif self._now() != self.flags:
            _warn(self._report())
            self.obey(self.model)

    @contextmanager
    def as_noted(self) -> Iterator[None]:
        """Sets the flags back for a moment: the values that JAX holds lie in the order of the flags that they were handed over with."""
        now = self._now()
        if now != self.flags:
            self._write(self.flags)
        try:
            yield
        finally:
            if now != self.flags:
                self._write(now)

    def _write(self, flags: list[bool]) -> None:
        for layer, flag in zip(self.layers, flags, strict=False):
            layer._trainable = flag
        for variable, flag in zip(self.owned, flags[len(self.layers) :], strict=True):
            variable.trainable = flag

    def _report(self) -> str:
        now, noted, count = self._now(), self.flags, len(self.layers)
        changed = {id(layer): on for layer, on, was in zip(self.layers, now, noted, strict=False) if on != was}
        variables = {id(v): on for v, on, was in zip(self.owned, now[count:], noted[count:], strict=True) if on != was}
        mine: list[tuple[Any, bool]] = []
        for layer in self.layers:
            own = [variables[id(v)] for v in (*layer._trainable_variables, *layer._non_trainable_variables) if id(v) in variables]
            if own or (id(layer) in changed and (not layer._layers or not variables)):
                mine.append((layer, own[0] if own else changed[id(layer)]))
        paths = _paths(self.model)
        shown = [f"  {paths.get(id(layer), layer.name)}: trainable was set to {on}" for layer, on in mine[:10]]
        rest = [f"  … and {len(mine) - 10} more layers"] if len(mine) > 10 else []
        return "\n".join(
            [
                f"Flags of {len(mine)} layers of {type(self.model).__name__} {self.model.name!r} were set by hand after the last freeze.",
                *shown,
                *rest,
                "  Keras itself would not have followed without another compile; from here on training follows them as they are now.",
                "  Use unifreeze.freeze(model, layers=…) or unfreeze, or call model.compile after setting flags; freezing.verify() tells which promises broke.",
            ]
        )


def watch(models: list[Any], obey: Callable[[Any], None], stack: ExitStack) -> None:
    """Watches models until the stack is closed; several watches of one model end one by one."""
    for model in models:
        own = vars(model)
        known: _Watch = own.setdefault(_WATCH, _Watch(model, obey))
        if not known.stands():
            _hook(model, known)
        known.times += 1
        stack.callback(_release, model)


def watches(model: Any) -> bool:
    """Whether a model's flags are compared with those that were brought about last."""
    return _WATCH in vars(model)


def join(model: Any, obey: Callable[[Any], None]) -> None:
    """Watches a model that is about to be used and holds layers of one that is watched, as long as that one is. Its flags count from here on."""
    others = [other for other in living.models() if other is not model and _WATCH in vars(other)]
    if _WATCH in vars(model) or not others:
        return
    inside = set(map(id, model._flatten_layers()))
    beside = [ref(other) for other in others if not inside.isdisjoint(map(id, vars(other)[_WATCH].layers))]
    if beside:
        known = vars(model)[_WATCH] = _Watch(model, obey)
        known.beside, known.compiled = beside, _NOT_YET
        _hook(model, known)
        known.check()


def note(model: Any, layers: list[Any]) -> None:
    """Takes the flags of a watched model, whose layers these are, as they are now, for the ones that are meant."""
    known = vars(model).get(_WATCH)
    if known is not None:
        known.note(layers)


def _release(model: Any) -> None:
    known: _Watch = vars(model)[_WATCH]
    known.times -= 1
    if not known.stands():
        _end(model)


def _end(model: Any) -> None:
    for name in (*_ENTRIES, _SYNC, *_FILES, _WATCH):
        vars(model).pop(name, None)


def _hook(model: Any, known: _Watch) -> None:
    """Writes past Keras's and torch's attribute hooks. A method that the user has put on the instance himself is left alone."""
    wrap = dict.fromkeys(_ENTRIES, _checked) | {_SYNC: _synced, "save": _saved, "load_weights": _loaded}
    for name, how in wrap.items():
        if hasattr(model, name) and name not in vars(model):
            vars(model)[name] = how(known, getattr(model, name))


def _checked(known: _Watch, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def entry(*args: Any, **kwargs: Any) -> Any:
        known.check()
        return method(*args, **kwargs)

    return entry


def _saved(known: _Watch, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def save(filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if legacy.is_legacy(filepath):
            legacy.need_lasting_order(known.model, filepath)
        return method(filepath, *args, **kwargs)

    return save


def _loaded(known: _Watch, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def load_weights(filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if legacy.is_legacy(filepath):
            legacy.need_same_order(known.model, filepath, by_name=bool(kwargs.get("by_name")))
        return method(filepath, *args, **kwargs)

    return load_weights


def _synced(known: _Watch, method: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(method)
    def sync() -> None:
        with known.as_noted():
            method()

    return sync


def _paths(model: Any) -> dict[int, str]:
    try:
        return {id(layer.native): layer.path or "the model itself" for layer in tree.read(model).walk()}
    except UnbuiltModelError:
        return {}


def _warn(message: str) -> None:
    """Points at the line of the user's that trains, below which Keras's frames lie."""
    depth = 2
    frame = inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in ("unifreeze", "keras"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, UnifreezeWarning, stacklevel=depth - 1)
