"""What the usual ways of freezing do in JAX, and what unifreeze does: ``python benchmarks/traps/jax.py``.

Every figure is measured in this run, on small networks and made data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]  # this file is named jax, too
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jax_cost
from unifreeze import freeze, unfreeze

FROZEN, HEAD = ("dense_0", "dense_1"), "head"
LABELS = {"dense_0": "off", "dense_1": "off", "head": "on"}
CLIP = optax.clip_by_global_norm(0.1)
Tree = dict[str, Any]


def network(width: int = 64) -> Tree:
    rng = np.random.default_rng(0)
    shapes = {"dense_0": (16, width), "dense_1": (width, width), "head": (width, 4)}
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32),
            "bias": jnp.asarray(0.1 * rng.normal(size=shape[1]), jnp.float32),
        }
        for name, shape in shapes.items()
    }


def loss(params: Tree, x: Any) -> Any:
    for name in FROZEN:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean((x @ params[HEAD]["kernel"] + params[HEAD]["bias"] - 1.0) ** 2)


def batch(step: int, rows: int = 32) -> Any:
    return np.random.default_rng(step).normal(size=(rows, 16)).astype(np.float32)


def naive(tx: Any, *, stop: bool = False) -> Callable[[Tree, Any, Any], Any]:
    """The usual step: gradients of everything, then the optimizer."""

    def step(params: Tree, state: Any, x: Any) -> Any:
        def stopped(params: Tree) -> Any:
            return loss({**params, **{name: jax.lax.stop_gradient(params[name]) for name in FROZEN}} if stop else params, x)

        grads = jax.grad(stopped)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.global_norm(grads)

    return step


def planned(freezing: Any, tx: Any) -> Callable[[Tree, Any, Any], Any]:
    def step(params: Tree, state: Any, x: Any) -> Any:
        grads = freezing.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return freezing.apply_updates(params, updates), state, optax.global_norm(grads)

    return step


def by_hand(tx: Any, rest: Tree) -> Callable[[Tree, Any, Any], Any]:
    """The reference: only the trainable sub-tree is differentiated, clipped and updated."""

    def step(head: Tree, state: Any, x: Any) -> Any:
        grads = jax.grad(lambda head: loss({**rest, **head}, x))(head)
        updates, state = tx.update(grads, state, head)
        return optax.apply_updates(head, updates), state, optax.global_norm(grads)

    return step


def train(step: Any, tx: Any, params: Tree, steps: int) -> Tree:
    state, step = tx.init(params), jax.jit(step)
    for i in range(steps):
        params, state, _ = step(params, state, batch(i))
    return params


def change(before: Tree, after: Tree) -> float:
    """How far the frozen part moved, relative to what it was."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for name in FROZEN
        for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True)
    ]
    return float(np.sqrt(sum(np.sum((b - a) ** 2) for a, b in pairs) / sum(np.sum(a**2) for a, _ in pairs)))


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def ours(pre: Any = None, rule: Any = None) -> tuple[Any, Any]:
    freezing = freeze(network(), layers=list(FROZEN))
    tx = freezing.optimizer(rule or optax.adamw(1e-3, weight_decay=0.1), pre=pre)
    return planned(freezing, tx), tx


def moving() -> list[tuple[str, str, str]]:
    adamw, start = optax.adamw(1e-3, weight_decay=0.1), network()
    off = {name: jax.tree.map(lambda _: True, start[name]) if name in FROZEN else jax.tree.map(lambda _: False, start[name]) for name in start}
    on = jax.tree.map(lambda frozen: not frozen, off)
    inside = optax.partition({"on": optax.adam(1e-3), "off": optax.set_to_zero()}, LABELS)
    ways = {
        "optax.masked(adamw, trainable) and nothing for the rest": naive(optax.masked(adamw, on)),
        "optax.chain(optax.freeze(frozen), adamw)": naive(optax.chain(optax.freeze(off), adamw)),
        "decay added outside the partition": naive(optax.chain(inside, optax.add_decayed_weights(-1e-4))),
        "stop_gradient in the loss, adamw over all": naive(adamw, stop=True),
    }
    optimizers = [optax.masked(adamw, on), optax.chain(optax.freeze(off), adamw), optax.chain(inside, optax.add_decayed_weights(-1e-4)), adamw]
    still = f"{change(start, train(*ours(), start, 100)):.2%}"
    return [
        (f"{name}: frozen weights moved", f"{change(start, train(step, tx, start, 100)):.2%}", still)
        for (name, step), tx in zip(ways.items(), optimizers, strict=True)
    ]


