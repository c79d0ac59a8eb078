"""PyTorch: the conformance suite, and what only PyTorch has."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import unifreeze
from kits.torch import OPTIMIZERS, TorchKit, arrays, batch, named
from unifreeze import UnifreezeWarning, apply, freeze, layers, summary, unfreeze
from unifreeze.errors import BackendError, ConflictError, FrozenMovedError, NothingSelectedError, UnbuiltModelError, UntrainableError
from unifreeze.select import after, everything, first, kind, last
from unifreeze.testing import Conformance

KIT = TorchKit()


class TestConformance(Conformance):
    kit = TorchKit()


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {path: array.detach().clone() for path, array in arrays(model)}


def moved(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {path for path, array in arrays(model) if not torch.equal(array.detach().reshape(-1).view(torch.uint8), before[path].reshape(-1).view(torch.uint8))}


def backward(model: nn.Module, seed: int = 0) -> None:
    inputs, targets = batch(model, seed)
    nn.functional.cross_entropy(model(inputs), targets).backward()


# Nothing frozen moves.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("moment", ["before backward", "before step"])
def test_freezing_within_a_step(optimizer: str, moment: str) -> None:
    model = KIT.reference()
    trainer = KIT.trainer(model, optimizer)
    for _ in range(2):
        trainer.step()
    model.train()
    inputs, targets = batch(model, 5)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    if moment == "before step":
        loss.backward()
    trainer.follow(freeze(model, layers=first(4)))
    before = snapshot(model)
    if moment == "before backward":
        loss.backward()
    assert all(array.grad is None for path, array in model.named_parameters() if not array.requires_grad)
    for optimizer_ in trainer.optimizers:
        optimizer_.step(loss.detach)
    trainer.step()
    assert moved(before, model)
    assert all(path.startswith(("body.layer_", "body.bn", "head")) and "layer_1." not in path for path in moved(before, model))


def test_a_stale_gradient_reaches_neither_the_clipping_nor_the_weights() -> None:
    model = KIT.reference()
    backward(model)
    model.stem.conv.weight.grad.fill_(float("nan"))
    freeze(model, layers="stem")
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert torch.isfinite(norm)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(array.isfinite().all() for _, array in arrays(model))


def test_undo_restores_gradients() -> None:
    model = KIT.reference()
    backward(model)
    gradient = model.stem.conv.weight.grad
    kept = gradient.clone()
    freezing = freeze(model, layers="stem")
    assert model.stem.conv.weight.grad is None
    freezing.undo()
    assert model.stem.conv.weight.grad is gradient
    assert torch.equal(gradient, kept)


def test_a_stale_gradient_of_what_was_frozen_by_hand_is_dropped() -> None:
    model = KIT.reference()
    backward(model)
    model.stem.requires_grad_(False)
    assert model.stem.conv.weight.grad is not None
    assert freeze(model, layers="stem").changed == ()
    assert model.stem.conv.weight.grad is None


def test_an_average_of_the_weights_keeps_what_is_frozen() -> None:
    model = KIT.reference()
    freeze(model, layers="stem")
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    trainer = KIT.trainer(model, "adamw")
    before = snapshot(average.module)
    for _ in range(3):
        trainer.step()
        average.update_parameters(model)
    assert moved(before, average.module)
    assert not any(path.startswith("stem") for path in moved(before, average.module))


# Inference behaviour.


class Running(nn.Module):
    """Somebody's own normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.ones(6))
        self.register_buffer("running_var", torch.full((6,), 2.0))
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean(0), 0.1)
        return self.gain * (x - self.running_mean) / self.running_var.sqrt()


STATEFUL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (8, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (8, 6, 3, 3)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6), (8, 6, 2, 2, 2)),
    "BatchNorm without parameters": (lambda: nn.BatchNorm1d(6, affine=False), (8, 6)),
    "BatchNorm with cumulative averages": (lambda: nn.BatchNorm1d(6, momentum=None), (8, 6)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6, track_running_stats=True), (8, 6, 5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (8, 6, 3, 3)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), (8, 6)),
    "spectral norm of a convolution": (lambda: parametrizations.spectral_norm(nn.Conv2d(6, 6, 3)), (8, 6, 4, 4)),
    "spectral norm by hooks": (lambda: nn.utils.spectral_norm(nn.Linear(6, 6)), (8, 6)),
    "somebody's own": (Running, (8, 6)),
}
RANDOM: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Dropout": (lambda: nn.Dropout(0.5), (8, 6)),
    "Dropout2d": (lambda: nn.Dropout2d(0.5), (8, 6, 3, 3)),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.5), (8, 6)),
    "RReLU": (nn.RReLU, (8, 6)),
    "LSTM": (lambda: nn.LSTM(6, 6, num_layers=2, dropout=0.5), (4, 8, 6)),
    "weight norm of a GRU": (lambda: parametrizations.weight_norm(nn.GRU(6, 6, 2, dropout=0.5), "weight_hh_l0"), (4, 8, 6)),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5, batch_first=True), (2, 4, 6)),
}


