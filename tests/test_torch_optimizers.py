"""PyTorch: optimizers and schedulers live on while layers are frozen and unfrozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from kits.torch import named
from unifreeze import UnifreezeWarning, freeze, unfreeze
from unifreeze.errors import ArgumentError, BackendError
from unifreeze.plugin import Parameter
from unifreeze.select import kind

optim, schedule = torch.optim, torch.optim.lr_scheduler
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(optim.SGD, lr=0.05),
    "momentum": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": partial(optim.Adam, lr=0.01),
    "AdamW": partial(optim.AdamW, lr=0.01, weight_decay=0.1),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9),
    "Adagrad": partial(optim.Adagrad, lr=0.05),
}
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "none": lambda optimizer: None,
    "LambdaLR": lambda optimizer: schedule.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "OneCycleLR": lambda optimizer: schedule.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=not isinstance(optimizer, optim.Adagrad)),
    "ReduceLROnPlateau": lambda optimizer: schedule.ReduceLROnPlateau(optimizer, patience=2),
    "StepLR": lambda optimizer: schedule.StepLR(optimizer, 3),
    "CosineAnnealingLR": lambda optimizer: schedule.CosineAnnealingLR(optimizer, 20),
}


def towers() -> nn.Module:
    """Two networks whose gradients have nothing to do with each other."""
    torch.manual_seed(0)
    a, b = (named(dense=nn.Linear(4, 6), norm=nn.LayerNorm(6), tanh=nn.Tanh(), head=nn.Linear(6, 2)) for _ in range(2))
    return nn.ModuleDict({"a": a, "b": b})


def loss_of(tower: nn.Module, count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(count)
    return nn.functional.mse_loss(tower(torch.randn(8, 4, generator=draw)), torch.randn(8, 2, generator=draw))


class Loop:
    """A training loop that knows nothing of unifreeze."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any = None) -> None:
        self.model, self.optimizer, self.scheduler, self.count = model, optimizer, scheduler, 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.count += 1
            self.optimizer.zero_grad()
            sum(loss_of(tower, self.count) for tower in self.model.values()).backward()
            self.optimizer.step()
            if isinstance(self.scheduler, schedule.ReduceLROnPlateau):
                self.scheduler.step(1.0)
            elif self.scheduler is not None:
                self.scheduler.step()


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [array.detach().clone() for array in module.parameters()]


def assert_equal(module: nn.Module, expected: list[torch.Tensor]) -> None:
    for array, one in zip(module.parameters(), expected, strict=True):
        assert torch.equal(array.detach(), one)


# Trajectories.


