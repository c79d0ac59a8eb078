"""Fine-tuning in JAX with flax linen and optax: first the head alone, then the last block with it, and a proof after each.

python examples/with_linen.py [--steps 100]
"""

import sys

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from made import CLASSES, CONSOLE, Arrays, batch, prove, steps_asked, train

from unifreeze import freeze, summary, unfreeze


class Block(nn.Module):
    """A convolution of half the size, its normalisation, a ReLU."""

    features: int

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.Conv(self.features, (3, 3), strides=2, name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))


class Net(nn.Module):
    """Your pretrained network; here with random weights."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        for name, features in {"stem": 16, "block1": 32, "block2": 64}.items():
            x = Block(features, name=name)(x, train=train)
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(CLASSES, name="head")(x)


def arrays(variables) -> Arrays:
    """Copies every parameter and statistic."""
    return {path: np.array(leaf) for shelf in variables.values() for path, leaf in flatten_dict(shelf, sep=".").items()}


def loss(params, variables, images, labels, key):
    """The loss, and the new statistics; of frozen layers they are the old ones."""
    logits, news = Net().apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), news


def main(steps: int) -> list[Arrays]:
    """Trains in two phases, and returns the arrays at the start and after each."""
    variables = Net().init(jax.random.key(0), batch(0)[0], train=False)
    seen = [arrays(variables)]

    def stepping(freezing, tx):
        @jax.jit
        def step(variables, state, images, labels, key):
            params = variables["params"]
            (value, news), grads = freezing.value_and_grad(loss, has_aux=True)(params, variables, images, labels, key)
            updates, state = tx.update(grads, state, params)
            return {**variables, **news, "params": freezing.apply_updates(params, updates)}, state, value

        def take(images, labels) -> float:
            nonlocal variables, state
            variables, state, value = step(variables, state, images, labels, jax.random.key(int(labels.sum())))
            return float(value)

        return take

    freezing = freeze(variables, layers=["stem", "block1", "block2"])  # everything but the head
    tx = freezing.optimizer(optax.adamw(3e-3, weight_decay=0.05))
    state = tx.init(variables["params"])
    train("the head", steps, stepping(freezing, tx))
    seen.append(arrays(variables))
    held = prove(seen[0], seen[1], still=("stem", "block1", "block2"))

    freezing = unfreeze(freezing, layers="block2")
    tx = freezing.optimizer(optax.adamw(3e-3, weight_decay=0.05))
    state = freezing.carry(tx, state, variables["params"])  # the head keeps its moments, block2 joins
    train("block2 and the head", steps, stepping(freezing, tx), first=steps)
    seen.append(arrays(variables))
    held &= prove(seen[1], seen[2], still=("stem", "block1"))

    CONSOLE.print(summary(freezing))
    CONSOLE.print(f"  verify: {freezing.verify(variables)}")
    if not held:
        sys.exit("the promise was not kept")
    return seen


if __name__ == "__main__":
    main(steps_asked())
