"""What the usual ways of freezing do in equinox, and what unifreeze does: ``python benchmarks/traps/equinox.py``.

Every figure is measured in this run, on a small convolutional network trained for 100 steps on made data: how far what was "frozen" moved, relative to what
it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]  # this file is named equinox, too

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from unifreeze import freeze

STEPS = 100


class Backbone(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    dense: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="ema")
        self.dropout = eqx.nn.Dropout(0.2)
        self.dense = eqx.nn.Linear(8 * 64, 16, key=keys[1])

    def __call__(self, x: Any, state: Any, key: Any) -> tuple[Any, Any]:
        x, state = self.norm(self.conv(x), state)
        return self.dense(self.dropout(jax.nn.relu(x), key=key).ravel()), state


class Net(eqx.Module):
    backbone: Backbone
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key)
        self.backbone, self.head = Backbone(keys[0]), eqx.nn.Linear(16, 4, key=keys[1])

    def __call__(self, x: Any, state: Any, key: Any) -> tuple[Any, Any]:
        x, state = self.backbone(x, state, key)
        return self.head(x), state


def batched(part: Any, state: Any, images: Any, seed: int) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(seed), len(images))
    return jax.vmap(part, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(images, state, keys)


def loss_of(model: Any, state: Any, images: Any, labels: Any, keys: Any) -> tuple[Any, Any]:
    logits, state = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(images, state, keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state


def made(seed: int) -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(seed)
    return draw.normal(0.5, 1.0, (16, 3, 8, 8)).astype(np.float32), draw.integers(4, size=16), jax.random.split(jax.random.key(seed), 16)


def run(model: Any, state: Any, step: Callable[..., Any], opt_state: Any, first: int = 0, *, steps: int = STEPS) -> tuple[Any, Any, Any]:
    for seed in range(first, first + steps):
        model, state, opt_state = step(model, state, opt_state, *made(seed))
    return model, state, opt_state


def everything(tx: Any) -> Callable[..., Any]:
    """The step of equinox's documentation, over all parameters."""

    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        (_, state), grads = eqx.filter_value_and_grad(loss_of, has_aux=True)(model, state, *batch)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, opt_state

    return step


def trained() -> tuple[Any, Any]:
    """A "pretrained" network."""
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    tx = optax.sgd(0.05)
    model, state, _ = run(model, state, everything(tx), tx.init(eqx.filter(model, eqx.is_inexact_array)), steps=20)
    return model, state


def mask_of(model: Any) -> Any:
    """What trains, as the documentation's example on freezing writes it: the head alone."""
    nothing = jax.tree.map(lambda _: False, model)
    return eqx.tree_at(lambda tree: (tree.head.weight, tree.head.bias), nothing, replace=(True, True))


