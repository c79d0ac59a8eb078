"""Keras with an accelerator, on the engine that KERAS_BACKEND names: the conformance suite, and fingerprints taken on the device."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kits.keras import KerasKit
from unifreeze import freeze
from unifreeze._backends.keras import fingerprint, folding
from unifreeze.errors import FrozenMovedError
from unifreeze.testing import Conformance


class TestConformance(Conformance):
    kit = KerasKit()


@pytest.mark.parametrize("size", [70_003, 5_000_011])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool"])
def test_the_device_tells_what_the_host_tells(dtype: str, size: int) -> None:
    draw = np.random.default_rng(0).normal(size=size) * 100
    there = keras.Variable(keras.ops.cast(draw, dtype), trainable=False, dtype=dtype)
    with keras.device("cpu:0"):
        here = keras.Variable(keras.ops.cast(draw, dtype), trainable=False, dtype=dtype)
    assert folding.is_far(there._value)
    assert not folding.is_far(here._value)
    assert fingerprint(there) == fingerprint(here)


def test_what_is_frozen_on_the_device_is_proven_there() -> None:
    model = keras.Sequential([keras.Input((512,)), keras.layers.Dense(512, name="base"), keras.layers.Dense(2, name="head")])
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.1), "mse")
    x, y = np.ones((8, 512), "float32"), np.ones((8, 2), "float32")
    model.train_on_batch(x, y)
    freezing = freeze(model, layers="base")
    kernel = model.get_layer("base").kernel
    before, head = (keras.ops.convert_to_numpy(array).copy() for array in (kernel, model.get_layer("head").kernel))
    model.fit(x, y, epochs=3, verbose=0)
    assert np.array_equal(keras.ops.convert_to_numpy(kernel), before)
    assert not np.array_equal(keras.ops.convert_to_numpy(model.get_layer("head").kernel), head)
    freezing.verify()
    changed = before.copy()
    changed.view(np.uint32)[3, 4] ^= 1
    kernel.assign(changed)
    with pytest.raises(FrozenMovedError, match=r"base\.kernel"):
        freezing.verify()


def test_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="base"), keras.layers.Dense(2, name="head", dtype="float32")])
        model.compile(keras.optimizers.Adam(0.1), "mse")
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = np.ones((8, 64), "float32"), np.ones((8, 2), "float32")
    model.fit(x, y, verbose=0)
    freeze(model, layers="base")
    before = [keras.ops.convert_to_numpy(array).copy() for array in model.get_layer("base").weights]
    model.fit(x, y, epochs=3, verbose=0)
    assert all(np.array_equal(keras.ops.convert_to_numpy(array), old) for array, old in zip(model.get_layer("base").weights, before, strict=True))
