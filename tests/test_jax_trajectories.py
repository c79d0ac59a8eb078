"""What is trainable moves as in a run over the trainable sub-tree alone, written by hand; what is frozen keeps every bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from kits import rules
from unifreeze import freeze
from unifreeze.select import everything

STEPS = 6
FROZEN, TRAINABLE = ("body", "odd"), ("stem", "head")
OPTIONS = {"xla_backend_optimization_level": 0}  # most of the time is XLA's


def start() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sizes = {"stem": (4, 6), "body": (6, 6), "head": (6, 3)}
    dense = {name: {"kernel": rng.normal(0, 0.5, size), "bias": rng.normal(0, 0.5, size[1:])} for name, size in sizes.items()}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), dense) | {"odd": odd()}


def odd() -> dict[str, Any]:
    """Bits that arithmetic likes to change: -0.0, denormals, NaNs with a payload, infinities, halves."""
    single = np.array([-0.0, 0.0, 1e-42, -1e-45, 3.0, np.inf], np.float32)
    payload = np.array([0x7FC12345, 0xFFC00001, 0xFF800000], np.uint32).view(np.float32)
    return {
        "single": jnp.asarray(np.concatenate([single, payload])),
        "brain": jnp.asarray([-0.0, 1e-40, 0.1, np.nan], jnp.bfloat16),
        "half": jnp.asarray([-0.0, 6e-8, np.nan], jnp.float16),
    }


def batch(step: Any) -> Any:
    return jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (8, 4))


def loss(params: Any, x: Any) -> Any:
    """``odd`` is passed over by the sum, and gets a gradient of zeros where it is differentiated."""
    hidden = x
    for name in ("stem", "body", "head"):
        hidden = jnp.tanh(hidden @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean((hidden - x[:, :3]) ** 2) + 0 * sum(jnp.sum(jnp.where(jnp.isfinite(leaf), 0, 0) * 1.0) for leaf in jax.tree.leaves(params["odd"]))


@functools.cache
def by_hand(rule: str) -> Any:
    tx, whole = rules.made(rule), start()
    still, params = {name: whole[name] for name in FROZEN}, {name: whole[name] for name in TRAINABLE}

    @functools.partial(jax.jit, compiler_options=OPTIONS)
    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = tx.update(jax.grad(lambda params: loss({**still, **params}, x))(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for i in range(STEPS):
        params, state = step(params, state, batch(i))
    return params


def check(params: Any, rule: str) -> None:
    begun = start()
    for name in FROZEN:
        for now, was in zip(jax.tree.leaves(params[name]), jax.tree.leaves(begun[name]), strict=True):
            assert np.asarray(now).tobytes() == np.asarray(was).tobytes()
            assert now.dtype == was.dtype
    for name in TRAINABLE:
        for leaf, value in params[name].items():
            np.testing.assert_allclose(value, by_hand(rule)[name][leaf], rtol=0, atol=1e-6)
            assert np.abs(np.asarray(value) - np.asarray(begun[name][leaf])).max() > 1e-4, "this test shows nothing"


def verbs(freezing: Any, tx: Any) -> Callable[..., Any]:
    def step(params: Any, state: Any, x: Any) -> Any:
        _, grads = freezing.value_and_grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return freezing.apply_updates(params, updates), state

    return step


def unmodified(freezing: Any, tx: Any) -> Callable[..., Any]:
    """The user's own step, without a word of unifreeze."""
    del freezing

    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("write", [verbs, unmodified])
@pytest.mark.parametrize("rule", rules.SWEEP)
def test_the_trainable_part_moves_as_by_hand(rule: str, write: Any) -> None:
    params = start()
    freezing = freeze(params, layers=list(FROZEN))
    tx = freezing.optimizer(rules.made(rule))
    step = jax.jit(write(freezing, tx), compiler_options=OPTIONS)
    state = tx.init(params)
    for i in range(STEPS):
        params, state = step(params, state, batch(i))
    check(params, rule)
    assert freezing.verify(params)


