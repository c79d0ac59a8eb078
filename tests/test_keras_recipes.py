"""The recipes that are taught: each as a Keras user writes it, again through our selectors, with the counts that both must have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from kits.keras_eyes import counts, drawing, moved_layers
from unifreeze import freeze, summary, unfreeze
from unifreeze.select import before, kind, last

L = keras.layers


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


def mobilenet(**kwargs: Any) -> Any:
    return keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None, pooling="avg", **kwargs)


def with_head(base: Any, units: int, **kwargs: Any) -> Any:
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, L.Dense(units, name="head")(base(inputs, **kwargs)))


@pytest.mark.parametrize("ours", [False, True], ids=["keras", "unifreeze"])
def test_1_and_2_a_frozen_base_then_its_upper_part(ours: bool) -> None:
    base = mobilenet()
    model = with_head(base, 1, training=False)
    if ours:
        freeze(model, layers=base)
    else:
        base.trainable = False
    assert counts(model) == (2, 1_281, 2_257_984)
    if ours:
        unfreeze(model)
    else:
        base.trainable = True
    assert counts(model) == (158, 2_225_153, 34_112)
    if ours:
        freeze(model, layers=base.layers[:100])
    else:
        for layer in base.layers[:100]:
            layer.trainable = False
    assert counts(model) == (56, 1_862_721, 396_544)


@pytest.mark.parametrize("ours", [False, True], ids=["keras", "unifreeze"])
def test_6_the_last_twenty_without_batch_norm(ours: bool) -> None:
    inputs = keras.Input((32, 32, 3))
    base = keras.applications.EfficientNetB0(include_top=False, input_tensor=inputs, weights=None)
    if ours:
        freeze(base)
    else:
        base.trainable = False
    x = L.BatchNormalization()(L.GlobalAveragePooling2D(name="avg_pool")(base.output))
    model = keras.Model(inputs, L.Dense(10, name="pred")(L.Dropout(0.2, name="top_dropout")(x)))
    assert counts(model)[:2] == (4, 15_370)
    upper = [layer for layer in model.layers[-20:] if not isinstance(layer, L.BatchNormalization)]
    if ours:
        unfreeze(model, layers=[layer for layer in upper if layer.weights])
    else:
        for layer in upper:
            layer.trainable = True
    assert counts(model) == (12, 1_136_954, 2_930_547)


@pytest.mark.parametrize("ours", [False, True], ids=["keras", "unifreeze"])
def test_8_a_shared_encoder_from_conv5_block1_out(ours: bool) -> None:
    base = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), include_top=False)
    encoder = keras.Model(base.input, L.Dense(256, name="embedding")(L.Flatten()(base.output)))
    if ours:
        freeze(encoder, layers=before("conv5_block1_out"))
    else:
        trainable = False
        for layer in base.layers:
            if layer.name == "conv5_block1_out":
                trainable = True
            layer.trainable = trainable
    assert counts(encoder) == (26, 11_028_736, 14_656_384)
    one, other = keras.Input((64, 64, 3)), keras.Input((64, 64, 3))
    siamese = keras.Model([one, other], L.Subtract()([encoder(one), encoder(other)]))
    assert counts(siamese) == (26, 11_028_736, 14_656_384)
    assert summary(siamese).totals.trainable == 11_028_736


@pytest.mark.parametrize("ours", [False, True], ids=["keras", "unifreeze"])
def test_9_and_24_frozen_word_vectors(ours: bool) -> None:
    for pool, units, expected in ((L.GlobalAveragePooling1D, 2, 18), (L.Flatten, 1, 161)):
        table = L.Embedding(100, 8, name="table", trainable=ours)
        model = keras.Sequential([keras.Input((20,), dtype="int32"), table, pool(), L.Dense(units, name="head")])
        table.set_weights([np.ones((100, 8), "float32")])
        if ours:
            freeze(model, layers=kind("embedding"))
        assert counts(model) == (2, expected, 800)
        model.compile("sgd", "mse")
        assert moved_layers(model, lambda: model.train_on_batch(np.ones((2, 20), "int32"), np.zeros((2, units)))) == {"head"}  # noqa: B023


def gan() -> tuple[Any, Any, Any]:
    judge = keras.Sequential([keras.Input((6,)), L.Dense(12, name="d"), L.Dense(1, name="e")], name="judge")
    generator = keras.Sequential([keras.Input((4,)), L.Dense(6, name="g")])
    inputs = keras.Input((4,))
    return judge, generator, keras.Model(inputs, judge(generator(inputs)))


def test_11_the_discriminator_off_between_two_compiles() -> None:
    """In Keras 3 the discriminator never trains; the flag is read when a step is traced, not at compile. Ours is off for the generator's step alone."""
    noise, real = np.ones((4, 4), "float32"), np.ones((4, 6), "float32")
    judge, _, combined = gan()
    judge.compile("adam", "mse")
    judge.trainable = False
    combined.compile("adam", "mse")
    assert counts(combined) == (2, 30, 97)
    assert counts(judge)[:2] == (0, 0)
    assert any("judge.trainable is False" in note for note in summary(judge).notes) or summary(judge).totals.trainable == 0

    judge, _, combined = gan()
    judge.compile("adam", "mse")
    combined.compile("adam", "mse")
    for _ in range(2):
        assert moved_layers(combined, lambda: judge.train_on_batch(real, np.ones((4, 1)))) == {"d", "e"}
        with freeze(combined, layers=judge):
            assert counts(combined) == (2, 30, 97)
            assert moved_layers(combined, lambda: combined.train_on_batch(noise, np.ones((4, 1)))) == {"g"}


