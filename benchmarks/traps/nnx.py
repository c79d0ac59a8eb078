"""What the usual ways of freezing do in flax nnx, and what unifreeze does: ``python benchmarks/traps/nnx.py``.

Every figure is measured in this run, on a small network trained for 100 steps on made data: how far what was "frozen" moved, relative to what it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]  # beside this file stands one named jax

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from unifreeze import freeze, unfreeze

State = dict[tuple[object, ...], np.ndarray]


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, *, spectral: bool = False) -> None:
        self.stem = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.SpectralNorm(nnx.Linear(16, 16, rngs=rngs), rngs=rngs) if spectral else nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.stem(x))))


BACKBONE = nnx.Any(nnx.PathContains("stem"), nnx.PathContains("norm"))
HEAD = nnx.All(nnx.Param, nnx.PathContains("head"))
ADAMW = optax.adamw(1e-3, weight_decay=0.1)


def network(*, spectral: bool = False) -> Network:
    return Network(nnx.Rngs(0), spectral=spectral)


def batch(step: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(step).normal(0.5, 1, size=(32, 8)), jnp.float32)


def loss_of(model: Network, x: jax.Array) -> jax.Array:
    return jnp.mean((model(x) - x[:, :4]) ** 2)


def stopped(model: Network, x: jax.Array) -> jax.Array:
    """``stop_gradient`` on all that the backbone makes."""
    hidden = jax.lax.stop_gradient(nnx.relu(model.norm(model.stem(x))))
    return jnp.mean((model.head(hidden) - x[:, :4]) ** 2)


def train(model: Network, optimizer: nnx.Optimizer, steps: int = 100, *, loss: Callable[..., jax.Array] = loss_of, wrt: object = nnx.Param) -> None:
    @nnx.jit
    def step(model: Network, optimizer: nnx.Optimizer, x: jax.Array) -> None:
        optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model, x))

    for i in range(steps):
        model.train()
        step(model, optimizer, batch(i))


def snapshot(model: Network) -> tuple[State, State]:
    """The parameters and the statistics of the backbone."""
    flat = dict(nnx.to_flat_state(nnx.state(model, BACKBONE)))
    values = {path: (np.asarray(leaf[...], np.float64), isinstance(leaf, nnx.BatchStat)) for path, leaf in flat.items()}
    return {p: v for p, (v, statistic) in values.items() if not statistic}, {p: v for p, (v, statistic) in values.items() if statistic}


def change(before: State, after: State) -> str:
    moved = sum(np.sum((after[path] - before[path]) ** 2) for path in before)
    return f"{np.sqrt(moved / sum(np.sum(value**2) for value in before.values())):.2%}"


def moved(
    *, ours: bool, loss: Callable[..., jax.Array] = loss_of, wrt: object = nnx.Param, eval_first: bool = False, spectral: bool = False
) -> tuple[str, str]:
    """How far parameters and statistics of the backbone moved, frozen by the filter ``wrt`` (or by unifreeze)."""
    model = network(spectral=spectral)
    if ours:
        freeze(model, layers=["stem", "norm"])
        loss, wrt = loss_of, nnx.Param
    elif eval_first:
        model.norm.use_running_average = True
    before = snapshot(model)
    train(model, nnx.Optimizer(model, ADAMW, wrt=wrt), loss=loss, wrt=wrt)
    return tuple(change(old, new) for old, new in zip(before, snapshot(model), strict=True))


def first_step(*, ours: bool) -> str:
    """Adam's first step on a layer that is unfrozen after 1000 steps, in learning rates."""
    model, rate = network(), 1e-3
    freezing = freeze(model, layers="stem")
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    train(model, optimizer, 1000)
    old = nnx.to_flat_state(optimizer.opt_state[0].mu), nnx.to_flat_state(optimizer.opt_state[0].nu)
    count = optimizer.opt_state[0].count[...]
    if ours:
        unfreeze(model, layers="stem").attach(optimizer)
    else:  # by hand: a new optimizer, with the old moments and the old count
        freezing.undo()
        optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
        for moments, known in zip((optimizer.opt_state[0].mu, optimizer.opt_state[0].nu), old, strict=True):
            for path, moment in nnx.to_flat_state(moments):
                moment[...] = dict(known)[path][...] if path in dict(known) else moment[...]
        optimizer.opt_state[0].count[...] = count
    before = np.asarray(model.stem.kernel[...])
    train(model, optimizer, 1)
    return f"{np.abs(np.asarray(model.stem.kernel[...]) - before).max() / rate:.2f} × lr"


def rows() -> list[tuple[str, str, str]]:
    ours, spectral = moved(ours=True), moved(ours=True, spectral=True)
    by_filter = moved(ours=False, wrt=HEAD)
    return [
        ("stop_gradient in the loss, AdamW over all: frozen weights moved", moved(ours=False, loss=stopped)[0], ours[0]),
        ("gradients and optimizer for the head alone: BatchNorm statistics moved", by_filter[1], ours[1]),
        ("the same with norm.use_running_average = True, then model.train(): statistics moved", moved(ours=False, wrt=HEAD, eval_first=True)[1], ours[1]),
        ("the same round a SpectralNorm: frozen kernel moved", moved(ours=False, wrt=HEAD, spectral=True)[0], spectral[0]),
        ("the same round a SpectralNorm: its vectors moved", moved(ours=False, wrt=HEAD, spectral=True)[1], spectral[1]),
        ("unfreezing after 1000 steps of Adam, moments and count carried over: first step", first_step(ours=False), first_step(ours=True)),
    ]


def main() -> None:
    print(f"flax nnx on JAX {jax.__version__}, optax {optax.__version__}, 100 steps of AdamW(1e-3, weight_decay=0.1)\n")
    print("| what was done | naively | with unifreeze |\n| --- | ---: | ---: |")
    for row in rows():
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