def run(module: nn.Module, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    result = module(inputs)
    return (result[0] if isinstance(result, tuple) else result).detach().clone()


@pytest.mark.parametrize("name", STATEFUL)
def test_state_keeps_still_and_the_layer_computes_as_at_inference(name: str) -> None:
    make, shape = STATEFUL[name]
    model = nn.Sequential(make(), nn.Identity())
    twin = copy.deepcopy(model).eval()
    before = snapshot(model)
    freezing = freeze(model)
    assert freezing.held == ("0",)
    model.train()
    assert torch.equal(run(model, shape), run(twin, shape))
    assert not moved(before, model)
    assert set(model.state_dict()) == set(twin.state_dict())
    freezing.verify()
    freezing.undo()
    run(model, shape)
    assert moved(before, model)


@pytest.mark.parametrize("name", [*STATEFUL, *RANDOM])
@pytest.mark.parametrize("how", ["norm", "all"])
def test_all_is_deterministic_and_norm_leaves_randomness_on(name: str, how: Any) -> None:
    make, shape = (STATEFUL | RANDOM)[name]
    model = nn.Sequential(make(), nn.Identity())
    before = snapshot(model)
    freeze(model, inference=how) if any(True for _ in model.parameters()) or name in STATEFUL or how == "all" else None
    model.train()
    outputs = [run(model, shape) for _ in range(2)]
    assert torch.equal(*outputs) == (name in STATEFUL or how == "all")
    assert not moved(before, model)


def test_a_held_layer_reads_as_what_it_does_and_looks_as_it_was() -> None:
    model = KIT.reference().train()
    freeze(model, layers="stem")
    norm = model.stem.norm
    assert norm.training is False
    assert isinstance(norm, nn.BatchNorm2d)
    assert repr(norm) == repr(nn.BatchNorm2d(4))
    assert (type(norm).__name__, type(norm).__module__, type(norm).__qualname__) == ("BatchNorm2d", "torch.nn.modules.batchnorm", "BatchNorm2d")
    assert type(model.stem.conv) is nn.Conv2d, "only what keeps state is held"


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("verb", ["undo", "unfreeze"])
def test_a_released_layer_follows_its_parent(verb: str, asked: bool) -> None:
    model = KIT.reference().train()
    freezing = freeze(model, layers=first(2), inference="all")
    # As Lightning does round a validation: it notes the modes, evaluates, and sets every module's mode again.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for module, mode in modes.items():
        module.training = mode
    model.train(asked)
    freezing.undo() if verb == "undo" else unfreeze(model)
    assert {module.training for module in model.modules()} == {asked}
    assert type(model.stem.norm) is nn.BatchNorm2d


def test_modes_noted_by_lightning_do_not_stick() -> None:
    model = KIT.reference().train()
    for release in (unifreeze.Freezing.undo, lambda freezing: unfreeze(freezing.model)):
        freezing = freeze(model, layers="body", inference="all")
        modes = {module: module.training for module in model.modules()}
        model.eval()
        for module, mode in modes.items():
            module.training = mode
        release(freezing)
        assert all(module.training for module in model.modules())


def test_undo_keeps_the_mode_that_the_user_chose_for_one_layer() -> None:
    model = KIT.reference().train()
    model.stem.norm.eval()
    before = KIT.flags(model)
    freeze(model, layers="stem").undo()
    assert KIT.flags(model) == before
    assert not model.stem.norm.training
    freezing = freeze(model, layers="stem")
    unfreeze(model, layers="stem")
    assert model.stem.norm.training
    freezing.undo()
    assert KIT.flags(model)[1] == before[1]


def test_nested_ways_of_holding_unwind() -> None:
    model = KIT.reference().train()
    flags = KIT.flags(model)
    with freeze(model, layers="stem") as outer:
        within = KIT.flags(model)
        with freeze(model, layers="**.norm", inference="all"), unfreeze(model, layers="stem"), freeze(model, layers=last(2), inference="none"):
            assert model.stem.norm.training
        assert KIT.flags(model) == within
        assert outer.verify()
    assert KIT.flags(model) == flags


class Registered(nn.BatchNorm1d):
    """A class that wants to know its subclasses, and that has slots."""

    __slots__ = ("note",)
    known: list[type] = []

    def __init_subclass__(cls, *, label: str) -> None:
        cls.known.append(cls)


def test_classes_with_demands_of_their_own_can_be_held() -> None:
    model = nn.Sequential(nn.Linear(3, 6), Registered(6))
    freeze(model, layers="1")
    assert Registered.known == []
    before = snapshot(model)
    model.train()(torch.randn(4, 3))
    assert not moved(before, model)
    assert pickle.loads(pickle.dumps(model))[1].training is False


def test_parametrizations_come_and_go_while_held() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    freeze(model)
    weight = model.train()[0].weight.detach().clone()
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(model[0].weight, weight)
    nn.utils.parametrize.register_parametrization(model[1], "bias", nn.Tanh())
    assert not model[1].training
    before = snapshot(model)
    model(torch.randn(5, 4))
    assert not moved(before, model)
    unfreeze(model)
    assert model[1].training
    nn.utils.parametrize.remove_parametrizations(model[1], "bias")
    assert [type(module).__name__ for module in model] == ["Linear", "BatchNorm1d"]


def test_a_copy_of_a_parametrized_layer_stays_held_when_the_original_is_released() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)))
    freezing = freeze(model)
    twin = copy.deepcopy(model).train()
    freezing.undo()
    before, twins = snapshot(model), snapshot(twin)
    for one in (model.train(), twin):
        one(torch.randn(5, 4))
    assert moved(before, model)
    assert not moved(twins, twin)


