"""A recipe carried from one Keras model to its twin, a subclassed one with other names, on the engine at hand: weights, outputs, and a real step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from unifreeze import correspond, port

L = keras.layers
X = np.random.default_rng(0).normal(size=(6, 9, 9, 3)).astype("float32")


def functional() -> Any:
    image = keras.Input((9, 9, 3))
    x = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="stem")(image)))
    a, b = L.Conv2D(4, 3, padding="same", name="a")(x), L.SeparableConv2D(4, 3, padding="same", name="b")(x)
    return keras.Model(image, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(L.Concatenate()([a, b]))))


class Subclassed(keras.Model):
    """Its layers defined in another order and under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.y = L.Dense(2), L.Conv2D(4, 1)
        self.x, self.z = L.DepthwiseConv2D(3, padding="same", use_bias=False), L.Conv2D(4, 3, padding="same")
        self.w, self.v = L.BatchNormalization(), L.Conv2D(4, 3)

    def call(self, image: Any, training: bool | None = None) -> Any:
        x = keras.ops.relu(self.w(self.v(image), training=training))
        return self.out(keras.ops.mean(keras.ops.concatenate([self.z(x), self.y(self.x(x))], -1), (1, 2)))


def arrays(model: Any) -> dict[str, bytes]:
    return {f"{layer}/{v.name}": keras.ops.convert_to_numpy(v.value).tobytes() for layer in "vwxyz" for v in getattr(model, layer).variables}


def test_a_recipe_is_carried_to_a_subclassed_twin_and_holds_in_training() -> None:
    ours, theirs = functional(), Subclassed()
    theirs(X)
    rng = np.random.default_rng(1)
    for variable in ours.variables:
        variable.assign(rng.uniform(0.2, 0.8, variable.shape) * (1 if "variance" in variable.name else rng.choice([-1, 1], variable.shape)))
    for layer in ours.layers[:3]:
        layer.trainable = False
    found = correspond(ours, theirs, shape=(1, 9, 9, 3))
    assert found.certificate == "exact"
    before = found.verify(X)
    found.transfer()
    expected, got = (keras.ops.convert_to_numpy(model(X, training=False)) for model in (ours, theirs))
    assert before > 0.1
    assert np.abs(expected - got).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()

    done = port(None, ours, theirs, shape=(1, 9, 9, 3))
    assert done.frozen == (3 * 3 * 3 * 4 + 4 + 8,) * 2
    start = arrays(theirs)
    theirs.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    theirs.fit(X, rng.normal(size=(6, 2)), epochs=2, verbose=0)
    end = arrays(theirs)
    assert {name for name in start if start[name] == end[name]} == {name for name in start if name[0] in "vw"}
    done.freezing.verify()
