"""What the optimizers of Keras keep of each parameter. Sources: ``build`` of each, in ``keras/src/optimizers/<name>.py``."""

from __future__ import annotations

from math import prod

import keras

from unifreeze.plugin import Slots, times

# The learning rate (float32) and the count of steps, whose width depends on the backend.
_ONCE = 4 + (8 if keras.backend.backend() == "tensorflow" else 4)


def _adafactor(shape: tuple[int, ...]) -> int:
    """Keras factors a matrix and keeps a whole second moment besides; of a vector, stand-ins of one element."""
    if len(shape) < 2:
        return prod(shape) + 2
    return prod(shape) + prod(shape[:-1]) + prod(shape[:-2]) * shape[-1]


def _slots(count: int, names: str, file: str, more: int = 0) -> Slots:
    kept = f"{count} × the parameter: {names}" if count else "nothing"
    return Slots(times(count), f"{kept}; {_ONCE + more} bytes once", f"keras/src/optimizers/{file}.py", once=_ONCE + more)


SLOTS = {
    "sgd": _slots(0, "", "sgd"),
    "momentum": _slots(1, "momentum", "sgd"),
    "adam": _slots(2, "momentum, velocity", "adam"),
    "adamw": _slots(2, "momentum, velocity", "adamw"),
    "amsgrad": _slots(3, "momentum, velocity, velocity_hat", "adam"),
    "nadam": _slots(2, "momentum, velocity", "nadam", more=4),
    "adamax": _slots(2, "momentum, norm", "adamax"),
    "rmsprop": _slots(1, "velocity", "rmsprop"),
    "adagrad": _slots(1, "accumulator", "adagrad"),
    "adadelta": _slots(2, "accumulated_grad, accumulated_delta_var", "adadelta"),
    "lion": _slots(1, "momentum", "lion"),
    "ftrl": _slots(2, "accumulator, linear", "ftrl"),
    "adafactor": Slots(
        _adafactor,
        f"the parameter, and of a matrix rows + columns, of a vector 2 elements: v, r, c; {_ONCE} bytes once",
        "keras/src/optimizers/adafactor.py",
        once=_ONCE,
    ),
}
