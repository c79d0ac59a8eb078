"""Fine-tuning in JAX with equinox: first the head alone, then the last block with it, and a proof after each.

python examples/with_equinox.py [--steps 100]
"""

import sys

import equinox as eqx
import jax
import numpy as np
import optax
from made import CLASSES, CONSOLE, Arrays, batch, prove, steps_asked, train

from unifreeze import freeze, summary, unfreeze
from unifreeze.select import last


class Block(eqx.Module):
    """A convolution of half the size, its normalisation, a ReLU."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, channels: int, features: int, key) -> None:
        self.conv = eqx.nn.Conv2d(channels, features, 3, stride=2, padding=1, key=key)
        self.norm = eqx.nn.BatchNorm(features, axis_name="batch", mode="ema", momentum=0.9)

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        return jax.nn.relu(x), state


class Net(eqx.Module):
    """Your pretrained network; here with random weights."""

    stem: Block
    block1: Block
    block2: Block
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key) -> None:
        keys = jax.random.split(key, 4)
        self.stem, self.block1, self.block2 = Block(3, 16, keys[0]), Block(16, 32, keys[1]), Block(32, 64, keys[2])
        self.drop = eqx.nn.Dropout(0.2)
        self.head = eqx.nn.Linear(64, CLASSES, key=keys[3])

    def __call__(self, x, state, key):
        for block in (self.stem, self.block1, self.block2):
            x, state = block(x, state)
        return self.head(self.drop(x.mean((1, 2)), key=key)), state


def arrays(model: Net, state: eqx.nn.State) -> Arrays:
    """Copies every parameter, and every statistic from the state."""
    leaves = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_inexact_array))[0]
    found = {jax.tree_util.keystr(path, simple=True, separator="."): np.array(leaf) for path, leaf in leaves}
    for name in ("stem", "block1", "block2"):
        means = state.get(getattr(model, name).norm.ema_state_index)
        found |= {f"{name}.norm.statistics.{place}": np.array(leaf) for place, leaf in enumerate(means)}
    return found


def forward(model, state, images, keys):
    """The logits of a batch, and the new state."""
    return jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(images, state, keys)


def build() -> tuple[Net, eqx.nn.State]:
    """The network with the statistics of some batches: equinox's own begin with a variance of zero."""
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    for number in range(5):
        _, state = eqx.filter_jit(forward)(model, state, batch(number)[0].transpose(0, 3, 1, 2), jax.random.split(jax.random.key(number), 32))
    return model, state


def loss(model, state, images, labels, keys):
    """The loss, and the new state; of frozen layers it is the old one."""
    logits, state = forward(model, state, images, keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state


def main(steps: int) -> list[Arrays]:
    """Trains in two phases, and returns the arrays at the start and after each."""
    model, state = build()
    seen = [arrays(model, state)]

    def stepping(freezing, tx):
        @eqx.filter_jit
        def step(model, state, moments, images, labels, keys):
            (value, state), grads = freezing.value_and_grad(loss, has_aux=True)(model, state, images, labels, keys)
            updates, moments = tx.update(grads, moments, model)
            return freezing.apply_updates(model, updates), state, moments, value

        def take(images, labels) -> float:
            nonlocal model, state, moments
            keys = jax.random.split(jax.random.key(int(labels.sum())), len(labels))
            model, state, moments, value = step(model, state, moments, images.transpose(0, 3, 1, 2), labels, keys)
            return float(value)

        return take

    freezing = freeze((model, state), layers=~last(1))  # everything but the head
    tx = freezing.optimizer(optax.adamw(3e-3, weight_decay=0.05))
    moments = tx.init(model)
    train("the head", steps, stepping(freezing, tx))
    seen.append(arrays(model, state))
    held = prove(seen[0], seen[1], still=("stem", "block1", "block2"))

    freezing = unfreeze(freezing, layers="block2")
    tx = freezing.optimizer(optax.adamw(3e-3, weight_decay=0.05))
    moments = freezing.carry(tx, moments, model)  # the head keeps its moments, block2 joins
    train("block2 and the head", steps, stepping(freezing, tx), first=steps)
    seen.append(arrays(model, state))
    held &= prove(seen[1], seen[2], still=("stem", "block1"))

    CONSOLE.print(summary(freezing, depth=1))
    CONSOLE.print(f"  verify: {freezing.verify((model, state))}")
    if not held:
        sys.exit("the promise was not kept")
    return seen


if __name__ == "__main__":
    main(steps_asked())
