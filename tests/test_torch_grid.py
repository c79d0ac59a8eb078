"""PyTorch: nothing frozen moves. Every optimizer × every habit of clearing gradients × every moment of freezing, fifty real steps in each cell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kits.torch import arrays, drawn, named
from unifreeze import Freezing, freeze

Optimizers = list[torch.optim.Optimizer]
optim = torch.optim


def muon(parameters: list[nn.Parameter]) -> Optimizers:
    """Muon for matrices and AdamW for the rest, as everyone uses it."""
    return [
        optim.Muon([p for p in parameters if p.ndim == 2], lr=0.01),
        optim.AdamW([p for p in parameters if p.ndim != 2], lr=0.01, weight_decay=0.1),
    ]


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizers]] = {
    "SGD": lambda parameters: [optim.SGD(parameters, lr=0.01, weight_decay=0.1)],
    "momentum": lambda parameters: [optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1)],
    "Adam": lambda parameters: [optim.Adam(parameters, lr=0.01)],
    "AdamW": lambda parameters: [optim.AdamW(parameters, lr=0.01, weight_decay=0.1)],
    "NAdam": lambda parameters: [optim.NAdam(parameters, lr=0.01)],
    "RMSprop": lambda parameters: [optim.RMSprop(parameters, lr=0.001, momentum=0.9)],
    "Adagrad": lambda parameters: [optim.Adagrad(parameters, lr=0.01)],
    "Muon": muon,
    "LBFGS": lambda parameters: [optim.LBFGS(parameters, lr=0.01, max_iter=2)],
}
HABITS = ("zero_grad()", "zero_grad(set_to_none=False)", "only trainable gradients")
MOMENTS = ("from the start", "mid-training", "between backward and step")


class Loop:
    """A training loop over all parameters of the model, which knows nothing of unifreeze."""

    def __init__(self, model: nn.Module, optimizers: Optimizers, habit: str) -> None:
        self.model, self.optimizers, self.habit, self.count = model.train(), optimizers, habit, 0

    def clear(self) -> None:
        if self.habit == "only trainable gradients":
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = None
        else:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none="False" not in self.habit)

    def backward(self) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0 if isinstance(self.optimizers[0], optim.LBFGS) else self.count)  # which is made for one batch
        self.clear()
        loss = nn.functional.cross_entropy(self.model(torch.randn(8, 3, 6, 6, generator=draw)), torch.randint(0, 3, (8,), generator=draw))
        loss.backward()
        return loss.detach()

    def step(self, between: Callable[[], object] = lambda: None) -> None:
        """One step; ``between`` comes after the gradients and before the optimizer."""
        self.count += 1
        loss = self.backward()
        between()
        gradients_stand = iter([True])
        for optimizer in self.optimizers:
            if isinstance(optimizer, optim.LBFGS):  # evaluates again within the step; the first time, the gradients are there
                optimizer.step(lambda: loss if next(gradients_stand, False) else self.backward())
            else:
                optimizer.step()


def network() -> nn.Module:
    torch.manual_seed(0)
    stem = named(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), dense=nn.Linear(4, 6))
    rest = named(dense=nn.Linear(6, 6, bias=False), norm=nn.BatchNorm1d(6), drop=nn.Dropout(0.1), head=nn.Linear(6, 3))
    return drawn(named(stem=stem, rest=rest))


def octets(model: nn.Module) -> dict[str, bytes]:
    return {path: array.detach().contiguous().numpy().tobytes() for path, array in arrays(model)}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_frozen_moves_in_fifty_steps(optimizer: str, habit: str, moment: str) -> None:
    model = network()
    loop = Loop(model, OPTIMIZERS[optimizer](list(model.parameters())), habit)
    before: dict[str, bytes] = {}

    def now() -> Freezing:
        before.update(octets(model))
        freezing = freeze(model, layers="stem")
        if optimizer == "LBFGS":  # the one that moves even what has no gradient
            freezing.attach(loop.optimizers[0])
        return freezing

    if moment == "from the start":
        now()
    for _ in range(3 if moment != "from the start" else 0):
        loop.step()
    if moment == "mid-training":
        now()
    for step in range(50):
        loop.step(now if step == 0 and moment == "between backward and step" else lambda: None)
    after = octets(model)
    assert {path for path in after if after[path] != before[path]} == {path for path in after if path.startswith("rest")}
    assert all(array.isfinite().all() for _, array in arrays(model))
