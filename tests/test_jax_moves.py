"""What moved in a pytree, by how much and why: each cause is really brought about by a freeze by hand and optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unifreeze import freeze, guard
from unifreeze._moves import Moved
from unifreeze.errors import ArgumentError, FrozenMovedError, NothingSelectedError, UnifreezeError


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool = True) -> Any:
        x = nn.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(6, name="a")(x))
        return nn.Dense(2, name="b")(nn.relu(x))


X = jax.random.normal(jax.random.key(1), (16, 4))
MASK = {"a": True, "b": False}  # True: trainable


def params() -> Any:
    return {
        "a": {"kernel": jax.random.normal(jax.random.key(0), (4, 6)), "bias": jnp.ones(6)},
        "b": {"kernel": jax.random.normal(jax.random.key(2), (6, 2)), "bias": jnp.ones(2)},
    }


def loss(p: Any) -> Any:
    return jnp.mean(((X @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"] + p["b"]["bias"]) ** 2)


def trained(tx: Any, p: Any, state: Any = None, gradient: Callable[[Any], Any] | None = None, steps: int = 3) -> tuple[Any, Any]:
    state, gradient = tx.init(p) if state is None else state, gradient or jax.grad(loss)
    for _ in range(steps):
        updates, state = tx.update(gradient(p), state, p)
        p = optax.apply_updates(p, updates)
    return p, state


def caught(before: Any, after: Any, *, exact: bool = True, optimizer: Any = None, trainable: Any = MASK) -> dict[str, Moved]:
    with pytest.raises(FrozenMovedError) as error, guard(before, trainable=trainable, exact=exact) as watch:
        watch.check(after, optimizer=optimizer)
    return {one.path: one for one in error.value.moves}


def test_raw_gradients_that_a_mask_lets_through() -> None:
    before = params()
    after, state = trained(optax.masked(optax.adamw(1e-2), MASK), before)
    found = caught(before, after, optimizer=state)
    assert found.keys() == {"b.kernel", "b.bias"}
    assert found["b.kernel"].cause == "gradient"
    assert "hands on the raw gradient" in found["b.kernel"].why
    assert caught(before, after)["b.kernel"].cause == "unknown", "without its state nothing tells"
    inside = caught(
        before, after, optimizer=optax.masked(optax.adam(1e-2), jax.tree.map(lambda _: True, before) | {"b": {"kernel": False, "bias": True}}).init(before)
    )
    assert (inside["b.kernel"].cause, inside["b.bias"].cause) == ("gradient", "moments")
    change = np.linalg.norm(after["b"]["kernel"] - before["b"]["kernel"]) / np.linalg.norm(before["b"]["kernel"])
    assert found["b.kernel"].difference.relative == pytest.approx(change, rel=1e-5)


def test_decay_outside_of_the_mask() -> None:
    before = params()
    after, _ = trained(optax.chain(optax.masked(optax.set_to_zero(), jax.tree.map(lambda t: not t, MASK)), optax.adamw(1e-2, weight_decay=0.1)), before)
    found = caught(before, after)["b.kernel"]
    assert (found.cause, found.difference.factor) == ("decay", pytest.approx((1 - 1e-3) ** 3, abs=1e-6))


def test_moments_from_another_plan() -> None:
    """All was trained, then ``stop_gradient`` was put in: momentum goes on."""
    begun, state = trained(optax.sgd(1e-2, momentum=0.9), params())

    def stopped(p: Any) -> Any:
        return loss({"a": p["a"], "b": jax.lax.stop_gradient(p["b"])})

    after, state = trained(optax.sgd(1e-2, momentum=0.9), begun, state, jax.grad(stopped))
    assert caught(begun, after, optimizer=state)["b.kernel"].cause == "moments"
    assert caught(begun, after)["b.kernel"].cause == "unknown"
    freezing = freeze(begun, layers="b")
    with pytest.raises(FrozenMovedError, match="keeps moments for it"):
        freezing.verify(after, optimizer=state)


def test_statistics() -> None:
    model = Network()
    before = model.init(jax.random.key(0), X)
    _, moved = model.apply(before, X, mutable=["batch_stats"])
    mask = {"params": {"a": False, "bn": False, "b": True}, "batch_stats": True}
    found = caught(before, {**before, **moved}, trainable=mask)
    assert {path: one.cause for path, one in found.items()} == {"bn.mean": "statistics", "bn.var": "statistics"}


def test_a_part_that_was_replaced() -> None:
    before = params()
    assert caught(before, {"a": before["a"], "c": before["b"]})["b.kernel"].cause == "replaced"


def test_what_trains_is_said_in_every_way() -> None:
    before, variables = params(), freeze(params(), layers="b")
    whole = jax.tree.map(lambda _: True, before)
    ways = [
        MASK,
        {"a": whole["a"], "b": jax.tree.map(lambda _: False, before["b"])},
        jax.tree.map(lambda t: "trainable" if t else "frozen", MASK),
        lambda p: {"a": jax.tree.map(lambda _: True, p["a"]), "b": False},
        variables,
        "a",
        variables.trainable_mask,
        variables.labels,
    ]
    for way in ways:
        assert set(guard(before, trainable=way).arrays) == {"b.kernel", "b.bias"}
    with pytest.raises(UnifreezeError, match="has not the structure"):
        guard(before, trainable={"a": True})
    with pytest.raises(ArgumentError, match="The label 'adam' of a"):
        guard(before, trainable={"a": "adam", "b": "frozen"})
    with pytest.raises(NothingSelectedError, match="say what trains"):
        guard(before)
    with pytest.raises(ArgumentError, match="keeps no values"):
        guard(variables)


def test_a_guard_that_was_given_nothing_says_so() -> None:
    with pytest.raises(ArgumentError, match="nothing to compare with"), guard(params(), trainable=MASK):
        pass
    with pytest.raises(ZeroDivisionError), guard(params(), trainable=MASK):
        raise ZeroDivisionError


def test_a_freezing_holds_in_the_guard() -> None:
    before = params()
    freezing = freeze(before, layers="b")
    with guard(before, trainable=freezing, exact=True) as watch:
        after, _ = trained(freezing.optimizer(optax.adamw(1e-2, weight_decay=0.1)), before, gradient=freezing.grad(loss))
        watch.check(after)
    assert not np.array_equal(after["a"]["kernel"], before["a"]["kernel"])
    assert freezing.remember(before, exact=True).verify(after).exact


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.complex64])
def test_copies_of_every_type(dtype: Any) -> None:
    before = {"a": jnp.ones(3), "b": jnp.asarray([1, 2, 3]).astype(dtype)}
    found = caught(before, {"a": before["a"], "b": before["b"].at[1].set(dtype(4))})
    assert found["b"].difference.elements == 1
