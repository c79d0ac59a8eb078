"""Fine-tuning in JAX with flax nnx: first the head alone, then the last block with it, and a proof after each.

python examples/with_nnx.py [--steps 100]
"""

import sys

import numpy as np
import optax
from flax import nnx
from made import CLASSES, CONSOLE, Arrays, prove, steps_asked, train

from unifreeze import freeze, summary, unfreeze
from unifreeze.select import last


class Block(nnx.Module):
    """A convolution of half the size, its normalisation, a ReLU."""

    def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(channels, features, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class Net(nnx.Module):
    """Your pretrained network; here with random weights."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.stem, self.block1, self.block2 = Block(3, 16, rngs=rngs), Block(16, 32, rngs=rngs), Block(32, 64, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.block2(self.block1(self.stem(x))).mean((1, 2))))


def arrays(model: Net) -> Arrays:
    """Copies every parameter and statistic."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {".".join(map(str, path)): np.array(variable[...]) for path, variable in flat}


def loss(model, images, labels):
    """The loss."""
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit
def step(model, optimizer, images, labels):
    """A step as the tutorials of nnx write it."""
    value, grads = nnx.value_and_grad(loss)(model, images, labels)
    optimizer.update(model, grads)
    return value


def main(steps: int) -> list[Arrays]:
    """Trains in two phases, and returns the arrays at the start and after each."""
    model = Net(rngs=nnx.Rngs(0))
    model.train()
    seen = [arrays(model)]

    def take(images, labels) -> float:
        return float(step(model, optimizer, images, labels))

    freeze(model, layers=~last(1))  # everything but the head
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3, weight_decay=0.05), wrt=nnx.Param)
    train("the head", steps, take)
    seen.append(arrays(model))
    held = prove(seen[0], seen[1], still=("stem", "block1", "block2"))

    freezing = unfreeze(model, layers="block2")
    freezing.attach(optimizer)  # the head keeps its moments, block2 joins
    train("block2 and the head", steps, take, first=steps)
    seen.append(arrays(model))
    held &= prove(seen[1], seen[2], still=("stem", "block1"))

    CONSOLE.print(summary(model, depth=1))
    CONSOLE.print(f"  verify: {freezing.verify()}")
    if not held:
        sys.exit("the promise was not kept")
    return seen


if __name__ == "__main__":
    main(steps_asked())
