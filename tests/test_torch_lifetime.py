"""What outlives what: a model its Freezings, and a copy its original."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

from unifreeze import freeze
from unifreeze.errors import ArgumentError, FrozenMovedError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def saved_and_loaded(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def test_a_model_does_not_outlive_its_last_user() -> None:
    model = net()
    kept = ref(model)
    freezings = freeze(model, layers="0"), freeze(model, layers="1", inference="all"), freeze(model, layers="1")
    freezings[0].undo()
    del model, freezings
    gc.collect()
    assert kept() is None


def test_weights_that_are_not_frozen_do_not_outlive_their_replacement() -> None:
    """A large model is often loaded or sharded anew after the freeze, and has no room for both."""
    model = net()
    freezing = freeze(model, layers="0")
    kept = ref(model[2].weight)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    gc.collect()
    assert kept() is None
    assert freezing.frozen == ("0.weight", "0.bias")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded], ids=["deepcopy", "pickle", "save"])
def test_a_module_that_keeps_its_freezing_is_copied_with_it(copied: Callable[[Any], Any]) -> None:
    model = net()
    model.freezing = freeze(model, layers=["0", "1"])
    other = copied(model)
    assert other.freezing.model is other
    optimizer = other.freezing.optimizer(torch.optim.SGD, lr=0.1)
    assert [id(array) for array in optimizer.param_groups[0]["params"]] == [id(other[2].weight), id(other[2].bias)]
    other.train()(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(other[1].running_mean, model[1].running_mean)
    assert not torch.equal(other[2].weight, model[2].weight)
    other.freezing.verify()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    with pytest.raises(FrozenMovedError, match=r"0\.weight: moved"):
        other.freezing.verify()
    with pytest.raises(ArgumentError, match="only the original can be undone"):
        other.freezing.undo()
    model.freezing.verify()
    model.freezing.undo()
    assert model[0].weight.requires_grad
    assert not other[0].weight.requires_grad