@pytest.mark.parametrize("drop_frozen", [False, True])
@pytest.mark.parametrize("scheduled", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_stays_trainable_goes_on_as_if_nothing_had_happened(optimizer: str, scheduled: str, drop_frozen: bool) -> None:
    plain = towers()
    made = OPTIMIZERS[optimizer](list(plain["a"].parameters()))
    Loop(plain, made, SCHEDULES[scheduled](made)).run(16)

    model = towers()
    made = freeze(model, layers="b").optimizer(OPTIMIZERS[optimizer])
    loop = Loop(model, made, SCHEDULES[scheduled](made))
    loop.run(4)
    unfreeze(model).attach(made, loop.scheduler)
    loop.run(4)
    still = weights(model["b"])
    freeze(model, layers="b").attach(made, loop.scheduler, drop_frozen=drop_frozen)
    loop.run(4)
    assert_equal(model["b"], still)
    unfreeze(model).attach(made, loop.scheduler, drop_frozen=drop_frozen)
    loop.run(4)
    assert_equal(model["a"], weights(plain["a"]))
    assert not any(torch.equal(array.detach(), one) for array, one in zip(model["b"].parameters(), still, strict=True))


@pytest.mark.parametrize("scheduled", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_joins_starts_as_if_fresh_at_the_rate_of_the_schedule(optimizer: str, scheduled: str) -> None:
    """By hand: an optimizer of its own, made at that moment, given the learning rate that the schedule has for the others at each step."""
    model = towers()
    made = freeze(model, layers="b").optimizer(OPTIMIZERS[optimizer])
    loop = Loop(model, made, SCHEDULES[scheduled](made))
    loop.run(4)
    unfreeze(model).attach(made, loop.scheduler)

    plain = towers()["b"]
    by_hand = OPTIMIZERS[optimizer](list(plain.parameters()))
    for count in range(5, 15):
        for key in ("lr", "momentum", "betas"):
            if key in made.param_groups[0]:
                by_hand.param_groups[0][key] = made.param_groups[0][key]
        by_hand.zero_grad()
        loss_of(plain, count).backward()
        by_hand.step()
        loop.run(1)
        assert_equal(model["b"], weights(plain))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_joins_equals_add_param_group(optimizer: str) -> None:
    model, plain = towers(), towers()
    made = freeze(model, layers="b").optimizer(OPTIMIZERS[optimizer])
    by_hand = OPTIMIZERS[optimizer](list(plain["a"].parameters()))
    ours, theirs = Loop(model, made), Loop(plain, by_hand)
    ours.run(3)
    theirs.run(3)
    unfreeze(model).attach(made)
    plain["b"].zero_grad()
    by_hand.add_param_group({"params": list(plain["b"].parameters())})
    ours.run(5)
    theirs.run(5)
    assert_equal(model, weights(plain))


@pytest.mark.parametrize("drop_frozen", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_pause_is_forgotten_and_a_drop_begins_anew(optimizer: str, drop_frozen: bool) -> None:
    model = towers()
    made = OPTIMIZERS[optimizer](list(model.parameters()))
    loop = Loop(model, made)
    loop.run(4)
    freeze(model, layers="b").attach(made, drop_frozen=drop_frozen)
    loop.run(4)
    unfreeze(model).attach(made)
    loop.run(4)

    plain = towers()["b"]
    by_hand = OPTIMIZERS[optimizer](list(plain.parameters()))
    for count in (1, 2, 3, 4, 9, 10, 11, 12):
        if drop_frozen and count == 9:
            by_hand = OPTIMIZERS[optimizer](list(plain.parameters()))
        by_hand.zero_grad()
        loss_of(plain, count).backward()
        by_hand.step()
    assert_equal(model["b"], weights(plain))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dropping_frees_the_state_and_leaves_an_optimizer_that_can_be_saved(optimizer: str) -> None:
    model = towers()
    made = OPTIMIZERS[optimizer](model.named_parameters())
    loop = Loop(model, made)
    loop.run(2)
    freeze(model, layers="b").attach(made, drop_frozen=True)
    held = [array for group in made.param_groups for array in group["params"]]
    assert {id(array) for array in held} == {id(array) for array in model["a"].parameters()}
    assert set(made.state) <= set(held)
    assert made.param_groups[0]["param_names"] == [f"a.{name}" for name, _ in model["a"].named_parameters()]
    twin = copy.deepcopy(model)
    other = freeze(twin, layers="b").optimizer(lambda parameters: OPTIMIZERS[optimizer](list(twin["a"].named_parameters(prefix="a"))))
    other.load_state_dict(copy.deepcopy(made.state_dict()))  # torch shares the arrays
    loop.run(2)
    again = Loop(twin, other)
    again.count = 2
    again.run(2)
    assert_equal(twin, weights(model))
    freeze(model).attach(made, drop_frozen=True)
    assert not made.state
    assert not made.param_groups[0]["params"]
    made.step()
    unfreeze(model, layers="b").attach(made)
    before = weights(model)
    loop.run(1)
    assert [torch.equal(*pair) for pair in zip(before, weights(model), strict=True)] == [True] * 6 + [False] * 6


def test_lbfgs_drops_too() -> None:
    model = towers()
    made = optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def step() -> None:
        def closure() -> torch.Tensor:
            made.zero_grad()
            loss = sum(loss_of(tower, 0) for tower in model.values())
            loss.backward()
            return loss

        made.step(closure)

    step()
    freeze(model, layers="b").attach(made, drop_frozen=True)
    before = weights(model)
    step()
    assert [torch.equal(*pair) for pair in zip(before, weights(model), strict=True)] == [False] * 6 + [True] * 6
    unfreeze(model).attach(made)
    step()
    assert not any(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))


# No decay for norms and biases.


def shrunk(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """What moves when every gradient is zero: what decays."""
    before = {name: array.detach().clone() for name, array in model.named_parameters()}
    for array in model.parameters():
        if array.requires_grad:
            array.grad = torch.zeros_like(array)
    optimizer.step()
    return {name for name, array in model.named_parameters() if not torch.equal(array.detach(), before[name])}


@pytest.fixture
def mixed() -> nn.Module:
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "ln": nn.LayerNorm(4), "rms": nn.RMSNorm(4), "lstm": nn.LSTM(4, 4), "head": nn.Linear(4, 2)}
    model = nn.ModuleDict(parts)
    with torch.no_grad():
        for array in model.parameters():
            array.add_(1)
    return model


def test_norms_and_biases_are_exempt_from_decay(mixed: nn.Module) -> None:
    make = partial(optim.AdamW, lr=0.1, weight_decay=0.1)
    freezing = freeze(mixed, layers="conv | bn")
    assert shrunk(mixed, freezing.optimizer(make)) == set(freezing.trainable)
    optimizer = freezing.optimizer(optim.AdamW, lr=0.1, weight_decay=0.1, no_decay=True)
    assert shrunk(mixed, optimizer) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"}
    scheduler = schedule.LambdaLR(optimizer, lambda epoch: 1.0)
    unfreeze(mixed).attach(optimizer, scheduler)
    assert shrunk(mixed, optimizer) == {"conv.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"}
    scheduler.step()
    assert len(scheduler.get_last_lr()) == len(optimizer.param_groups) == 4


def test_decay_as_a_function_picks_or_as_attach_is_told(mixed: nn.Module) -> None:
    def recurrent(parameter: Parameter) -> bool:
        return parameter.path.startswith("lstm")

    freezing = freeze(mixed, layers="conv")
    optimizer = freezing.optimizer(optim.SGD, lr=0.1, weight_decay=0.1, no_decay=recurrent)
    assert shrunk(mixed, optimizer) == {name for name in freezing.trainable if not name.startswith("lstm")}
    plain = freezing.optimizer(optim.SGD, lr=0.1, weight_decay=0.1)
    unfreeze(mixed).attach(plain, no_decay=True)
    assert "conv.bias" not in shrunk(mixed, plain)
    assert "conv.weight" in shrunk(mixed, plain)
    nothing_decays = freeze(mixed, layers=~kind("layer_norm")).optimizer(optim.AdamW, lr=0.1, no_decay=True)
    assert [len(group["params"]) for group in nothing_decays.param_groups] == [2]


# What is in no optimizer.


def test_check_tells_what_does_not_fit() -> None:
    model = towers()
    freezing = freeze(model, layers="b")
    optimizer = freezing.optimizer(optim.SGD, lr=0.1)
    freezing.check(optimizer)
    freezing = unfreeze(model)
    with pytest.raises(BackendError, match=r"(?s)b\.dense\.weight.*and 3 more are trainable and in no optimizer.*attach"):
        freezing.check(optimizer)
    with pytest.raises(BackendError, match="in no optimizer"):
        freezing.check()
    other = optim.Adam(model["b"].parameters())
    freezing.check(optimizer, other)
    freezing.attach(optimizer)
    with pytest.raises(BackendError, match="in more than one optimizer"):
        freezing.check(optimizer, other)
    model["b"].requires_grad_(False)
    loss_of(model["a"], 0).backward()
    freezing.check(optimizer)
    next(model["b"].parameters()).grad = torch.ones(6, 4)
    with pytest.raises(BackendError, match=r"b\.dense\.weight is frozen and ha"):
        freezing.check(optimizer)
    freezing.attach(optimizer)
    freezing.check(optimizer)
    with pytest.raises(BackendError, match="for another model, or for a copy"):
        freezing.check(optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))


def test_muon_takes_matrices_and_the_rest_is_reported() -> None:
    model = towers()
    freezing = freeze(model, layers="b")
    with pytest.raises(BackendError, match=r"(?s)matrices alone, and a\.dense\.bias.*none.*AdamW for the rest"):
        freezing.optimizer(optim.Muon, lr=0.1)
    muon = optim.Muon([array for array in model["a"].parameters() if array.ndim == 2], lr=0.01)
    rest = optim.AdamW([array for array in model["a"].parameters() if array.ndim != 2], lr=0.01)
    freezing = unfreeze(model)
    with pytest.warns(UnifreezeWarning, match=r"(?s)and in no optimizer.*Muon takes matrices alone"):
        freezing.attach(muon)
    freezing.attach(muon, others=rest)
    freezing.attach(rest, others=muon)
    freezing.check(muon, rest)
    assert {array.ndim for group in muon.param_groups for array in group["params"]} == {2}
    before = weights(model)
    sum(loss_of(tower, 0) for tower in model.values()).backward()
    muon.step()
    rest.step()
    assert not any(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))


