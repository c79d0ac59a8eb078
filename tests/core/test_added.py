"""``verify`` names what was put into a frozen part after the call, and leaves alone what was put beside it."""

from __future__ import annotations

import numpy as np
import pytest

import toynet
from unifreeze import freeze, unfreeze
from unifreeze.errors import FrozenMovedError
from unifreeze_toynet_kit import ToynetKit


@pytest.fixture
def model() -> toynet.Layer:
    return ToynetKit().reference()


def test_a_layer_and_a_variable_added_to_a_frozen_part_are_named(model: toynet.Layer) -> None:
    freezing = freeze(model, layers="stem")
    model.stem.extra = toynet.Chain(dense=toynet.Dense(2, 2, np.random.default_rng(0)))
    model.stem.conv.gain = toynet.Variable(np.ones(2))
    with pytest.raises(FrozenMovedError) as raised:
        freezing.verify()
    assert "  stem.extra.dense.kernel: was added to a frozen part (stem) and is trainable; freeze again, or unfreeze it" in str(raised.value)
    assert "  stem.conv.gain: was added to a frozen part (stem.conv)" in str(raised.value)
    freeze(model, layers="stem").verify()


def test_what_was_added_and_is_meant_to_train_is_said_by_a_call(model: toynet.Layer) -> None:
    freeze(model)
    model.more = toynet.Dense(2, 2, np.random.default_rng(0))
    unfreeze(model, layers="more").verify()


def test_what_is_added_beside_a_frozen_part_is_left_alone(model: toynet.Layer) -> None:
    freezing = freeze(model, layers="stem")
    model.more = toynet.Dense(2, 2, np.random.default_rng(0))
    freezing.verify()


def test_a_dropout_added_to_a_deterministic_part_is_named(model: toynet.Layer) -> None:
    for how, named in (("all", True), ("norm", False)):
        freezing = freeze(model, layers="stem", inference=how)
        model.stem.noise = toynet.Dropout(0.5)
        if named:
            with pytest.raises(FrozenMovedError, match=r"stem\.noise: was added to a part that is held at inference \(stem\)"):
                freezing.verify()
        else:
            freezing.verify()
        del model.stem.noise
