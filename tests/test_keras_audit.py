"""The audit on Keras: flags set by hand that do something else than they say, shown by real training; and models that unifreeze froze."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from kits.keras_eyes import drawing
from unifreeze import audit, freeze, unfreeze
from unifreeze.errors import ArgumentError

ENGINE = keras.backend.backend()
layers = keras.layers
X, Y = np.random.default_rng(0).normal(size=(16, 4)).astype("float32"), np.random.default_rng(1).normal(size=(16, 2)).astype("float32")


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


def network() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, name="a"), layers.BatchNormalization(name="bn"), layers.Dropout(0.2, name="drop"), layers.Dense(2, name="b")]
    )


def trained(model: Any) -> Any:
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(X, Y, verbose=0)
    return model


def paths(report: Any) -> dict[str, tuple[str, ...]]:
    return {one.code: one.paths for one in report}


def test_flags_that_were_changed_after_compile() -> None:
    model = trained(network())
    assert paths(audit(model)) == {}
    model.get_layer("a").trainable = False
    assert paths(audit(model)) == {"UF501": ("a.kernel", "a.bias")}, "and no note that says it is passed over"
    model.compile(keras.optimizers.Adam(0.1), "mse")
    assert paths(audit(model)) == {}
    model = trained(network())
    freeze(model, layers="a")
    assert paths(audit(model)) == {}


def test_what_is_flagged_in_the_constructor_leaks() -> None:
    model = keras.Sequential([keras.Input((3, 4)), layers.Bidirectional(layers.LSTM(2), trainable=False, name="rnn"), layers.Dense(2)])
    kernel = next(v for v in model.get_layer("rnn").weights if v.name == "kernel")
    before = np.array(keras.ops.convert_to_numpy(kernel))
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 3, 4), "float32"), Y[:8], verbose=0)
    moved = not np.array_equal(before, keras.ops.convert_to_numpy(kernel))
    assert moved == ("UF503" in paths(audit(model))), "the finding says what happened"
    assert moved


def test_a_flag_of_the_model_that_masks_those_inside() -> None:
    model = network()
    model.trainable = False
    model.get_layer("b").trainable = True
    assert paths(audit(model))["UF502"] == ("b.kernel", "b.bias")
    assert not model.trainable_variables
    model.trainable = True
    assert paths(audit(model)) == {}


def test_statistics_where_variables_alone_were_frozen() -> None:
    model = network()
    for variable in model.get_layer("bn").trainable_weights:
        variable.trainable = False
    assert paths(audit(model)) == {"UF201": ("bn",)}
    before = np.array(keras.ops.convert_to_numpy(model.get_layer("bn").moving_mean))
    trained(model)
    assert not np.array_equal(before, keras.ops.convert_to_numpy(model.get_layer("bn").moving_mean)), "the finding is true"
    model.get_layer("bn").trainable = False
    model.compile(keras.optimizers.Adam(0.1), "mse")
    assert paths(audit(model)) == {}


def test_dropout_in_a_frozen_part() -> None:
    base = keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dropout(0.2, name="drop"), layers.Dropout(0.0)], name="base")
    model = keras.Sequential([keras.Input((4,)), base, layers.Dense(2)])
    base.trainable = False
    assert paths(audit(model)) == {"UF203": ("base.drop",)}
    freeze(model, layers="base", inference="all")
    assert paths(audit(model)) == {}


def test_dropout_in_a_cell_and_noise() -> None:
    x = keras.Input((3, 4))
    y = layers.GaussianNoise(0.0)(
        layers.GaussianNoise(0.1, name="noise")(layers.LSTM(4, dropout=0.2, return_sequences=True, name="rnn")(layers.LSTM(4, return_sequences=True)(x)))
    )
    base = keras.Model(x, y, name="base")
    model = keras.Sequential([keras.Input((3, 4)), base, layers.Dense(2)])
    base.trainable = False
    assert paths(audit(model)) == {"UF203": ("base.rnn.cell", "base.noise")}
    freeze(model, layers="base", inference="all")
    assert paths(audit(model)) == {}


def test_spectral_normalisation_moves_a_frozen_kernel() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.SpectralNormalization(layers.Dense(3, name="inner"), name="part"), layers.Dense(2)])
    part = model.get_layer("part")
    part.trainable = False
    assert paths(audit(model)) == {"UF201": ("part",)}
    before = np.array(keras.ops.convert_to_numpy(part.layer.kernel))
    trained(model)
    assert not np.array_equal(before, keras.ops.convert_to_numpy(part.layer.kernel)), "the finding is true"
    freeze(model, layers="part")
    assert paths(audit(model)) == {}


def test_what_is_no_optimizer_of_the_model() -> None:
    model, other = network(), network()
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(other.trainable_variables)
    assert paths(audit(model, optimizer)) == {"UF112": ()}
    assert paths(audit(other, optimizer)) == {}
    for wrong in ("adam", keras.optimizers.Adam, model):
        with pytest.raises(ArgumentError, match="optimizer= is an optimizer of Keras"):
            audit(model, wrong)


def test_an_optimizer_of_ones_own() -> None:
    model = network()
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables[:4])
    assert paths(audit(model, optimizer)) == {"UF110": ("b.kernel", "b.bias")}
    freeze(model, layers="a")
    assert paths(audit(model, optimizer))["UF104"] == ("a.kernel", "a.bias")


def test_it_changes_nothing() -> None:
    model = trained(network())
    model.get_layer("a").trainable = False
    everything = lambda: [np.array(keras.ops.convert_to_numpy(v)) for v in (*model.variables, *model.optimizer.variables)]  # noqa: E731
    before, flags = everything(), [layer.trainable for layer in model.layers]
    seeds = [np.array(keras.ops.convert_to_numpy(g.state)) for layer in model.layers for g in layer._seed_generators]
    function = model.train_function
    audit(model)
    assert all(map(np.array_equal, before, everything()))
    assert flags == [layer.trainable for layer in model.layers]
    assert all(map(np.array_equal, seeds, [keras.ops.convert_to_numpy(g.state) for layer in model.layers for g in layer._seed_generators]))
    assert model.train_function is function


def test_a_mobilenet_that_unifreeze_froze_has_a_clean_bill() -> None:
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35, pooling="avg")
    model = keras.Sequential([keras.Input((32, 32, 3)), base, layers.Dense(2, name="head")])
    model.compile(keras.optimizers.AdamW(1e-3), "mse")
    assert audit(model).findings == ()
    freezing = freeze(model, layers=base)
    assert audit(model, trainable=freezing).findings == ()
    model.optimizer.build(model.trainable_variables)
    assert audit(model).findings == ()
    unfreeze(model, layers=base)
    assert audit(model).findings == ()


def test_a_base_that_was_frozen_one_by_one_is_right_if_compiled_afterwards() -> None:
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35, pooling="avg")
    model = keras.Sequential([keras.Input((32, 32, 3)), base, layers.Dense(2, name="head")])
    for layer in base.layers[:50]:
        layer.trainable = False
    model.compile(keras.optimizers.AdamW(1e-3), "mse")
    assert audit(model).findings == ()


@pytest.mark.parametrize("composite", ["MultiHeadAttention", "RNN"])
def test_other_composites(composite: str) -> None:
    made = {
        "MultiHeadAttention": lambda: layers.MultiHeadAttention(1, 2, trainable=False, name="part"),
        "RNN": lambda: layers.RNN(layers.LSTMCell(2), trainable=False, name="part"),
    }[composite]()
    x = keras.Input((3, 4))
    model = keras.Model(x, made(x, x) if composite == "MultiHeadAttention" else made(x))
    trains = bool(model.trainable_variables)
    assert trains == ("UF503" in paths(audit(model)))
