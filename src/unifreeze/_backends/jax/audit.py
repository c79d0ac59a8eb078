"""What only optax can get wrong: what a chain moves, found out by running it for some steps on made gradients. optax is pure, so nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unifreeze.plugin import Finding, Layer

from .checks import is_transformation
from .tree import collections_of, flat, is_array, is_inexact

#: A schedule may begin at a rate of 0, and ``MultiSteps`` moves at every k-th step.
_STEPS = 8
_RATE = "take an optimizer of what trains: freezing.optimizer(tx), or optax.partition({'trainable': tx, 'frozen': optax.set_to_zero()}, labels)"


@dataclass(slots=True)
class Moves:
    """What a transformation did to each leaf, by its dotted name.

    Attributes:
        pulled: Which got an update at some step with gradients.
        drifted: Which got one with gradients of zeros.
        raw: Which got their very gradient as an update.
    """

    pulled: set[str] = field(default_factory=set)
    drifted: set[str] = field(default_factory=set)
    raw: set[str] = field(default_factory=set)


def findings(model: Any, tree: Layer, optimizers: tuple[Any, ...]) -> Iterator[Finding]:
    """Looks at every optax transformation that was given."""
    return tried([(one, model) for one in optimizers if is_transformation(one)], statuses(tree))


def statuses(tree: Layer) -> dict[str, str]:
    """What is meant of each parameter, a shared one at the first of its paths."""
    first = {id(p.array): p for layer in reversed(list(tree.walk())) for p in reversed(layer.parameters) if not p.untrainable}
    return {parameter.path: parameter.status for parameter in first.values()}


def tried(pairs: list[tuple[Any, Any]], meant: Mapping[str, str]) -> Iterator[Finding]:
    """Runs each transformation on its tree; what one of them moves counts as moved."""
    seen = Moves()
    for tx, model in pairs:
        try:
            found = run(tx, model)
        except Exception as error:  # noqa: BLE001 - whatever a user's transformation raises on made gradients
            why = f"the transformation could not be run on made gradients: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            yield Finding.of("UF605", (), why, "give the very transformation that trains this tree; one that needs the loss can't be looked at")
            return
        seen.pulled |= found.pulled
        seen.drifted |= found.drifted
        seen.raw |= found.raw
    if pairs:
        yield from judged(seen, meant)


def judged(seen: Moves, meant: Mapping[str, str]) -> Iterator[Finding]:
    """Compares what moved with what is frozen and what trains."""
    frozen = [path for path, status in meant.items() if status == "frozen"]
    train = [path for path, status in meant.items() if status == "trainable"]
    moved, still = [path for path in frozen if path in seen.pulled | seen.drifted], [path for path in train if path not in seen.pulled]
    if frozen and train and len(moved) == len(frozen) and len(still) == len(train):
        why = "the optimizer moves what is frozen and nothing that trains: the mask is the wrong way round"
        yield Finding.of("UF604", moved, why, "in optax.masked(tx, mask) True means that tx is applied; in optax.freeze(mask) it means frozen")
        return
    drifted = [path for path in moved if path in seen.drifted]
    if drifted:
        why = "it is frozen, and the optimizer moves it without any gradient: weight decay or noise stands outside of what is masked"
        yield Finding.of("UF602", drifted, why, _RATE)
    pulled = [path for path in moved if path not in seen.drifted]
    if pulled:
        raw = all(path in seen.raw for path in pulled)
        how = "lets its raw gradient through as the update, which climbs" if raw else "moves it by its gradient"
        yield Finding.of("UF601", pulled, f"it is frozen, and the optimizer {how}", _RATE)
    if still and seen.pulled:
        yield Finding.of(
            "UF603", still, "it is trainable, and the optimizer does not move it", "look at its mask or labels: True means trainable in trainable_mask"
        )


def run(tx: Any, model: Any) -> Moves:
    """Takes steps with made gradients, and as many with gradients of zeros, from states of their own."""
    params = _parameters(model)
    names = flat(params).by_name.keys()

    @jax.jit
    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        given, made = flat(gradients).by_name, {name: new for name, new in flat(updates).by_name.items() if name in names and is_array(new)}
        return {name: (jnp.any(new != 0), jnp.all(new == given[name])) for name, new in made.items()}, state

    seen = Moves()
    for gradients, into in ((jax.tree_util.tree_map(_gradient, params), seen.pulled), (jax.tree_util.tree_map(jnp.zeros_like, params), seen.drifted)):
        state = tx.init(params)
        for _ in range(_STEPS):
            found, state = step(gradients, state, params)
            moved = {name for name, (any_, _) in found.items() if any_}
            into.update(moved)
            seen.raw |= {name for name in moved if found[name][1]}
    return seen


def _parameters(model: Any) -> Any:
    """The arrays that a gradient is of: linen's ``params``; shapes with ones in their place; of a module of another framework, its floats alone."""
    inner = model["params"] if "params" in collections_of(model) else model

    def leaf(array: Any) -> Any:
        if not is_array(array) or not is_inexact(array.dtype):
            return None
        return jnp.ones(array.shape, array.dtype) if isinstance(array, jax.ShapeDtypeStruct) else array

    return jax.tree_util.tree_map(leaf, inner)


def _gradient(array: Any) -> Any:
    """Numbers of either sign, of which none is zero, made without anybody's random state."""
    rng = np.random.default_rng(array.size)
    return jnp.asarray(rng.uniform(0.5, 1.5, array.shape) * rng.choice([-1.0, 1.0], array.shape)).astype(array.dtype)
