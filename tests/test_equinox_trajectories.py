"""What is trainable moves as in equinox's documented way over the trainable part, written by hand; what is frozen keeps every bit."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kits import rules
from unifreeze import freeze

STEPS, EAGER_STEPS = 6, 3


class Net(eqx.Module):
    """A frozen norm between layers that train, a norm that trains, and arrays with bits that arithmetic likes to change."""

    stem: eqx.nn.Linear
    live: eqx.nn.BatchNorm
    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear
    odd: dict[str, Any]

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0), 3)
        self.stem, self.body, self.head = (eqx.nn.Linear(*size, key=key) for size, key in zip(((4, 6), (6, 6), (6, 3)), keys, strict=True))
        self.live, self.norm = (eqx.nn.BatchNorm(6, axis_name="batch", mode="ema", momentum=0.5) for _ in range(2))
        payload = np.array([0x7FC12345, 0xFF800000], np.uint32).view(np.float32)
        single = np.concatenate([np.array([-0.0, 1e-42, -1e-45], np.float32), payload])
        half, codes = jnp.asarray([-0.0, 1e-40, np.nan], jnp.bfloat16), jnp.arange(-4, 4, dtype=jnp.int8)
        self.odd = {"single": jnp.asarray(single), "half": half, "codes": codes}

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.live(jnp.tanh(self.stem(x)), state)
        x, state = self.norm(self.body(x), state)
        return self.head(jnp.tanh(x)), state


@functools.cache
def begun() -> Any:
    """The norms have seen a batch: the gradient through the first one is next to nothing, and Adam would blow up its rounding.

    The bias of a norm is not the zero that it is made with: Adafactor's steps are as large as the weights.
    """
    model, state = eqx.nn.make_with_state(Net)()
    model = eqx.tree_at(lambda tree: tree.live.bias, model, jnp.full(6, 0.3))
    return model, eqx.filter_jit(loss)(model, state, batch(99))[1]


def start() -> Any:
    """With a State of its own: ``set`` makes the old one invalid."""
    model, state = begun()
    return model, jax.tree.map(lambda leaf: leaf, state)


def batch(step: Any) -> Any:
    return 1 + jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (8, 4))


def loss(model: Any, state: Any, x: Any) -> Any:
    outputs, state = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
    return jnp.mean((outputs - x[:, :3]) ** 2), state


def trained(model: Any) -> Any:
    return model.stem, model.live.weight, model.live.bias, model.head


@functools.cache
def by_hand(rule: str, *, compiled: bool) -> Any:
    model, state = start()
    tx = rules.made(rule)
    model = eqx.tree_at(lambda tree: tree.norm.inference, model, replace=True)
    mask = eqx.tree_at(trained, jax.tree.map(lambda _: False, model), replace_fn=lambda part: jax.tree.map(lambda _: True, part))
    params, rest = eqx.partition(model, jax.tree.map(lambda one, leaf: one and eqx.is_inexact_array(leaf), mask, model))

    def step(params: Any, state: Any, opt_state: Any, x: Any) -> Any:
        grads, state = eqx.filter_grad(lambda params: loss(eqx.combine(params, rest), state, x), has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return eqx.apply_updates(params, updates), state, opt_state

    step, opt_state = eqx.filter_jit(step) if compiled else step, tx.init(params)
    for i in range(STEPS if compiled else EAGER_STEPS):
        params, state, opt_state = step(params, state, opt_state, batch(i))
    return params, state


def run(rule: str, *, compiled: bool) -> Any:
    model, state = first = start()
    freezing = freeze(first, layers=["body", "norm"])
    freezing = freeze(freezing, params="odd.*").remember(first)
    tx = freezing.optimizer(rules.made(rule))

    def step(model: Any, state: Any, opt_state: Any, x: Any) -> Any:
        (_, state), grads = freezing.value_and_grad(loss, has_aux=True)(model, state, x)
        updates, opt_state = tx.update(grads, opt_state, model)
        return freezing.apply_updates(model, updates), state, opt_state

    step, opt_state = eqx.filter_jit(step) if compiled else step, tx.init(model)
    for i in range(STEPS if compiled else EAGER_STEPS):
        model, state, opt_state = step(model, state, opt_state, batch(i))
    return first, (model, state), freezing


@pytest.mark.parametrize("rule", rules.SWEEP)
def test_the_trainable_part_moves_as_by_hand(rule: str) -> None:
    first, ended, freezing = run(rule, compiled=True)
    check(first, ended, by_hand(rule, compiled=True))
    assert freezing.verify(ended)


@pytest.mark.parametrize("rule", rules.BRIEF)
def test_without_jit_it_moves_as_by_hand(rule: str) -> None:
    first, ended, _ = run(rule, compiled=False)
    check(first, ended, by_hand(rule, compiled=False))
    for now, was in zip(still(ended[0]), still(first[0]), strict=True):
        assert now is was, "a frozen array was made anew"


def still(model: Any) -> list[Any]:
    return jax.tree.leaves((eqx.filter(model.body, eqx.is_array), model.norm.weight, model.norm.bias, model.odd))


def check(first: Any, ended: Any, hand: Any) -> None:
    (old, old_state), (new, state), (params, its_state) = first, ended, hand
    for now, was in zip(still(new), still(old), strict=True):
        assert np.asarray(now).tobytes() == np.asarray(was).tobytes()
    for now, was in zip(state.get(old.norm.ema_state_index), old_state.get(old.norm.ema_state_index), strict=True):
        assert np.asarray(now).tobytes() == np.asarray(was).tobytes(), "statistics of the frozen norm"
    arrays = [jax.tree.leaves(eqx.filter(trained(model), eqx.is_array)) for model in (new, params, old)]
    for now, expected, was in zip(*arrays, strict=True):
        np.testing.assert_allclose(now, expected, rtol=0, atol=1e-6)
        assert np.abs(np.asarray(now) - np.asarray(was)).max() > 1e-4, "this test shows nothing"
    statistics = [held.get(old.live.ema_state_index)[0] for held in (state, its_state, old_state)]
    np.testing.assert_allclose(statistics[0], statistics[1], rtol=0, atol=1e-6)
    assert np.abs(np.asarray(statistics[0]) - np.asarray(statistics[2])).max() > 1e-2, "the statistics of a norm that trains stand still"
