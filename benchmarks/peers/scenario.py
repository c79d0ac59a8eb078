"""One scenario for every library: a backbone with both kinds of BatchNorm, frozen for two epochs, then unfrozen for two. Made data, 20 batches an epoch.

Nothing here knows any of the libraries. Arrays are compared by name, through ``state_dict``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import TensorDataset

RATE, DECAY, SIZE, EPOCH = 1e-2, 1e-2, 16, 20
NORMS = ("bn2d", "bn1d")
Arrays = dict[str, torch.Tensor]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn2d = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.fc, self.bn1d = nn.Linear(8 * 16, 16), nn.BatchNorm1d(16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bn1d(self.fc(self.pool(self.bn2d(self.conv(images)).relu()).flatten(1))).relu()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


def network() -> Network:
    """As if trained before: its norms have scales, biases and statistics of their own."""
    torch.manual_seed(0)
    model = Network()
    for norm in (model.backbone.bn2d, model.backbone.bn1d):
        for array in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            array.data.uniform_(0.5, 1.5)
    return model


def data() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(SIZE * EPOCH, 3, 8, 8, generator=draw) + 0.5, torch.randint(0, 4, (SIZE * EPOCH,), generator=draw))


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, *, to_none: bool = True) -> None:
    """The usual loop, for libraries that leave it to the user."""
    images, labels = data().tensors
    model.train()
    for place in range(0, len(images), SIZE):
        optimizer.zero_grad(set_to_none=to_none)
        nn.functional.cross_entropy(model(images[place : place + SIZE]), labels[place : place + SIZE]).backward()
        optimizer.step()


def adamw(parameters: object) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)


def state(model: nn.Module) -> Arrays:
    """The backbone's arrays, under the names that they had before any library wrapped or replaced something."""
    found = {}
    for name, array in model.state_dict().items():
        plain = name.replace("base_model.model.", "").replace(".base_layer", "").removeprefix("net.")
        if plain.startswith("backbone.") and "lora_" not in plain and "num_batches" not in plain:
            found[plain.removeprefix("backbone.")] = array.detach().clone()
    return found


def features(model: nn.Module) -> float:
    """How far the backbone's output in the mode that training left it in is from its output at inference, relatively."""
    images = torch.randn(SIZE, 3, 8, 8, generator=torch.Generator().manual_seed(9)) + 0.5
    twin = copy.deepcopy(_backbone(model))
    with torch.no_grad():
        live = twin(images)
        still = twin.eval()(images)
    return float((live - still).norm() / still.norm())


def _backbone(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "backbone")


@dataclass
class Moved:
    """How far each group of the backbone's arrays moved, relatively."""

    weights: float
    affine: float
    statistics_2d: float
    statistics_1d: float

    @classmethod
    def between(cls, before: Arrays, after: Arrays) -> Moved:
        def far(names: list[str]) -> float:
            changes, sizes = ([array.norm() for array in arrays] for arrays in ([after[n] - before[n] for n in names], [before[n] for n in names]))
            return float(torch.stack(changes).norm() / torch.stack(sizes).norm())

        norms = [name for name in before if name.startswith(NORMS)]
        running = [name for name in norms if "running" in name]
        return cls(
            far([name for name in before if name not in norms]),
            far([name for name in norms if name not in running]),
            far([name for name in running if name.startswith("bn2d")]),
            far([name for name in running if name.startswith("bn1d")]),
        )


def stuck(before: Arrays, after: Arrays) -> str:
    """How many of the backbone's parameters never trained after they were unfrozen."""
    names = [name for name in before if "running" not in name]
    return f"{sum(torch.equal(before[name], after[name]) for name in names)} of {len(names)}"


@dataclass
class Row:
    """What the table says of one way of freezing.

    Attributes:
        way: The library's own call.
        moved: From before the first epoch to the end of the frozen ones.
        features: See ``features``.
        middle: How far weights moved that were frozen after an epoch of training, with the live optimizer; ``None`` where the library doesn't offer that.
        stuck: See ``stuck``; a dash where the library doesn't unfreeze.
        remark: What is meant so, and which setting helps.
    """

    way: str
    moved: Moved
    features: float
    middle: float | None
    stuck: str
    remark: str
