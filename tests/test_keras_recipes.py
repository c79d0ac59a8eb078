"""The recipes that are taught: each as a Keras user writes it, again through our selectors, with the counts that both must have."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from keras_recipes import RECIPES, Phase, adversaries, thawed
from kits.keras_eyes import counts, drawing, look, moved_layers, which_moved
from unifreeze import UnifreezeWarning, freeze, summary, unfreeze

BACKEND = keras.backend.backend()
L = keras.layers
SMALL = [name for name, recipe in RECIPES.items() if not recipe.large]
LARGE = [name for name, recipe in RECIPES.items() if recipe.large]


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


def flags(model: Any) -> list[bool]:
    """Of the weights, in the model's own order: what training itself asks for."""
    trains = set(map(id, model.trainable_variables))
    return [id(weight) in trains for weight in model.weights]


def apply_ours(phase: Phase, model: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Every parameter of", UnifreezeWarning)
        phase.ours(model)


def need_true_summary(model: Any) -> None:
    """Trainable, frozen, and what no optimizer trains, as the arrays themselves say; Keras's own figures beside them where they differ."""
    size = lambda variables: sum(int(np.prod(v.shape)) for v in variables)  # noqa: E731
    tensors, trainable, still = counts(model)
    statistics = size(weight for weight in model.weights if weight.name.startswith("moving_") or weight.name in ("mean", "variance", "count"))
    states = size(v for v in model.variables if "seed" in v.path)
    told = summary(model)
    assert (told.totals.trainable, told.totals.frozen, told.totals.buffers) == (trainable, still - statistics, statistics + states)
    assert told.totals.parameters == trainable + still - statistics
    assert (f"Trainable params: {trainable:,}, Non-trainable params: {still:,}" in " ".join(told.notes)) == bool(statistics)
    assert bool(tensors) == bool(trainable)


@pytest.mark.parametrize("name", RECIPES)
def test_by_hand_and_through_our_selectors(name: str) -> None:
    recipe, states, model = RECIPES[name], [], None
    for phase, model in zip(recipe.phases, recipe.script(), strict=True):
        assert counts(model) == phase.by_hand, "by hand"
        need_true_summary(model)
        states.append(flags(model))
    thawed(model)
    for phase, by_hand in zip(recipe.phases, states, strict=True):
        apply_ours(phase, model)
        assert counts(model) == (phase.meant or phase.by_hand), "ours"
        assert phase.meant or flags(model) == by_hand
        need_true_summary(model)


def data(model: Any) -> tuple[Any, Any]:
    """Eight rows that fit a model; whole numbers where it looks words up."""
    draw, shape = np.random.default_rng(1), lambda tensor: (8, *(axis or 75 for axis in tensor.shape[1:]))
    inputs = [draw.integers(0, 100, shape(x)) if "int" in x.dtype else draw.normal(size=shape(x)).astype("float32") for x in model.inputs]
    targets = [draw.normal(size=shape(y)).astype("float32") for y in model.outputs]
    return (inputs, targets) if len(inputs) > 1 or len(targets) > 1 else (inputs[0], targets[0])


def need_obedience(model: Any, given: tuple[Any, Any]) -> None:
    """After two steps, what trains has moved, with its statistics, and nothing else has a single other bit."""
    trains = set(map(id, model.trainable_variables))
    owners = [layer for layer in model._flatten_layers() if any(id(v) in trains for v in layer._trainable_variables)]
    expected = {v.path for layer in owners for v in layer.weights if id(v) in trains or (v.name.startswith("moving_") and not layer._layers)}
    before = look(model.weights)
    for _ in range(2):
        model.train_on_batch(*given)
    assert set(which_moved(model.weights, before)) == expected


def train(name: str) -> None:
    recipe, model = RECIPES[name], None
    compiled: dict[str, Any] = {"loss": "mse", "run_eagerly": BACKEND == "tensorflow" and not recipe.large}
    for model in recipe.script():
        model.compile(keras.optimizers.Adam(0.01), **compiled)
        need_obedience(model, data(model))
    thawed(model).compile(keras.optimizers.Adam(0.01), **compiled)
    for phase in recipe.phases:
        apply_ours(phase, model)
        need_obedience(model, data(model))


@pytest.mark.filterwarnings("ignore:.*does not have any trainable weights")
@pytest.mark.parametrize("name", SMALL)
def test_small_models_train_what_the_counts_say(name: str) -> None:
    train(name)


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:.*does not have any trainable weights")
@pytest.mark.parametrize("name", LARGE)
def test_large_models_train_what_the_counts_say(name: str) -> None:
    train(name)


def test_11_the_discriminator_off_between_two_compiles() -> None:
    """In Keras 3 the discriminator never trains; the flag is read when a step is traced, not at compile. Ours is off for the generator's step alone."""
    noise, real, ones = np.ones((4, 4), "float32"), np.ones((4, 6), "float32"), np.ones((4, 1), "float32")

    def pair() -> tuple[Any, Any]:
        judge, generator = adversaries()
        judge.compile("adam", "mse")
        inputs = keras.Input((4,))
        return judge, keras.Model(inputs, judge(generator(inputs)))

    judge, combined = pair()
    judge.trainable = False
    combined.compile("adam", "mse")
    assert counts(judge) == (0, 0, 97)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert not moved_layers(combined, lambda: judge.train_on_batch(real, ones)), "Keras's discriminator trains: the table, and our claim, are wrong"
    assert summary(judge).totals.trainable == 0

    judge, combined = pair()
    combined.compile("adam", "mse")
    for _ in range(2):
        assert moved_layers(combined, lambda: judge.train_on_batch(real, ones)) == {"d", "e"}
        with freeze(combined, layers=judge):
            assert counts(combined) == (2, 30, 97)
            assert moved_layers(combined, lambda: combined.train_on_batch(noise, ones)) == {"g"}


def test_18_an_outer_flag_that_hides_inner_ones() -> None:
    """Keras trains nothing and does not say so; our summary does, and our unfreeze does what was meant."""
    model = keras.Sequential([keras.Input((4,)), L.Dense(4, name="a"), L.BatchNormalization(name="n"), L.Dense(4, name="b")])
    model.trainable = False
    model.get_layer("b").trainable = True
    assert counts(model) == (0, 0, 56)
    assert any("hides that b" in note and "nothing trains" in note for note in summary(model).notes)
    unfreeze(model, layers="b")
    assert counts(model) == (2, 20, 36)
    assert not any("hides" in note for note in summary(model).notes)
    model.compile("sgd", "mse")
    assert moved_layers(model, lambda: model.train_on_batch(np.ones((4, 4)), np.zeros((4, 4)))) == {"b"}


def test_19_one_layer_in_a_frozen_and_a_trainable_model() -> None:
    """A flag belongs to the layer, so no two models can differ in it at one time; a freeze round the training of one of them does what was meant."""
    inputs = keras.Input((4,))
    layer = L.Dense(4, name="shared")
    layer.trainable = False
    still = keras.Model(inputs, layer(inputs))
    still.compile("sgd", "mse")
    assert counts(still) == (0, 0, 20)
    layer.trainable = True
    free = keras.Model(inputs, layer(inputs))
    free.compile("sgd", "mse")
    data = np.ones((4, 4), "float32"), np.zeros((4, 4), "float32")
    assert moved_layers(still, lambda: still.train_on_batch(*data)) == {"shared"}, "Keras's frozen model has become trainable"
    assert moved_layers(free, lambda: free.train_on_batch(*data)) == {"shared"}
    with freeze(still):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert not moved_layers(still, lambda: still.train_on_batch(*data))
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
