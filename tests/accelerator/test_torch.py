"""PyTorch on a GPU: the conformance suite, and fingerprints taken on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.benchmark
from torch import nn

from kits.torch import TorchKit, arrays, batch
from unifreeze import freeze, guard
from unifreeze._backends.torch.fingerprint import fingerprint
from unifreeze.errors import FrozenMovedError
from unifreeze.testing import Conformance

DEVICE = "cuda"
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]


class OnDevice(TorchKit):
    """The kit for PyTorch, with every model on the GPU."""

    def reference(self) -> nn.Module:
        return super().reference().to(DEVICE)

    def question(self) -> nn.Module:
        return super().question().to(DEVICE)

    def tied(self) -> nn.Module:
        return super().tied().to(DEVICE)

    def chain(self, length: int) -> nn.Module:
        return super().chain(length).to(DEVICE)


class TestConformance(Conformance):
    kit = OnDevice()


def made(dtype: torch.dtype, size: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    octets = torch.randint(0, 2 if dtype is torch.bool else 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=draw)
    return octets.view(dtype)


@pytest.mark.parametrize("size", [3, 70_003, 5_000_011])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_device_tells_what_the_host_tells(dtype: torch.dtype, size: int) -> None:
    here = made(dtype, size)
    there = here.to(DEVICE)
    assert fingerprint(there) == fingerprint(here)
    there.view(torch.uint8)[size // 2] ^= 1
    assert fingerprint(there) != fingerprint(here)
    assert fingerprint(there.cpu()) == fingerprint(there)


def test_views_that_begin_anywhere() -> None:
    here = made(torch.uint8, 300_001)
    there = here.to(DEVICE)
    for start in (1, 2, 3, 4, 5):
        assert fingerprint(there[start:]) == fingerprint(here[start:])
    square = made(torch.float32, 250_000).view(500, 500)
    assert fingerprint(square.to(DEVICE).T) == fingerprint(square.T)


def test_a_digest_and_a_proof_survive_the_way_to_the_device_and_back() -> None:
    model = TorchKit().reference()
    freezing = freeze(model, layers="stem")
    digest = str(freezing.digest())
    for device in (DEVICE, "cpu", DEVICE):
        model.to(device)
        assert str(freezing.digest()) == digest
        freezing.verify()
    with torch.no_grad():
        model.stem.conv.weight[0, 0, 0, 0].add_(1)
    with pytest.raises(FrozenMovedError, match="stem.conv.weight"):
        freezing.verify()


def test_folding_leaves_the_values_and_takes_little_memory() -> None:
    tensor = torch.randn(256 << 20, device=DEVICE)
    before = tensor.clone()
    fingerprint(tensor)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    fingerprint(tensor)
    assert torch.cuda.max_memory_allocated() - held < 20 << 20
    assert torch.equal(tensor, before)


def test_a_fingerprint_is_cheaper_than_a_copy_to_the_host() -> None:
    tensor = torch.randn(64 << 20, device=DEVICE)
    measured = lambda call: torch.utils.benchmark.Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.5).median  # noqa: E731
    assert measured(lambda: fingerprint(tensor)) < measured(tensor.cpu)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    inputs, targets = batch(model, seed)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


def mixed(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Mixed precision as everyone writes it, with a scaled loss and unscaled, clipped gradients."""
    scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0)
    optimizer.zero_grad()
    inputs, targets = batch(model, seed)
    with torch.autocast(DEVICE, torch.float16):
        loss = nn.functional.cross_entropy(model(inputs), targets)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()


LOOPS: dict[str, Callable[[nn.Module, torch.optim.Optimizer, int], None]] = {"plain": plain, "mixed precision": mixed}
OPTIMIZERS: dict[str, dict[str, Any]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "capturable": {"capturable": True}}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("loop", LOOPS)
def test_late_freezing_holds(loop: str, kind: str) -> None:
    model = OnDevice().reference().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, **OPTIMIZERS[kind])
    for seed in range(3):
        LOOPS[loop](model, optimizer, seed)
    freeze(model, layers=["stem", "body.bn"])
    moved = moved_by(model, lambda: [LOOPS[loop](model, optimizer, seed) for seed in range(3, 8)])
    assert moved
    assert not any(path.startswith(("stem", "body.bn")) for path in moved)
    assert any(path.startswith("head") for path in moved)


def test_a_compiled_model_stays_frozen_and_agrees_with_one_that_is_not() -> None:
    model = OnDevice().reference()
    model.body.drop.p = 0.0
    freeze(model, layers=["stem", "body.bn"])
    other = copy.deepcopy(model)
    compiled = torch.compile(model)
    for run in (compiled, other):
        optimizer = torch.optim.SGD([array for array in run.parameters() if array.requires_grad], lr=0.01)
        run.train()
        bare = getattr(run, "_orig_mod", run)
        before = {path: array.detach().clone() for path, array in arrays(bare)}
        for seed in range(3):
            optimizer.zero_grad()
            inputs, targets = batch(bare, seed)
            nn.functional.cross_entropy(run(inputs), targets).backward()
            optimizer.step()
        assert all(torch.equal(array, before[path]) for path, array in arrays(bare) if path.startswith(("stem", "body.bn")))
    for (path, one), (_, two) in zip(arrays(model), arrays(other), strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-4), path


def test_a_captured_step_is_replayed_without_moving_what_is_frozen() -> None:
    """A CUDA graph repeats what was recorded: what was frozen then stays so."""
    model = OnDevice().reference().train()
    model.body.drop.p = 0.0
    freeze(model, layers="stem")
    optimizer = torch.optim.AdamW([array for array in model.parameters() if array.requires_grad], lr=0.05, weight_decay=0.1, capturable=True)
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for seed in range(3):
            plain(model, optimizer, seed)
    torch.cuda.current_stream().wait_stream(aside)
    inputs, targets = batch(model, 0)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    moved = moved_by(model, lambda: [graph.replay() for _ in range(3)])
    assert "head.weight" in moved
    assert not any(path.startswith("stem") for path in moved)


def test_a_guard_sees_one_bit_on_the_device() -> None:
    model = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 2)).to(DEVICE)
    freeze(model, layers="0")
    with pytest.raises(FrozenMovedError, match="0.weight"), guard(model):
        model[0].weight.data.view(torch.int32)[7, 9] ^= 1


def moved_by(model: nn.Module, run: Callable[[], object]) -> set[str]:
    before = {path: array.detach().clone() for path, array in arrays(model)}
    run()
    torch.cuda.synchronize()
    return {path for path, array in arrays(model) if not torch.equal(array.detach(), before[path])}
