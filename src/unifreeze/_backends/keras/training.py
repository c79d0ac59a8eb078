"""Makes running training obey: finds the models that train the layers, hands over JAX's values, renews optimizers and compiled functions."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import keras

from unifreeze.plugin import BackendError, ExitStack

from . import drift, functions, living
from .flags import Setter
from .optimizer import Bank, retarget

_LOOPS = {"fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch"}


def trainers(natives: Iterable[Any]) -> list[Any]:
    """The models whose training or compiled functions the layers take part in: those among them, and living ones around them that are in use or watched."""
    inside = {id(native): native for native in natives}
    found = [native for native in inside.values() if isinstance(native, keras.Model)]
    others = [other for other in living.models() if id(other) not in inside and _in_use(other)]
    return found + [other for other in others if not inside.keys().isdisjoint(map(id, other._flatten_layers()))]


def joined(models: list[Any], more: Iterable[Any]) -> list[Any]:
    """Adds models that have come since: a head is often built on a base that is frozen already."""
    known = set(map(id, models))
    models += [model for model in more if id(model) not in known]
    return models


def _in_use(model: Any) -> bool:
    return functions.in_use(model) or drift.watches(model) or getattr(getattr(model, "optimizer", None), "built", False)


def hand_over(models: Sequence[Any]) -> None:
    """On JAX, a running fit holds the values of the variables; this brings them back, as for a callback that saves weights."""
    need_own_thread(models)
    for model in models:
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()


def pause(models: Sequence[Any]) -> None:
    """What must precede any change of flags."""
    hand_over(models)
    for model in models:
        functions.shelve(model)


def close(models: list[Any], natives: Sequence[Any], setter: Setter, bank: Bank, stack: ExitStack) -> None:
    """Undoes a call, also in models that have come since; if an optimizer can't follow, nothing is undone."""
    pause(joined(models, trainers(natives)))
    again = setter.back()
    try:
        for model in models:
            setter.changed |= _point(model, model._flatten_layers(), bank)
    except BackendError:
        again()
        for model in models:
            with suppress(BackendError):
                _point(model, model._flatten_layers(), bank)
        raise
    stack.close()
    bank.tell()


def need_own_thread(models: Sequence[Any]) -> None:
    """Refuses models that another thread trains or runs on JAX: it would go on with arrays in the old order, or with deleted ones, and lose every weight."""
    if keras.backend.backend() != "jax" or threading.active_count() < 2:
        return
    at_work = set(map(id, models))
    for thread, frame in sys._current_frames().items():
        loop = None if thread == threading.get_ident() else _loop(frame, at_work)
        if loop is not None:
            raise BackendError(
                f"{loop.f_locals['self'].name!r} is in {loop.f_code.co_name}() in another thread, which holds its values on JAX.\n"
                "  Nothing was changed.\n"
                "  Freeze, unfreeze and verify in a callback of that call, or after it."
            )


def _loop(frame: FrameType | None, models: set[int]) -> FrameType | None:
    """The frame, of those below a thread's innermost one, in which one of these models is trained or run."""
    while frame is not None and not (frame.f_code.co_name in _LOOPS and id(frame.f_locals.get("self")) in models):
        frame = frame.f_back
    return frame


def need_values(variables: Iterable[Any]) -> None:
    """Refuses variables whose values a running fit of an unknown model holds: whatever is changed now would be lost or mixed up."""
    away = [variable.path for variable in variables if variable._value is None and variable._initializer is None]
    if away:
        raise BackendError(
            f"The values of {len(away)} variables, such as {away[0]}, are held by a running fit of another model.\n"
            "  Nothing was changed.\n"
            "  Give the model that is being fitted (self.model in a callback), and name the layers in it."
        )


def settle(models: Sequence[Any], bank: Bank, *, changed: bool) -> None:
    """Brings optimizers and compiled functions in line with the flags."""
    for model in models:
        layers = model._flatten_layers()
        drift.note(model, layers)
        other = _point(model, layers, bank)
        if changed or other:
            functions.renew(model, layers)


def _point(model: Any, layers: Sequence[Any], bank: Bank) -> bool:
    optimizer = getattr(model, "optimizer", None)
    return isinstance(optimizer, keras.optimizers.Optimizer) and retarget(optimizer, _compiled_targets(optimizer, model, layers), bank)


def targets(optimizer: Any, model: Any, layers: Sequence[Any]) -> list[Any]:
    """What the model trains now, where its first variable stood in the optimizer; and what the optimizer trains beside the model, as it stands."""
    now = model.trainable_variables
    known = set(map(id, now))
    listed = optimizer._trainable_variables[:]
    if known.issuperset(map(id, listed)):
        return list(now)
    own = {id(variable) for layer in layers for variable in (*layer._trainable_variables, *layer._non_trainable_variables)}
    place = next((place for place, variable in enumerate(listed) if id(variable) in own), len(listed))
    return [*listed[:place], *now, *(variable for variable in listed[place:] if id(variable) not in own)]


def _compiled_targets(optimizer: Any, model: Any, layers: Sequence[Any]) -> list[Any]:
    """Keras's own steps on JAX, and with an average of weights, take an optimizer for exactly what the model trains."""
    exact = keras.backend.backend() == "jax" or getattr(optimizer, "use_ema", False)
    return list(model.trainable_variables) if exact else targets(optimizer, model, layers)


def obey(model: Any, bank: Bank) -> None:
    """Brings one model in line with flags that were set by hand, or with a new ``compile``. The bank gives moments back when they are set back."""
    pause([model])
    settle([model], bank, changed=True)


def join(model: Any) -> None:
    """Watches a model that is about to be used, if it holds layers of one that is watched."""
    drift.join(model, functools.partial(obey, bank=Bank()))
