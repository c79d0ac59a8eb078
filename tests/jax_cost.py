"""What a step costs, by XLA's own analysis of the compiled program; nothing is allocated. Beside it the same step by hand, over the trainable part alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unifreeze import freeze

Tree = dict[str, Any]
CLIP = optax.clip_by_global_norm(1.0)
RULE = optax.adamw(1e-3, weight_decay=0.1)


class Net(NamedTuple):
    """A residual net of blocks that are all alike."""

    width: int
    blocks: int
    rows: int = 64

    @property
    def names(self) -> list[str]:
        return [f"block_{i}" for i in range(self.blocks)]

    def shapes(self) -> tuple[Tree, Any]:
        """The parameters and a batch, abstract."""
        up, down = jax.ShapeDtypeStruct((self.width, 2 * self.width), jnp.float32), jax.ShapeDtypeStruct((2 * self.width, self.width), jnp.float32)
        wide, narrow = jax.ShapeDtypeStruct((2 * self.width,), jnp.float32), jax.ShapeDtypeStruct((self.width,), jnp.float32)
        block = {"scale": narrow, "up": up, "bias": wide, "down": down}
        return {name: dict(block) for name in self.names}, jax.ShapeDtypeStruct((self.rows, self.width), jnp.float32)

    def loss(self, params: Tree, x: Any) -> Any:
        for name in self.names:
            layer = params[name]
            normed = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * layer["scale"]
            x = x + jax.nn.gelu(normed @ layer["up"] + layer["bias"]) @ layer["down"]
        return jnp.mean((x - 1.0) ** 2)

    def parts(self) -> dict[str, list[str]]:
        """What is frozen, of six blocks five: at the front, at the back, or around the middle."""
        trained, names = max(2, self.blocks // 12), self.names
        middle = (self.blocks - trained) // 2
        return {"prefix": names[:-trained], "suffix": names[trained:], "middle": names[:middle] + names[middle + trained :]}


#: 50.4 million parameters.
LARGE = Net(1024, 12)
SMALL = Net(128, 6, 32)


class Cost(NamedTuple):
    flops: float
    bytes: float
    state: int
    gradients: int

    def over(self, other: Cost) -> dict[str, float]:
        """The ratios of what XLA counts."""
        return {"flops": self.flops / other.flops, "bytes": self.bytes / other.bytes}


@contextmanager
def optimized() -> Iterator[None]:
    """XLA compiles as it does for users, whatever the session says."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def cost(step: Callable[..., Any], params: Any, state: Any, *rest: Any) -> Cost:
    """Compiles a step and reads what it costs. The step returns parameters, state, and gradients or a norm; parameters and state are donated."""
    with optimized():
        analysis = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *rest).compile().cost_analysis()
    grads = jax.eval_shape(step, params, state, *rest)[2]
    return Cost(analysis["flops"], analysis["bytes accessed"], nbytes(state), nbytes(grads))


def nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def by_hand(net: Net, frozen: list[str]) -> Cost:
    """Only what trains is differentiated, clipped, measured and updated. What is frozen is an argument of its own."""
    params, x = net.shapes()
    rest = {name: params.pop(name) for name in frozen}
    tx = optax.chain(CLIP, RULE)

    def step(params: Tree, state: Any, rest: Tree, x: Any) -> Any:
        grads = jax.grad(lambda params: net.loss({**params, **rest}, x))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, (grads, optax.tree.norm(grads))

    return cost(step, params, jax.eval_shape(tx.init, params), rest, x)


def ours(net: Net, frozen: list[str]) -> Cost:
    """The three lines, with what is frozen an argument of its own, as by hand."""
    params, x = net.shapes()
    freezing = freeze(params, layers=frozen)
    tx = freezing.optimizer(RULE, pre=CLIP)
    trainable, rest = freezing.partition(params)

    def step(trainable: Tree, state: Any, rest: Tree, x: Any) -> Any:
        params = freezing.combine(trainable, rest)
        grads = freezing.grad(net.loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return freezing.partition(freezing.apply_updates(params, updates))[0], state, (grads, optax.tree.norm(grads))

    return cost(step, trainable, jax.eval_shape(tx.init, params), rest, x)


def ours_whole(net: Net, frozen: list[str]) -> Cost:
    """The three lines on the whole tree: what is frozen goes in and comes out, in the same buffers."""
    params, x = net.shapes()
    freezing = freeze(params, layers=frozen)
    tx = freezing.optimizer(RULE, pre=CLIP)

    def step(params: Tree, state: Any, x: Any) -> Any:
        grads = freezing.grad(net.loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return freezing.apply_updates(params, updates), state, (grads, optax.tree.norm(grads))

    return cost(step, params, jax.eval_shape(tx.init, params), x)


def usual(net: Net, frozen: list[str], tx: Any, *, stop: bool = False, norm: bool = True) -> Cost:
    """The usual step: the gradient of everything, then an optimizer that is told what is frozen."""
    params, x = net.shapes()

    def loss(params: Tree, x: Any) -> Any:
        return net.loss({**params, **{name: jax.lax.stop_gradient(params[name]) for name in frozen}} if stop else params, x)

    def step(params: Tree, state: Any, x: Any) -> Any:
        grads = jax.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grads) if norm else x

    return cost(step, params, jax.eval_shape(tx.init, params), x)
