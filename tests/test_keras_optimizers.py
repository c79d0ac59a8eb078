"""A toggle that changes nothing leaves no trace in training, with every optimizer of Keras; what can't be exact is refused or said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

from kits.keras import value_of
from kits.keras_eyes import X, Y, dense, drawing, look, moved_layers, ready
from unifreeze import UnifreezeWarning, freeze, unfreeze
from unifreeze.errors import BackendError

BACKEND = keras.backend.backend()
O = keras.optimizers  # noqa: E741


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD momentum": lambda: O.SGD(0.01, momentum=0.9),
    "RMSprop": lambda: O.RMSprop(0.01, momentum=0.9, centered=True),
    "Adam": lambda: O.Adam(0.01),
    "amsgrad": lambda: O.Adam(0.01, amsgrad=True),
    "AdamW": lambda: O.AdamW(0.01, weight_decay=0.1),
    "Adadelta": lambda: O.Adadelta(0.5),
    "Adagrad": lambda: O.Adagrad(0.01),
    "Adamax": lambda: O.Adamax(0.01),
    "Adafactor": lambda: O.Adafactor(0.01),
    "Nadam": lambda: O.Nadam(0.01),
    "Ftrl": lambda: O.Ftrl(0.01),
    "Lion": lambda: O.Lion(0.01),
    "Lamb": lambda: O.Lamb(0.01),
    "Muon": lambda: O.Muon(0.01),
    "accumulation": lambda: O.Adam(0.01, gradient_accumulation_steps=2),
    "clipnorm": lambda: O.Adam(0.01, clipnorm=0.1),
    "global clipnorm": lambda: O.Adam(0.01, global_clipnorm=0.1),
    "loss scale": lambda: O.LossScaleOptimizer(O.Adam(0.01)),
    "schedule": lambda: O.Adam(O.schedules.CosineDecay(0.01, 20)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_toggle_in_training_is_bit_equal_to_none(name: str) -> None:
    """Weights, moments, iterations and scales, after real steps of a compiled model."""
    values = dense("a", "b").get_weights()

    def trained(*, toggled: bool) -> list[Any]:
        model = dense("a", "b")
        model.set_weights(values)
        model.compile(OPTIMIZERS[name](), "mse")
        ready(model)
        for _ in range(3):
            model.train_on_batch(X, Y)
        if toggled:
            freeze(model, layers="a").undo()
            with freeze(model, layers="b"):
                pass
        for _ in range(2):
            model.train_on_batch(X, Y)
        return look([*model.variables, *model.optimizer.variables])

    plain, ours = trained(toggled=False), trained(toggled=True)
    assert any((new != old).any() for new, old in zip(plain[:4], values, strict=True)), "nothing trained"
    assert [new.tobytes() for new in ours] == [old.tobytes() for old in plain]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Nadam", "Adagrad", "Lion", "RMSprop", "Adadelta", "Ftrl", "SGD momentum"])
def test_the_first_step_of_a_late_layer_is_that_of_a_new_optimizer(name: str) -> None:
    """Learning from a loss that hangs on the late layer's own gradient alone: the other layer stands still (its input is zero)."""

    def late_steps(before: int) -> list[Any]:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, [keras.layers.Dense(4, name="a")(inputs), keras.layers.Dense(4, name="b")(inputs)])
        model.set_weights([np.full(tuple(weight.shape), 0.3, "float32") for weight in model.weights])
        model.compile(OPTIMIZERS[name](), ["mse", "mse"])
        freeze(model, layers="b")
        ready(model)
        for _ in range(before):
            model.train_on_batch(X, [Y, Y])
        unfreeze(model, layers="b")
        for _ in range(3):
            model.train_on_batch(X, [Y, Y])
        return look(model.get_layer("b").weights)

    for ours, fresh in zip(late_steps(30), late_steps(0), strict=True):
        np.testing.assert_allclose(ours, fresh, rtol=1e-5, atol=1e-6)


def test_weight_decay_leaves_out_what_it_left_out_before() -> None:
    model = dense("a", "b")
    model.set_weights([np.full(tuple(weight.shape), 0.5, "float32") for weight in model.weights])
    optimizer = O.SGD(1e-9, weight_decay=0.5e8)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "mse")
    model.train_on_batch(X, Y)
    freeze(model, layers="a").undo()
    freeze(model, layers="b")
    before = look(model.weights)
    model.train_on_batch(X, Y)
    ratios = [float(np.mean(value_of(weight) / old)) for weight, old in zip(model.weights, before, strict=True)]
    np.testing.assert_allclose(ratios, [0.95, 1, 1, 1], atol=1e-4)


class Counting(O.SGD):
    """Counts in plain Python, for each variable: nothing that a backend could follow."""

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        self.seen = [0 for _ in variables]


class ByPath(O.SGD):
    """Keeps its arrays by path."""

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        self.by_path = {variable.path: self.add_variable_from_reference(variable, "odd") for variable in variables}


class Strict(O.SGD):
    """Checks what it is built for."""

    def build(self, variables: list[Any]) -> None:
        if len(variables) != 4:
            raise RuntimeError("four variables, please")
        super().build(variables)


@pytest.mark.parametrize("kind", [Counting, ByPath, Strict])
def test_an_optimizer_of_unknown_shape_is_refused_and_nothing_changes(kind: Any) -> None:
    model = dense("a", "b")
    model.compile(kind(0.01), "mse")
    model.train_on_batch(X, Y)
    with pytest.raises(BackendError, match=rf"(?s){kind.__name__}.*Nothing was changed.*new optimizer"):
        freeze(model, layers="a")
    assert len(model.trainable_variables) == 4
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"a", "b"}


class Sharing(O.SGD):
    """Keeps one further array for all variables."""

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        self.total = self.add_variable(shape=(), name="total")


def test_an_optimizer_with_shared_state_goes_on_and_late_layers_are_said() -> None:
    model = dense("a", "b")
    freeze(model, layers="a")
    model.compile(Sharing(0.01), "mse")
    model.train_on_batch(X, Y)
    model.optimizer.total.assign(7.0)
    with pytest.warns(UnifreezeWarning, match=r"(?s)2 parameters.*Sharing.*model\.compile"):
        unfreeze(model, layers="a")
    assert float(value_of(model.optimizer.total)) == 7.0
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"a", "b"}


def test_an_average_of_weights_survives_toggles_inside_a_fit_or_is_refused() -> None:
    model = dense("a", "b", "c")
    model.compile(O.SGD(0.0, use_ema=True, ema_momentum=0.5), "mse")
    freeze(model, layers="a")
    before = look(model.weights)

    def toggle(*_: object) -> None:
        unfreeze(model, layers="a")
        freeze(model, layers="b")

    callback = keras.callbacks.LambdaCallback(on_epoch_end=toggle)
    if BACKEND == "jax":
        with pytest.raises(BackendError, match="use_ema"):
            model.fit(X, Y, verbose=0, callbacks=[callback])
        return
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_allclose(value_of(weight), old, atol=1e-6)