def test_the_state_of_a_copy_is_read_from_the_copy() -> None:
    model = KIT.reference()
    freezing = freeze(model, layers=["stem", last(1)], inference="all")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {layer.path for layer in layers(twin) if layer.inference == "all"} == {"stem.conv", "stem.norm", "head"}
        unfreeze(twin)
        assert twin.stem.norm.training
        assert not model.stem.norm.training
        assert freezing.verify()


# Compilers and tracers.


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Net(nn.Sequential):
    """``module.compile`` passes over torch's own classes, so this one is ours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x)
        return x


def compiled(model: nn.Module, how: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if how == "torch.compile":
        return torch.compile(model, fullgraph=True, backend="eager")
    model.compile(fullgraph=True, backend="eager")
    return model


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
@pytest.mark.parametrize("part", ["1", "2", "3"])
@pytest.mark.parametrize("run_first", [True, False])
def test_a_compiled_model_obeys(how: str, part: str, run_first: bool) -> None:
    model = Net(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), parametrizations.spectral_norm(nn.Linear(6, 6))).train()
    call = compiled(model, how)
    inputs = torch.randn(8, 6)
    if run_first:
        call(inputs)
    freezing = freeze(model, layers=part, inference="all")
    before = snapshot(model)
    torch.manual_seed(0)
    one = call(inputs)
    torch.manual_seed(1)
    other = call(inputs)
    assert torch.allclose(one, other, atol=0.01) == (part == "2")
    assert not any(path.startswith(part) for path in moved(before, model))
    freezing.undo()
    call(inputs)
    assert part == "2" or any(path.startswith(part) for path in moved(before, model))


@pytest.mark.usefixtures("dynamo")
def test_a_compiled_model_trains_what_is_trainable_now() -> None:
    model = KIT.reference()
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for frozen in ("stem", "body", "head", "stem"):
        with freeze(model, layers=frozen):
            before = snapshot(model)
            optimizer.zero_grad()
            inputs, targets = batch(model, 0)
            nn.functional.cross_entropy(call(inputs), targets).backward()
            optimizer.step()
            tops = {path.partition(".")[0] for path in moved(before, model)}
            assert tops == {"stem", "body", "head"} - {frozen}


@pytest.mark.usefixtures("dynamo")
def test_wrapping_does_not_change_paths() -> None:
    model = KIT.reference()
    frozen = freeze(model, layers="stem.*").frozen
    wrapped = torch.compile(model, backend="eager")
    assert [layer.path for layer in layers(wrapped)] == [layer.path for layer in layers(model)]
    assert freeze(wrapped, layers="stem.*").frozen == frozen
    model.stem = torch.compile(model.stem, backend="eager")
    assert freeze(model, layers="stem").frozen == frozen
    assert freeze(model, layers=[model.stem]).frozen == frozen
    assert freeze(nn.DataParallel(model), layers="stem").changed == ()
    model.train()
    before = snapshot(model)
    wrapped(batch(KIT.reference(), 0)[0])
    assert not any("norm" in path for path in moved(before, model))


@pytest.mark.usefixtures("dynamo")
def test_more_states_than_graphs_are_announced() -> None:
    model = torch.compile(KIT.reference(), backend="eager")
    # Not monkeypatch, which leaves an entry of torch's configuration hidden when it undoes.
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(3):
            freeze(model, layers="stem").undo()
            freeze(model, layers="head").undo()
        with pytest.warns(UnifreezeWarning, match="recompile_limit = 4"):
            freeze(model, layers="body")


def test_export_and_fx_see_a_held_layer_as_at_inference() -> None:
    model = KIT.reference().train()
    freezing = freeze(model, inference="all")
    inputs = batch(model, 0)[0]
    expected = KIT.reference().eval()(inputs)
    for strict in (True, False):
        program = torch.export.export(model, (inputs,), strict=strict).module()
        torch.testing.assert_close(program(inputs), expected)
    traced = torch.fx.symbolic_trace(model)
    assert {str(node.target) for node in traced.graph.nodes if node.op == "call_module"} >= {"stem.norm", "body.drop"}
    torch.testing.assert_close(traced(inputs), expected)
    freezing.verify()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_loudly_both_ways() -> None:
    model = KIT.reference()
    scripted = torch.jit.script(model)
    with pytest.raises(BackendError, match=r"(?s)TorchScript.*torch.jit.script"):
        freeze(scripted, layers="stem")
    assert all(array.requires_grad for array in scripted.parameters())
    freeze(scripted, layers="stem", inference="none")
    assert not scripted.stem.conv.weight.requires_grad
    freeze(model, layers="stem")
    with pytest.raises(Exception, match="."):
        torch.jit.script(model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_obey(reentrant: bool) -> None:
    model = KIT.reference().train()
    freeze(model, layers="stem")
    before = snapshot(model)
    inputs, targets = batch(model, 0)
    hidden = torch.utils.checkpoint.checkpoint(model.stem, inputs.requires_grad_(), use_reentrant=reentrant)
    rest = model[1:]
    nn.functional.cross_entropy(rest(hidden), targets).backward()
    assert not any(path.startswith("stem") for path in moved(before, model))
    assert model.head.weight.grad is not None


# The optimizer.


def test_an_optimizer_over_exactly_what_is_trainable() -> None:
    model = KIT.tied()
    freezing = freeze(model, layers="mid")
    optimizer = freezing.optimizer(torch.optim.AdamW, lr=0.1)
    assert [id(array) for array in optimizer.param_groups[0]["params"]] == [id(model.embed.weight)]
    freezing = freeze(model)
    with pytest.raises(BackendError, match=r"(?s)nothing to optimize.*unfreeze"):
        freezing.optimizer(torch.optim.SGD, lr=0.1)


def test_attach_adds_by_identity_and_once() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    for layer in model:
        nn.init.zeros_(layer.bias)  # equal values are no reason to take two parameters for one
    optimizer = freeze(model, layers=~last(1)).optimizer(torch.optim.Adam, lr=0.1)
    freezing = unfreeze(model, layers="1")
    assert freezing.attach(optimizer) is optimizer
    freezing.attach(optimizer)
    unfreeze(model).attach(optimizer)
    assert [[id(array) for array in group["params"]] for group in optimizer.param_groups] == [[id(p) for p in model[i].parameters()] for i in (2, 1, 0)]
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adagrad])
def test_growing_equals_adding_a_group_by_hand(cls: Any) -> None:
    ends = []
    for ours in (True, False):
        model = KIT.reference()
        freezing = freeze(model, layers=["stem", "head"])
        trainer = KIT.trainer(model, "sgd")
        trainer.optimizers = [freezing.optimizer(cls, lr=0.01)]
        for _ in range(3):
            trainer.step()
        freezing = unfreeze(model, layers="head")
        if ours:
            freezing.attach(trainer.optimizers[0])
        else:
            trainer.optimizers[0].add_param_group({"params": list(model.head.parameters())})
        for _ in range(3):
            trainer.step()
        ends.append(snapshot(model))
    assert not [path for path in ends[0] if not torch.equal(ends[0][path], ends[1][path])]


schedule = torch.optim.lr_scheduler
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda optimizer: schedule.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda optimizer: schedule.MultiplicativeLR(optimizer, lambda epoch: 0.9),
    "StepLR": lambda optimizer: schedule.StepLR(optimizer, 2),
    "ExponentialLR": lambda optimizer: schedule.ExponentialLR(optimizer, 0.9),
    "LinearLR": schedule.LinearLR,
    "CosineAnnealingLR": lambda optimizer: schedule.CosineAnnealingLR(optimizer, 10),
    "CosineAnnealingWarmRestarts": lambda optimizer: schedule.CosineAnnealingWarmRestarts(optimizer, 4),
    "OneCycleLR": lambda optimizer: schedule.OneCycleLR(optimizer, 0.1, total_steps=20),
    "CyclicLR": lambda optimizer: schedule.CyclicLR(optimizer, 0.01, 0.1),
    "PolynomialLR": lambda optimizer: schedule.PolynomialLR(optimizer, 20),
    "SequentialLR": lambda optimizer: schedule.SequentialLR(optimizer, [schedule.ConstantLR(optimizer), schedule.LambdaLR(optimizer, lambda epoch: 0.5)], [5]),
    "ChainedScheduler": lambda optimizer: schedule.ChainedScheduler([schedule.ExponentialLR(optimizer, 0.9), schedule.ConstantLR(optimizer)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_new_group_falls_in_with_the_schedule(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = freeze(model, layers="0").optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
    scheduler = SCHEDULES[name](optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    unfreeze(model).attach(optimizer, scheduler)
    for _ in range(6):
        assert optimizer.param_groups[1]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert len(scheduler.get_last_lr()) == 2
    scheduler.load_state_dict(scheduler.state_dict())


def test_a_new_group_learns_of_a_plateau() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = freeze(model, layers="0").optimizer(torch.optim.SGD, lr=0.1)
    scheduler = schedule.ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.01])
    unfreeze(model).attach(optimizer, scheduler)
    for _ in range(3):
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.01])


def test_a_named_optimizer_stays_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(model, layers="0")
    optimizer = torch.optim.SGD(model[1].named_parameters(prefix="1"), lr=0.1)
    unfreeze(model).attach(optimizer)
    assert optimizer.param_groups[1]["param_names"] == ["0.weight", "0.bias"]


def test_two_optimizers_of_one_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    freezing = freeze(model, layers="0")
    one, other = torch.optim.SGD(model[1].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters())
    freezing = unfreeze(model)
    freezing.attach(one, others=[other])
    assert {id(array) for group in one.param_groups for array in group["params"]} == {id(p) for p in (*model[0].parameters(), *model[1].parameters())}


def test_attach_refuses_what_is_not_the_models() -> None:
    model = KIT.reference()
    freezing = freeze(model, layers="stem")
    foreign = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with pytest.raises(BackendError, match=r"(?s)no parameter of this Sequential.*copy"):
        freezing.attach(foreign)
    own = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with pytest.raises(BackendError, match="another optimizer"):
        freezing.attach(own, schedule.StepLR(foreign, 2))
    assert len(own.param_groups) == 1
    assert len(foreign.param_groups) == 1


def test_lbfgs_forgets_directions_that_would_move_what_is_frozen() -> None:
    def run_(*, attached: bool) -> set[str]:
        model = KIT.reference()
        trainer = KIT.trainer(model, "lbfgs")
        for _ in range(3):
            trainer.step()
        freezing = freeze(model, layers="stem")
        if attached:
            trainer.follow(freezing)
        before = snapshot(model)
        trainer.step()
        return {path for path in moved(before, model) if path.startswith("stem")}

    assert run_(attached=True) == set()
    assert run_(attached=False), "LBFGS no longer needs attach: simplify"
    model = KIT.reference()
    trainer = KIT.trainer(model, "sgd")
    trainer.optimizers, trainer.habit = [freeze(model, layers="head").optimizer(torch.optim.LBFGS, lr=0.01, max_iter=2)], "lbfgs"
    trainer.step()
    trainer.follow(unfreeze(model))
    before = snapshot(model)
    trainer.step()
    assert "head.weight" in moved(before, model)


# The tree.


def test_kinds() -> None:
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    class BatchNormAct2d(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(4)
            self.act = nn.ReLU()

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(2, 6)

    class FrozenBatchNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(2))

    class DropPath(nn.Module):
        pass

    expected: list[tuple[nn.Module, str]] = [
        (nn.Linear(2, 2), "dense"),
        (nn.Conv1d(4, 4, 1), "conv"),
        (nn.Conv2d(4, 4, 1, groups=2), "conv"),
        (nn.Conv2d(4, 8, 1, groups=4), "depthwise_conv"),
        (nn.Conv3d(1, 1, 1), "conv"),
        (nn.ConvTranspose2d(4, 4, 1), "conv_transpose"),
        (nn.Embedding(2, 2), "embedding"),
        (nn.EmbeddingBag(2, 2), "embedding"),
        (nn.BatchNorm1d(2), "batch_norm"),
        (nn.SyncBatchNorm(2), "batch_norm"),
        (BatchNormAct2d(), "batch_norm"),
        (FrozenBatchNorm2d(), "batch_norm"),
        (nn.LayerNorm(2), "layer_norm"),
        (nn.GroupNorm(1, 2), "group_norm"),
        (nn.InstanceNorm2d(2, track_running_stats=True), "instance_norm"),
        (nn.RMSNorm(2), "rms_norm"),
        (LlamaRMSNorm(), "rms_norm"),
        (nn.MultiheadAttention(4, 2), "attention"),
        (SelfAttention(), "attention"),
        (nn.LSTM(2, 2), "recurrent"),
        (nn.GRUCell(2, 2), "recurrent"),
        (nn.Dropout2d(), "dropout"),
        (DropPath(), "dropout"),
        (nn.GELU(), "activation"),
        (nn.PReLU(), "activation"),
        (nn.MaxPool2d(2), "pooling"),
        (nn.AdaptiveAvgPool1d(2), "pooling"),
        (nn.Sequential(), "container"),
        (nn.ModuleDict({"a": nn.Linear(1, 1)}), "container"),
        (nn.Flatten(), "other"),
        (nn.ParameterList([torch.ones(2)]), "other"),
    ]
    model = nn.Sequential(*(module for module, _ in expected))
    seen = {row.path: row.kind for row in summary(model).rows}
    assert [seen[str(place)] for place in range(len(expected))] == [word for _, word in expected]


def test_roles_of_a_recurrent_and_an_attention_layer() -> None:
    roles = {p.path: p.role for layer in layers(named(rnn=nn.LSTM(2, 2), mha=nn.MultiheadAttention(4, 2))) for p in layer.parameters}
    assert roles == {
        "rnn.weight_ih_l0": "kernel",
        "rnn.weight_hh_l0": "recurrent_kernel",
        "rnn.bias_ih_l0": "bias",
        "rnn.bias_hh_l0": "bias",
        "mha.in_proj_weight": "kernel",
        "mha.in_proj_bias": "bias",
        "mha.out_proj.weight": "kernel",
        "mha.out_proj.bias": "bias",
    }


def test_a_parametrized_layer_is_one_layer() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    conv, dense, _ = layers(model)
    assert (conv.type, conv.kind, dense.type) == ("Conv2d", "conv", "Linear")
    assert {p.path: p.role for p in conv.parameters} == {"0.bias": "bias", "0.parametrizations.weight.original": "kernel"}
    assert [p.role for p in dense.parameters] == ["bias", "kernel", "kernel"]
    freezing = freeze(model, layers=first(1))
    assert set(freezing.frozen) == {"0.bias", "0.parametrizations.weight.original"}
    assert set(freezing.frozen) <= {path for path, _ in model.named_parameters()}
    assert [b.path for b in conv.buffers] == ["0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v"]


def test_shared_modules_stand_at_both_paths() -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model = named(one=block, two=nn.Linear(3, 3), three=block)
    assert [layer.path for layer in layers(model)] == ["one.0", "one.1", "two", "three.0", "three.1"]
    freezing = freeze(model, layers="three")
    assert freezing.frozen == ("one.0.weight", "one.0.bias", "one.1.weight", "one.1.bias")
    assert freezing.held == ("one.1", "three.1")
    assert summary(model).totals.frozen == 18
    freezing.undo()
    assert type(block[1]) is nn.BatchNorm1d
    assert [layer.path for layer in layers(model, block)] == ["one.0", "one.1", "three.0", "three.1"]
    assert [layer.path for layer in layers(model, first(2))] == ["one.0", "one.1", "three.0", "three.1"]


def test_tied_weights_of_a_language_model() -> None:
    model = named(wte=nn.Embedding(50, 8), wpe=nn.Embedding(16, 8), h=nn.ModuleList([nn.Linear(8, 8) for _ in range(2)]), lm_head=nn.Linear(8, 50, bias=False))
    model.lm_head.weight = model.wte.weight
    before = KIT.flags(model)
    for selector in (~last(1), everything - "wte", ~kind("embedding")):
        with pytest.raises(ConflictError, match=r"(?s)wte\.weight.*lm_head\.weight|lm_head\.weight.*wte\.weight"):
            freeze(model, layers=selector)
    assert KIT.flags(model) == before
    assert freeze(model, layers="lm_head").frozen == ("wte.weight",)
    assert not model.wte.weight.requires_grad
    assert summary(model).totals.parameters == sum(p.numel() for p in model.parameters())


def test_what_has_no_gradient_is_left_alone_and_said() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    freeze(model)
    with pytest.warns(UnifreezeWarning, match=r"0\.weight \(int8 has no gradient\)"):
        freezing = unfreeze(model)
    assert freezing.skipped == {"0.weight": "int8 has no gradient"}
    assert freezing.frozen == ("0.weight",)
    with pytest.raises(UntrainableError, match="int8"):
        unfreeze(model, params="0.weight")
    assert summary(model).totals.bytes_by_dtype == {"int8": 4, "float32": 32}


def test_lazy_modules_are_refused_with_the_repair() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(2)))
    for verb in (lambda: freeze(model, layers=first(1)), lambda: summary(model)):
        with pytest.raises(UnbuiltModelError, match=r"(?s)at '1\.[01]'.*forward pass"):
            verb()
    assert model[0].weight.requires_grad
    model(torch.randn(4, 3))
    assert len(freeze(model, layers=first(1)).frozen) == 2


def test_the_meta_device_has_shapes_and_no_values() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4096, 4096), nn.BatchNorm1d(4096))
    freezing = freeze(model, layers="0")
    assert summary(model).totals.frozen == 4096 * 4097
    assert all(array.is_meta for _, array in arrays(model))
    with pytest.raises(BackendError, match="not known"):
        freezing.verify()
    model.to_empty(device="cpu")
    assert not model[0].weight.requires_grad


class Knot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.none = None
        self.register_module("absent", None)
        self.register_parameter("missing", None)
        self.register_buffer("nothing", None)


def test_a_module_that_holds_its_ancestor_ends() -> None:
    knot = Knot()
    knot.inner.up = knot
    model = nn.Sequential(knot, nn.Linear(2, 2))
    assert [layer.path for layer in layers(model)] == ["0.inner", "1"]
    assert freeze(model, layers="0").frozen == ("0.inner.weight", "0.inner.bias")


def test_depth_is_no_matter() -> None:
    model: nn.Module = nn.Linear(1, 1)
    for _ in range(3000):
        model = nn.Sequential(model)
    freezing = freeze(model, inference="all")
    assert len(freezing.frozen) == 2
    freezing.undo()


def test_reading_has_no_effect() -> None:
    model = KIT.reference().train()
    model.stem.norm.eval()
    before, values, random = KIT.flags(model), snapshot(model), torch.random.get_rng_state()
    summary(model)
    layers(model, kind("dense"))
    assert KIT.flags(model) == before
    assert not moved(values, model)
    assert torch.equal(random, torch.random.get_rng_state())


def test_selecting_by_class_and_by_objects() -> None:
    model = KIT.reference()
    assert [layer.path for layer in layers(model, nn.modules.batchnorm._BatchNorm)] == ["stem.norm", "body.bn"]
    assert [layer.path for layer in layers(model, [model.body.bn, model.head])] == ["body.bn", "head"]
    assert freeze(model, params=[model.head.bias]).frozen == ("head.bias",)
    with pytest.raises(NothingSelectedError, match="another model"):
        freeze(model, layers=copy.deepcopy(model).head)


# Errors change nothing.


def test_inference_tensors_are_refused() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
        model.requires_grad_(False)
    model[1], model[2] = nn.BatchNorm1d(2), nn.Linear(2, 2)
    freeze(model, layers="1")
    before = KIT.flags(model)
    with pytest.raises(BackendError, match=r"(?s)0\.weight.*inference_mode"):
        unfreeze(model)
    assert KIT.flags(model) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_error_halfway_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), torch.jit.script(nn.BatchNorm1d(2)), nn.Linear(2, 2)).train()
    model[0](torch.randn(3, 2)).sum().backward()
    before = KIT.flags(model)
    with pytest.raises(BackendError, match="TorchScript"):
        freeze(model, layers=first(2))
    assert KIT.flags(model) == before


# Proof.


def test_verify_finds_what_torch_users_do() -> None:
    model = KIT.reference()
    freezing = freeze(model, layers="stem")
    model.stem.conv.weight.requires_grad_(True)
    with pytest.raises(FrozenMovedError, match=r"stem\.conv\.weight: is trainable again"):
        freezing.verify()
    model.stem.conv.weight.requires_grad_(False)
    freezing.verify()
    model.stem.conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(FrozenMovedError, match=r"stem\.conv\.weight"):
        freezing.verify()


def test_a_conversion_to_sync_batch_norm_is_found() -> None:
    model = KIT.reference()
    freezing = freeze(model, layers="stem")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.stem.norm.running_mean.add_(1)  # as one training step would
    with pytest.raises(FrozenMovedError, match=r"stem\.norm\.running_mean"):
        freezing.verify()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("size", [1, 7, 40_003, 300_001])
def test_a_fingerprint_sees_every_bit(dtype: torch.dtype, size: int) -> None:
    fingerprint = unifreeze._manager.backend_of(nn.Linear(1, 1)).fingerprint
    array = torch.randint(0, 2, (size,)).to(dtype)
    octets = array.view(torch.uint8)
    before = fingerprint(array)
    assert fingerprint(array.clone()) == before
    for place in {0, octets.numel() // 2, octets.numel() - 1}:
        for bit in range(8):
            octets[place] ^= 1 << bit
            assert fingerprint(array) != before, (place, bit)
            octets[place] ^= 1 << bit
    assert fingerprint(array) == before


def test_a_fingerprint_is_of_the_values_and_not_of_their_layout() -> None:
    fingerprint = unifreeze._manager.backend_of(nn.Linear(1, 1)).fingerprint
    image = torch.randn(16, 8, 32, 32)
    assert fingerprint(image) == fingerprint(image.to(memory_format=torch.channels_last)) == fingerprint(nn.Parameter(image))
    assert fingerprint(image) != fingerprint(image.flip(0))
    wide = torch.randn(200_000, dtype=torch.float64)
    flipped = wide.clone()
    flipped[[3, 4 + 32 * 632 // 2, 5]] *= -1
    flipped[7] *= -1
    assert len({fingerprint(wide), fingerprint(-wide), fingerprint(flipped)}) == 3
    long = torch.randn(1 << 20)
    assert len({fingerprint(long.roll(1 << power)) for power in range(20)}) == 20
    odd = torch.randn(100_001).bfloat16()[1:]
    assert fingerprint(odd) == fingerprint(odd.clone())
    sparse = torch.eye(4).to_sparse()
    assert fingerprint(sparse) == fingerprint(sparse.clone()) != fingerprint((2 * torch.eye(4)).to_sparse())
    zeros = torch.zeros(3)
    assert fingerprint(zeros) != fingerprint(-zeros)


# More than one process.


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not torch.distributed.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group') / 'meeting'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("inner", [True, False])
def test_ddp_is_not_asked_for_what_it_cannot_do(inner: bool) -> None:
    model = KIT.reference()
    freeze(model, layers="stem")
    wrapper = nn.parallel.DistributedDataParallel(model)
    given = wrapper if not inner else named(net=wrapper)
    stem, head = ("net.stem", "net.head") if inner else ("stem", "head")
    before = KIT.flags(model)
    with pytest.raises(BackendError, match=r"(?s)drift apart.*stem\.conv\.weight.*wrap it again"):
        unfreeze(given, layers=stem)
    with pytest.raises(BackendError, match=r"(?s)never come.*head\.weight.*find_unused_parameters"):
        freeze(given, layers=head)
    assert KIT.flags(model) == before
    assert freeze(given, layers=stem).changed == ()


@pytest.mark.usefixtures("group")
def test_ddp_that_expects_it_freezes_and_unfreezes() -> None:
    model = nn.parallel.DistributedDataParallel(KIT.reference(), find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step() -> set[str]:
        before = snapshot(model.module)
        optimizer.zero_grad(set_to_none=False)
        inputs, targets = batch(model.module, 0)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        return {path.partition(".")[0] for path in moved(before, model.module)}

    assert step() == {"stem", "body", "head"}
    freezing = freeze(model, layers=["stem", "head"])
    assert step() == {"body"}
    unfreeze(model, layers="head")
    assert step() == {"body", "head"}
    freezing.undo()
    assert step() == {"stem", "body", "head"}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("order", ["freeze, shard", "shard, freeze"])
def test_fsdp2_in_both_orders(order: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = KIT.reference()
    mesh = init_device_mesh("cpu", (1,))
    freezing = None
    if order == "freeze, shard":
        freezing = freeze(model, layers="stem")
    for part in (model.stem.norm, model.body, model):
        fully_shard(part, mesh=mesh)
    if order == "shard, freeze":
        freezing = freeze(model, layers="stem")
    before = {path: value.full_tensor().clone() if hasattr(value, "full_tensor") else value.clone() for path, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step() -> set[str]:
        model.train()
        optimizer.zero_grad()
        inputs, targets = batch(model, 0)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        now = {path: value.full_tensor() if hasattr(value, "full_tensor") else value for path, value in model.state_dict().items()}
        return {path.partition(".")[0] for path in now if not torch.equal(now[path], before[path])}

    assert step() == {"body", "head"}
    if order == "shard, freeze":
        freezing.verify()
    unfreeze(model, layers="stem")
    assert model.stem.norm.training
    assert step() == {"stem", "body", "head"}


# Real models.


@pytest.fixture(scope="module")
def torchvision() -> Any:
    pytest.importorskip("PIL")
    import torchvision_cpu  # noqa: F401

    return pytest.importorskip("torchvision")


def test_resnet18(torchvision: Any) -> None:
    model = torchvision.models.resnet18(weights=None).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 2])).backward()
        optimizer.step()

    step()
    flags = KIT.flags(model)
    freezing = freeze(model, layers="conv1 | bn1 | layer1 | layer2.0")
    assert len(freezing.layers) == 16
    before = snapshot(model)
    step()
    changed = moved(before, model)
    assert not [path for path in changed if path.startswith(("conv1", "bn1", "layer1", "layer2.0"))]
    assert {path for path, _ in arrays(model) if path.startswith(("layer2.1", "layer3", "layer4", "fc"))} == changed
    assert len(freezing.verify().arrays) == len(before) - len(changed)
    totals = summary(model).totals
    assert totals.parameters == 11_689_512
    assert totals.buffers == sum(b.numel() for b in model.buffers())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freezing.undo()
    assert [one[:5] for one in KIT.flags(model)[0]] == [one[:5] for one in flags[0]]


def test_googlenet_and_a_recipe(torchvision: Any) -> None:
    model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
    freezing = freeze(model, layers=first(2))
    assert freezing.layers == ("conv1.conv", "conv1.bn")
    assert freezing.held == ("conv1.bn",)
    freezing = apply(model, {"steps": [{"freeze": "before:inception4a", "inference": "all"}, {"unfreeze": "kind:batch_norm"}]})
    assert {p.partition(".")[0] for p in freezing.frozen} == {"conv1", "conv2", "conv3", "inception3a", "inception3b"}
    assert not any(".bn." in path for path in freezing.frozen)
    assert not {layer.path for layer in layers(model, after("inception3b"))} & set(freezing.held)
    model.train()
    before = snapshot(model)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all("bn" in path for path in moved(before, model))
    assert {path for path, p in model.named_parameters() if p.grad is not None} == set(freezing.trainable)
