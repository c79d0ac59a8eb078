"""The scene in PyTorch: torchvision's GoogLeNet, or the same network written here where torchvision can't be imported."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from unifreeze import Freezing, freeze
from unifreeze.select import first

_TORCHVISION = """
model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False, num_classes=10)
"""
_OURS = """
model = GoogLeNet(classes=10)
"""
_TRAINING = """
freeze(model, layers=first(2))

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
for images, labels in loader:
    model.train()                       # frozen stays frozen, its statistics too
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
"""


def build() -> TorchScene:
    """Builds the scene."""
    torch.manual_seed(0)
    try:
        from torchvision.models import googlenet
    except (ImportError, RuntimeError):  # a torchvision that was built for another PyTorch raises RuntimeError
        return TorchScene(GoogLeNet(classes=10), "GoogLeNet, written in plain PyTorch", _OURS)
    model = googlenet(weights=None, init_weights=False, aux_logits=False, num_classes=10)
    return TorchScene(model, "GoogLeNet of torchvision", _TORCHVISION)


class TorchScene:
    """Two made images, one step of AdamW at a time, over all parameters."""

    def __init__(self, model: nn.Module, title: str, code: str) -> None:
        self.model, self.title, self.code = model, title, code + _TRAINING
        self._batch = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def freeze(self) -> Freezing:
        """Freezes the first two weighted layers."""
        return freeze(self.model, layers=first(2))

    def step(self) -> float:
        """Takes one training step, and returns the loss."""
        images, labels = self._batch
        self.model.train()
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def values(self) -> dict[str, NDArray[Any]]:
        """Copies every parameter and buffer."""
        arrays = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {path: array.detach().cpu().numpy().copy() for path, array in arrays}


class Convolution(nn.Sequential):
    """A convolution, its normalisation, and a ReLU."""

    def __init__(self, channels: int, features: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, features, size, stride, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(features)
        self.relu = nn.ReLU(inplace=True)


class Inception(nn.Module):
    """Four ways side by side: 1×1, 3×3, a second 3×3 for the 5×5 of the paper, and a pool."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.branch1 = Convolution(channels, one)
        self.branch2 = nn.Sequential(Convolution(channels, three[0]), Convolution(*three, 3))
        self.branch3 = nn.Sequential(Convolution(channels, five[0]), Convolution(*five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), Convolution(channels, pool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Joins what the four make of the image."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


class GoogLeNet(nn.Sequential):
    """Inception v1 with batch normalisation (Szegedy and others, 2014), without the auxiliary heads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = Convolution(3, 64, 7, 2)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = Convolution(64, 64)
        self.conv3 = Convolution(64, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, classes)
