"""Fine-tuning in Keras 3, on whichever backend is at hand: first the head alone, then the last block with it, and a proof after each.

KERAS_BACKEND=jax python examples/with_keras.py [--steps 100]
"""

import sys

import keras
import numpy as np
from keras import layers
from made import CLASSES, CONSOLE, Arrays, batch, prove, steps_asked

from unifreeze import freeze, summary, unfreeze
from unifreeze.select import last


def build() -> keras.Model:
    """Your pretrained network; here with random weights."""
    keras.utils.set_random_seed(0)
    x = images = keras.Input((32, 32, 3))
    for name, features in {"stem": 16, "block1": 32, "block2": 64}.items():
        x = layers.Conv2D(features, 3, strides=2, padding="same", name=f"{name}_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_norm", momentum=0.9)(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.Dropout(0.2, name="drop")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(images, layers.Dense(CLASSES, name="head")(x))


def arrays(model: keras.Model) -> Arrays:
    """Copies every weight and statistic."""
    return {variable.path: np.array(keras.ops.convert_to_numpy(variable)) for variable in model.weights}


def main(steps: int) -> list[Arrays]:
    """Trains in two phases, and returns the arrays at the start and after each."""
    model = build()
    seen = [arrays(model)]

    def fit(first: int) -> None:
        images, labels = map(np.concatenate, zip(*(batch(number) for number in range(first, first + steps)), strict=True))
        model.fit(images, labels, batch_size=32, shuffle=False)

    freeze(model, layers=~last(1))  # everything but the head
    model.compile(keras.optimizers.AdamW(3e-3, weight_decay=0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    CONSOLE.print("the head")
    fit(0)
    seen.append(arrays(model))
    held = prove(seen[0], seen[1], still=("stem", "block1", "block2"))

    freezing = unfreeze(model, layers="block2_*")  # no second compile: the head keeps its moments, block2 joins
    CONSOLE.print("block2 and the head")
    fit(steps)
    seen.append(arrays(model))
    held &= prove(seen[1], seen[2], still=("stem", "block1"))

    CONSOLE.print(summary(model))
    CONSOLE.print(f"  verify: {freezing.verify()}")
    if not held:
        sys.exit("the promise was not kept")
    return seen


if __name__ == "__main__":
    main(steps_asked())
