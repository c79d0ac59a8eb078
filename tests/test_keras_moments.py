"""Freezing takes effect at once, inside every event of every loop, and never disturbs a prediction: with a learning rate of 0 nothing may change at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from kits.keras import value_of
from kits.keras_eyes import X, Y, dense, drawing, look, moved_layers, ready, which_moved
from unifreeze import freeze, unfreeze

LOOPS = {
    "train": [
        "on_train_begin",
        "on_epoch_begin",
        "on_batch_begin",
        "on_train_batch_begin",
        "on_batch_end",
        "on_train_batch_end",
        "on_epoch_end",
        "on_train_end",
    ],
    "test": ["on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end"],
    "predict": ["on_predict_begin", "on_predict_batch_begin", "on_predict_batch_end", "on_predict_end"],
}
EVENTS = [event for events in LOOPS.values() for event in events]


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


def test_every_event_that_keras_has_is_tried() -> None:
    known = {name for name in dir(keras.callbacks.Callback) if name.startswith("on_")}
    assert known == set(EVENTS)


class Toggles(keras.callbacks.Callback):
    """Lets a and b, of equal shape, change places each time an event comes; notes what was frozen after it, and the weights."""

    def __init__(self, event: str) -> None:
        super().__init__()
        self.times = 0
        self.last: list[NDArray[Any]] = []
        setattr(self, event, self._toggle)

    def _toggle(self, *_: object, **__: object) -> None:
        on, off = ("a", "b") if self.times % 2 == 0 else ("b", "a")
        unfreeze(self.model, layers=on)
        freeze(self.model, layers=off)
        self.times += 1
        self.last = look(self.model.weights)


def run(model: Any, event: str, callback: Any) -> Any:
    """Whatever loop has the event: two epochs or passes of two batches each."""
    if event in LOOPS["predict"]:
        return model.predict(X, batch_size=4, verbose=0, callbacks=[callback])
    if event in LOOPS["test"]:
        return model.evaluate(X, Y, batch_size=4, verbose=0, callbacks=[callback])
    return model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[callback]).history["loss"]


def compiled(rate: float, *, built: bool = True) -> Any:
    model = dense("a", "b", "c")
    freeze(model, layers="a")
    model.compile(keras.optimizers.Adam(rate), "mse")
    return ready(model) if built else model


@pytest.mark.parametrize("event", EVENTS)
def test_toggling_equal_shapes_inside_any_event_disturbs_no_figure(event: str) -> None:
    """A function compiled for the other set would compute with a and b exchanged, and the loss would jump."""
    model = compiled(0.0)
    before = look(model.weights)
    expected, loss = model.predict(X, verbose=0), model.evaluate(X, Y, verbose=0)
    callback = Toggles(event)
    seen = run(model, event, callback)
    assert callback.times, "the event did not come"
    np.testing.assert_allclose(seen, expected if event in LOOPS["predict"] else [loss] * 2 if event in LOOPS["train"] else loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(loss, rel=1e-5)
    assert not which_moved(model.weights, before)


@pytest.mark.parametrize("event", EVENTS)
def test_training_after_any_event_obeys_the_last_toggle(event: str) -> None:
    """Also for a fit that has run before the event, whose functions were compiled for another state; and events inside the validation of a fit."""
    model = compiled(0.01)
    model.train_on_batch(X, Y)
    callback = Toggles(event)
    if event in LOOPS["test"]:
        model.fit(X, Y, batch_size=4, validation_data=(X, Y), verbose=0, callbacks=[callback])
    else:
        run(model, event, callback)
    frozen = {"a", "b"} - {"a" if callback.times % 2 else "b"}
    assert moved_layers(model, lambda: model.fit(X, Y, verbose=0)) == {"a", "b", "c"} - frozen
    assert all(np.isfinite(value_of(weight)).all() for weight in model.weights)


@pytest.mark.parametrize(
    "event", ["on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_test_batch_end", "on_test_end", "on_epoch_end"]
)
def test_the_rest_of_a_running_fit_obeys(event: str) -> None:
    model = compiled(0.01)

    class Once(Toggles):
        def _toggle(self, *_: object, **__: object) -> None:
            if not self.times:
                super()._toggle()

    callback = Once(event)
    model.fit(X, Y, batch_size=4, epochs=2, validation_data=(X, Y), verbose=0, callbacks=[callback])
    assert {path.split("/")[-2] for path in which_moved(model.weights, callback.last)} == {"a", "c"}


def moments() -> dict[str, Callable[[Any], object]]:
    return {
        "before the first call": lambda model: None,
        "after evaluate": lambda model: model.evaluate(X, Y, verbose=0),
        "after predict": lambda model: model.predict(X, verbose=0),
        "after predict_on_batch": lambda model: model.predict_on_batch(X),
        "after test_on_batch": lambda model: model.test_on_batch(X, Y),
        "after train_on_batch": lambda model: model.train_on_batch(X, Y),
        "after fit": lambda model: model.fit(X, Y, verbose=0),
        "after fit and compile": lambda model: (model.fit(X, Y, verbose=0), model.compile(keras.optimizers.Adam(0.01), "mse")),
        "after all of them": lambda model: (model.fit(X, Y, verbose=0), model.evaluate(X, Y, verbose=0), model.predict(X, verbose=0)),
    }


@pytest.mark.parametrize("moment", moments())
def test_whatever_ran_before(moment: str) -> None:
    model = compiled(0.01, built=moment != "before the first call")
    moments()[moment](model)
    expected, loss = model.predict_on_batch(X), model.test_on_batch(X, Y)
    unfreeze(model, layers="a")
    freeze(model, layers="b")
    np.testing.assert_allclose(model.predict_on_batch(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)
    assert model.test_on_batch(X, Y) == pytest.approx(loss, rel=1e-5)
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"a", "c"}


def test_a_loop_of_fits_loses_no_weight() -> None:
    """What destroys a model on Keras's JAX backend when it is done by hand: flags that change between fits, many times over."""
    model = compiled(0.01)
    for names in (["a"], ["a", "b"], ["c"], [], ["b", "c"], ["a"]):
        unfreeze(model)
        if names:
            freeze(model, layers=names)
        assert moved_layers(model, lambda: model.fit(X, Y, verbose=0)) == {"a", "b", "c"} - set(names)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras refuses steps_per_execution on torch")
def test_steps_in_one_call_obey_too() -> None:
    model = dense("a", "b", "c")
    model.compile(keras.optimizers.Adam(0.01), "mse", steps_per_execution=2)
    model.fit(X, Y, batch_size=2, verbose=0)
    freeze(model, layers="a")
    assert moved_layers(model, lambda: model.fit(X, Y, batch_size=2, verbose=0)) == {"b", "c"}
    unfreeze(model, layers="a")
    freeze(model, layers="b")
    assert moved_layers(model, lambda: model.fit(X, Y, batch_size=2, verbose=0)) == {"a", "c"}
