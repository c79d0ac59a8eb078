"""Flags set by hand after a freeze: said once, obeyed from then on, found by ``verify``; on every backend, whichever way into training is taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from unifreeze import UnifreezeWarning, freeze, unfreeze
from unifreeze.errors import FrozenMovedError

BACKEND = keras.backend.backend()
X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(2).normal(size=(8, 4)).astype("float32")
WAYS: dict[str, Callable[[Any], object]] = {
    "fit": lambda model: model.fit(X, Y, verbose=0),
    "train_on_batch": lambda model: model.train_on_batch(X, Y),
    "evaluate": lambda model: model.evaluate(X, Y, verbose=0),
    "test_on_batch": lambda model: model.test_on_batch(X, Y),
    "predict": lambda model: model.predict(X, verbose=0),
    "predict_on_batch": lambda model: model.predict_on_batch(X),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(5)


def dense(*names: str) -> Any:
    """Equal-shaped layers in a row, compiled and trained a little."""
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in names)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.train_on_batch(X, Y)
    return model


def now(model: Any) -> dict[str, NDArray[Any]]:
    return {variable.path: np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.variables}


def moved(before: dict[str, NDArray[Any]], model: Any) -> set[str]:
    return {path.split("/")[-2] for path, value in now(model).items() if value.tobytes() != before[path].tobytes()}


def said(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if issubclass(warning.category, UnifreezeWarning)]


@pytest.mark.parametrize("way", ["fit", "evaluate", "predict", "test_on_batch"])
def test_a_flag_set_by_hand_is_said_once_and_names_the_layers(way: str) -> None:
    model = dense("a", "b", "c")
    freezing = freeze(model, layers="a")
    assert not said(lambda: WAYS[way](model)), "nothing was set by hand"
    model.get_layer("a").trainable = True
    model.get_layer("b").trainable = False
    (message,) = said(lambda: WAYS[way](model))
    assert "a: trainable was set to True" in message
    assert "b: trainable was set to False" in message
    assert "c:" not in message
    assert "model.compile" in message
    assert not said(lambda: WAYS[way](model)), "said twice"
    with pytest.raises(FrozenMovedError, match=r"a\.kernel: is trainable again"):
        freezing.verify()
    model.get_layer("c").trainable = False
    assert len(said(lambda: WAYS[way](model))) == 1, "a new change is said anew"


@pytest.mark.parametrize("way", ["fit", "train_on_batch"])
def test_training_obeys_flags_set_by_hand_on_every_backend(way: str) -> None:
    """Keras alone ignores them on TensorFlow, raises on PyTorch, and loses every weight on JAX."""
    model = dense("a", "b", "c")
    freeze(model, layers="a")
    WAYS[way](model)
    for on, off in ("ab", "ba"):
        model.get_layer(on).trainable = True
        model.get_layer(off).trainable = False
        start = now(model)
        assert said(lambda: WAYS[way](model))
        assert moved(start, model) == {"a", "b", "c"} - {off}


def test_equal_shapes_that_change_places_by_hand_leave_predictions_alone() -> None:
    """On JAX, Keras computes with the two exchanged."""
    model = dense("a", "b")
    freeze(model, layers="a")
    model.predict(X, verbose=0)
    expected = model.predict(X, verbose=0)
    model.get_layer("a").trainable, model.get_layer("b").trainable = True, False
    assert said(lambda: np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-6))


@pytest.mark.parametrize("inner", ["gamma", "layer"])
def test_flags_of_variables_and_of_batch_normalisation_are_watched(inner: str) -> None:
    norm = keras.layers.BatchNormalization(name="bn")
    model = keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(4, name="b")])
    model.compile("sgd", "mse")
    freezing = freeze(model, layers="bn")
    WAYS["fit"](model)
    if inner == "gamma":
        norm.gamma.trainable = True
    else:
        norm._trainable = True  # the flag alone: its statistics move, and no variable shows it
    (message,) = said(lambda: WAYS["fit"](model))
    assert "bn: trainable was set to True" in message
    with pytest.raises(FrozenMovedError, match="bn"):
        freezing.verify()


def test_compile_after_setting_flags_says_it_the_way_of_keras() -> None:
    model = dense("a", "b")
    freeze(model, layers="a")
    WAYS["fit"](model)
    model.get_layer("a").trainable, model.get_layer("b").trainable = True, False
    model.compile(model.optimizer, "mse")  # with the same optimizer, which Keras alone would refuse now
    start = now(model)
    assert not said(lambda: WAYS["fit"](model))
    assert moved(start, model) == {"a"}


def test_moments_come_back_with_a_flag_that_is_set_back_by_hand() -> None:
    model = dense("a", "b")
    with freeze(model, layers="b"):
        pass
    freezing = freeze(model, layers="b")
    velocity = next(v for v in model.optimizer.variables if "a_kernel" in v.path and "velocity" in v.path)
    value = np.array(keras.ops.convert_to_numpy(velocity))
    assert value.any()
    model.get_layer("a").trainable, model.get_layer("b").trainable = False, True
    said(lambda: WAYS["predict"](model))
    assert all("a_kernel" not in v.path for v in model.optimizer.variables)
    model.get_layer("a").trainable = True
    said(lambda: WAYS["predict"](model))
    again = next(v for v in model.optimizer.variables if "a_kernel" in v.path and "velocity" in v.path)
    assert np.array(keras.ops.convert_to_numpy(again)).tobytes() == value.tobytes()
    freezing.undo()


def test_a_model_that_is_undone_altogether_is_left_to_keras() -> None:
    model = dense("a", "b")
    first, second = freeze(model, layers="a"), freeze(model, layers="b", params="bias")
    first.undo()
    model.get_layer("a").trainable = False
    assert said(lambda: WAYS["predict"](model)), "the second freeze still stands"
    model.get_layer("a").trainable = True
    said(lambda: WAYS["predict"](model))
    second.undo()
    assert not [name for name in vars(model) if name.startswith("make_") or ("jax_state" in name and callable(getattr(model, name)))]
    model.get_layer("b").trainable = False
    assert not said(lambda: WAYS["predict"](model))


def test_other_models_that_are_trained_are_watched_too() -> None:
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a")], name="base")
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, keras.layers.Dense(4, name="head")(base(inputs)))
    outer.compile("adam", "mse")
    WAYS["fit"](outer)
    freeze(base)
    base.trainable = True
    start = now(outer)
    (message,) = said(lambda: WAYS["fit"](outer))
    assert "base.a: trainable was set to True" in message
    assert moved(start, outer) == {"a", "head"}


def test_a_model_that_is_built_on_a_frozen_base_is_watched_as_long_as_the_base_is() -> None:
    """``base.trainable = True`` before fine-tuning, as the guides say, without the second compile that they say as well."""
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a")], name="base")
    freezing = freeze(base)
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, keras.layers.Dense(4, name="head")(base(inputs)))
    outer.compile("adam", "mse")
    base.layers[0].bias.trainable = True  # before the first use, which Keras follows by itself
    assert not said(lambda: WAYS["fit"](outer))
    base.trainable = True
    start = now(outer)
    (message,) = said(lambda: WAYS["fit"](outer))
    assert "base.a: trainable was set to True" in message
    assert moved(start, outer) == {"a", "head"}
    freezing.undo()
    WAYS["fit"](outer)
    assert not [name for name in vars(outer) if name.startswith("make_") or ("jax_state" in name and callable(getattr(outer, name)))]


class ByHand(keras.callbacks.Callback):
    """Sets flags of layers that it knows by itself: ``self.model`` would bring JAX's values back before."""

    def __init__(self, event: str, on: Any, off: Any) -> None:
        super().__init__()

        def swap(*_: object, **__: object) -> None:
            if not self.done:
                self.done = True
                on.trainable, off.trainable = True, False

        self.done = False
        setattr(self, event, swap)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX takes values away during a fit, and mixes them up when flags change meanwhile")
@pytest.mark.parametrize("event", ["on_epoch_begin", "on_train_batch_end", "on_epoch_end"])
def test_flags_set_by_hand_in_a_callback_mix_up_no_values(event: str) -> None:
    """With a rate of 0 no value may change; Keras alone leaves b with the values of a, or loses them all."""
    model = dense("a", "b", "c")
    model.optimizer.learning_rate = 0.0
    freeze(model, layers="a")
    WAYS["fit"](model)
    start = now(model)
    said(lambda: model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[ByHand(event, *model.layers[:2])]))
    assert not moved(start, model)
    model.optimizer.learning_rate = 0.01
    said(lambda: WAYS["fit"](model))
    assert moved(start, model) == {"a", "c"}


def test_the_warning_points_at_the_line_that_trains() -> None:
    model = dense("a", "b")
    unfreeze(model)
    model.get_layer("a").trainable = False
    with pytest.warns(UnifreezeWarning) as caught:
        model.fit(X, Y, verbose=0)
    assert {warning.filename for warning in caught if warning.category is UnifreezeWarning} == {__file__}
