"""Fine-tuning in PyTorch: first the head alone, then the last block with it, and a proof after each.

python examples/with_torch.py [--steps 100]
"""

import sys
from collections import OrderedDict

import torch
from made import CLASSES, CONSOLE, Arrays, prove, steps_asked, train
from torch import nn

from unifreeze import freeze, summary, unfreeze
from unifreeze.select import last


def block(channels: int, features: int) -> nn.Sequential:
    """A convolution of half the size, its normalisation, a ReLU."""
    parts = {"conv": nn.Conv2d(channels, features, 3, stride=2, padding=1), "norm": nn.BatchNorm2d(features), "relu": nn.ReLU()}
    return nn.Sequential(OrderedDict(parts))


def build() -> nn.Sequential:
    """Your pretrained network; here with random weights."""
    torch.manual_seed(0)
    body = {"stem": block(3, 16), "block1": block(16, 32), "block2": block(32, 64)}
    top = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "drop": nn.Dropout(0.2), "head": nn.Linear(64, CLASSES)}
    return nn.Sequential(OrderedDict(body | top))


def arrays(model: nn.Module) -> Arrays:
    """Copies every parameter and statistic."""
    return {path: array.detach().numpy().copy() for path, array in [*model.named_parameters(), *model.named_buffers()]}


def main(steps: int) -> list[Arrays]:
    """Trains in two phases, and returns the arrays at the start and after each."""
    model = build()
    seen = [arrays(model)]

    freezing = freeze(model, layers=~last(1))  # everything but the head
    optimizer = freezing.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.05)

    def step(images, labels) -> float:
        model.train()
        optimizer.zero_grad()
        inputs, targets = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    train("the head", steps, step)
    seen.append(arrays(model))
    held = prove(seen[0], seen[1], still=("stem", "block1", "block2"))

    freezing = unfreeze(model, layers="block2")
    freezing.attach(optimizer)  # the head keeps its moments, block2 joins
    train("block2 and the head", steps, step, first=steps)
    seen.append(arrays(model))
    held &= prove(seen[1], seen[2], still=("stem", "block1"))

    CONSOLE.print(summary(model, depth=1))
    CONSOLE.print(f"  verify: {freezing.verify()}")
    if not held:
        sys.exit("the promise was not kept")
    return seen


if __name__ == "__main__":
    main(steps_asked())
