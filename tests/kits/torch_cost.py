"""The same training twice, frozen by unifreeze and by the best loop we can write by hand, for benchmarks/cost.py and tests/test_torch_cost.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torchvision_cpu  # noqa: F401 - torchvision needs it beside a CPU-only torch
from unifreeze import freeze

PARTS: dict[str, dict[str, list[str]]] = {
    "ResNet-18": {
        "prefix": ["conv1", "bn1", "layer1", "layer2"],
        "middle": ["layer2", "layer3"],
        "suffix": ["layer3", "layer4", "fc"],
    },
    "transformer": {
        "prefix": ["embed", "layers.0", "layers.1"],
        "middle": ["layers.1", "layers.2"],
        "suffix": ["layers.2", "layers.3", "head"],
    },
}
CASES = [(name, part) for name in PARTS for part in PARTS[name]]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 128)
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, batch_first=True) for _ in range(4)))
        self.head = nn.Linear(128, 500)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(tokens))).flatten(0, 1)


def network(name: str) -> nn.Module:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18(num_classes=10) if name == "ResNet-18" else Transformer()


def batch(name: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    if name == "ResNet-18":
        return torch.randn(size, 3, 64, 64, generator=draw), torch.randint(0, 10, (size,), generator=draw)
    tokens = torch.randint(0, 500, (size, 64), generator=draw)
    return tokens, tokens.roll(1, 1).flatten()


@dataclass
class Run:
    """A model, its optimizer, and what a step of its loop does."""

    model: nn.Module
    frozen: list[nn.Module]
    optimizer: torch.optim.Optimizer
    data: tuple[torch.Tensor, torch.Tensor]
    prepare: Callable[[], Any]

    def loss(self) -> torch.Tensor:
        self.prepare()
        inputs, targets = self.data
        return nn.functional.cross_entropy(self.model(inputs), targets)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def by_hand(name: str, part: str, size: int) -> Run:
    """Flags off, the optimizer over the rest, and the frozen normalisation layers, found once, put in eval mode after every ``train()``."""
    model = network(name)
    frozen = [model.get_submodule(path) for path in PARTS[name][part]]
    for module in frozen:
        module.requires_grad_(False)
    norms = [norm for module in frozen for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]

    def prepare() -> None:
        model.train()
        for norm in norms:
            norm.eval()

    return Run(model, frozen, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3), batch(name, size), prepare)


def by_unifreeze(name: str, part: str, size: int) -> Run:
    model = network(name)
    freezing = freeze(model, layers=PARTS[name][part])
    frozen = [model.get_submodule(path) for path in PARTS[name][part]]
    return Run(model, frozen, freezing.optimizer(torch.optim.AdamW, lr=1e-3), batch(name, size), model.train)


def state_bytes(run: Run) -> tuple[int, int]:
    """Bytes of the optimizer's state for what is frozen, and for the rest."""
    frozen = {id(array) for module in run.frozen for array in module.parameters()}
    sizes = {True: 0, False: 0}
    for array, state in run.optimizer.state.items():
        sizes[id(array) in frozen] += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    return sizes[True], sizes[False]


def peak(run: Run) -> int:
    """The most bytes that one step holds at once above what it began with: every allocation and release that torch's profiler saw, added up in order.

    It does not see the release of what was there before, so the old gradients go first.
    """
    run.model.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run.step()
    now = most = 0
    for event in sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
