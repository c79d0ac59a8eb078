"""The audit on PyTorch: each finding is really brought about by a freeze by hand, and models that unifreeze froze have none."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchvision_cpu  # noqa: F401 - before torchvision
from unifreeze import audit, freeze, unfreeze
from unifreeze.errors import ArgumentError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


def backward(model: nn.Module) -> None:
    model.train()
    (model(torch.randn(16, 4)) ** 2).mean().backward()


def paths(report: Any) -> dict[str, tuple[str, ...]]:
    return {one.code: one.paths for one in report}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    backward(model)
    optimizer.step()
    return optimizer


def test_what_is_left_of_a_freeze_in_mid_training() -> None:
    model = network()
    optimizer = adamw(model)
    model[0].requires_grad_(False)
    assert paths(audit(model, optimizer)) == {"UF101": ("0.weight", "0.bias")}
    optimizer.zero_grad(set_to_none=False)
    assert paths(audit(model, optimizer)) == {"UF102": ("0.weight", "0.bias"), "UF103": ("0.weight", "0.bias")}
    optimizer.zero_grad()
    report = audit(model, optimizer)
    assert paths(report) == {"UF104": ("0.weight", "0.bias")}
    assert report.ok
    assert "it decays and keeps moments for it" in report.findings[0].why
    before = model[0].weight.clone()
    optimizer.step()
    assert torch.equal(before, model[0].weight), "as the note says"


def test_a_gradient_in_an_optimizer_that_does_not_hold_it_is_no_matter() -> None:
    model = network()
    backward(model)
    model[0].requires_grad_(False)
    head = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert paths(audit(model, head)) == {}
    assert paths(audit(model)) == {"UF101": ("0.weight", "0.bias")}, "an optimizer that is not known may hold it"


def test_lbfgs_moves_what_has_no_gradient() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        torch.manual_seed(1)
        backward(model)
        return torch.zeros(())

    optimizer.step(closure)
    model[0].requires_grad_(False)
    optimizer.zero_grad()
    assert paths(audit(model, optimizer)) == {"UF105": ("0.weight", "0.bias")}, "and no note that says it is passed over"
    frozen = freeze(model, layers=["0", "1"])
    frozen.attach(optimizer)
    assert audit(model, optimizer).ok


def test_what_optimizers_leave_out_and_hold_twice() -> None:
    model = network()
    first, second = (torch.optim.SGD(part, lr=0.1) for part in (model[4].parameters(), model[1:].parameters()))
    assert paths(audit(model, [first, second])) == {"UF110": ("0.weight", "0.bias"), "UF111": ("4.weight", "4.bias")}
    twin = copy.deepcopy(model)
    assert paths(audit(twin, first)) == {"UF112": ()}


def test_statistics() -> None:
    model = network()
    model[1].requires_grad_(False)
    assert paths(audit(model)) == {"UF201": ("1",)}
    before = model[1].running_mean.clone()
    backward(model)
    assert not torch.equal(before, model[1].running_mean), "the finding is true"
    model.zero_grad()
    assert paths(audit(model.eval())) == {"UF202": ("1",)}
    model.train()
    model[1].eval()
    assert paths(audit(model)) == {}, "kept at inference by hand"


def test_a_norm_without_parameters_inside_a_frozen_part() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False)), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    assert paths(audit(model)) == {"UF201": ("0.1",)}


def test_dropout() -> None:
    model = network()
    part = nn.Sequential(model[0], nn.Dropout(0.1), nn.Dropout(0.0))
    model[0] = part.requires_grad_(False)
    report = audit(model)
    assert (paths(report), report.ok, report.worst) == ({"UF203": ("0.1",)}, True, "note")
    freeze(model, layers="0", inference="all")
    assert not len(audit(model))


def test_dropout_that_is_a_number_of_another_layer() -> None:
    torch.manual_seed(0)
    part = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, dropout=0.1), "deep": nn.LSTM(8, 8, num_layers=2, dropout=0.3)})
    part["plain"] = nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"part": part.requires_grad_(False), "head": nn.Linear(8, 2)})
    assert paths(audit(model)) == {"UF203": ("part.attention", "part.deep")}
    x = torch.ones(3, 8)
    draws = [name for name in ("attention", "plain") if not torch.equal(part[name](x, x, x)[0], part[name](x, x, x)[0])]
    assert (draws, torch.equal(part["deep"](x)[0], part["deep"](x)[0])) == (["attention"], False), "the finding is true"
    freeze(model, layers="part", inference="all")
    assert not len(audit(model))


@pytest.mark.parametrize("norm", [torch.nn.utils.parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
def test_the_vectors_of_spectral_normalisation(norm: Any) -> None:
    model = nn.Sequential(norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    before = {name: array.clone() for name, array in model.named_buffers()}
    assert paths(audit(model)) == {"UF201": ("0",)}
    model(torch.ones(2, 4))
    assert any(not torch.equal(array, before[name]) for name, array in model.named_buffers()), "the finding is true"
    freeze(model, layers="0")
    assert not len(audit(model))


def test_what_is_no_optimizer_is_refused_and_not_passed_over() -> None:
    model = network()
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 1)
    for wrong in ("adam", 3, list(model.parameters()), model.parameters(), torch.optim.SGD):
        with pytest.raises(ArgumentError, match=r"optimizer= is an optimizer of torch\.optim"):
            audit(model, wrong)
    with pytest.raises(ArgumentError, match="Give the one inside it"):
        audit(model, scheduler)


def test_memory_that_is_shared() -> None:
    model = nn.Module()
    model.embed, model.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
    model.head.weight = nn.Parameter(model.embed.weight.data)
    model.embed.requires_grad_(False)
    assert paths(audit(model)) == {"UF302": ("embed.weight", "head.weight")}
    before = model.embed.weight.clone()
    torch.optim.SGD(model.head.parameters(), lr=0.1).step(lambda: model.head(torch.ones(1, 6)).sum().backward())
    assert not torch.equal(before, model.embed.weight), "the finding is true"
    rnn = nn.LSTM(4, 3)
    rnn.weight_ih_l0.requires_grad_(False)
    assert "UF302" not in paths(audit(rnn)), "side by side in one memory"


def test_what_gets_no_gradient() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

    model = nn.Sequential(nn.Linear(4, 6), checkpoint_wrapper(nn.Linear(6, 6), checkpoint_impl=CheckpointImpl.REENTRANT), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    assert paths(audit(model)) == {}, "nothing was lost yet"
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        backward(model)
    inside = [name for name, parameter in model.named_parameters() if name.startswith("1.") and parameter.grad is None]
    found = audit(model).findings
    assert len(inside) == 2, "the finding is true"
    assert [one.paths for one in found] == [(name,) for name in inside]
    assert {one.code for one in found} == {"UF204"}


@pytest.fixture
def group(tmp_path: Any) -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_wrappers_that_looked_at_the_flags_once(group: None) -> None:
    model = network()
    model[0].requires_grad_(False)
    wrapper = DistributedDataParallel(model)
    model[0].requires_grad_(True)
    assert paths(audit(wrapper)) == {"UF401": ("0.weight", "0.bias")}
    model[4].requires_grad_(False)
    assert paths(audit(wrapper))["UF402"] == ("4.weight", "4.bias")
    assert "UF402" not in paths(audit(DistributedDataParallel(model)))


def test_more_frozen_sets_than_are_compiled() -> None:
    model = torch.compile(nn.Sequential(*(nn.Linear(2, 2) for _ in range(10))))
    with torch._dynamo.config.patch(recompile_limit=8):  # libraries raise it when they are imported
        for place in range(8):
            freeze(model, layers=str(place))
        assert not paths(audit(model))
        with pytest.warns(UserWarning, match="9 different ways"):
            freeze(model, layers="8")
        assert paths(audit(model)) == {"UF403": ()}


def test_what_is_said_to_train() -> None:
    model = network()
    model[:2].requires_grad_(False)
    model[1].eval()
    assert paths(audit(model, trainable="4")) == {}
    assert paths(audit(model, trainable="0|1")) == {"UF604": ("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias")}
    assert paths(audit(model, trainable="1|4")) == {"UF606": ("1.weight", "1.bias")}


def test_it_changes_nothing() -> None:
    model = network()
    optimizer = adamw(model)
    model[0].requires_grad_(False)
    model[1].eval()

    def everything() -> Any:
        state = [(key, {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in slots.items()}) for key, slots in optimizer.state.items()]
        arrays = {name: array.clone() for name, array in model.state_dict().items()}
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        flags = [(p.requires_grad, id(p.grad)) for p in model.parameters()]
        return arrays, gradients, flags, [(m.training, type(m)) for m in model.modules()], state, torch.get_rng_state()

    before = everything()
    assert audit(model, optimizer).codes == ("UF101",)
    for one, other in zip(_leaves(before), _leaves(everything()), strict=True):
        assert one is other or (torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in _leaves(tree[key])]
    return [leaf for one in tree for leaf in _leaves(one)] if isinstance(tree, list | tuple) else [tree]


def test_a_code_that_is_left_out() -> None:
    model = network()
    model[1].requires_grad_(False)
    assert audit(model, ignore=["UF201"]).ok
    with pytest.raises(ArgumentError, match="takes codes"):
        audit(model, ignore=["statistics"])


@pytest.mark.parametrize("how", ["before", "after the optimizer was made", "in mid-training"])
def test_a_resnet_that_unifreeze_froze_has_a_clean_bill(how: str) -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=3).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if how == "in mid-training":
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
    freezing = freeze(model, layers="~last:1")
    if how == "before":
        optimizer = freezing.optimizer(torch.optim.AdamW, lr=1e-3)
    report = audit(model, optimizer, trainable=freezing)
    assert [one for one in report if one.code != "UF104"] == []
    assert [one.code for one in report] == ([] if how == "before" else ["UF104"])
    later = unfreeze(model, layers="layer4")
    assert paths(audit(model, optimizer)).get("UF110", ()) == (() if how != "before" else tuple(later.changed))
    later.attach(optimizer)
    assert audit(model, optimizer).ok


def test_a_resnet_frozen_by_hand_has_none() -> None:
    import torchvision

    model = torchvision.models.resnet18(weights=None, num_classes=3).train()
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    assert len(paths(audit(model))["UF201"]) == 20
