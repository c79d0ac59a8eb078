"""What moved in Keras, by how much and why: each cause is really brought about by a freeze by hand and real training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from unifreeze import freeze, guard
from unifreeze._moves import Moved
from unifreeze.errors import FrozenMovedError

ENGINE = keras.backend.backend()


def network() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, name="a"), layers.BatchNormalization(name="bn"), layers.Dropout(0.2), layers.Dense(2, name="b")]
    )


def compiled(optimizer: Any = None) -> Any:
    model = network()
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse")
    return model


def fit(model: Any) -> None:
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(32, 4)).astype("float32"), rng.normal(size=(32, 2)).astype("float32"), batch_size=16, verbose=0)


def values(variable: Any) -> Any:
    return np.array(keras.ops.convert_to_numpy(variable))


def caught(model: Any, run: Callable[[], object], *, exact: bool = True) -> dict[str, Moved]:
    with pytest.raises(FrozenMovedError) as error, guard(model, exact=exact):
        run()
    return {one.path: one for one in error.value.moves}


def test_statistics_where_variables_alone_were_frozen() -> None:
    model = compiled()
    for variable in [*model.get_layer("a").weights, *model.get_layer("bn").trainable_weights]:
        variable.trainable = False
    before = values(model.get_layer("bn").moving_mean)
    found = caught(model, lambda: fit(model))
    assert {path: one.cause for path, one in found.items()} == {"bn.moving_mean": "statistics", "bn.moving_variance": "statistics"}
    assert found["bn.moving_mean"].difference.largest == pytest.approx(np.abs(values(model.get_layer("bn").moving_mean) - before).max())


def test_decay_by_a_loop_of_ones_own() -> None:
    model = compiled()
    model.get_layer("a").trainable = False

    def train() -> None:
        fit(model)
        for variable in model.weights:
            variable.assign(variable * 0.99)

    found = caught(model, train)["a.kernel"]
    assert (found.cause, found.difference.factor) == ("decay", pytest.approx(0.99, rel=1e-5))
    assert caught(model, lambda: model.get_layer("a").kernel.assign_add(keras.ops.ones((4, 6))))["a.kernel"].cause == "unknown"


@pytest.mark.parametrize(("momentum", "cause"), [(0.0, "optimizer"), (0.9, "moments")])
def test_flags_set_after_a_fit(momentum: float, cause: str) -> None:
    """TensorFlow ignores them, JAX fails, PyTorch obeys."""
    model = compiled(keras.optimizers.SGD(0.1, momentum=momentum))
    fit(model)
    model.get_layer("a").trainable = False
    if ENGINE == "tensorflow":
        found = caught(model, lambda: fit(model))["a.kernel"]
        assert (found.cause, "SGD" in found.why) == (cause, True)
    elif ENGINE == "jax":
        with pytest.raises(ValueError, match="trainable"), guard(model):
            fit(model)
    else:
        with guard(model):
            fit(model)


def test_an_optimizer_of_ones_own_that_was_made_before_the_freeze() -> None:
    """On PyTorch with the gradient that a variable has there; elsewhere with momentum and gradients of zeros."""
    model = network()
    variables = list(model.trainable_variables)
    if ENGINE == "torch":
        import torch

        kernels: Any = torch.optim.SGD([variable.value for variable in variables], lr=0.1)
        keras.ops.mean(model(np.ones((8, 4), "float32") * np.arange(8)[:, None], training=True) ** 2).backward()
        model.get_layer("a").trainable = False
        assert caught(model, kernels.step)["a.kernel"].cause == "gradient"
        return
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(variables)
    optimizer.apply([keras.ops.ones(variable.shape) for variable in variables])
    for variable in model.get_layer("a").weights:
        variable.trainable = False
    with pytest.raises(FrozenMovedError) as error, guard(model) as watch:
        optimizer.apply([keras.ops.zeros(variable.shape) for variable in variables], variables)
        watch.check(optimizer=optimizer)
    found = {one.path: one for one in error.value.moves}["a.kernel"]
    assert (found.cause, "Adam" in found.why) == ("moments", True)


def test_a_flag_set_by_hand() -> None:
    model = compiled()
    freezing = freeze(model, layers="a")
    model.get_layer("a").kernel.trainable = True
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    assert [(one.path, one.cause) for one in error.value.moves] == [("a.kernel", "flag")]


def test_a_layer_that_was_replaced() -> None:
    model = network()
    freezing = freeze(model, layers="b")
    model.pop()
    model.add(keras.layers.Dense(2, name="b"))
    for variable in model.get_layer("b").weights:
        variable.trainable = False
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    assert {one.path: one.cause for one in error.value.moves}["b.kernel"] == "replaced"


def test_a_freeze_by_unifreeze_holds_in_the_guard() -> None:
    model = compiled(keras.optimizers.AdamW(0.1, weight_decay=0.5))
    fit(model)
    freeze(model, layers=["a", "bn"])
    with guard(model, exact=True) as watch:
        fit(model)
    assert len(watch.arrays) == 6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_copies_of_every_type(dtype: str) -> None:
    layer = keras.layers.Dense(3, dtype=dtype)
    layer.build((None, 2))
    layer.trainable = False
    with guard(layer, exact=True):
        pass
    found = caught(layer, lambda: layer.bias.assign([0, 1, 0]))
    assert found["bias"].difference.elements == 1