@pytest.mark.parametrize("rule", rules.BRIEF)
def test_a_train_state_moves_as_by_hand(rule: str) -> None:
    params = start()
    freezing = freeze(params, layers=list(FROZEN))
    train = TrainState.create(apply_fn=None, params=params, tx=freezing.optimizer(rules.made(rule)))

    @functools.partial(jax.jit, compiler_options=OPTIONS)
    def step(train: TrainState, x: Any) -> TrainState:
        return train.apply_gradients(grads=jax.grad(loss)(train.params, x))

    for i in range(STEPS):
        train = step(train, batch(i))
    check(train.params, rule)


@pytest.mark.parametrize("rule", rules.BRIEF)
def test_without_jit_it_moves_as_by_hand(rule: str) -> None:
    """Eagerly, JAX flushes denormals in every addition: ``apply_updates`` must not add."""
    params = start()
    freezing = freeze(params, layers=list(FROZEN))
    tx = freezing.optimizer(rules.made(rule))
    state, begun = tx.init(params), params
    for i in range(STEPS):
        params, state = verbs(freezing, tx)(params, state, batch(i))
    check(params, rule)
    for name in FROZEN:
        assert all(now is was for now, was in zip(jax.tree.leaves(params[name]), jax.tree.leaves(begun[name]), strict=True))


@pytest.mark.parametrize("rule", ["adamw clip", *(pytest.param(f"{name} clip", marks=pytest.mark.deep) for name in ("sgd", "adam", "lion", "adafactor"))])
def test_what_runs_before_sees_the_trainable_gradients_alone(rule: str) -> None:
    params = start()
    freezing = freeze(params, layers=list(FROZEN))
    optimizer, clip = rules.OPTIMIZERS[rule.partition(" ")[0]](), optax.clip_by_global_norm(0.02)
    tx = freezing.optimizer(optimizer, pre=clip)
    step = jax.jit(unmodified(freezing, tx), compiler_options=OPTIONS)
    state = tx.init(params)
    for i in range(STEPS):
        params, state = step(params, state, batch(i))
    check(params, rule)


def test_steps_gathered_outside_the_optimizer() -> None:
    """``MultiSteps`` round the freezing's optimizer, as an unchanged script has it: right, and bit for bit with ``f.apply_updates``."""
    params = start()
    freezing = freeze(params, layers=list(FROZEN))
    outer = optax.MultiSteps(freezing.optimizer(rules.OPTIMIZERS["adam"]()), 2)

    @functools.partial(jax.jit, compiler_options=OPTIONS)
    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = outer.update(jax.grad(loss)(params, x), state, params)
        return freezing.apply_updates(params, updates), state

    state = outer.init(params)
    for i in range(STEPS):
        params, state = step(params, state, batch(i))
    check(params, "adam accumulate")


def test_an_average_of_the_parameters() -> None:
    """The average of weights that people keep beside them, of the trainable part; the frozen part of it is the parameters themselves."""
    params = start()
    freezing = freeze(params, layers=list(FROZEN))
    tx = freezing.optimizer(rules.OPTIMIZERS["adamw"]())
    step, state, average = jax.jit(verbs(freezing, tx)), tx.init(params), freezing.partition(params)[0]
    expected = {name: params[name] for name in TRAINABLE}
    for i in range(3):
        params, state = step(params, state, batch(i))
        trainable, still = freezing.partition(params)
        average = optax.incremental_update(trainable, average, 0.1)
        expected = jax.tree.map(lambda new, old: 0.1 * new + 0.9 * old, {name: params[name] for name in TRAINABLE}, expected)
    whole = freezing.combine(average, still)
    assert freezing.verify(whole)
    for name in TRAINABLE:
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6), whole[name], expected[name])


@pytest.mark.parametrize("held", ["int8", "uint4", "bool"])
def test_whole_numbers_stay_bit_for_bit(held: str) -> None:
    codes = jnp.asarray([-0, 1, 1, 0], jnp.int8).astype(getattr(jnp, held if held != "bool" else "bool_"))
    params = {"codes": {"kernel": codes}, **start()}
    freezing = freeze(params, layers=everything - "head")
    tx = freezing.optimizer(optax.adamw(0.1, weight_decay=0.5))
    for run in (verbs(freezing, tx), jax.jit(verbs(freezing, tx))):
        now, _ = run(params, tx.init(params), batch(0))
        assert np.asarray(now["codes"]["kernel"]).tobytes() == np.asarray(codes).tobytes()
        assert now["codes"]["kernel"].dtype == codes.dtype
        assert freezing.verify(now)
