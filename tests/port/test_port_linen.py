"""A ResNet50 of Keras beside one of linen: weights carried over and back make the same output."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np

import twins
import zoo_linen
from unifreeze import correspond


def test_keras_to_linen_and_back() -> None:
    ours = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classifier_activation=None)
    twins.calibrated(twins.randomised(ours), (1, 64, 64, 3))
    module = zoo_linen.ResNet50OfKeras()
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    apply, x = partial(module.apply, train=False), twins.images((1, 64, 64, 3))
    found = correspond(ours, variables, apply=apply)
    assert (found.certificate, len(found.pairs), found.unmatched, {difference[2] for difference in found.differences}) == ("exact", 107, ((), ()), set())
    new, run = found.transfer(), jax.jit(apply)
    expected = twins.keras_output(ours, x)
    assert twins.apart(expected, run(new, x)) < 1e-4
    # Back into the model, in which nothing is left of before.
    twins.randomised(ours, seed=4)
    assert twins.apart(expected, twins.keras_output(ours, x)) > 0.1
    back = correspond(new, ours, shape=(1, 64, 64, 3), apply=apply)
    assert back.transfer() is ours
    assert twins.apart(expected, twins.keras_output(ours, x)) < 1e-4
