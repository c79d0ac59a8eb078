"""Knows all models that live. A layer does not know which models use it, and no graph shows all of them: two may run the very same nodes.

Every model is entered where Keras begins to make it a thing that can be trained. Those that were there before are looked for once.
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


def listen() -> None:
    """Enters the models that there are, and from now on every new one."""
    begin: Callable[..., None] = Trainer.__init__

    @functools.wraps(begin)
    def enter(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        _LIVING[id(self)] = self

    Trainer.__init__ = enter
    for model in gc.get_objects():
        if issubclass(type(model), keras.Model):
            _LIVING[id(model)] = model
