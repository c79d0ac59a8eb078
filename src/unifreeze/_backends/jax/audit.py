"""What only optax can get wrong: what a chain moves, found out by running it for some steps on made gradients. optax is pure, so nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unifreeze.plugin import ArgumentError, Finding, Layer

from .checks import is_transformation, shown
from .tree import collections_of, flat, is_array, is_inexact

#: At least so many steps: a schedule may begin at a rate of 0. And at most so many, until something moves: gradients may be accumulated over many.
_STEPS, _MOST = 8, 128
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


def known(given: Any) -> Any:
    """Returns what was given, if it is a transformation, or the one inside a training state.

    Raises:
        ArgumentError: If there is none.
    """
    inner = getattr(given, "tx", given)
    if is_transformation(inner) and not isinstance(inner, type):
        return inner
    repair = "Give what makes the updates, optax.adamw(1e-3): it is run on a state of its own."
    raise ArgumentError(f"optimizer= is an optax transformation, what holds one, or a list of several.\n  given: {shown(given)}\n  {repair}")


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
            yield Finding.of(
                "UF605", (), why, "give the very transformation that trains this tree; one that asks for more than a loss and its value can't be looked at"
            )
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
    if still:
        where = "" if seen.pulled else f", nor anything else in {_MOST} steps"
        repair = "look at its mask, its labels or its wrt: True means trainable in trainable_mask; if it is meant to be frozen, say what trains: trainable="
        yield Finding.of("UF603", still, f"it is trainable, and the optimizer does not move it{where}", repair)


def run(tx: Any, model: Any) -> Moves:
    """Takes steps with made gradients, and as many with gradients of zeros, from states of their own."""
    params = _parameters(model)
    names = flat(params).by_name.keys()

    @jax.jit
    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradients, state, params, **_further(tx, gradients, params))
        given, made = flat(gradients).by_name, {name: new for name, new in flat(updates).by_name.items() if name in names and is_array(new)}
        return {name: (jnp.any(new != 0), jnp.all(new == given[name])) for name, new in made.items()}, state

    seen, most = Moves(), _MOST
    for gradients, into in ((jax.tree_util.tree_map(_gradient, params), seen.pulled), (jax.tree_util.tree_map(_zeros, params), seen.drifted)):
        state = tx.init(params)
        for taken in range(1, most + 1):
            found, state = step(gradients, state, params)
            moved = {name for name, (any_, _) in found.items() if any_}
            into.update(moved)
            seen.raw |= {name for name in moved if found[name][1]}
            if seen.pulled and taken >= _STEPS and into is seen.pulled:
                most = taken
                break
    return seen


def _further(tx: Any, gradients: Any, params: Any) -> dict[str, Any]:
    """What ``optax.GradientTransformationExtraArgs`` may ask for besides: the value of a loss, and the loss, here the linear one that has these gradients."""
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature(tx.update).parameters.values()):
        return {}
    slopes = flat(gradients).by_name

    def loss(at: Any, **_: Any) -> Any:
        terms = [jnp.vdot(slopes[name], array) for name, array in flat(at).by_name.items() if name in slopes and is_array(array)]
        return sum((term.real.astype(jnp.float32) for term in terms), jnp.zeros(()))

    return {"value": loss(params), "grad": gradients, "value_fn": loss}


def _parameters(model: Any) -> Any:
    """The arrays that a gradient is of: linen's ``params``; shapes with ones in their place; of a module of another framework, its floats alone."""
    inner = model["params"] if "params" in collections_of(model) else model

    def leaf(array: Any) -> Any:
        if not is_array(array) or not is_inexact(array.dtype):
            return None
        return jnp.ones(array.shape, array.dtype) if isinstance(array, jax.ShapeDtypeStruct) else array

    return jax.tree_util.tree_map(leaf, inner)


def _zeros(array: Any) -> Any:
    return np.zeros(array.shape, array.dtype)


def _gradient(array: Any) -> Any:
    """Numbers of either sign, of which none is zero, made without anybody's random state."""
    rng = np.random.default_rng(array.size)
    return (rng.uniform(0.5, 1.5, array.shape) * rng.choice([-1.0, 1.0], array.shape)).astype(array.dtype)
