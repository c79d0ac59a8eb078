"""What the usual ways of freezing do in PyTorch, and what unifreeze does: ``python benchmarks/traps/torch.py``.

Every figure is measured in this run, on a small convolutional network trained on made data, for 100 steps (the grid: 50): how far what was "frozen" moved,
relative to what it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]  # this file is named torch, too

import torch
from torch import nn

from unifreeze import freeze

Freeze = Callable[[nn.Module, nn.Module], Any]  # of the model, a part of it


def network() -> nn.Sequential:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 64, 16))
    return nn.Sequential(backbone, nn.Linear(16, 4))


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(16, 3, 8, 8, generator=draw) + 0.5, torch.randint(0, 4, (16,), generator=draw)
    return nn.functional.cross_entropy(model(images), labels)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, clear: str = "none") -> None:
    """The usual loop. ``clear`` is what becomes of old gradients: ``none``, ``zeros``, or ``trainable`` for a loop that clears only those."""
    model.train()
    for step in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(lambda step=step: closure(model, optimizer, step))
            continue
        for parameter in model.parameters():
            if clear != "trainable" or parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if clear == "zeros" and parameter.grad is not None else None
        loss_of(model, step).backward()
        optimizer.step()


def closure(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> torch.Tensor:
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    return [array.detach().clone().double() for array in (*module.parameters(), *module.buffers())]


def distance(before: list[torch.Tensor], module: nn.Module) -> float:
    """The largest relative change among the arrays."""
    return max(float((new - old).norm() / old.norm().clamp_min(1e-12)) for old, new in zip(before, snapshot(module), strict=True) if old.numel() > 1)


def by_hand(_: nn.Module, part: nn.Module) -> None:
    part.requires_grad_(False)


def statistics(freezing: Freeze) -> float:
    model = network()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 5)
    freezing(model, model[0])
    before = snapshot(model[0])
    train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 100)
    return distance(before, model[0])


def output(freezing: Freeze) -> float:
    model, images = network(), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 5)
    freezing(model, model[0])
    before = model.eval()[0](images).detach()
    train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 100)
    return float((model.eval()[0](images).detach() - before).norm() / before.norm())


def twice(freezing: Freeze) -> float:
    model, images = network(), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    freezing(model, model[0])
    model.train()
    first, again = (model[0](images).detach() for _ in range(2))
    return float((first - again).norm() / first.norm())


def middle(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], clear: str) -> Callable[..., float]:
    """Freezes in mid-training, with a live optimizer."""

    def measure(freezing: Freeze) -> float:
        model = network()
        chosen = [p for p in model.parameters() if p.ndim == 2] if make is muon else list(model.parameters())
        optimizer = make(chosen)
        train(model, optimizer, 20, clear=clear)
        made = freezing(model, model[0])
        if make is lbfgs and made is not None:
            made.attach(optimizer)
        before = [p.detach().clone() for p in model[0].parameters()]
        train(model, optimizer, 100 if make is not lbfgs else 5, clear=clear)
        return max(float((p.detach() - old).norm() / old.norm()) for p, old in zip(model[0].parameters(), before, strict=True))

    return measure


def muon(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(parameters, lr=0.01)


def lbfgs(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)


def momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def spectral(freezing: Freeze) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(64, 64)), nn.Linear(64, 4))
    freezing(model, model[0])
    before = snapshot(model[0])
    for _ in range(100):
        model.train()(torch.randn(8, 64))
    return distance(before, model[0])


def in_eval_mode(model: nn.Module, part: nn.Module) -> None:
    """The usual second try: the part is put in eval mode, and ``model.train()`` of the next epoch takes it back."""
    by_hand(model, part)
    part.eval()


NAIVE = "`requires_grad_(False)`"
TRAPS: list[tuple[str, str, Callable[..., float], Freeze, dict[str, str]]] = [
    ("BatchNorm statistics", NAIVE, statistics, by_hand, {}),
    ("BatchNorm statistics", f"{NAIVE}, `.eval()`, then `model.train()`", statistics, in_eval_mode, {}),
    ("output of the frozen backbone in eval mode", NAIVE, output, by_hand, {}),
    ("two passes through a frozen dropout", NAIVE, twice, by_hand, {"inference": "all"}),
    ("weights: SGD with momentum, zeroed gradients", f"{NAIVE} in mid-training", middle(momentum, "zeros"), by_hand, {}),
    ("weights: AdamW, zeroed gradients", f"{NAIVE} in mid-training", middle(adamw, "zeros"), by_hand, {}),
    ("weights: Muon, zeroed gradients", f"{NAIVE} in mid-training", middle(muon, "zeros"), by_hand, {}),
    ("weights: SGD, stale gradients", f"{NAIVE} in mid-training", middle(sgd, "trainable"), by_hand, {}),
    ("weights: LBFGS, 5 steps", f"{NAIVE} in mid-training", middle(lbfgs, "none"), by_hand, {}),
    ("spectral norm's vectors (by hooks)", NAIVE, spectral, by_hand, {}),
]


# The grid: each optimizer, each habit of clearing gradients, each moment of freezing.

Make = Callable[[list[nn.Parameter]], list[torch.optim.Optimizer]]


def one(cls: Any, **options: Any) -> Make:
    return lambda parameters: [cls(parameters, **options)]


def muon_and_adamw(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=0.01), torch.optim.AdamW([p for p in parameters if p.ndim != 2], lr=0.01)]


OPTIMIZERS: dict[str, Make] = {
    "SGD": one(torch.optim.SGD, lr=0.05),
    "SGD with momentum": one(torch.optim.SGD, lr=0.05, momentum=0.9),
    "Adam": one(torch.optim.Adam, lr=0.01),
    "AdamW": one(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "NAdam": one(torch.optim.NAdam, lr=0.01),
    "RMSprop": one(torch.optim.RMSprop, lr=0.001, momentum=0.9),
    "Adagrad": one(torch.optim.Adagrad, lr=0.01),
    "Muon (and AdamW)": muon_and_adamw,
    "LBFGS": one(torch.optim.LBFGS, lr=0.1, max_iter=4),
}
HABITS = {"none": "`zero_grad()`", "zeros": "`set_to_none=False`", "trainable": "only trainable cleared"}
MOMENTS = ("at the start", "mid-training", "before `step()`")


def step(model: nn.Module, optimizers: list[torch.optim.Optimizer], clear: str, seed: int, between: Callable[[], object] = lambda: None) -> None:
    if isinstance(optimizers[0], torch.optim.LBFGS):
        seed = 0  # is made for one and the same batch

    def backward() -> torch.Tensor:
        for parameter in model.parameters():
            if clear != "trainable" or parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if clear == "zeros" and parameter.grad is not None else None
        loss = loss_of(model, seed)
        loss.backward()
        return loss.detach()

    loss, gradients_stand = backward(), iter([True])
    between()
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(lambda: loss if next(gradients_stand, False) else backward())
        else:
            optimizer.step()


def cell(make: Make, clear: str, moment: str, freezing: Freeze) -> tuple[float, float]:
    """How far the frozen weights moved in 50 steps, and how far the frozen statistics did."""
    model = network().train()
    optimizers = make(list(model.parameters()))
    before: list[list[torch.Tensor]] = []

    def now() -> None:
        before.extend([arrays.detach().clone() for arrays in kept] for kept in (model[0].parameters(), model[0].buffers()))
        made = freezing(model, model[0])
        if made is not None and isinstance(optimizers[0], torch.optim.LBFGS):
            made.attach(optimizers[0])

    if moment == "at the start":
        now()
    else:
        for seed in range(10):
            step(model, optimizers, clear, seed)
    if moment == "mid-training":
        now()
    for seed in range(10, 60):
        step(model, optimizers, clear, seed, now if seed == 10 and moment == MOMENTS[2] else lambda: None)
    return tuple(
        max(
            0.0 if torch.equal(old, new) else float((new.detach() - old).double().norm() / old.double().norm().clamp_min(1e-12))
            for old, new in zip(*both, strict=True)
        )
        for both in zip(before, (model[0].parameters(), model[0].buffers()), strict=True)
    )


def grid() -> None:
    print("\nHow far frozen weights moved in 50 steps, by optimizer, by how the loop clears gradients, and by the moment of `requires_grad_(False)`\n")
    print(f"| | {' | '.join(f'{habit}, {moment}' for habit in HABITS.values() for moment in MOMENTS)} |")
    print(f"|---|{'--:|' * len(HABITS) * len(MOMENTS)}")
    naive, ours = [], []
    for name, make in OPTIMIZERS.items():
        places = [(clear, moment) for clear in HABITS for moment in MOMENTS]
        row = [cell(make, *place, by_hand) for place in places]
        ours += [cell(make, *place, lambda model, part: freeze(model, layers=[part])) for place in places]
        naive += row
        print(f"| {name} | {' | '.join('NaN' if isnan(weights) else f'{weights:.1%}' if weights else '0' for weights, _ in row)} |")
    moved = sum(any(figures) for figures in ours)
    still = sum(not weights for weights, _ in naive)
    print(f"\nWith `requires_grad_(False)` the weights kept still in {still} of {len(naive)} cells, and BatchNorm's statistics in ", end="")
    print(f"{sum(not statistics for _, statistics in naive)}. With unifreeze a bit of the weights or of the statistics moved in {moved} of {len(ours)}.")


def main() -> None:
    print(f"PyTorch {torch.__version__}: how far what was frozen moved\n")
    print("| what | frozen by | moved | with unifreeze |")
    print("|---|---|--:|--:|")
    for what, way, measure, naive, options in TRAPS:
        ours = measure(lambda model, part, options=options: freeze(model, layers=[part], **options))
        print(f"| {what} | {way} | {measure(naive):.1%} | {f'{ours:.1%}' if ours else 0} |")
    grid()


if __name__ == "__main__":
    main()
