"""The recipes that Keras users write, carried to torchvision and back: what is frozen is checked by the values of the weights, not by our mapping."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import keras_recipes
import twins
from unifreeze import port

SLOW = twins.TWINS.keys() - {"tutorial", "segmentation"}
RECIPES = [pytest.param(name, marks=pytest.mark.deep) if name in SLOW else name for name in twins.TWINS]


def built(name: str) -> tuple[Any, Any]:
    """The model as its author froze it, and the part of it that the twin is a twin of."""
    model = twins.randomised(getattr(keras_recipes, name)())
    part = next(layer for layer in model.layers if isinstance(layer, keras.Model)) if name == "siamese" else model
    return model, part


def statuses(model: Any, part: Any) -> dict[int, bool]:
    """Of every variable of the part, whether Keras trains it."""
    trained = {id(variable) for variable in model.trainable_variables}
    return {id(variable): id(variable) in trained for variable in part.variables}


def partners(part: Any, theirs: nn.Module) -> dict[str, Any]:
    """For each array of the twin that holds the values of a Keras variable, that variable."""
    known = twins.by_values(part)
    found = {name: known.get(twins.values(array.detach())) for name, array in theirs.state_dict().items() if array.is_floating_point()}
    return {name: variable for name, variable in found.items() if variable is not None}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_freezes_in_the_twin_what_it_freezes_in_keras_and_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, part = built(name)
    architecture, more, shape = twins.TWINS[name]
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
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
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
    assert len(moving) == len(norms)
    for path, expected in moving.items():
        assert (before[path] != after[path]) == expected, path
    freezing.verify()