def clipping() -> list[tuple[str, str, str]]:
    start, rule = network(), optax.sgd(0.1)
    rest, head = {name: start[name] for name in FROZEN}, {HEAD: start[HEAD]}
    chained = optax.chain(CLIP, rule)
    expected = train(by_hand(chained, rest), chained, head, 100)
    outside = optax.chain(CLIP, optax.partition({"on": rule, "off": optax.set_to_zero()}, LABELS))

    def off(after: Tree) -> str:
        gaps = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(jax.tree.leaves(after[HEAD]), jax.tree.leaves(expected[HEAD]), strict=True)]
        return f"{max(gaps) / np.abs(np.asarray(expected[HEAD]['kernel'] - head[HEAD]['kernel'])).max():.2%}"

    return [
        (
            "clip outside the partition: the trainable part ends off by",
            off(train(naive(outside), outside, start, 100)),
            off(train(*ours(CLIP, rule), start, 100)),
        )
    ]


def cost() -> list[tuple[str, str, str]]:
    start, x = network(512), batch(0, 128)
    rest, head = {name: start[name] for name in FROZEN}, {HEAD: start[HEAD]}
    adamw = optax.adamw(1e-3)
    chained = optax.chain(CLIP, adamw)
    outside = optax.chain(CLIP, optax.partition({"on": adamw, "off": optax.set_to_zero()}, LABELS))
    zeroed = optax.chain(adamw, optax.partition({"on": optax.identity(), "off": optax.set_to_zero()}, LABELS))
    freezing = freeze(start, layers=list(FROZEN))
    tx = freezing.optimizer(adamw, pre=CLIP)

    def flops(step: Any, tx: Any, params: Tree) -> float:
        return float(jax.jit(step).lower(params, tx.init(params), x).compile().cost_analysis()["flops"])

    hand, mine = flops(by_hand(chained, rest), chained, head), flops(planned(freezing, tx), tx, start)
    memory = nbytes(chained.init(head))
    return [
        ("clip outside, gradient norm reported: FLOPs, by hand 1", f"{flops(naive(outside), outside, start) / hand:.2f}", f"{mine / hand:.2f}"),
        (
            "adamw over all, updates zeroed after: optimizer state, by hand 1",
            f"{nbytes(zeroed.init(start)) / memory:.0f}",
            f"{nbytes(tx.init(start)) / memory:.0f}",
        ),
    ]


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(nn.Dense(8, name="stem")(x)))
        return nn.Dense(4, name="head")(x)


def statistics() -> list[tuple[str, str, str]]:
    model = Normalised()
    start = model.init(jax.random.key(0), batch(0), train=False)
    layers = ["stem", "norm"]
    freezing = freeze(start, layers=layers)

    def run(params: Tree, stats: Tree, x: Any) -> Any:
        outputs, news = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return jnp.mean((outputs - 1.0) ** 2), news["batch_stats"]

    def end(value_and_grad: Any, tx: Any) -> tuple[Tree, Tree]:
        params, stats = start["params"], start["batch_stats"]
        state = tx.init(params)

        @jax.jit
        def step(params: Tree, stats: Tree, state: Any, x: Any) -> Any:
            (_, stats), grads = value_and_grad(run, has_aux=True)(params, stats, x)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), stats, state

        for i in range(100):
            params, stats, state = step(params, stats, state, batch(i) + 1.0)
        return params, stats

    rule = optax.adamw(1e-3)
    partition = optax.partition({"on": rule, "off": optax.set_to_zero()}, {"stem": "off", "norm": "off", "head": "on"})

    def moved(stats: Tree) -> str:
        gap = np.linalg.norm(np.asarray(stats["norm"]["mean"] - start["batch_stats"]["norm"]["mean"]))
        return f"{gap:.3f}"

    theirs, mine = end(jax.value_and_grad, partition), end(freezing.value_and_grad, freezing.optimizer(rule))
    return [("optax.partition, BatchNorm frozen: its mean moved by (norm)", moved(theirs[1]), moved(mine[1]))]


def late() -> list[tuple[str, str, str]]:
    """Unfreezing after 1000 steps of Adam. The naive way keeps one count and starts the new moments from zero."""
    rule, start = optax.adam(1e-3), network()
    early = freeze(start, layers=list(FROZEN))
    tx = early.optimizer(rule)
    step, state, params = jax.jit(planned(early, tx)), tx.init(start), start
    for i in range(1000):
        params, state, _ = step(params, state, batch(i))
    grown = unfreeze(early)
    wide = grown.optimizer(rule)
    carried = grown.carry(wide, state, params)
    known, zeros = state.groups[0].inner[0], jax.tree.map(jnp.zeros_like, params)
    shared = (known._replace(mu={**zeros, HEAD: known.mu[HEAD]}, nu={**zeros, HEAD: known.nu[HEAD]}), *rule.init(params)[1:])

    def peak(step: Any, state: Any) -> tuple[float, float]:
        tree, sizes, step = params, [], jax.jit(step)
        for i in range(60):
            new, state, _ = step(tree, state, batch(1000 + i))
            sizes.append(max(float(np.abs(np.asarray(new[name]["kernel"] - tree[name]["kernel"])).max()) / 1e-3 for name in FROZEN))
            tree = new
        return sizes[0], max(sizes)

    theirs, mine = peak(naive(rule), shared), peak(planned(grown, wide), carried)
    return [
        ("unfreezing after 1000 steps of Adam: first step, a fresh Adam's is 1", f"{theirs[0]:.2f}", f"{mine[0]:.2f}"),
        ("unfreezing after 1000 steps of Adam: largest step within 60", f"{theirs[1]:.2f}", f"{mine[1]:.2f}"),
    ]


