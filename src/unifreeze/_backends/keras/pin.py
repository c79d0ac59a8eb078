"""Holds layers at inference behaviour: by their own flag where Keras has one for it, else by a pin on ``call``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend.common import global_state

from unifreeze.plugin import ExitStack, Inference

_BY_FLAG = (keras.layers.BatchNormalization, keras.layers.Normalization)


def held(layer: Any) -> Inference | None:
    """How a layer is held now. A normalisation whose flag is off is, whoever turned it off."""
    how = pinned(layer)
    if how is None and by_flag(layer) and not layer.trainable:
        return "norm"
    return how


def pinned(layer: Any) -> Inference | None:
    """How a pin of ours holds a layer; ``call`` stands in the layer itself where there is one."""
    call = vars(layer).get("call")
    how: Inference | None = None if call is None else getattr(call, "unifreeze_holds", None)
    return how


def by_flag(layer: Any) -> bool:
    """Whether the layer's own flag decides if its statistics move, or nothing in training does: ``Normalization`` has those of ``adapt`` alone."""
    return isinstance(layer, _BY_FLAG)


def place(layer: Any, how: Inference | None, stack: ExitStack) -> bool:
    """Pins a layer, or takes our pin off; says whether anything changed. The stack gets what restores it."""
    now = layer.__dict__.get("call")
    if getattr(now, "unifreeze_holds", None) == how:
        return False
    user = now.__wrapped__ if hasattr(now, "unifreeze_holds") else layer.call
    stack.callback(_put, layer, now)
    if how is not None:
        _put(layer, _pinned(layer, user, how))
    else:
        _put(layer, None if getattr(user, "__func__", None) is type(layer).call else user)
    return True


def _put(layer: Any, call: Callable[..., Any] | None) -> None:
    """Writes past Keras's and torch's attribute hooks, which would track the function."""
    layer.__dict__.pop("call", None)
    if call is not None:
        layer.__dict__["call"] = call


def _pinned(layer: Any, call: Callable[..., Any], how: Inference) -> Callable[..., Any]:
    takes_training = layer._call_has_training_arg

    @functools.wraps(call)
    def kept(*args: Any, **kwargs: Any) -> Any:
        if takes_training:
            kwargs["training"] = False
        with _own_mode(), _still(layer):
            return call(*args, **kwargs)

    kept.unifreeze_holds = how  # type: ignore[attr-defined]
    return kept


@contextmanager
def _own_mode() -> Iterator[None]:
    """Keeps ``training=False`` inside the pinned layer: Keras would hand it on to whatever is called next."""
    context = global_state.get_global_attribute("current_call_ctx")
    mode = None if context is None else context.get_value("training")
    try:
        yield
    finally:
        if context is not None:
            context.set_value("training", mode)


@contextmanager
def _still(layer: Any) -> Iterator[None]:
    """Turns assignments to the layer's own frozen variables off during its call, for layers that update them whatever ``training`` says."""
    own = (*layer._trainable_variables, *layer._non_trainable_variables)
    quiet = [variable for variable in own if not variable.trainable and "assign" not in vars(variable)]
    try:
        for variable in quiet:
            vars(variable)["assign"] = functools.partial(_ignore, variable)
        yield
    finally:
        for variable in quiet:
            vars(variable).pop("assign", None)


def _ignore(variable: Any, value: Any) -> Any:
    del value
    return variable.value