@pytest.mark.parametrize("ours", [False, True], ids=["keras", "unifreeze"])
def test_12_a_model_on_another_ones_layers(ours: bool) -> None:
    first = keras.Sequential([keras.Input((784,)), L.Dense(100), L.Dense(100), L.Dense(8)])
    model = keras.Sequential([keras.Input((784,)), *first.layers[:-1], L.Dense(1)])
    if ours:
        freezing = freeze(model, layers=~last(1))
    else:
        for layer in model.layers[:-1]:
            layer.trainable = False
    assert counts(model) == (2, 101, 88_600)
    if ours:
        freezing.undo()
    else:
        for layer in model.layers[:-1]:
            layer.trainable = True
    assert counts(model) == (6, 88_701, 0)


@pytest.mark.parametrize("ours", [False, True], ids=["keras", "unifreeze"])
def test_15_the_first_n_by_index_then_all(ours: bool) -> None:
    model = keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None)
    many = len(model.layers) - 3
    if ours:
        freeze(model, layers=before("Conv_1"))
    else:
        for place in range(many):
            model.layers[place].trainable = False
    assert counts(model)[:2] == (3, 412_160)
    if ours:
        unfreeze(model)
    else:
        for place in range(len(model.layers)):
            model.layers[place].trainable = True
    assert counts(model)[:2] == (156, 2_223_872)


@pytest.mark.parametrize("ours", [False, True], ids=["keras", "unifreeze"])
def test_17_the_layers_of_a_nested_encoder(ours: bool) -> None:
    encoder = mobilenet()
    model = with_head(encoder, 10)
    if ours:
        freeze(model, layers=encoder.layers)
    else:
        for layer in encoder.layers:
            layer.trainable = False
    assert counts(model) == (2, 12_810, 2_257_984)


def test_18_an_outer_flag_that_hides_inner_ones() -> None:
    """Keras trains nothing and does not say so; our summary does, and our unfreeze does what was meant."""
    model = mobilenet()
    model.trainable = False
    for layer in model.layers[-3:]:
        layer.trainable = True
    assert counts(model) == (0, 0, 2_257_984)
    assert any("hides that Conv_1" in note and "nothing trains" in note for note in summary(model).notes)
    unfreeze(model, layers=model.layers[-4:])
    assert counts(model)[:2] == (3, 412_160)
    assert not any("hides" in note for note in summary(model).notes)


def test_19_one_layer_in_a_frozen_and_a_trainable_model() -> None:
    """A flag belongs to the layer, so no two models can differ in it at one time; a freeze round the training of one of them does what was meant."""
    inputs = keras.Input((4,))
    layer = L.Dense(4, name="shared")
    still, free = keras.Model(inputs, layer(inputs)), keras.Model(inputs, layer(inputs))
    layer.trainable = False
    still.compile("sgd", "mse")
    assert counts(still)[0] == 0
    layer.trainable = True
    free.compile("sgd", "mse")
    assert counts(still)[0] == 2, "Keras's frozen model has become trainable"
    data = np.ones((4, 4), "float32"), np.zeros((4, 4), "float32")
    assert moved_layers(free, lambda: free.train_on_batch(*data)) == {"shared"}
    with freeze(still):
        assert moved_layers(free, lambda: still.predict(data[0], verbose=0)) == set()
        assert summary(free).totals.trainable == 0, "said of both"
    assert moved_layers(free, lambda: free.train_on_batch(*data)) == {"shared"}


def test_summary_tells_both_figures_where_they_differ() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(4, name="a"), L.BatchNormalization(name="n"), L.Dense(1, name="b")])
    assert "Non-trainable params: 8" in " ".join(summary(model).notes)
    freeze(model, layers="a")
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((4, 4), "float32"), np.ones((4, 1), "float32"))
    printed: list[str] = []
    model.summary(print_fn=printed.append)
    theirs = " ".join(" ".join(printed).split())
    totals, notes = summary(model).totals, " ".join(summary(model).notes)
    assert (totals.trainable, totals.frozen, totals.buffers) == (13, 20, 8)
    for figure in ("Total params: 69", "Trainable params: 13", "Non-trainable params: 28"):
        assert figure in theirs
        assert figure in notes
    assert "Optimizer: 28" in notes
    assert "Optimizer: 28" in str(summary(model))
