"""What the optimizers of optax keep of each parameter. Sources: ``init_fn`` of the transformation that each is made of, in ``optax/_src``."""

from __future__ import annotations

from math import prod

from unifreeze.plugin import Slots, times

# An int32 that counts the steps, once.
_COUNT = 4
# optax.adafactor factors a matrix whose second largest axis is at least so long.
_LEAST = 128


def _factored(shape: tuple[int, ...]) -> int:
    """The array without its largest axis and without its second largest; with a stand-in of one element for each state that is not used."""
    largest = sorted(shape)
    if len(shape) < 2 or largest[-2] < _LEAST:
        return prod(shape) + 2
    return prod(shape) // largest[-1] + prod(shape) // largest[-2] + 1


_ADAM = Slots(times(2), "2 × the parameter: mu, nu; 4 bytes once: count", "optax/_src/transform.py, scale_by_adam", once=_COUNT)

SLOTS = {
    "sgd": Slots(times(0), "nothing", "optax/_src/alias.py, sgd"),
    "momentum": Slots(times(1), "1 × the parameter: trace", "optax/transforms/_accumulation.py, trace"),
    "adam": _ADAM,
    "adamw": _ADAM,
    "nadam": _ADAM,
    "nadamw": _ADAM,
    "amsgrad": Slots(times(3), "3 × the parameter: mu, nu, nu_max; 4 bytes once: count", "optax/_src/transform.py, scale_by_amsgrad", once=_COUNT),
    "radam": Slots(times(2), "2 × the parameter: mu, nu; 4 bytes once: count", "optax/_src/transform.py, scale_by_radam", once=_COUNT),
    "adamax": Slots(times(2), "2 × the parameter: mu, nu; 4 bytes once: count", "optax/_src/transform.py, scale_by_adamax", once=_COUNT),
    "adabelief": Slots(times(2), "2 × the parameter: mu, nu; 4 bytes once: count", "optax/_src/transform.py, scale_by_belief", once=_COUNT),
    "lamb": _ADAM,
    "rmsprop": Slots(times(1), "1 × the parameter: nu", "optax/_src/transform.py, scale_by_rms"),
    "adagrad": Slots(times(1), "1 × the parameter: sum_of_squares", "optax/_src/transform.py, scale_by_rss"),
    "adadelta": Slots(times(2), "2 × the parameter: e_g, e_x", "optax/_src/transform.py, scale_by_adadelta"),
    "lion": Slots(times(1), "1 × the parameter: mu; 4 bytes once: count", "optax/_src/transform.py, scale_by_lion", once=_COUNT),
    "adafactor": Slots(
        _factored,
        f"of a matrix with both axes from {_LEAST}: rows + columns + 1 element (v_row, v_col, v); of anything else: the parameter + 2; 4 bytes once: count",
        "optax/_src/factorized.py, scale_by_factored_rms",
        once=_COUNT,
    ),
}
