"""The user's own nnx step, unchanged: what is trainable moves as in a run over the trainable arrays alone, written by hand without nnx's optimizer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kits import rules
from unifreeze import freeze

STEPS, EAGER_STEPS = 6, 3
Arrays = dict[tuple[Any, ...], Any]


class Net(nnx.Module):
    """A frozen norm between layers that train, a norm that trains, and arrays with bits that arithmetic likes to change."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem, self.body, self.head = (nnx.Linear(*size, rngs=rngs) for size in ((4, 6), (6, 6), (6, 3)))
        self.norm, self.live = (nnx.BatchNorm(6, momentum=0.5, rngs=rngs) for _ in range(2))
        payload = np.array([0x7FC12345, 0xFF800000], np.uint32).view(np.float32)
        self.odd = nnx.Param(jnp.asarray(np.concatenate([np.array([-0.0, 1e-42, -1e-45], np.float32), payload])))
        self.half = nnx.Param(jnp.asarray([-0.0, 1e-40, np.nan], jnp.bfloat16))
        self.codes = nnx.Param(jnp.arange(-4, 4, dtype=jnp.int8))

    def __call__(self, x: Any) -> Any:
        x = self.live(jnp.tanh(self.stem(x)))
        return self.head(jnp.tanh(self.norm(self.body(x))))


FROZEN = ("body", "norm", "odd", "half", "codes")


def frozen(model: Net) -> Any:
    freezing = freeze(model, layers=["body", "norm"])
    return freeze(model, params=["odd", "half", "codes"]), freezing


def batch(step: Any) -> Any:
    return 1 + jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (8, 4))


def loss(model: Net, x: Any) -> Any:
    return jnp.mean((model(x) - x[:, :3]) ** 2)


def arrays(model: Net) -> Arrays:
    return {path: variable.get_raw_value() for path, variable in nnx.to_flat_state(nnx.state(model))}


@functools.cache
def by_hand(rule: str, *, compiled: bool) -> Arrays:
    """Pure functions over a dict of arrays; the norm that stands still is told so by hand."""
    model, tx = Net(), rules.made(rule)
    model.norm.use_running_average = True
    graphdef, state = nnx.split(model)
    kinds = dict(nnx.to_flat_state(state))
    whole = {path: variable.get_raw_value() for path, variable in kinds.items()}
    params = {path: value for path, value in whole.items() if isinstance(kinds[path], nnx.Param) and path[0] not in FROZEN}
    rest = {path: value for path, value in whole.items() if path not in params}

    def step(params: Arrays, rest: Arrays, state: Any, x: Any) -> Any:
        def of_params(params: Arrays) -> Any:
            model = nnx.merge(graphdef, nnx.from_flat_state({path: kinds[path].replace(value) for path, value in {**rest, **params}.items()}))
            value = loss(model, x)
            return value, {path: value for path, value in arrays(model).items() if path not in params}

        grads, rest = jax.grad(of_params, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), rest, state

    step, state = jax.jit(step) if compiled else step, tx.init(params)
    for i in range(STEPS if compiled else EAGER_STEPS):
        params, rest, state = step(params, rest, state, batch(i))
    return {**rest, **params}


@pytest.mark.parametrize("rule", rules.SWEEP)
def test_an_unchanged_nnx_step_moves_as_by_hand(rule: str) -> None:
    model = Net()
    begun = arrays(model)
    freezings = frozen(model)
    optimizer = nnx.Optimizer(model, rules.made(rule), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: Any) -> None:
        optimizer.update(model, nnx.grad(loss)(model, x))

    for i in range(STEPS):
        model.train()
        step(model, optimizer, batch(i))
    check(model, begun, by_hand(rule, compiled=True))
    assert all(freezing.verify() for freezing in freezings)


@pytest.mark.parametrize("rule", rules.BRIEF)
def test_without_jit_it_moves_as_by_hand(rule: str) -> None:
    model = Net()
    begun = arrays(model)
    freezing = frozen(model)[0]
    optimizer = freezing.optimizer(rules.made(rule))
    for i in range(EAGER_STEPS):
        _, grads = freezing.value_and_grad(loss)(model, batch(i))
        optimizer.update(model, grads)
    check(model, begun, by_hand(rule, compiled=False))
    for path, value in arrays(model).items():
        assert path[0] not in FROZEN or value is begun[path], "a frozen array was made anew"


def check(model: Net, begun: Arrays, expected: Arrays) -> None:
    moved = set()
    for path, value in arrays(model).items():
        if path[0] in FROZEN:
            assert np.asarray(value).tobytes() == np.asarray(begun[path]).tobytes(), path
        else:
            np.testing.assert_allclose(value, expected[path], rtol=0, atol=1e-6)
            moved |= {path} if np.abs(np.asarray(value) - np.asarray(begun[path])).max() > 1e-4 else set()
    assert {path[0] for path in moved} == {"stem", "live", "head"}
    assert ("live", "mean") in moved, "the statistics of a norm that trains stand still"
