"""A program for a process of its own, with eight host devices on a 4×2 mesh: what a sharded step keeps, donates, sends, and computes. Prints it as JSON.

``python tests/jax_on_eight_devices.py auto`` or ``explicit``. The batch lies along ``data``, the kernels along ``model``; two of six blocks train.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from unifreeze import freeze, unfreeze

jax.config.update("jax_disable_most_optimizations", False)  # whatever the session says: the compiled program is what is looked at

WIDTH, INNER, BLOCKS = 64, 128, [f"block_{i}" for i in range(6)]
SPECS = {"up": P(None, "model"), "down": P("model", None), "bias": P("model"), "scale": P()}
TRAINED, STEPS = BLOCKS[4:], 3
Tree = dict[str, Any]


def network() -> Tree:
    rng = np.random.default_rng(0)
    shapes = {"up": (WIDTH, INNER), "down": (INNER, WIDTH), "bias": (INNER,), "scale": (WIDTH,)}
    return {block: {name: (rng.normal(size=shape) / 16).astype(np.float32) for name, shape in shapes.items()} for block in BLOCKS}


def batch(step: int) -> Any:
    return np.random.default_rng(step).normal(size=(32, WIDTH)).astype(np.float32)


class Placed:
    """One program, written for a mesh or for one device."""

    def __init__(self, kind: AxisType | None) -> None:
        self.kind = kind
        self.mesh = None if kind is None else jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))

    def put(self, array: Any, spec: P) -> Any:
        return jnp.asarray(array) if self.mesh is None else jax.device_put(array, NamedSharding(self.mesh, spec))

    def network(self) -> Tree:
        return {block: {name: self.put(array, SPECS[name]) for name, array in arrays.items()} for block, arrays in network().items()}

    def batch(self, step: int) -> Any:
        return self.put(batch(step), P("data", None))

    def product(self, x: Any, w: Any, spec: P) -> Any:
        if self.kind is AxisType.Explicit:
            return jnp.einsum("bi,io->bo", x, w, out_sharding=NamedSharding(self.mesh, spec))
        return x @ w if self.mesh is None else jax.lax.with_sharding_constraint(x @ w, NamedSharding(self.mesh, spec))

    def loss(self, params: Tree, x: Any) -> Any:
        for block in BLOCKS:
            layer = params[block]
            hidden = jnp.tanh(self.product(x * layer["scale"], layer["up"], P("data", "model")) + layer["bias"])
            x = x + self.product(hidden, layer["down"], P("data", None))
        return jnp.mean((x - 1.0) ** 2)

    def jit(self, step: Callable[..., Any], *state: Any) -> Any:
        kept = jax.tree.map(lambda leaf: leaf.sharding, state) if self.kind is AxisType.Auto else None
        return jax.jit(step, donate_argnums=(0, 1), **({} if kept is None else {"out_shardings": (*kept, None)}))


def ours(place: Placed, freezing: Any) -> tuple[Callable[..., Any], Any]:
    tx = freezing.optimizer(optax.adamw(0.01, weight_decay=0.1), pre=optax.clip_by_global_norm(0.5))

    def step(params: Tree, state: Any, x: Any) -> Any:
        value, grads = freezing.value_and_grad(place.loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return freezing.apply_updates(params, updates), state, (value, optax.tree.norm(grads))

    return step, tx


def unmodified(place: Placed, tx: Any) -> Callable[..., Any]:
    """A user's own step, with nothing but ``tx`` replaced."""

    def step(params: Tree, state: Any, x: Any) -> Any:
        value, grads = jax.value_and_grad(place.loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def by_hand(place: Placed, names: list[str]) -> tuple[Callable[..., Any], Any]:
    """Differentiates, clips and updates these blocks alone."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01, weight_decay=0.1))

    def step(params: Tree, state: Any, x: Any) -> Any:
        part = {name: params[name] for name in names}
        value, grads = jax.value_and_grad(lambda part: place.loss({**params, **part}, x))(part)
        updates, state = tx.update(grads, state, part)
        return {**params, **optax.apply_updates(part, updates)}, state, (value, optax.tree.norm(grads))

    return step, tx


def all_reduces(compiled: Any) -> dict[str, int]:
    """How many all-reduces a compiled program has, and how many numbers they add up over the devices."""
    found = re.findall(r"= (\S.*?) all-reduce(?:-start)?\(", compiled.as_text())
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shapes in found for shape in re.findall(r"f32\[([\d,]*)\]", shapes)]
    return {"count": len(found), "numbers": sum(sizes)}


def run(place: Placed, step: Any, params: Tree, state: Any) -> tuple[Tree, Any, Any]:
    for i in range(STEPS):
        params, state, seen = step(params, state, place.batch(i))
    return params, state, seen


def same_shardings(one: Any, other: Any) -> bool:
    return all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def moments(state: Any) -> Any:
    return [(group.inner[0].mu, group.inner[0].nu) for group in state.groups]


def measure(kind: AxisType) -> dict[str, Any]:
    place, alone = Placed(kind), Placed(None)
    with jax.set_mesh(place.mesh):
        params = place.network()
        freezing = freeze(params, layers="block_[0-3]")
        step, tx = ours(place, freezing)
        state = tx.init(params)
        wanted = jax.tree.map(lambda leaf: leaf.sharding, {name: params[name] for name in TRAINED})
        found = jax.tree.map(lambda leaf: leaf.sharding, moments(state)[0][0])
        report: dict[str, Any] = {"moments are sharded as their parameters": {name: found[name] for name in TRAINED} == wanted}
        jitted = place.jit(step, params, state)
        compiled = jitted.lower(params, state, place.batch(0)).compile()
        report["bytes donated"] = compiled.memory_analysis().alias_size_in_bytes
        report["bytes of parameters and state"] = sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, state))
        )
        hand = {}
        for words, names in (("all-reduces by hand", TRAINED), ("all-reduces of full training", BLOCKS)):
            theirs, plain = by_hand(place, names)
            start = plain.init({name: params[name] for name in names})
            hand[words] = all_reduces(place.jit(theirs, params, start).lower(params, start, place.batch(0)).compile())
        report |= hand | {"all-reduces": all_reduces(compiled)}
        users = place.jit(unmodified(place, tx), params, state)
        report["all-reduces of an unmodified step"] = all_reduces(users.lower(params, state, place.batch(0)).compile())
        untouched, _, _ = users(place.network(), tx.init(params), place.batch(0))
        report["an unmodified step keeps shardings"] = same_shardings(untouched, params)
        frozen = jax.tree.map(np.asarray, {name: params[name] for name in BLOCKS[:4]})
        end, state, seen = run(place, jitted, params, state)
        report["donated"] = all(leaf.is_deleted() for leaf in jax.tree.leaves({name: params[name] for name in TRAINED}))
        report["shardings kept"] = same_shardings(end, place.network()) and same_shardings(moments(state), moments(tx.init(place.network())))
        report["frozen bits kept"] = all(
            np.asarray(end[name][leaf]).tobytes() == array.tobytes() for name, arrays in frozen.items() for leaf, array in arrays.items()
        )
        report["proof"] = len(freezing.verify(end).arrays)
        late = unfreeze(freezing, layers="block_3")
        wide, rule = ours(place, late)
        carried = late.carry(rule, state, end)
        old, new = moments(carried)
        report["carried moments are the same arrays"] = old[0]["block_5"]["up"] is moments(state)[0][0]["block_5"]["up"]
        report["new moments are sharded as their parameters"] = new[0]["block_3"]["up"].sharding == end["block_3"]["up"].sharding
        grown, _, _ = run(place, place.jit(wide, end, carried), jax.tree.map(jnp.copy, end), carried)
    report["off one device"] = _off(alone, end, grown, seen)
    return report


def _off(alone: Placed, end: Tree, grown: Tree, seen: Any) -> float:
    """The largest gap to the same two stages on one device."""
    params = alone.network()
    freezing = freeze(params, layers="block_[0-3]")
    step, tx = ours(alone, freezing)
    theirs, state, told = run(alone, jax.jit(step), params, tx.init(params))
    late = unfreeze(freezing, layers="block_3")
    wide, rule = ours(alone, late)
    more, _, _ = run(alone, jax.jit(wide), theirs, late.carry(rule, state, theirs))
    pairs = zip(jax.tree.leaves((end, grown, seen)), jax.tree.leaves((theirs, more, told)), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    sys.stdout.write(json.dumps(measure(AxisType.Auto if sys.argv[1] == "auto" else AxisType.Explicit)) + "\n")
