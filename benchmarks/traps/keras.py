"""What becomes of a frozen layer in Keras, done as it is usually done and with unifreeze.

Run it once for each backend: ``KERAS_BACKEND=jax python benchmarks/traps/keras.py``. Every figure is measured here, on tiny real models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]  # this file is named keras, too

import keras
import numpy as np

from unifreeze import freeze, unfreeze

X = np.random.default_rng(1).normal(size=(32, 8)).astype("float32")
Y = np.random.default_rng(2).normal(size=(32, 8)).astype("float32")


def dense(*names):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(8, name=name) for name in names)])


def values(layer):
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in layer.weights]


def change(layer, start):
    """The length of the change of all weights together, in percent of their length."""
    try:
        now = values(layer)
    except Exception:  # noqa: BLE001 - whatever a variable without a value says
        return "its weights are lost"
    length = lambda arrays: np.sqrt(sum(np.sum(np.square(a, dtype="float64")) for a in arrays))  # noqa: E731
    return f"{100 * length(a - b for a, b in zip(now, start, strict=True)) / length(start):.2g} %"


def attempt(what: Callable[[], object]) -> str:
    try:
        what()
    except Exception as error:  # noqa: BLE001 - part of the result
        return f"{type(error).__name__}; "
    return ""


def by_hand(layer, value):
    layer.trainable = value


def after_fit(ours):
    model = dense("a", "b")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(X, Y, epochs=2, verbose=0)
    start = values(model.layers[0])
    freeze(model, layers="a") if ours else by_hand(model.layers[0], value=False)
    raised = attempt(lambda: model.fit(X, Y, epochs=3, verbose=0))
    return raised + change(model.layers[0], start)


def unfreeze_after_fit(ours):
    model = dense("a", "b")
    by_hand(model.layers[0], value=False)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(X, Y, verbose=0)
    start = values(model.layers[0])
    unfreeze(model, layers="a") if ours else by_hand(model.layers[0], value=True)
    raised = attempt(lambda: model.fit(X, Y, epochs=3, verbose=0))
    return raised + change(model.layers[0], start)


def swapped(ours):
    """The learning rate is 0, so nothing may change."""
    model = dense("a", "b")
    freeze(model, layers="a") if ours else by_hand(model.layers[0], value=False)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = model.predict(X, verbose=0)
    if ours:
        unfreeze(model, layers="a")
        freeze(model, layers="b")
    else:
        by_hand(model.layers[0], value=True)
        by_hand(model.layers[1], value=False)
    return f"{np.abs(model.predict(X, verbose=0) - before).max():.2g}"


def constructor(ours):
    keras.utils.set_random_seed(0)
    part = keras.layers.Bidirectional(keras.layers.LSTM(4), trainable=False)
    model = keras.Sequential([keras.Input((5, 3)), part, keras.layers.Dense(8)])
    if ours:
        freeze(model, layers=part)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    start = values(part)
    model.fit(np.repeat(X[:, :5, None], 3, 2), Y, epochs=3, verbose=0)
    return change(part, start)


def spectral(ours):
    keras.utils.set_random_seed(0)
    part = keras.layers.SpectralNormalization(keras.layers.Dense(8))
    model = keras.Sequential([keras.Input((8,)), part, keras.layers.Dense(8)])
    freeze(model, layers=part) if ours else by_hand(part, value=False)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    start = values(part.layer)
    model.fit(X, Y, verbose=0)
    return change(part.layer, start)


def moments(ours):
    model = dense("a", "b")
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 40)), "mse")
    model.fit(X, Y, epochs=20, verbose=0)
    if ours:
        freeze(model, layers="a")
    else:
        by_hand(model.layers[0], value=False)
        model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 40)), "mse")
    return f"iteration {int(model.optimizer.iterations)}, rate {float(model.optimizer.learning_rate):.4f}"


def late(ours):
    """By hand, with the optimizer built for all variables at the start, as the way round is taught: its count is old and the moments are young."""
    model = dense("a", "b")
    if not ours:
        optimizer = keras.optimizers.Adam(0.001)
        optimizer.build(model.trainable_variables)
        gradients = [keras.ops.ones(tuple(v.shape)) for v in model.trainable_variables]
        optimizer.iterations.assign(2000)
        start = values(model.layers[0])
        optimizer.apply(gradients, model.trainable_variables)
    else:
        freeze(model, layers="a")
        model.compile(keras.optimizers.Adam(0.001), "mse")
        model.train_on_batch(X, Y)
        model.optimizer.iterations.assign(2000)
        unfreeze(model, layers="a")
        start = values(model.layers[0])
        model.train_on_batch(X, Y)
    return f"{max(np.abs(a - b).max() for a, b in zip(values(model.layers[0]), start, strict=True)) / 0.001:.2f} × the rate"


def gan(ours):
    generator, judge = dense("g"), dense("d", "e")
    judge.compile(keras.optimizers.Adam(0.01), "mse")
    inputs = keras.Input((8,))
    if not ours:
        by_hand(judge, value=False)
    both = keras.Model(inputs, judge(generator(inputs)))
    both.compile(keras.optimizers.Adam(0.01), "mse")
    start = values(judge)
    raised = attempt(lambda: judge.train_on_batch(X, Y))
    if ours:
        with freeze(both, layers=judge):
            both.train_on_batch(X, Y)
    return raised + change(judge, start)


def lora(ours):
    model = dense("a", "b")
    model.layers[0].enable_lora(2)
    count = lambda: sum(int(np.prod(v.shape)) for v in model.layers[0].variables if v.trainable)  # noqa: E731
    before = count()
    if ours:
        with freeze(model, layers="a"):
            pass
    else:
        by_hand(model.layers[0], value=False)
        by_hand(model.layers[0], value=True)
    return f"{before} → {count()} trainable"


TRAPS = {
    "freeze after a fit, then fit on: the frozen layer moves": after_fit,
    "unfreeze after a fit, then fit on: the layer that shall train moves": unfreeze_after_fit,
    "freeze one layer, unfreeze its equal: predictions change by": swapped,
    "Bidirectional(LSTM, trainable=False): it moves": constructor,
    "frozen SpectralNormalization: its kernel moves": spectral,
    "freeze at iteration 20 (recompiling, as told): the optimizer is at": moments,
    "unfreeze at iteration 2,000 of Adam: the first step is": late,
    "GAN, discriminator off for the second compile: its own step moves it": gan,
    "freeze and thaw a LoRA layer: its elements": lora,
}


if __name__ == "__main__":
    print(f"Keras {keras.__version__} on {keras.backend.backend()}\n")
    print("| what is done | by hand | with unifreeze |")
    print("|---|---|---|")
    for name, trap in TRAPS.items():
        print(f"| {name} | {trap(False)} | {trap(True)} |", flush=True)
