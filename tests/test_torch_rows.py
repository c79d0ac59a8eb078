"""PyTorch: freezing some rows of a parameter. What is compared are bytes; the loops are written by hand."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from unifreeze import apply, freeze, summary, unfreeze
from unifreeze._backends.torch import rows as implementation
from unifreeze.errors import BackendError, FrozenMovedError, SelectorError, UntrainableError

OLD = 6
MAKERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.01),
    "muon": lambda p: torch.optim.Muon([one for one in p if one.ndim == 2], lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


class Language(nn.Module):
    """An embedding, something between, and a head; the head may be tied."""

    def __init__(self, tied: bool = False, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, sparse=sparse)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.mid(self.embed(tokens)).tanh())


def language(**options: bool) -> Language:
    torch.manual_seed(0)
    return Language(**options)


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    tokens = torch.randint(0, 10, (2, 40), generator=torch.Generator().manual_seed(seed))
    return nn.functional.cross_entropy(model(tokens[0]), tokens[1])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, *, to_none: bool = True) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=to_none)
        loss = loss_of(model, seed)
        loss.backward()
        return loss

    closure()
    optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()


def octets(array: torch.Tensor) -> bytes:
    return array.detach().contiguous().view(torch.uint8).numpy().tobytes()


# Nothing frozen moves.


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("when", ["made by the freezing", "attached in mid-training", "never told"])
@pytest.mark.parametrize("to_none", [True, False], ids=["none", "zeros"])
def test_frozen_rows_keep_every_bit_and_the_others_train(name: str, when: str, to_none: bool) -> None:
    model = language()
    optimizer = MAKERS[name](list(model.parameters()))
    if when != "made by the freezing":
        for seed in range(3):
            step(model, optimizer, seed, to_none=to_none)
    freezing = freeze(model, layers="embed", rows=slice(0, OLD))
    if when == "attached in mid-training":
        rest = [torch.optim.SGD([p for p in model.parameters() if p.ndim != 2], lr=0.1)] if name == "muon" else []
        assert freezing.attach(optimizer, others=rest) is optimizer
    elif when == "made by the freezing":
        optimizer = freezing.optimizer(lambda parameters: MAKERS[name](list(parameters)))
    before = model.embed.weight.detach().clone()
    for seed in range(10, 30):
        step(model, optimizer, seed, to_none=to_none)
    assert octets(model.embed.weight[:OLD]) == octets(before[:OLD])
    assert (model.embed.weight[OLD:] != before[OLD:]).any(1).all()
    freezing.verify()


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_a_gradient_mask_alone_lets_them_move(name: str) -> None:
    model = language()
    optimizer = MAKERS[name](list(model.parameters()))
    model.embed.weight.register_hook(lambda gradient: gradient * (torch.arange(10) >= OLD)[:, None])
    before = model.embed.weight.detach().clone()
    for seed in range(20):
        step(model, optimizer, seed)
    assert not torch.equal(model.embed.weight[:OLD], before[:OLD])


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_the_trajectory_equals_a_loop_that_puts_the_rows_back(name: str) -> None:
    ours, theirs = language(), language()
    freezing = freeze(ours, layers="embed", rows=slice(0, OLD))
    optimizer = freezing.optimizer(lambda parameters: MAKERS[name](list(parameters)))
    other = MAKERS[name](list(theirs.parameters()))
    kept = theirs.embed.weight.detach()[:OLD].clone()
    for seed in range(10):
        step(ours, optimizer, seed)
        other.zero_grad()
        loss_of(theirs, seed).backward()
        theirs.embed.weight.grad[:OLD] = 0
        other.step()
        theirs.embed.weight.data[:OLD] = kept
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("given", [[0, 2, -1], range(1, 9, 3), torch.tensor([3, 7]), slice(-4, None), list(range(0, 10, 2))])
def test_any_rows(given: Any) -> None:
    model = language()
    freezing = freeze(model, layers="embed", rows=given)
    frozen = sorted({index % 10 for index in (range(10)[given] if isinstance(given, slice) else [int(index) for index in given])})
    optimizer, before = MAKERS["adamw"](list(model.parameters())), model.embed.weight.detach().clone()
    for seed in range(5):
        step(model, optimizer, seed)
    moved = (model.embed.weight != before).any(1).nonzero()[:, 0].tolist()
    assert moved == [index for index in range(10) if index not in frozen]
    assert len(freezing.rows["embed.weight"]) == len(frozen)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SparseAdam(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)])
def test_sparse_gradients(make: Any) -> None:
    model = language(sparse=True)
    freeze(model, layers="embed", rows=slice(0, OLD))
    before, optimizer = model.embed.weight.detach().clone(), make([model.embed.weight])
    for seed in range(5):
        step(model, optimizer, seed)
        assert model.embed.weight.grad.is_sparse
        assert not model.embed.weight.grad.to_dense()[:OLD].any()
    assert octets(model.embed.weight[:OLD]) == octets(before[:OLD])
    assert (model.embed.weight[OLD:] != before[OLD:]).any(1).all()


def test_bits_that_arithmetic_would_change() -> None:
    model = language()
    odd = torch.tensor([-0.0, 1e-45, float("nan"), float("inf")])
    odd.view(torch.int32)[2] += 7
    model.embed.weight.data[0] = odd
    freeze(model, layers="embed", rows=[0])
    before, optimizer = octets(model.embed.weight[0]), MAKERS["adamw"](list(model.parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        model.embed(torch.arange(10)).nan_to_num(0, 0, 0).sum().backward()
        optimizer.step()
    assert octets(model.embed.weight[0]) == before


def test_their_gradient_reaches_no_norm() -> None:
    model = language()
    loss_of(model, 0).backward()
    model.embed.weight.grad[0] = float("nan")
    stale = model.embed.weight.grad
    freezing = freeze(model, layers="embed", rows=slice(0, OLD))
    assert not model.embed.weight.grad[:OLD].any()
    assert model.embed.weight.grad[OLD:].any()
    freezing.undo()
    assert model.embed.weight.grad is stale
    freeze(model, layers="embed", rows=slice(0, OLD))
    for seed in range(2):  # accumulating
        loss_of(model, seed).backward()
    assert not model.embed.weight.grad[:OLD].any()
    assert torch.isfinite(nn.utils.clip_grad_norm_(model.parameters(), 1.0))


@pytest.mark.parametrize("first", [True, False], ids=["compiled first", "frozen first"])
def test_a_compiled_step(first: bool) -> None:
    torch.compiler.reset()
    model = language()
    optimizer = MAKERS["adamw"](list(model.parameters()))
    forward, advance = torch.compile(model, backend="aot_eager"), torch.compile(optimizer.step, backend="aot_eager")

    def train() -> set[int]:
        before = model.embed.weight.detach().clone()
        for seed in range(3):
            optimizer.zero_grad()
            loss_of(forward, seed).backward()
            advance()
        return set((model.embed.weight != before).any(1).nonzero()[:, 0].tolist())

    if first:
        assert train() == set(range(10))
    freezing = freeze(model, layers="embed", rows=slice(0, OLD))
    assert train() == set(range(OLD, 10))
    freezing.undo()
    assert train() == set(range(10))
    torch.compiler.reset()


# It lasts, and goes.


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def average(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model).module


@pytest.mark.parametrize("way", [copy.deepcopy, pickled, saved, average])
@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_keeps_its_rows_and_is_independent(way: Callable[[nn.Module], nn.Module], tied: bool) -> None:
    model = language(tied=tied)
    freezing = freeze(model, layers="embed", rows=slice(0, OLD))
    twin = way(model)
    freezing.undo()
    assert not any(row.frozen_rows for row in summary(model).rows)
    assert twin.state_dict().keys() == language(tied=tied).state_dict().keys()
    before = twin.embed.weight.detach().clone()
    assert (twin.head.weight is twin.embed.weight) == tied
    optimizer = MAKERS["adamw"](list(twin.parameters()))
    for seed in range(3):
        step(twin, optimizer, seed)
        assert not twin.embed.weight.grad[:OLD].any()
    assert octets(twin.embed.weight[:OLD]) == octets(before[:OLD])
    assert (twin.embed.weight[OLD:] != before[OLD:]).any()
    assert not unfreeze(twin, layers="embed").rows
    step(twin, optimizer, 4)
    assert not torch.equal(twin.embed.weight[:OLD], before[:OLD])


def test_undo_leaves_nothing_behind() -> None:
    model = language()
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    with freeze(model, layers="embed", rows=[0]):
        with freeze(model, layers="embed", rows=[1]), freeze(model, layers="embed"):
            assert not model.embed.weight.requires_grad
        assert implementation.frozen_rows()[id(model.embed.weight)].spans == ((0, 1),)
        more = freeze(model, layers="embed")
        unfreeze(model, layers="embed", rows=slice(3, None))
        more.undo()
        assert implementation.frozen_rows()[id(model.embed.weight)].spans == ((0, 1),)
        before, optimizer = model.embed.weight.detach().clone(), MAKERS["adamw"](list(model.parameters()))
        step(model, optimizer, 0)
        assert (model.embed.weight != before).any(1).tolist() == [False] + [True] * 9
        assert not model.embed.weight.grad[0].any()
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert not model.embed.weight._post_accumulate_grad_hooks
    assert model.embed.weight.requires_grad


def test_frozen_whole_but_for_new_rows() -> None:
    model = language()
    freeze(model)
    freezing = unfreeze(model, layers="embed", rows=slice(OLD, None))
    assert freezing.trainable == ("embed.weight",)
    optimizer, before = freezing.optimizer(torch.optim.AdamW, lr=0.1), copy.deepcopy(model.state_dict())
    step(model, optimizer, 0)
    assert octets(model.embed.weight[:OLD]) == octets(before["embed.weight"][:OLD])
    assert (model.embed.weight[OLD:] != before["embed.weight"][OLD:]).any()
    assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items() if path != "embed.weight")
    assert not apply(model, {"steps": [{"freeze": "head"}]}).rows


def test_values_may_be_loaded_and_moved_to_another_type() -> None:
    model = language()
    freeze(model, layers="embed", rows=slice(0, OLD))
    other = Language()
    model.load_state_dict(other.state_dict())
    model.double()
    optimizer = MAKERS["momentum"](list(model.parameters()))
    for seed in range(3):
        step(model, optimizer, seed)
    assert torch.equal(model.embed.weight[:OLD].float(), other.embed.weight[:OLD])
    assert not torch.equal(model.embed.weight[OLD:].float(), other.embed.weight[OLD:])


def test_a_model_that_is_gone_is_forgotten() -> None:
    gc.collect()
    known = len(implementation._guards)
    model = language()
    freezing = freeze(model, layers="embed", rows=[0])
    assert len(implementation._guards) == known + 1
    del freezing, model
    gc.collect()
    assert len(implementation._guards) == known


# Sharing.


def test_tied_rows() -> None:
    model = language(tied=True)
    freezing = freeze(model, layers="head", rows=slice(0, OLD))
    assert set(freezing.rows) == {"embed.weight"}
    assert [row.path for row in summary(model).rows if row.frozen_rows] == ["embed", "head"]
    assert summary(model).totals.frozen == OLD * 4
    optimizer, before = MAKERS["adamw"](list(model.parameters())), model.embed.weight.detach().clone()
    for seed in range(3):
        step(model, optimizer, seed)
    assert octets(model.head.weight[:OLD]) == octets(before[:OLD])
    alone = copy.deepcopy(model.head)
    assert summary(alone).totals.frozen == OLD * 4
    assert not unfreeze(model, layers="embed").rows
    assert not model.head.weight._post_accumulate_grad_hooks


def test_a_module_that_is_tied_later_knows() -> None:
    model = language()
    freezing = freeze(model, layers="embed", rows=slice(0, OLD))
    model.head.weight = model.embed.weight
    assert [row.path for row in summary(model).rows if row.frozen_rows] == ["embed", "head"]
    freeze(model, layers="mid")
    freezing.undo()
    assert summary(model).totals.frozen == 4 * 4 + 4


def test_a_tied_gpt2_keeps_its_old_tokens() -> None:
    """As people add tokens: the vocabulary has grown, and the same matrix is embedding and head."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.ModuleDict({"wte": nn.Embedding(20, 8), "wpe": nn.Embedding(5, 8), "h": block, "lm_head": nn.Linear(8, 20, bias=False)})
    model["lm_head"].weight = model["wte"].weight
    freeze(model)
    freezing = unfreeze(model, layers="wte", rows=slice(18, None))
    optimizer = freezing.optimizer(torch.optim.AdamW, lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(model.state_dict())
    for seed in range(5):
        tokens = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(seed))
        hidden = model["h"](model["wte"](tokens) + model["wpe"](torch.arange(5)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model["lm_head"](hidden).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    now = model.state_dict()
    assert [path for path in now if not torch.equal(now[path], before[path])] == ["wte.weight", "lm_head.weight"]
    assert (now["wte.weight"] != before["wte.weight"]).any(1).nonzero()[:, 0].tolist() == [18, 19]


def test_a_parametrized_weight() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 10))
    freezing = freeze(model, layers="0", params="original1", rows=[0, 5])
    assert list(freezing.rows) == ["0.parametrizations.weight.original1"]
    array = model[0].parametrizations.weight.original1
    before, optimizer = array.detach().clone(), MAKERS["adamw"](list(model.parameters()))
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert (array != before).any(1).tolist() == [False, True, True, True, True, False]
    twin = copy.deepcopy(model)
    assert summary(twin).totals.frozen == 8
    freezing.undo()
    assert summary(model).totals.frozen == 0


