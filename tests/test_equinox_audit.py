"""The audit, the guard and causes on equinox: filters and masks by hand, and what unifreeze freezes."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unifreeze import audit, freeze, guard
from unifreeze.errors import FrozenMovedError


class Network(eqx.Module):
    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self) -> None:
        one, other = jax.random.split(jax.random.key(0))
        self.body, self.head = eqx.nn.Linear(4, 6, key=one), eqx.nn.Linear(6, 2, key=other)
        self.norm = eqx.nn.BatchNorm(6, "batch", mode="ema")

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.norm(self.body(x), state)
        return self.head(jax.nn.relu(x)), state


X = jax.random.normal(jax.random.key(1), (16, 4))


def loss(model: Network, state: Any) -> Any:
    y, state = jax.vmap(model, (0, None), (0, None), axis_name="batch")(X, state)
    return jnp.mean(y**2), state


def head_alone(model: Network) -> Any:
    """The usual filter: a tree of False, and True where it trains."""
    spec = jax.tree.map(lambda _: False, model)
    return eqx.tree_at(lambda m: (m.head.weight, m.head.bias), spec, (True, True))


def heads(params: Any) -> Any:
    """As a function, since optax would call a module."""
    return head_alone(params)


def paths(report: Any) -> dict[str, tuple[str, ...]]:
    return {one.code: one.paths for one in report}


def test_a_filter_by_hand_lets_statistics_move() -> None:
    model, state = eqx.nn.make_with_state(Network)()
    spec = head_alone(model)
    tx = optax.masked(optax.adam(1e-2), heads)
    assert set(paths(audit((model, state), tx, trainable=spec))) == {"UF601", "UF202"}
    zeros = optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(lambda t: not t, heads(params)))
    assert paths(audit((model, state), optax.chain(zeros, optax.adam(1e-2)), trainable=spec)) == {"UF202": ("norm",)}
    with pytest.raises(FrozenMovedError) as error, guard((model, state), trainable=spec, exact=True) as watch:
        _, moved = eqx.filter_jit(loss)(model, state)
        watch.check((model, moved))
    causes = {one.path: one.cause for one in error.value.moves}
    assert causes["norm.mean"] == causes["norm.var"] == "statistics"
    still = eqx.tree_at(lambda m: m.norm.inference, model, replace=True)
    assert paths(audit((still, state), optax.chain(zeros, optax.adam(1e-2)), trainable=spec)) == {}


def test_decay_that_a_filter_does_not_stop() -> None:
    model, state = eqx.nn.make_with_state(Network)()
    spec = head_alone(model)
    zeros = optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(lambda t: not t, heads(params)))
    tx = optax.chain(zeros, optax.adamw(1e-2, weight_decay=0.1))
    assert "UF602" in paths(audit((model, state), tx, trainable=spec))
    params = eqx.filter(model, eqx.is_inexact_array)
    (_, _), grads = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(model, state)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = eqx.apply_updates(model, updates)
    assert not np.array_equal(after.body.weight, model.body.weight), "the finding is true"
    with pytest.raises(FrozenMovedError) as error, guard((model, state), trainable=spec, exact=True) as watch:
        watch.check((after, state))
    assert {one.path: one.cause for one in error.value.moves}["body.weight"] == "decay"


def test_what_unifreeze_freezes_has_a_clean_bill_and_holds_in_the_guard() -> None:
    model, state = eqx.nn.make_with_state(Network)()
    freezing = freeze((model, state), layers=["body", "norm"])
    tx = freezing.optimizer(optax.adamw(1e-2, weight_decay=0.1))
    assert audit((model, state), tx, trainable=freezing).findings == ()
    with guard((model, state), trainable=freezing, exact=True) as watch:
        (_, after), grads = freezing.value_and_grad(loss, has_aux=True)(model, state)
        updates, _ = tx.update(grads, tx.init(eqx.filter(model, eqx.is_inexact_array)), model)
        trained = freezing.apply_updates(model, updates)
        watch.check((trained, after))
    assert not np.array_equal(trained.head.weight, model.head.weight)


def test_a_filter_of_leaves() -> None:
    model, state = eqx.nn.make_with_state(Network)()
    assert set(guard((model, state), trainable=lambda leaf: eqx.is_array(leaf) and leaf.shape[:1] == (2,)).arrays) >= {"body.weight", "body.bias"}