def by_partition(model: Any, state: Any, tx: Any) -> tuple[Any, Any]:
    trainable, fixed = eqx.partition(model, mask_of(model))

    @eqx.filter_jit
    def step(trainable: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        def of_trainable(trainable: Any) -> Any:
            whole = eqx.combine(trainable, fixed)
            return loss_of(eqx.nn.inference_mode(whole, value=False), state, *batch)

        (_, state), grads = eqx.filter_value_and_grad(of_trainable, has_aux=True)(trainable)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return eqx.apply_updates(trainable, updates), state, opt_state

    trainable, state, _ = run(trainable, state, step, tx.init(trainable), 20)
    return eqx.combine(trainable, fixed), state


def by_eval_mode(model: Any, state: Any, tx: Any) -> tuple[Any, Any]:
    """The second try: the backbone is put in inference mode, and ``inference_mode(model, False)`` of the next epoch takes it back."""
    return by_partition(eqx.tree_at(lambda tree: tree.backbone, model, replace_fn=eqx.nn.inference_mode), state, tx)


def by_stop_gradient(model: Any, state: Any, tx: Any) -> tuple[Any, Any]:
    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        def stopped(model: Any) -> Any:
            arrays, rest = eqx.partition(model.backbone, eqx.is_inexact_array)
            return loss_of(eqx.tree_at(lambda tree: tree.backbone, model, eqx.combine(jax.lax.stop_gradient(arrays), rest)), state, *batch)

        (_, state), grads = eqx.filter_value_and_grad(stopped, has_aux=True)(model)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, opt_state

    return run(model, state, step, tx.init(eqx.filter(model, eqx.is_inexact_array)), 20)[:2]


def by_masked(model: Any, state: Any, tx: Any) -> tuple[Any, Any]:
    """``optax.masked`` lets the gradients of what it leaves out pass, as they are, as updates: gradient ascent, which soon ends in NaN."""
    masked = optax.masked(tx, eqx.filter(mask_of(model), jax.tree.map(eqx.is_inexact_array, model)))
    return run(model, state, everything(masked), masked.init(eqx.filter(model, eqx.is_inexact_array)), 20, steps=2)[:2]


def in_mid_training(model: Any, state: Any, tx: Any) -> tuple[Any, Any]:
    """A live optimizer goes on with zero gradients for the backbone."""
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    mask = eqx.filter(mask_of(model), jax.tree.map(eqx.is_inexact_array, model))

    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        (_, state), grads = eqx.filter_value_and_grad(loss_of, has_aux=True)(model, state, *batch)
        grads = jax.tree.map(lambda train, grad: grad if train else jnp.zeros_like(grad), mask, grads)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, opt_state

    warm, state, opt_state = run(model, state, everything(tx), opt_state, 20, steps=20)
    before.append((warm, state))
    return run(warm, state, step, opt_state, 40)[:2]


def with_unifreeze(model: Any, state: Any, tx: Any) -> tuple[Any, Any]:
    freezing = freeze((model, state), layers="backbone")
    tx = freezing.optimizer(tx)

    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        loose = eqx.nn.inference_mode(model, value=False)
        (_, state), grads = freezing.value_and_grad(loss_of, has_aux=True)(loose, state, *batch)
        updates, opt_state = tx.update(grads, opt_state, model)
        return freezing.apply_updates(model, updates), state, opt_state

    return run(model, state, step, tx.init(model), 20)[:2]


def in_mid_training_with_unifreeze(model: Any, state: Any, tx: Any) -> tuple[Any, Any]:
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    warm, state, opt_state = run(model, state, everything(tx), opt_state, 20, steps=20)
    before.append((warm, state))
    freezing = freeze((warm, state), layers="backbone")
    planned = freezing.optimizer(tx)

    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        (_, state), grads = freezing.value_and_grad(loss_of, has_aux=True)(model, state, *batch)
        updates, opt_state = planned.update(grads, opt_state, model)
        return freezing.apply_updates(model, updates), state, opt_state

    return run(warm, state, step, freezing.carry(planned, opt_state, warm), 40)[:2]


before: list[tuple[Any, Any]] = []  # what an own warm-up left


def relative(new: Any, old: Any) -> float:
    new, old = np.asarray(new, np.float64), np.asarray(old, np.float64)
    return float(np.linalg.norm(new - old) / max(np.linalg.norm(old), 1e-12))


def weights(model: Any, state: Any) -> list[Any]:
    del state
    return jax.tree.leaves(eqx.filter(model.backbone, eqx.is_inexact_array))


def statistics(model: Any, state: Any) -> list[Any]:
    return list(state.get(model.backbone.norm.ema_state_index))


def output(model: Any, state: Any) -> list[Any]:
    return [batched(eqx.nn.inference_mode(model.backbone), state, made(999)[0], 0)[0]]


def moved(way: Callable[..., tuple[Any, Any]], tx: Any, what: Callable[..., list[Any]]) -> float:
    """The largest relative change."""
    model, state = trained()
    before[:] = [(model, state)]
    after = way(model, state, tx)
    return max(relative(new, old) for new, old in zip(what(*after), what(*before[-1]), strict=True))


PARTITION = "`eqx.partition`, as documented"
ADAMW, MOMENTUM, SGD = optax.adamw(0.01, weight_decay=0.1), optax.sgd(0.05, momentum=0.9), optax.sgd(0.05)
TRAPS: list[tuple[str, str, Callable[..., list[Any]], Any, Callable[..., Any], Callable[..., Any]]] = [
    ("BatchNorm statistics", PARTITION, statistics, SGD, by_partition, with_unifreeze),
    ("output of the frozen backbone at inference", PARTITION, output, SGD, by_partition, with_unifreeze),
    ("BatchNorm statistics", "the same, backbone in `inference_mode`, then `inference_mode(model, False)`", statistics, SGD, by_eval_mode, with_unifreeze),
    ("weights: AdamW", "`lax.stop_gradient`", weights, ADAMW, by_stop_gradient, with_unifreeze),
    ("weights: SGD, 2 steps", "`optax.masked` alone", weights, SGD, by_masked, with_unifreeze),
    ("weights: SGD with momentum", "zeroed gradients in mid-training", weights, MOMENTUM, in_mid_training, in_mid_training_with_unifreeze),
]


def main() -> None:
    print(f"equinox {eqx.__version__}, JAX {jax.__version__}: how far what was frozen moved\n")
    print("| what | frozen by | moved | with unifreeze |")
    print("|---|---|--:|--:|")
    for what, way, measure, tx, naive, ours in TRAPS:
        kept = moved(ours, tx, measure)
        went = moved(naive, tx, measure)
        print(f"| {what} | {way} | {f'{went:.1%}' if np.isfinite(went) else 'to infinity'} | {f'{kept:.1%}' if kept else 0} |", flush=True)


if __name__ == "__main__":
    main()
