"""What freezing costs in Keras: ``KERAS_BACKEND=jax python benchmarks/keras_cost.py``, or ``nox -s "bench_keras(keras-jax)"``. Prints a table for the docs.

Everything that is compared takes turns in one process. A step is one ``train_on_batch``, after the functions are compiled; the figure is the median of the
turns, and the best one beside it, in wall time: steps use many threads, and a freeze reads what it freezes in some. Summaries are given in processor time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import keras
import numpy as np

from unifreeze import freeze, summary
from unifreeze.select import last

TURNS = 20
DRAW = np.random.default_rng(0)


def in_turns(calls: dict[str, Callable[[], object]], turns: int, warm: int = 3, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + turns):
        for name, call in calls.items():
            start = clock()
            call()
            if turn >= warm:
                times[name].append((clock() - start) * 1e3)
    return times


def show(what: str, times: list[float], more: str = "") -> None:
    print(f"| {what} | {statistics.median(times):.1f} ms | {min(times):.1f} ms | {more} |")


def convnet():
    """Nine tenths of it the part that gets frozen."""
    layers = keras.layers
    rows = []
    for width in (16, 32, 32):
        rows += [layers.Conv2D(width, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU()]
    return keras.Sequential([keras.Input((32, 32, 3)), *rows, layers.GlobalAveragePooling2D(), layers.Dense(10, name="head")])


def steps() -> None:
    images, labels = DRAW.normal(size=(16, 32, 32, 3)).astype("float32"), DRAW.integers(0, 10, 16)
    full, ours, late, hand = (convnet() for _ in range(4))
    freeze(ours, layers=~last(1))
    for layer in hand.layers[:-1]:
        layer.trainable = False
    for model in (full, ours, late, hand):
        model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    late.train_on_batch(images, labels)
    freeze(late, layers=~last(1))
    models = {"all trainable": full, "by hand, before compile": hand, "frozen before compile": ours, "frozen after steps": late}
    times = in_turns({name: lambda model=model: model.train_on_batch(images, labels) for name, model in models.items()}, TURNS)
    best = statistics.median(times["by hand, before compile"])
    for name, taken in times.items():
        show(f"a step of a convolutional network, {name}", taken, f"{statistics.median(taken) / best:.2f} × by hand")


def gan() -> None:
    layers, noise, ones = keras.layers, DRAW.normal(size=(32, 16)).astype("float32"), np.ones((32, 1), "float32")
    generator = keras.Sequential([keras.Input((16,)), layers.Dense(64, activation="relu"), layers.Dense(64)])
    discriminator = keras.Sequential([keras.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(1)])
    inputs = keras.Input((16,))
    combined = keras.Model(inputs, discriminator(generator(inputs)))
    combined.compile("adam", "mse")

    def toggled() -> None:
        with freeze(combined, layers=discriminator):
            combined.train_on_batch(noise, ones)

    with freeze(combined, layers=discriminator):
        step = in_turns({"": lambda: combined.train_on_batch(noise, ones)}, TURNS)[""]
    whole = in_turns({"": toggled}, TURNS)[""]
    show("a GAN: a step of the generator, the discriminator frozen throughout", step)
    show("with the freeze and its undo round the step", whole, f"{(statistics.median(whole) - statistics.median(step)) / 2:.1f} ms a toggle")


def large() -> None:
    # JAX would compile a program to draw each shape of a weight.
    with patch.object(keras.initializers.VarianceScaling, "__call__", lambda _, shape, dtype=None, **__: np.full(shape, 0.1, dtype or "float32")):
        model = keras.applications.EfficientNetB7(weights=None, input_shape=(64, 64, 3), classes=10)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    freezing = []

    def by_hand() -> None:
        for layer in model.layers[:-1]:
            layer.trainable = False
        for layer in model.layers[:-1]:
            layer.trainable = True

    calls = {
        "`freeze`, all but the last layer": lambda: freezing.append(freeze(model, layers=~last(1))),
        "`undo`": lambda: freezing.pop().undo(),
        "flags by hand, both ways": by_hand,
    }
    name = f"EfficientNetB7 ({len(list(model._flatten_layers()))} layers, {model.count_params() * 4 / 1e6:.0f} MB)"
    for what, taken in in_turns(calls, 21, warm=1).items():
        show(f"{name}: {what}", taken)
    views = {"`summary(model)`": lambda: summary(model), "`model.summary()` of Keras": lambda: model.summary(print_fn=lambda _: None)}
    for what, taken in in_turns(views, 3, warm=1, clock=time.process_time).items():
        show(f"{name}: {what}", taken)


def main() -> None:
    print(f"| Keras {keras.__version__} on {keras.backend.backend()} | median | best | |\n| --- | --- | --- | --- |")
    steps()
    gan()
    large()


if __name__ == "__main__":
    main()