# Where it can't hold, it says so.


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_sharded_parameter_is_refused_in_both_orders() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    sharded = fully_shard(language(), mesh=mesh)
    with pytest.raises(BackendError, match=r"(?s)Rows of a DTensor can't be frozen.*Freeze the parameter whole"):
        freeze(sharded, layers="embed", rows=[0])
    assert not summary(sharded).totals.frozen

    for copied in (False, True):
        model = language()
        freeze(model, layers="embed", rows=[0])
        model = fully_shard(copy.deepcopy(model) if copied else model, mesh=mesh)
        optimizer = MAKERS["adamw"](list(model.parameters()))
        before = model.embed.weight.full_tensor().clone()
        loss_of(model, 0).backward()
        with pytest.raises(BackendError, match=r"(?s)Rows 0:1 of the weight of a .*Embedding are frozen, but.*replaced since: sharded.*unfreeze the layer"):
            optimizer.step()
        assert torch.equal(model.embed.weight.full_tensor(), before)
        unfreeze(model, layers="embed")
        optimizer.step()
        assert not torch.equal(model.embed.weight.full_tensor(), before)


def test_a_parameter_that_was_replaced_is_not_trained_unawares() -> None:
    model = language()
    freezing = freeze(model, layers="embed", rows=[0])
    model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(FrozenMovedError, match=r"embed.weight: rows 0:1 are trainable again; was the parameter replaced"):
        freezing.verify()
    optimizer = MAKERS["adamw"](list(model.parameters()))
    with pytest.raises(BackendError, match="has been replaced since"):
        step(model, optimizer, 0)
    freeze(model, layers="embed", rows=[0])
    before = model.embed.weight.detach().clone()
    step(model, optimizer, 0)
    assert (model.embed.weight != before).any(1).tolist() == [False] + [True] * 9


def test_quantised_parameters_and_other_misfits_are_refused() -> None:
    model = language()
    model.mid.codes = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UntrainableError, match=r"(?s)mid.codes can't be trained.*int8"):
        freeze(model, layers="mid", rows=[0])
    with pytest.raises(SelectorError, match=r"(?s)past the end of mid.weight.*it has 4 rows.*Narrow"):
        freeze(model, layers=["embed", "mid"], params="weight", rows=slice(0, OLD))
    assert summary(model).totals.frozen == 4
    assert not model.embed.weight._post_accumulate_grad_hooks


def test_verify_finds_what_goes_round_the_optimizer() -> None:
    model = language()
    freezing = freeze(model, layers="embed", rows=slice(0, OLD))
    with torch.no_grad():
        model.embed.weight[OLD:] += 1
    freezing.verify()
    with torch.no_grad():
        model.embed.weight[0] += 1
    with pytest.raises(FrozenMovedError, match=r"embed.weight: rows 0:6 moved"):
        freezing.verify()
