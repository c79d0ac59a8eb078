"""The recipes that Keras users write, carried to torchvision and back: what is frozen is checked by the values of the weights, not by our mapping."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import twins
from keras_recipes import RECIPES
from unifreeze import port

FAST = {"2 transfer-learning tutorial", "14 segmentation_models"}
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.deep) for name in twins.TWINS]


def with_a_base() -> set[str]:
    """The recipes that start from a model of keras.applications."""
    return {name for name, recipe in RECIPES.items() if recipe.large}


def test_every_recipe_that_has_a_twin_is_ported() -> None:
    assert twins.TWINS.keys() == with_a_base()


def part_of(model: Any, name: str) -> Any:
    """What the twin is a twin of: of a siamese network, the encoder that it applies three times."""
    return next(layer for layer in model.layers if isinstance(layer, keras.Model)) if name == "8 siamese network" else model


def statuses(model: Any, part: Any) -> dict[int, bool]:
    """Of every variable of the part, whether Keras trains it."""
    trained = {id(variable) for variable in model.trainable_variables}
    return {id(variable): id(variable) in trained for variable in part.variables}


def partners(part: Any, theirs: nn.Module) -> dict[str, Any]:
    """For each array of the twin that holds the values of a Keras variable, that variable."""
    known = twins.by_values(part)
    found = {name: known.get(twins.values(array.detach())) for name, array in theirs.state_dict().items() if array.is_floating_point()}
    return {name: variable for name, variable in found.items() if variable is not None}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_freezes_in_the_twin_what_it_freezes_in_keras_and_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    phase, architecture, more, shape = twins.TWINS[name]
    script = RECIPES[name].script()
    model = next(model for place, model in enumerate(script) if place == phase)
    part = part_of(twins.randomised(model), name)
    twins.calibrated(part, shape or part.input_shape)
    theirs = twins.twin(architecture, **more)
    trains = statuses(model, part)
    flags = {id(layer): layer.trainable for layer in twins.keras_layers(part)}
    done = port(None, part, theirs, shape=shape)
    assert done.correspondence.transfer() is theirs

    same = partners(part, theirs)
    parameters = dict(theirs.named_parameters())
    paired = {path for path in same if path in parameters}
    assert all(parameters[path].requires_grad == trains[id(same[path])] for path in paired)
    nobody_left_out(part, trains, same, done)
    for path in parameters.keys() - paired:
        # Either a layer that Keras has not, or a scale that Keras leaves out: neutral, and as its layer is.
        kin = [other for other in paired if other.rpartition(".")[0] == path.rpartition(".")[0]]
        assert parameters[path].requires_grad == all(parameters[other].requires_grad for other in kin), path
        assert not kin or bool((parameters[path] == 1).all()), path

    counted(done, model, part, theirs)
    x = np.random.default_rng(1).normal(size=(2, *(shape or part.input_shape)[1:])).astype("float32")
    expected = twins.keras_features(part, x)
    with monkeypatch.context() as patched:
        twins.set_alike(theirs, done.correspondence, patched)
        got = twins.torch_features(theirs, twins.BODIES[architecture], x)
        assert twins.apart(expected, got) < 3e-4
    statistics_are_held(theirs, same, part, done)

    # And back, to the same model with all flags up.
    twins.thawed(part)
    back = port(None, theirs, part, shape=shape or tuple(n or 1 for n in part.input_shape))
    assert statuses(part, part) == trains
    assert all(layer.trainable == flags[id(layer)] for layer in twins.keras_layers(part) if isinstance(layer, keras.layers.BatchNormalization))
    assert back.frozen == done.frozen[::-1]


def nobody_left_out(part: Any, trains: dict[int, bool], same: dict[str, Any], done: Any) -> None:
    """Every frozen Keras variable is found in the twin by its values, or the report says that its layer's partner has no such."""
    arrived = {id(variable) for variable in same.values()}
    lost = {
        v.path.rpartition("/")[2] for v in part.trainable_weights + part.non_trainable_weights if not trains[id(v)] and id(v) not in arrived and is_parameter(v)
    }
    assert lost <= {one.role for one in done.lone if one.side == "source"}


def is_parameter(variable: Any) -> bool:
    return not variable.path.rpartition("/")[2].startswith(("moving_", "seed", "mean", "variance", "count"))


def counted(done: Any, model: Any, part: Any, theirs: nn.Module) -> None:
    """The counts are Keras's and PyTorch's own, and the report explains their difference to the last parameter."""
    trained = {id(variable) for variable in model.trainable_variables}
    ours = sum(int(np.prod(v.shape)) for v in part.variables if is_parameter(v) and id(v) not in trained)
    assert done.frozen == (ours, sum(p.numel() for p in theirs.parameters() if not p.requires_grad))
    surplus = {side: sum(one.size for one in done.lone if one.side == side) for side in ("source", "target")}
    assert done.frozen[0] - surplus["source"] == done.frozen[1] - surplus["target"]


def statistics_are_held(theirs: nn.Module, same: dict[str, Any], part: Any, done: Any) -> None:
    """After real steps nothing frozen has moved, and statistics moved exactly where Keras would move them."""
    norms = {id(layer.moving_variance): layer for layer in twins.keras_layers(part) if isinstance(layer, keras.layers.BatchNormalization)}
    freezing = done.freezing.remember(theirs)
    before = twins.bytes_of(theirs)
    twins.trained(theirs, torch.randn(2, 3, *[299 if hasattr(theirs, "AuxLogits") else 96] * 2))
    after = twins.bytes_of(theirs)
    for path, p in theirs.named_parameters():
        assert p.requires_grad or before[path] == after[path], path
    moving = {path: norms[id(same[path])].trainable for path in before if path.endswith("running_var") and path in same}
    found = {id(same[path]) for path in moving}
    # A recipe may put a normalisation of its own on top, which the twin has not.
    assert {layer.name for key, layer in norms.items() if key not in found} <= {path.rpartition(".")[2] for path in done.correspondence.unmatched[0]}
    for path, expected in moving.items():
        assert (before[path] != after[path]) == expected, path
    freezing.verify()