Recipe = Callable[[Any, Any, Any], tuple[Any, bool]]


def recipes() -> dict[str, Recipe]:
    """The usual recipes: from labels and a mask of what is frozen, and a rule, to an optimizer and whether the loss stops the gradient."""

    def parted(labels: Any, rule: Any) -> Any:
        return optax.partition({"on": rule, "off": optax.set_to_zero()}, labels)

    return {
        "`optax.masked(adamw, trainable)` alone": lambda _, off, rule: (
            optax.chain(CLIP, optax.masked(rule, jax.tree.map(lambda frozen: not frozen, off))),
            False,
        ),
        "`chain(freeze, adamw)`": lambda _, off, rule: (optax.chain(CLIP, optax.freeze(off), rule), False),
        "`chain(adamw, freeze)`": lambda _, off, rule: (optax.chain(CLIP, rule, optax.freeze(off)), False),
        "`partition`, clip outside": lambda labels, _, rule: (optax.chain(CLIP, parted(labels, rule)), False),
        "`partition`, clip inside": lambda labels, _, rule: (parted(labels, optax.chain(CLIP, rule)), False),
        "`MultiSteps` outside `partition`": lambda labels, _, rule: (
            optax.MultiSteps(parted(labels, optax.chain(CLIP, rule)), 2).gradient_transformation(),
            False,
        ),
        "`stop_gradient` in the loss, `adamw` over all": lambda _, __, rule: (optax.chain(CLIP, rule), True),
    }


def table() -> list[tuple[str, ...]]:
    """How far each recipe moves frozen weights in 100 steps of a small net, and what it costs on 50 million parameters, by hand 1."""
    start, net, parts = network(), jax_cost.LARGE, jax_cost.LARGE.parts()
    hand = {part: jax_cost.by_hand(net, frozen) for part, frozen in parts.items()}
    rows = []
    for name, make in recipes().items():
        tx, stop = make(LABELS, {layer: jax.tree.map(lambda _, layer=layer: layer in FROZEN, start[layer]) for layer in start}, jax_cost.RULE)
        moved = change(start, train(naive(tx, stop=stop), tx, start, 100))
        costs = []
        for frozen in parts.values():
            shapes = net.shapes()[0]
            labels = {block: "off" if block in frozen else "on" for block in shapes}
            off = {block: jax.tree.map(lambda _, block=block, frozen=frozen: block in frozen, shapes[block]) for block in shapes}
            tx, stop = make(labels, off, jax_cost.RULE)
            costs.append(jax_cost.usual(net, frozen, tx, stop=stop))
        rows.append((name, f"{moved:.2%}", *figures(costs, list(hand.values()))))
    still = change(start, train(*ours(jax_cost.CLIP, jax_cost.RULE), start, 100))
    mine = [jax_cost.ours_whole(net, frozen) for frozen in parts.values()]
    return [*rows, ("unifreeze", f"{still:.2%}", *figures(mine, list(hand.values())))]


def figures(costs: list[Any], hand: list[Any]) -> tuple[str, ...]:
    flops = [f"{cost.over(best)['flops']:.2f}" for cost, best in zip(costs, hand, strict=True)]
    return *flops, f"{costs[0].over(hand[0])['bytes']:.2f}", f"{costs[0].state / hand[0].state:.1f}"


def main() -> None:
    rows = [row for measure in (moving, clipping, cost, statistics, late) for row in measure()]
    print(f"JAX {jax.__version__}, optax {optax.__version__}\n")
    print("| what is measured | the usual way | with unifreeze |")
    print("|---|--:|--:|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print("\nEvery recipe with a clip and the norm of the gradients reported: how far frozen weights moved in 100 steps of a small net, and what")
    print("a step costs on a net of 50 million parameters, of which five sixths are frozen at its front, at its back or around its middle.")
    print("The step by hand, over the trainable part alone, is 1.\n")
    print("| recipe | frozen weights moved | FLOPs, front | FLOPs, back | FLOPs, around the middle | bytes touched, front | optimizer state |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for row in table():
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
