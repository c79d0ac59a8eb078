"""Coming from Keras: what the page says one writes leaves the same variables trainable."""

from __future__ import annotations

import keras
import pytest

from kits.coming import rows, run


def build() -> tuple[keras.Model, keras.Model]:
    layers = keras.layers
    x = inputs = keras.Input((12, 12, 3))
    for block in (1, 2):
        x = layers.Conv2D(4, 3, name=f"block{block}_conv")(x)
        x = layers.BatchNormalization(name=f"block{block}_norm")(x)
    base = keras.Model(inputs, layers.GlobalAveragePooling2D(name="pool")(x), name="base")
    images = keras.Input((12, 12, 3))
    return keras.Model(images, layers.Dense(2, name="head")(base(images))), base


def trainable(model: keras.Model) -> list[str]:
    return [variable.path for variable in model.trainable_weights]


@pytest.mark.parametrize(("wrote", "write"), rows("Keras"))
def test_both_sides_leave_the_same_trainable(wrote: str, write: str) -> None:
    (model, base), (twin, twin_base) = build(), build()
    run(wrote, model=model, base=base, keras=keras)
    run(write, model=twin, base=twin_base, keras=keras)
    assert trainable(twin) == trainable(model) != trainable(build()[0])
