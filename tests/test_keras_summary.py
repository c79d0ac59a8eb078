"""The summary of Keras models: output shapes by a call on shapes, and what training needs. The truth comes from plain Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from kits.keras_eyes import drawing
from unifreeze import errors, freeze, summary

L = keras.layers
APPLICATIONS = {
    "mobilenet": lambda: keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=5),
    "densenet": lambda: keras.applications.DenseNet121(input_shape=(64, 64, 3), weights=None, classes=5),
    "efficientnet": lambda: keras.applications.EfficientNetB0(input_shape=(64, 64, 3), weights=None, classes=5),
    "convnext": lambda: keras.applications.ConvNeXtTiny(input_shape=(64, 64, 3), weights=None, classes=5),
}


def shapes(model: Any, **given: Any) -> dict[str, Any]:
    return {row.path: row.output_shape for row in summary(model, **given).rows if row.output_shape is not None}


@pytest.mark.parametrize("name", ["mobilenet", *(pytest.param(name, marks=pytest.mark.deep) for name in ("densenet", "efficientnet", "convnext"))])
def test_output_shapes_are_those_of_a_real_run(name: str) -> None:
    with drawing():
        model = APPLICATIONS[name]()
    layers = [layer for layer in model.layers if not isinstance(layer, L.InputLayer)]
    x = np.zeros((2, *model.input_shape[1:]), np.float32)
    real = keras.Model(model.inputs, [layer.output for layer in layers])(x)
    found = shapes(model, inputs=x)
    assert {layer.name: found[layer.name] for layer in layers} == {layer.name: tuple(out.shape) for layer, out in zip(layers, real, strict=True)}
    assert found[""] == (2, 5)


class Own(keras.Model):
    """A model of one's own class, which knows no output shapes by itself, with a pinned layer and layers of every temper."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = L.Dense(4, activity_regularizer="l2"), L.BatchNormalization()
        self.drop, self.lstm, self.spectral = L.Dropout(0.5), L.LSTM(3), L.SpectralNormalization(L.Dense(2))

    def call(self, x: Any, training: Any = None) -> Any:
        y = self.lstm(self.drop(self.norm(self.dense(x), training=training), training=training))
        return {"z": self.spectral(y, training=training), "a": x}


def own() -> Own:
    model = Own()
    model(np.zeros((2, 5, 4), np.float32))
    return model


def test_output_shapes_of_a_model_of_ones_own_class() -> None:
    found = shapes(own(), input_shape=(None, 5, 4))
    expected = {"": (None, 2), "dense": (None, 5, 4), "norm": (None, 5, 4), "drop": (None, 5, 4), "lstm": (None, 3), "spectral": (None, 2)}
    assert {path: found[path] for path in expected} == expected


def state(model: Any) -> Any:
    layers = list(model._flatten_layers())
    values = [(variable.path, keras.ops.convert_to_numpy(variable).tolist(), variable.trainable) for variable in model.variables]
    nodes = [(len(layer._inbound_nodes), len(layer._outbound_nodes), len(layer._losses)) for layer in layers]
    return values, nodes, [layer.__dict__.get("call") for layer in layers], np.random.get_state()[1].tolist(), len(model.losses)


@pytest.mark.parametrize("works", [True, False])
def test_asking_for_shapes_changes_nothing(works: bool) -> None:
    model = own()
    freeze(model, layers="spectral")  # which pins its call
    before = state(model)
    if works:
        assert shapes(model, input_shape=(2, 5, 4))["lstm"] == (2, 3)
    else:
        with pytest.raises(errors.BackendError, match="can't be called on these inputs"):
            summary(model, input_shape=(2, 5, 9))
    assert state(model) == before


def test_several_inputs_by_place_and_by_name() -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    out = L.Dense(3, name="head")(L.Concatenate()([a, b]))
    assert shapes(keras.Model([a, b], out), input_shape=[(2, 4), (2, 6)])["head"] == (2, 3)
    assert shapes(keras.Model({"a": a, "b": b}, out), input_shape={"a": (2, 4), "b": (2, 6)})["head"] == (2, 3)


def test_whole_numbers_are_tried_where_a_model_takes_them() -> None:
    model = keras.Sequential([keras.Input((7,), dtype="int32"), L.Embedding(11, 4, name="words"), L.Dense(2)])
    assert shapes(model, input_shape=(3, 7))["words"] == (3, 7, 4)


optimizers = keras.optimizers
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": optimizers.SGD,
    "momentum": lambda: optimizers.SGD(momentum=0.9),
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "amsgrad": lambda: optimizers.Adam(amsgrad=True),
    "nadam": optimizers.Nadam,
    "adamax": optimizers.Adamax,
    "rmsprop": optimizers.RMSprop,
    "adagrad": optimizers.Adagrad,
    "adadelta": optimizers.Adadelta,
    "lion": optimizers.Lion,
    "ftrl": optimizers.Ftrl,
    "adafactor": optimizers.Adafactor,
}


def nbytes(variables: Any) -> int:
    return sum(keras.ops.convert_to_numpy(variable).nbytes for variable in variables)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_training_needs_is_what_the_optimizer_holds(name: str) -> None:
    model = keras.Sequential([keras.Input((7,)), L.Dense(4), L.BatchNormalization(), L.Dense(5), L.Dense(2, name="out")])
    freeze(model, layers="out")
    optimizer, trained = OPTIMIZERS[name](), model.trainable_variables
    optimizer.apply([keras.ops.ones_like(variable.value) for variable in trained], trained)
    held = {id(variable): variable for variable in optimizer.variables}
    # Keras does not list the stand-ins of Adafactor among the optimizer's variables.
    held |= {id(variable): variable for slot in (getattr(optimizer, "_r", []), getattr(optimizer, "_c", [])) for variable in slot}
    needed = summary(model, optimizer=name).training
    assert needed.state == nbytes(held.values())
    assert needed.gradients == nbytes(model.trainable_variables)


def test_a_summary_says_which_call_froze_what() -> None:
    model = keras.Sequential([keras.Input((3,)), L.Dense(4, name="one"), L.Dense(4, name="two"), L.Dense(4, name="three")])
    call = freeze(model, layers="one")
    model.get_layer("two").trainable = False
    told = {row.path: row.more["why"] for row in summary(model, columns=["why"]).rows}
    assert (told["one"], told["two"], told["three"]) == ("freeze(layers='one')", "by hand (no call is known)", "")
    call.undo()
    assert summary(model, columns=["why"]).rows[1].more["why"] == ""
