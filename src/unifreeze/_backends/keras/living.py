"""Knows all models that live. A layer does not know which models use it, and no graph shows all of them: two may run the very same nodes.

Every model is entered where Keras begins to make it a thing that can be trained, and shown to whoever asks when it is compiled; so ``Trainer.__init__`` and
``Trainer.compile`` are wrapped once. Models that were there before are looked for once.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import keras
from keras.src.trainers.trainer import Trainer

_LIVING: WeakValueDictionary[int, Any] = WeakValueDictionary()


def models() -> list[Any]:
    """All models that live."""
    return list(_LIVING.values())


def listen(compiled: Callable[[Any], None]) -> None:
    """Enters the models that there are, and from now on every new one; each that is compiled is handed on."""
    _after("__init__", _enter)
    _after("compile", compiled)
    for model in gc.get_objects():
        if issubclass(type(model), keras.Model):
            _enter(model)


def _enter(model: Any) -> None:
    _LIVING[id(model)] = model


def _after(name: str, call: Callable[[Any], None]) -> None:
    method: Callable[..., None] = getattr(Trainer, name)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs)
        call(self)

    setattr(Trainer, name, wrapped)
