"""PyTorch: a parameter is one parameter, however many names and modules reach it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from kits.torch import TorchKit, named
from unifreeze import apply, freeze, layers, summary, unfreeze
from unifreeze.errors import ConflictError
from unifreeze.select import everything, selector

KIT = TorchKit()


class TwoNames(nn.Module):
    """One array, registered twice in one module and once more in another."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4))
        self.alias = self.kernel
        self.inner = nn.Linear(4, 4, bias=False)
        self.inner.weight = self.kernel
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(torch.tanh(x @ self.kernel)) @ self.alias)


class Fused(nn.Module):
    """Query, key and value are rows of one array; a second attention has the same array."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.MultiheadAttention(4, 2, batch_first=True)
        self.two = nn.MultiheadAttention(4, 2, batch_first=True)
        self.two.in_proj_weight = self.one.in_proj_weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(2, 4, 4)
        return self.two(self.one(x, x, x)[0], x, x)[0]


def same_module_twice() -> nn.Module:
    block = named(dense=nn.Linear(4, 4), norm=nn.BatchNorm1d(4))
    return named(one=block, between=nn.Linear(4, 4), two=block)


def autoencoder() -> nn.Module:
    """Tied by a parametrization: the decoder computes its weight from the encoder's."""
    model = named(encoder=nn.Linear(4, 4, bias=False), act=nn.Tanh(), decoder=nn.Linear(4, 4))
    parametrize.register_parametrization(model.decoder, "weight", Transposed(model.encoder), unsafe=True)
    return model


class Transposed(nn.Module):
    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.source = source

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.source.weight.T


# Each with the paths of one shared parameter, and two ways to pick it.
SHARED: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[str, str]]] = {
    "two names": (TwoNames, ["kernel", "alias", "inner.weight"], ("alias", "inner")),
    "in_proj_weight": (Fused, ["one.in_proj_weight", "two.in_proj_weight"], ("one", "two")),
    "the same module twice": (same_module_twice, ["one.dense.weight", "two.dense.weight"], ("one", "two")),
}


def narrowed(way: str) -> dict[str, Any]:
    """How to pick: a parameter of the model itself, or a layer."""
    return {"params": way} if way == "alias" else {"layers": way}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("case", SHARED)
def test_frozen_through_either_and_counted_once(case: str, place: int) -> None:
    make, aliases, ways = SHARED[case]
    torch.manual_seed(0)
    model = make()
    modules = dict(model.named_modules(remove_duplicate=False))
    reached = {id(modules[path.rpartition(".")[0]].get_parameter(path.rpartition(".")[2])) for path in aliases}
    assert len(reached) == 1, "the arrays of this case are not shared"
    flags = KIT.flags(model)
    freezing = freeze(model, **narrowed(ways[place]))
    assert [path for path in freezing.frozen if path in aliases] == aliases[:1]
    assert not set(aliases) & set(freezing.trainable)
    totals = summary(model).totals
    assert totals.parameters == sum(array.numel() for array in model.parameters())
    assert totals.frozen == sum(array.numel() for array in model.parameters() if not array.requires_grad)
    before = [array.detach().clone() for array in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        model.train()(inputs).square().sum().backward()
        optimizer.step()
    still = [torch.equal(old, new.detach()) for old, new in zip(before, model.parameters(), strict=True)]
    assert still == [not array.requires_grad for array in model.parameters()]
    freezing.verify()
    if set(freezing.trainable):
        chosen = freezing.optimizer(torch.optim.SGD, lr=0.1).param_groups[0]["params"]
        assert len(chosen) == len({id(array) for array in chosen}) == len(freezing.trainable)
    unfreeze(model, **narrowed(ways[1 - place]))
    assert all(array.requires_grad for array in model.parameters() if id(array) in reached)
    freezing.undo()
    assert KIT.flags(model)[0] == flags[0]
    assert all(array.requires_grad for array in model.parameters())


@pytest.mark.parametrize(
    ("make", "excluded", "one", "other"), [(TwoNames, "inner", "kernel", "inner.weight"), (Fused, "two", "one.in_proj_weight", "two.in_proj_weight")]
)
def test_a_contradiction_names_both_and_changes_nothing(make: Callable[[], nn.Module], excluded: str, one: str, other: str) -> None:
    model = make()
    flags = KIT.flags(model)
    with pytest.raises(ConflictError, match=rf"(?s)(?=.*{one})(?=.*{other}).*the same array"):
        freeze(model, layers=everything - excluded)
    with pytest.raises(ConflictError, match="the same array"):
        freeze(model, layers=~selector(excluded))
    with pytest.raises(ConflictError, match="the same array"):
        unfreeze_all_but(model, excluded)
    assert KIT.flags(model) == flags


def unfreeze_all_but(model: nn.Module, excluded: str) -> None:
    with freeze(model):
        unfreeze(model, layers=~selector(excluded))


def test_the_same_module_at_two_paths_is_one_layer_so_that_nothing_can_contradict() -> None:
    """Whoever picks it by one name picks it by both, and whoever leaves it out leaves out both; in a recipe the last word counts."""
    model = same_module_twice()
    assert freeze(model, layers=everything - "two").frozen == ("between.weight", "between.bias")
    assert apply(model, {"steps": [{"freeze": "one"}, {"unfreeze": "two"}]}).frozen == ()
    assert apply(model, {"steps": [{"freeze": "one"}, {"unfreeze": "one.norm"}]}).frozen == ("one.dense.weight", "one.dense.bias")


def test_rows_of_a_fused_projection_are_not_parameters_of_their_own() -> None:
    model = Fused()
    kernels = [parameter.path for layer in layers(model) for parameter in layer.parameters if parameter.role == "kernel"]
    assert kernels == ["one.in_proj_weight", "one.out_proj.weight", "two.in_proj_weight", "two.out_proj.weight"]
    assert freeze(model, params="in_proj_weight").frozen == ("one.in_proj_weight",)
    assert summary(model).totals.frozen == 12 * 4


def test_a_weight_that_is_computed_from_another_follows_it() -> None:
    model = autoencoder()
    paths = [parameter.path for layer in layers(model) for parameter in layer.parameters]
    assert "encoder.weight" in paths
    freezing = freeze(model, layers="encoder")
    source = model.encoder.weight
    before = source.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(source.detach(), before)
    freezing.verify()
    assert summary(model).totals.parameters == sum(array.numel() for array in model.parameters())


def test_calls_on_a_part_and_on_the_whole_are_undone_in_any_order() -> None:
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    whole = nn.Sequential(part, nn.Linear(2, 2))
    first, second, third = freeze(part, layers="0"), freeze(whole, layers="0"), unfreeze(part, layers="1")
    for freezing in (first, third, second):
        freezing.undo()
        assert all(parameter.requires_grad for parameter in whole.parameters()), "the later ones go with the first"
