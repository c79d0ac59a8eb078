"""What moved in PyTorch, by how much and why: each cause is really brought about by a freeze by hand and a real optimizer."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from unifreeze import freeze, guard, unfreeze
from unifreeze._moves import Moved
from unifreeze.errors import FrozenMovedError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


def backward(model: nn.Module) -> None:
    model.train()
    (model(torch.randn(16, 4)) ** 2).mean().backward()


def by_hand(part: nn.Module) -> None:
    part.requires_grad_(False)


def caught(model: nn.Module, run: object, *, exact: bool = True) -> dict[str, Moved]:
    with pytest.raises(FrozenMovedError) as error, guard(model, exact=exact):
        run()  # type: ignore[operator]
    return {one.path: one for one in error.value.moves}


def test_statistics() -> None:
    model = network()
    by_hand(model[:2])
    before = model[1].running_mean.clone()
    found = caught(model, lambda: backward(model))
    assert {one.cause for one in found.values()} == {"statistics"}
    assert found.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    moved = float((model[1].running_mean - before).abs().max())
    assert found["1.running_mean"].difference.largest == pytest.approx(moved)


def test_a_stale_gradient() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    backward(model)
    by_hand(model[0])
    gradient, before = model[0].weight.grad.clone(), model[0].weight.detach().clone()

    def train() -> None:
        optimizer.step()
        optimizer.zero_grad()  # the trace is gone; the guard had seen it

    found = caught(model, train)["0.weight"]
    assert found.cause == "gradient"
    assert found.difference.relative == pytest.approx(float(0.5 * gradient.norm() / before.norm()), rel=1e-4)
    assert "SGD applied it" in found.why


def test_a_gradient_of_zeros_under_momentum() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    by_hand(model[0])
    found = caught(model, optimizer.step, exact=False)["0.weight"]
    assert (found.cause, found.difference) == ("gradient", None)
    assert "a gradient of zeros was left on it" in found.why


@pytest.mark.parametrize("decay", [0.1, 0.01])
def test_decay(decay: float) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    by_hand(model[0])
    for parameter in model[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    found = caught(model, optimizer.step)["0.weight"]
    assert (found.cause, found.difference.factor) == ("decay", pytest.approx(1 - 1e-3 * decay, abs=1e-7))
    assert f"AdamW decays by {decay:g}" in found.why


def test_decay_by_a_loop_of_ones_own() -> None:
    model = network()
    by_hand(model[0])

    def train() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.999)

    found = caught(model, train)
    assert found["0.weight"].cause == "decay"
    assert "decay only what is trainable" in found["0.weight"].repair


def test_an_optimizer_whose_state_is_from_another_plan() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        torch.manual_seed(1)
        loss = (model(torch.randn(16, 4)) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    by_hand(model[0])
    for parameter in model[0].parameters():
        parameter.grad = None
    found = caught(model, lambda: optimizer.step(closure))
    assert found["0.weight"].cause in {"moments", "optimizer"}
    assert "LBFGS" in found["0.weight"].why


def test_a_flag_set_by_hand() -> None:
    model = network()
    freezing = freeze(model, layers="0")
    model[0].weight.requires_grad = True
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    assert [(one.path, one.cause) for one in error.value.moves] == [("0.weight", "flag")]


def test_a_module_that_was_replaced_and_one_that_was_wrapped() -> None:
    model = network()
    freezing = freeze(model, layers=["0", "4"])
    model[0] = nn.Linear(4, 6).requires_grad_(False)
    model[4] = nn.Sequential(model[4])
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    found = {one.path: one for one in error.value.moves}
    assert found["0.weight"].cause == "replaced"
    assert found["4.weight"].cause == "wrapped"
    assert "4.0.weight" in found["4.weight"].why


def test_a_batch_norm_that_was_replaced_is_no_case_of_statistics() -> None:
    model = network()
    freezing = freeze(model, layers="1")
    model[1] = nn.BatchNorm1d(6).requires_grad_(False)
    with torch.no_grad():
        model[1].running_mean.fill_(3)
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    assert {one.path: one.cause for one in error.value.moves}["1.running_mean"] == "replaced"


def test_a_load_is_said_to_be_unknown() -> None:
    model = network()
    freezing = freeze(model, layers="0").remember(exact=True)
    model.load_state_dict({name: torch.randn_like(array) if array.is_floating_point() else array for name, array in model.state_dict().items()})
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    assert {one.cause for one in error.value.moves} == {"unknown"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2, torch.complex64, torch.int8, torch.bool])
def test_copies_of_every_type(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.arange(6).to(dtype), requires_grad=False)
    model.head = nn.Parameter(torch.ones(2))
    with guard(model, exact=True):
        pass
    found = caught(model, lambda: model.weight.data.view(torch.uint8)[-1:].bitwise_xor_(1))
    assert found["weight"].difference.elements == 1


def test_the_guard_holds_for_what_unifreeze_froze_in_real_training() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    backward(model)
    optimizer.step()
    freeze(model, layers=["0", "1"])
    with guard(model, exact=True) as watch:
        for _ in range(3):
            optimizer.zero_grad(set_to_none=False)
            backward(model)
            optimizer.step()
    assert len(watch.arrays) == 7


def test_a_pickled_freezing_knows_nothing_of_identities() -> None:
    freezing = pickle.loads(pickle.dumps(freeze(network(), layers="0")))
    freezing.model[0].weight.data.add_(1)
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    assert error.value.moves[0].cause == "unknown"


def test_rows() -> None:
    model = nn.Sequential(nn.Embedding(8, 3), nn.Linear(3, 2))
    freeze(model, layers="0", rows=slice(0, 5))
    found = caught(model, lambda: model[0].weight.data[2].mul_(2))
    assert found["0.weight"].difference.elements == 3
    assert "rows 0:5 moved" in found["0.weight"].why


def test_what_was_made_trainable_by_hand_is_told_the_way_back_and_the_way_on() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    freezing = freeze(model, layers="0")
    model[0].requires_grad_(True)
    with pytest.raises(FrozenMovedError, match="freeze it again") as caught:
        freezing.verify()
    assert all("verify what unfreeze" in moved.repair for moved in caught.value.moves)
    unfreeze(model, layers="0").verify()
    freeze(model, layers="0").verify()
