"""Knows all models that live. A layer does not know which models use it, and no graph shows all of them: two may run the very same nodes.

Every model is entered where Keras begins to make it a thing that can be trained, and shown to whoever asks before its first function is made: a model that
only predicts is never compiled, and one that was compiled long ago may be used late. So ``Trainer.__init__`` and what makes functions are wrapped once. Models
that were there before are looked for once.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import keras
from keras.src.trainers.trainer import Trainer

FUNCTIONS = ("train_function", "test_function", "predict_function")
_LIVING: WeakValueDictionary[int, Any] = WeakValueDictionary()


def models() -> list[Any]:
    """All models that live."""
    return list(_LIVING.values())


def _nothing(model: Any) -> None:
    del model


def listen(used: Callable[[Any], None]) -> None:
    """Enters the models that there are, and from now on every new one; each that is about to make one of its functions is handed on."""
    _wrap(Trainer, "__init__", after=_enter)
    for name in FUNCTIONS:
        _wrap(_owner(f"make_{name}"), f"make_{name}", before=functools.partial(_show, used, name))
    for model in gc.get_objects():
        if issubclass(type(model), keras.Model):
            _enter(model)


def _show(used: Callable[[Any], None], name: str, model: Any) -> None:
    if getattr(model, name, None) is None:
        used(model)


def _enter(model: Any) -> None:
    _LIVING[id(model)] = model


def _owner(name: str) -> type:
    """The class of Keras's that has the method: each backend brings its own."""
    return next(one for one in keras.Model.__mro__ if name in vars(one))


def _wrap(owner: type, name: str, before: Callable[[Any], None] = _nothing, after: Callable[[Any], None] = _nothing) -> None:
    method: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        before(self)
        result = method(self, *args, **kwargs)
        after(self)
        return result

    setattr(owner, name, wrapped)
