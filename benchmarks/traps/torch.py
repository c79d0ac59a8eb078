"""What the usual ways of freezing do in PyTorch, and what unifreeze does: ``python benchmarks/traps/torch.py``.

Every figure is measured in this run, on a small convolutional network trained for 100 steps on made data: how far what was "frozen" moved, relative to what it
was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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


def main() -> None:
    print(f"PyTorch {torch.__version__}: how far what was frozen moved\n")
    print("| what | frozen by | moved | with unifreeze |")
    print("|---|---|--:|--:|")
    for what, way, measure, naive, options in TRAPS:
        ours = measure(lambda model, part, options=options: freeze(model, layers=[part], **options))
        print(f"| {what} | {way} | {measure(naive):.1%} | {f'{ours:.1%}' if ours else 0} |")


if __name__ == "__main__":
    main()
