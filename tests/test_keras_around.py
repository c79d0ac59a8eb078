"""What lies around a frozen part: models that are built on it later, optimizers that train more than one model, and threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

from kits.keras import value_of
from kits.keras_eyes import X, Y, dense, drawing, moved_layers
from unifreeze import UnifreezeWarning, freeze, summary, unfreeze
from unifreeze.errors import BackendError, FrozenMovedError

BACKEND = keras.backend.backend()
L = keras.layers


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


class Around(keras.Model):
    """A model of one's own round a base."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.head = base, L.Dense(4, name="head")

    def call(self, inputs: Any) -> Any:
        return self.head(self.base(inputs))


def functional(base: Any) -> Any:
    inputs = keras.Input((4,))
    return keras.Model(inputs, L.Dense(4, name="head")(base(inputs)))


def compiled(model: Any, optimizer: Any = None) -> Any:
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse")
    return model


def fit(model: Any, *callbacks: Any) -> None:
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=list(callbacks))


OUTER: dict[str, Callable[[Any], Any]] = {
    "functional": functional,
    "of one's own class": Around,
    "flat": lambda base: keras.Model(base.inputs, L.Dense(4, name="head")(base.outputs[0])),
}


def swap_by_hand(base: Any) -> None:
    """Of equal shapes, so that Keras notices nothing: on JAX it would compute with a and b exchanged."""
    base.get_layer("a").trainable, base.get_layer("b").trainable = True, False


def test_flags_set_by_hand_reach_a_model_that_was_compiled_before_the_freeze_and_is_used_after() -> None:
    base = dense("a", "b")
    model = compiled(functional(base))
    freeze(base, layers="a")
    assert moved_layers(model, lambda: fit(model)) == {"b", "head"}
    expected = model.predict(X, verbose=0)
    swap_by_hand(base)
    with pytest.warns(UnifreezeWarning, match="a: trainable was set to True"):
        np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-5)
    assert moved_layers(model, lambda: fit(model)) == {"a", "head"}


def test_flags_set_by_hand_reach_a_model_that_only_predicts() -> None:
    base = dense("a", "b")
    freeze(base, layers="a")
    features = keras.Model(base.inputs, base.outputs[0])
    expected = features.predict(X, verbose=0)
    swap_by_hand(base)
    with pytest.warns(UnifreezeWarning, match="a: trainable was set to True"):
        np.testing.assert_allclose(features.predict(X, verbose=0), expected, rtol=1e-5)


def test_what_another_model_froze_is_not_taken_for_flags_set_by_hand() -> None:
    """The base was frozen and never used before the model around it was frozen as well."""
    base = dense("a", "b")
    freeze(base, layers="a")
    freeze(OUTER["flat"](base), layers=base.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnifreezeWarning)
        base.predict(X, verbose=0)


def test_calls_through_two_models_are_undone_in_any_order() -> None:
    base = dense("a", "b")
    model = functional(base)
    first, second = freeze(base, layers="a"), unfreeze(model, layers=base)
    first.undo()
    second.undo()
    assert len(base.trainable_variables) == 4
    assert len(model.trainable_variables) == 6


@pytest.mark.parametrize("how", OUTER)
def test_undo_reaches_a_model_that_was_built_on_the_frozen_base(how: str) -> None:
    """As transfer learning goes: freeze the base, build and fit a head on it, undo, fine-tune. Keras alone ignores it, raises, or loses every weight."""
    base = dense("a", "b")
    freezing = freeze(base)
    model = compiled(OUTER[how](base))
    assert moved_layers(model, lambda: fit(model)) == {"head"} if model.built else fit(model) is None
    slots = {id(slot): value_of(slot).tobytes() for slot in model.optimizer.variables[2:]}
    expected = model.predict(X, verbose=0)
    freezing.undo()
    assert {id(slot): value_of(slot).tobytes() for slot in model.optimizer.variables if id(slot) in slots} == slots, "the head's moments"
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-6)
    assert moved_layers(model, lambda: fit(model)) == {"a", "b", "head"}


def test_models_that_run_the_very_same_nodes_obey_and_predict_right() -> None:
    """An encoder and the autoencoder it was cut out of: no layer and no node tells of the other. Keras on JAX would compute with a and b exchanged."""
    inputs = keras.Input((4,))
    code = L.Dense(4, name="b")(L.Dense(4, name="a")(inputs))
    whole, encoder = compiled(keras.Model(inputs, L.Dense(4, name="c")(code))), keras.Model(inputs, code, name="encoder")
    with freeze(whole, layers="a"):
        expected = encoder.predict(X, verbose=0)
    with freeze(whole, layers="b"):
        np.testing.assert_allclose(encoder.predict(X, verbose=0), expected, rtol=1e-5)
    compiled(encoder)
    fit(encoder)
    with freeze(whole, layers="a"):
        assert moved_layers(encoder, lambda: fit(encoder)) == {"b"}
    assert moved_layers(encoder, lambda: fit(encoder)) == {"a", "b"}


def test_a_part_of_a_base_that_was_built_upon_obeys_in_the_middle() -> None:
    """Features of a middle layer with a head: the base itself was neither called nor compiled."""
    base = dense("a", "b", "c")
    model = compiled(keras.Model(base.inputs, L.Dense(4, name="head")(base.get_layer("b").output)))
    fit(model)
    freezing = freeze(base, layers="a")
    assert moved_layers(model, lambda: fit(model)) == {"b", "head"}
    freezing.undo()
    assert moved_layers(model, lambda: fit(model)) == {"a", "b", "head"}


