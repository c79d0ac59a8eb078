"""The rules of optax under which what is trainable must move as in a run over the trainable part alone: five optimizers, and what people put round them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import optax
import pytest

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.05, momentum=0.9),
    "adam": lambda: optax.adam(0.02),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.02, 8), weight_decay=0.2),
    "lion": lambda: optax.lion(0.01, weight_decay=0.2),
    "adafactor": lambda: optax.adafactor(0.02, min_dim_size_to_factor=2, weight_decay_rate=0.01),
}
ROUND: dict[str, Callable[[Any], Any]] = {
    "alone": lambda tx: tx,
    "clip": lambda tx: optax.chain(optax.clip_by_global_norm(0.02), tx),
    "accumulate": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "average": lambda tx: optax.chain(tx, optax.ema(0.9)),
    "noise": lambda tx: optax.chain(optax.add_noise(0.1, 0.5, 0), tx),
}


def made(name: str) -> Any:
    optimizer, _, around = name.partition(" ")
    return ROUND[around](OPTIMIZERS[optimizer]())


ALL = [f"{optimizer} {around}" for optimizer, around in product(OPTIMIZERS, ROUND)]
#: Every optimizer and everything round it once; the rest is for the long sweeps.
SOME = {"sgd noise", "adam accumulate", "adamw alone", "adamw clip", "lion average", "adafactor clip"}
SWEEP = [pytest.param(name, marks=() if name in SOME else pytest.mark.deep) for name in ALL]
#: For what must hold whatever the rule.
BRIEF = [pytest.param(name, marks=() if name == "adamw clip" else pytest.mark.deep) for name in ALL]
