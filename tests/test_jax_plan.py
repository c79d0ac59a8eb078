"""The plan beside the parameters: immutable, equal by content, without leaves, one trace for each content, in a flax TrainState and as an argument."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from unifreeze import Freezing, freeze, unfreeze


def net() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: {"kernel": jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)} for name in ("stem", "body", "head")}


def loss(params: Any) -> Any:
    x = jnp.ones((2, 4))
    for name in ("stem", "body", "head"):
        x = jnp.tanh(x @ params[name]["kernel"])
    return jnp.mean((x - 2.0) ** 2)


class Carrying(TrainState):
    """Flax's own state, with the freezing in it."""

    freezing: Freezing


def test_a_freezing_rides_in_flaxs_train_state() -> None:
    traces = []

    @jax.jit
    def step(state: Carrying) -> Carrying:
        traces.append(1)
        return state.apply_gradients(grads=state.freezing.grad(loss)(state.params))

    plans = [freeze(net(), layers=name) for name in ("stem", "body")]
    rules = [plan.optimizer(optax.adam(0.1)) for plan in plans]
    states = [Carrying.create(apply_fn=loss, params=net(), tx=tx, freezing=plan) for plan, tx in zip(plans, rules, strict=True)]
    for i in (0, 1, 0, 1):
        params = states[i].params
        states[i] = step(states[i].replace(freezing=freeze(params, layers=("stem", "body")[i])))
        assert [name for name in params if np.array_equal(params[name]["kernel"], states[i].params[name]["kernel"])] == [("stem", "body")[i]]
    assert len(traces) == 2
    assert len(jax.tree.leaves(states[0])) == len(jax.tree.leaves((states[0].step, states[0].params, states[0].opt_state)))


def test_a_closed_over_a_static_and_a_passed_freezing_do_the_same() -> None:
    freezing = freeze(net(), layers="stem")
    closed = jax.jit(freezing.grad(loss))
    passed = jax.jit(lambda freezing, params: freezing.grad(loss)(params))
    static = jax.jit(lambda freezing, params: freezing.grad(loss)(params), static_argnames="freezing")
    grads = [closed(net()), passed(freezing, net()), static(freezing=freezing, params=net())]
    assert all(grad["stem"]["kernel"] is None for grad in grads)
    for grad in grads:
        np.testing.assert_allclose(grad["head"]["kernel"], jax.grad(loss)(net())["head"]["kernel"], atol=1e-6)


def test_a_freezing_can_not_be_changed() -> None:
    freezing = freeze(net(), layers="stem")
    for name in ("frozen", "model", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(freezing, name, ())
    before = hash(freezing)
    unfreeze(freezing)
    assert (hash(freezing), freezing.frozen) == (before, ("stem.kernel",))


def test_equal_content_is_equal_whatever_made_it() -> None:
    one = freeze(net(), layers="stem")
    trained = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 2, params))(net())
    for other in (
        freeze(trained, layers="stem"),
        freeze(jax.eval_shape(net), layers=["stem"]),
        copy.deepcopy(one),
    ):
        assert other == one
        assert hash(other) == hash(one)
    assert len({one, freeze(net(), layers="stem"), freeze(net(), layers="head")}) == 2
    assert jax.tree.leaves(one) == []
    assert jax.tree.structure(one) == jax.tree.structure(freeze(net(), layers="stem"))
    assert jax.tree.structure(one) != jax.tree.structure(freeze(net(), layers="head"))
    assert freeze(net(), layers="stem", inference="all") != one, "how a layer is held belongs to the plan"