# Wrong arguments say what to write.


def wrong() -> Iterator[tuple[str, Callable[[Any, Any, Any], Any], str]]:
    yield (
        "an instance",
        lambda f, o, s: f.optimizer(o),
        r"(?s)takes the class; this SGD is made already.*freezing\.optimizer\(torch\.optim\.SGD.*attach\(optimizer\)",
    )
    yield "a text", lambda f, o, s: f.optimizer("adamw"), r"(?s)adamw makes no optimizer.*torch\.optim\.AdamW"
    yield "a scheduler's class", lambda f, o, s: f.optimizer(schedule.StepLR, step_size=3), "StepLR makes no optimizer"
    yield "a model", lambda f, o, s: f.optimizer(nn.Linear(2, 2)), "Linear makes no optimizer"
    yield "an unknown no_decay", lambda f, o, s: f.optimizer(optim.AdamW, no_decay="bias"), r"(?s)no_decay='bias'.*True \(norms and biases\)"
    yield "no weight decay", lambda f, o, s: f.optimizer(optim.LBFGS, no_decay=True), "(?s)LBFGS has no weight decay.*Leave no_decay out"
    yield "a class to attach", lambda f, o, s: f.attach(optim.Adam), r"(?s)Adam is a class.*freezing\.optimizer\(torch\.optim\.Adam, lr"
    yield "a scheduler to attach", lambda f, o, s: f.attach(s), r"(?s)StepLR is not an optimizer; it has one.*attach\(optimizer, scheduler\)"
    yield "several optimizers", lambda f, o, s: f.attach([o, o]), r"(?s)one optimizer, not several.*others=\[other\]"
    yield "a model to attach", lambda f, o, s: f.attach(nn.Linear(2, 2)), "Linear is not a live optimizer"
    yield "an optimizer as scheduler", lambda f, o, s: f.attach(o, o), r"(?s)An optimizer \(SGD\) was given in the place of a scheduler.*others="
    yield "a scheduler's class as scheduler", lambda f, o, s: f.attach(o, schedule.StepLR), "StepLR is no live scheduler"
    yield "a number as scheduler", lambda f, o, s: f.attach(o, 3), "int is no live scheduler"
    yield "a scheduler as other", lambda f, o, s: f.attach(o, others=s), "StepLR is not an optimizer"
    yield "nothing to attach", lambda f, o, s: f.attach(None), "NoneType is not a live optimizer"
    yield "a class to check", lambda f, o, s: f.check(optim.Adam), "Adam is a class"


WRONG = list(wrong())


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_arguments_say_what_to_write_and_change_nothing(call: Callable[..., Any], message: str) -> None:
    model = towers()
    optimizer = freeze(model, layers="b").optimizer(optim.SGD, lr=0.1)
    scheduler = schedule.StepLR(optimizer, 2)
    freezing = unfreeze(model)
    gradient = next(model["b"].parameters()).grad = torch.ones(6, 4)
    with pytest.raises((ArgumentError, BackendError), match=message) as raised:
        call(freezing, optimizer, scheduler)
    assert isinstance(raised.value, ArgumentError) or "weight decay" in message
    assert len(optimizer.param_groups) == 1
    assert next(model["b"].parameters()).grad is gradient


def test_several_schedulers_drive_one_optimizer() -> None:
    model = towers()
    optimizer = freeze(model, layers="b").optimizer(optim.SGD, lr=0.1)
    schedulers = [schedule.LambdaLR(optimizer, lambda epoch: 0.9**epoch), schedule.ReduceLROnPlateau(optimizer, patience=0)]
    unfreeze(model).attach(optimizer, schedulers)
    optimizer.step()
    schedulers[0].step()
    schedulers[1].step(1.0)
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"]
