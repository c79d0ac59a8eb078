"""GANs: ``with freeze(discriminator)`` round a step of the combined model trains both, compiles nothing anew at each step, and keeps all moments."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from kits.keras_eyes import ready
from unifreeze import freeze

X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
ONES, ZEROS = np.ones((8, 1), "float32"), np.zeros((8, 1), "float32")
TRACED: Counter[str] = Counter()


class Traced(keras.layers.Layer):
    """Counts how often Python runs through it: once for each time that a compiled function is traced."""

    def call(self, inputs: Any) -> Any:
        TRACED[self.name] += 1
        return inputs


def values(model: Any) -> list[NDArray[Any]]:
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.variables if "seed" not in v.path]


def moved(before: list[NDArray[Any]], model: Any) -> bool:
    return any(a.tobytes() != b.tobytes() for a, b in zip(before, values(model), strict=True))


class Gan:
    """As in the books: a discriminator that is compiled by itself, and again inside the combined model, without any flag set between."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(5)
        layers = keras.layers
        self.generator = keras.Sequential(
            [keras.Input((4,)), layers.Dense(4, name="g"), layers.BatchNormalization(name="gn"), layers.Dense(4, name="h")], name="generator"
        )
        self.discriminator = keras.Sequential(
            [keras.Input((4,)), Traced(name="traced"), layers.Dense(4, name="d"), layers.BatchNormalization(name="dn"), layers.Dense(1, name="e")],
            name="discriminator",
        )
        self.discriminator.compile(keras.optimizers.Adam(0.01), "mse")
        ready(self.discriminator)
        noise = keras.Input((4,))
        self.combined = keras.Model(noise, self.discriminator(self.generator(noise)))
        self.combined.compile(keras.optimizers.Adam(0.01), "mse")

    def judge(self) -> None:
        self.discriminator.train_on_batch(X, ONES)
        self.discriminator.train_on_batch(self.generator(X), ZEROS)

    def create(self, how: str) -> None:
        with freeze(self.combined, layers=self.discriminator) if how == "in the combined model" else freeze(self.discriminator):
            self.combined.train_on_batch(X, ONES)


@pytest.mark.parametrize("how", ["in the combined model", "the discriminator alone"])
def test_both_train_in_turns_and_nothing_is_compiled_anew(how: str) -> None:
    gan = Gan()
    functions, traces, compiled = [], [], gan.combined._compile_loss
    for _ in range(4):
        generator, discriminator = values(gan.generator), values(gan.discriminator)
        gan.judge()
        assert moved(discriminator, gan.discriminator)
        assert not moved(generator, gan.generator)
        discriminator = values(gan.discriminator)
        gan.create(how)
        assert moved(generator, gan.generator)
        assert not moved(discriminator, gan.discriminator), "its weights or its statistics moved in the generator's step"
        with freeze(gan.combined, layers=gan.discriminator):
            functions.append((gan.combined.train_function, gan.discriminator.train_function))
        traces.append(TRACED["traced"])
    assert functions[1] == functions[2] == functions[3], "a function was rebuilt at a step"
    if keras.backend.backend() != "torch":  # which runs through Python at every step
        assert traces[1] == traces[2] == traces[3], "a function was traced again"
    assert gan.combined._compile_loss is compiled
    assert int(gan.discriminator.optimizer.iterations) == 8
    assert int(gan.combined.optimizer.iterations) == 4


def test_turns_equal_two_optimizers_by_hand() -> None:
    """The generator's steps equal those of a combined model that never knew the discriminator's variables; the discriminator's those of one trained apart."""
    ours, theirs = Gan(), Gan()
    theirs.discriminator.set_weights(ours.discriminator.get_weights())
    theirs.generator.set_weights(ours.generator.get_weights())
    by_hand = theirs.combined
    for _ in range(3):
        ours.judge()
        ours.create("in the combined model")
        theirs.judge()
        for layer in theirs.discriminator.layers:
            layer.trainable = False
        by_hand.compile(keras.optimizers.Adam(0.01) if not by_hand.optimizer.built else by_hand.optimizer, "mse")
        by_hand.train_on_batch(X, ONES)
        for layer in theirs.discriminator.layers:
            layer.trainable = True
        theirs.discriminator.compile(theirs.discriminator.optimizer, "mse")
    for mine, other in zip((*values(ours.generator), *values(ours.discriminator)), (*values(theirs.generator), *values(theirs.discriminator)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


class Times(keras.layers.Layer):
    """Multiplies, in training alone."""

    def __init__(self, factor: float, **more: Any) -> None:
        super().__init__(**more)
        self.factor = factor

    def call(self, inputs: Any, training: bool = False) -> Any:
        return inputs * self.factor if training else inputs


def test_functions_of_two_pinned_layers_are_not_taken_for_each_other() -> None:
    model = keras.Sequential([keras.Input((4,)), Times(2.0, name="two"), Times(3.0, name="three"), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    plain = float(np.mean(X.sum(1) ** 2))
    for _ in range(2):
        for pinned, factor in (("two", 3.0), ("three", 2.0)):
            with freeze(model, layers=pinned, inference="all"):
                assert float(model.train_on_batch(X, np.zeros((8, 1), "float32"))) == pytest.approx(plain * factor**2, rel=1e-5)


def test_functions_that_the_user_had_made_anew_are_not_put_back() -> None:
    """As after a change of a rate, a traced constant: what is kept for another state has the old one in it."""
    model = keras.Sequential([keras.Input((4,)), Times(2.0, name="times"), keras.layers.Dense(1, kernel_initializer="ones", name="head")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    step = lambda: float(model.train_on_batch(X, ZEROS))  # noqa: E731
    for _ in range(2):
        with freeze(model, layers="head", params="bias"):
            old = step()
        assert step() == pytest.approx(old, rel=1e-5)
    model.layers[0].factor = 3.0
    model.make_train_function(force=True)
    with freeze(model, layers="head", params="bias"):
        assert step() == pytest.approx(old * 9 / 4, rel=1e-5)