def test_a_frozen_base_can_be_verified_inside_the_fit_of_a_later_model() -> None:
    base = dense("a", "b")
    freezing = freeze(base)
    model = compiled(functional(base))
    seen: list[Any] = []

    def look(*_: object, **__: object) -> None:
        freezing.verify()
        seen.append(summary(base).totals.frozen)

    fit(model, keras.callbacks.LambdaCallback(on_train_batch_end=look))
    assert seen == [40, 40]
    value = base.layers[0].kernel
    value.assign(value_of(value) + 1)
    with pytest.raises(FrozenMovedError, match=r"a\.kernel"):
        fit(model, keras.callbacks.LambdaCallback(on_train_batch_end=look))


def test_undo_inside_the_fit_of_a_later_model() -> None:
    base = dense("a", "b")
    freezing = freeze(base)
    model = compiled(functional(base))
    start: list[Any] = []

    def undo(*_: object, **__: object) -> None:
        if not start:
            freezing.undo()
            start.extend(value_of(weight).tobytes() for weight in model.weights)

    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=undo)])
    assert all(value_of(weight).tobytes() != old for weight, old in zip(model.weights, start, strict=True))


class Picky(keras.optimizers.SGD):
    """Can't be built anew once it is under way."""

    def build(self, variables: list[Any]) -> None:
        if getattr(self, "picky", False):
            raise RuntimeError("not again")
        super().build(variables)


@pytest.mark.parametrize("kind", ["of unknown shape", "with an average"])
def test_an_undo_that_an_optimizer_cannot_follow_changes_nothing(kind: str) -> None:
    """Flags that went up alone would cost every weight on JAX at the next step."""
    model = dense("a", "b", "c")
    norm = freeze(model, layers="a", inference="all")
    compiled(model, Picky(0.01, momentum=0.9) if kind == "of unknown shape" else keras.optimizers.SGD(0.01, use_ema=True))
    model.train_on_batch(X, Y)
    model.optimizer.picky = True
    if kind == "with an average" and BACKEND != "jax":
        norm.undo()
        return
    for _ in range(2):
        with pytest.raises(BackendError, match="Nothing was changed"):
            norm.undo()
        assert "call" in vars(model.layers[0])
        assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"b", "c"}
    model.optimizer = None
    norm.undo()
    compiled(model)
    assert moved_layers(model, lambda: fit(model)) == {"a", "b", "c"}


# Optimizers that train more than the model.


def step(optimizer: Any, variables: list[Any]) -> list[bool]:
    """One step with gradients of one; tells what moved."""
    before = [value_of(variable).tobytes() for variable in variables]
    optimizer.apply([keras.ops.ones(tuple(variable.shape)) for variable in variables], variables)
    return [value_of(variable).tobytes() != old for variable, old in zip(variables, before, strict=True)]


@pytest.mark.parametrize("first", ["the model", "the other"])
def test_an_attached_optimizer_goes_on_with_what_is_none_of_the_models(first: str) -> None:
    """In place, since a stateless step on JAX takes the variables in order."""
    model, other = dense("a", "b"), dense("c")

    def both() -> list[Any]:
        parts = [model, other] if first == "the model" else [other, model]
        return [variable for part in parts for variable in part.trainable_variables]

    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(both())
    step(optimizer, both())
    velocity = optimizer._velocities[4 if first == "the model" else 0]
    freezing = freeze(model, layers="a")
    freezing.attach(optimizer)
    assert [id(v) for v in optimizer._trainable_variables] == [id(v) for v in both()]
    assert step(optimizer, both()) == [True] * 4
    freezing.undo()
    freezing.attach(optimizer)
    assert [id(v) for v in optimizer._trainable_variables] == [id(v) for v in both()]
    assert step(optimizer, both()) == [True] * 6
    assert any(slot is velocity for slot in optimizer.variables)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras on JAX takes an optimizer for exactly what one model trains")
def test_one_optimizer_compiled_into_two_models_serves_both() -> None:
    one, other = dense("a", "b"), dense("c")
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build([*one.trainable_variables, *other.trainable_variables])
    compiled(one, optimizer)
    fit(one)
    freezing = freeze(one, layers="a")
    compiled(other, optimizer)
    assert moved_layers(other, lambda: fit(other)) == {"c"}
    assert moved_layers(one, lambda: fit(one)) == {"b"}
    freezing.undo()
    assert moved_layers(one, lambda: fit(one)) == {"a", "b"}
    assert moved_layers(other, lambda: fit(other)) == {"c"}


def test_undo_of_a_call_that_changed_nothing_obeys_what_was_set_by_hand_since() -> None:
    model = dense("a", "b")
    model.get_layer("a").trainable = False
    compiled(model)
    fit(model)
    freezing = freeze(model, layers="a")
    assert moved_layers(model, lambda: fit(model)) == {"b"}
    model.get_layer("a").trainable = True
    freezing.undo()
    assert moved_layers(model, lambda: fit(model)) == {"a", "b"}


# Threads.


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX takes values away during a fit")
@pytest.mark.parametrize("call", ["freeze", "undo"])
def test_a_fit_in_another_thread_is_left_alone(call: str) -> None:
    """Its arrays are handed from step to step, and are deleted or in another order by the time anyone else could bring them back."""
    model = compiled(dense("a", "b", "c"))
    freezing = freeze(model, layers="b")
    fit(model)
    running, looked = threading.Event(), threading.Event()
    wait = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda *_, **__: running.set() or looked.wait(20))
    thread = threading.Thread(target=fit, args=(model, wait))
    thread.start()
    assert running.wait(20)
    with pytest.raises(BackendError, match=r"fit\(\) in another thread.*\n  Nothing was changed"):
        freeze(model, layers="a") if call == "freeze" else freezing.undo()
    looked.set()
    thread.join()
    assert moved_layers(model, lambda: fit(model)) == {"a", "c"}
    freezing.undo()
    assert moved_layers(model, lambda: fit(model)) == {"a", "b", "c"}
