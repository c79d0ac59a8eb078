"""Held layers of an equinox module: at inference whatever the call says, with their state as it came, in every argument, and nowhere else."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifreeze import UnifreezeError, freeze

X = np.random.default_rng(0).normal(3, 1, size=(8, 4)).astype(np.float32)


class Told(eqx.Module):
    """Two normalisations and a dropout, each told at the call how to run, as the calls of a user's own model do."""

    one: eqx.nn.BatchNorm
    two: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self) -> None:
        self.one, self.two = (eqx.nn.BatchNorm(4, axis_name="batch", mode="ema", inference=True) for _ in range(2))
        self.drop, self.head = eqx.nn.Dropout(0.5, inference=True), eqx.nn.Linear(4, 2, key=jax.random.key(0))

    def __call__(self, x: Any, state: Any, key: Any) -> Any:
        x, state = self.one(x, state, inference=False)
        x, state = self.two(x, state, inference=False)
        return self.head(self.drop(x, key=key, inference=False)), state


def told() -> Any:
    model, state = eqx.nn.make_with_state(Told)()
    return model, batched(model, state)[1]  # statistics of their own, not those it starts with


def batched(model: Any, state: Any, key: int = 0, x: Any = X) -> Any:
    """Runs a model over a batch on a copy of its State."""
    keys = jax.random.split(jax.random.key(key), len(x))
    state = jax.tree.map(lambda leaf: leaf, state)
    return jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(x, state, keys)


def statistics(norm: Any, state: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in state.get(norm.ema_state_index)]


def loss(model: Any, state: Any, key: int = 0) -> Any:
    outputs, state = batched(model, state, key, X + 2)
    return jnp.mean(outputs**2), state


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_what_is_said_at_the_call_lets_no_held_layer_go(compiled: bool) -> None:
    model, state = told()
    freezing = freeze((model, state), layers="one")
    gradient = freezing.grad(loss, has_aux=True)
    _, after = (eqx.filter_jit(gradient) if compiled else gradient)(model, state)
    assert statistics(model.one, after) == statistics(model.one, state)
    assert statistics(model.two, after) != statistics(model.two, state), "a trainable norm stands still"
    assert statistics(model.one, loss(model, state)[1]) != statistics(model.one, state), "this test shows nothing"
    assert freezing.verify((model, after))
    # What it computes with are its stored statistics.
    by_hand = eqx.tree_at(lambda tree: tree.two, model, Silent())
    ours = freeze((by_hand, state), layers="one", inference="all").hold(batched)(by_hand, state)[0]
    mean, var = state.get(model.one.ema_state_index)
    drop = eqx.tree_at(lambda tree: (tree.one, tree.two), model, (Silent(), Silent()))
    expected = batched(drop, state, x=np.asarray((X - mean) / np.sqrt(var + model.one.eps) * model.one.weight + model.one.bias))[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


class Silent(eqx.Module):
    """In a norm's place."""

    def __call__(self, x: Any, state: Any, *, inference: bool = False) -> Any:
        return x, state


def test_all_stops_a_dropout_that_is_told_to_drop() -> None:
    model, state = told()
    mild, full = (freeze((model, state), inference=how).hold(batched) for how in ("norm", "all"))
    assert np.any(np.asarray(mild(model, state, 0)[0]) != np.asarray(mild(model, state, 1)[0]))
    np.testing.assert_array_equal(full(model, state, 0)[0], full(model, state, 1)[0])


def test_none_leaves_every_switch_as_it_was() -> None:
    model, state = told()
    _, after = freeze((model, state), inference="none").grad(loss, has_aux=True)(model, state)
    assert statistics(model.one, after) != statistics(model.one, state)


class Counting(eqx.Module):
    """State of the user's own, without any switch, beside a random key and in a list; a method beside ``__call__`` writes it, too."""

    calls: eqx.nn.StateIndex
    seen: list[eqx.nn.StateIndex]
    key: eqx.nn.StateIndex
    weight: Any
    inner: eqx.nn.SpectralNorm

    def __init__(self) -> None:
        self.calls, self.seen, self.weight = eqx.nn.StateIndex(jnp.zeros(())), [eqx.nn.StateIndex(jnp.zeros(4))], jnp.ones(4)
        self.key = eqx.nn.StateIndex(jax.random.key(0))
        self.inner = eqx.nn.SpectralNorm(eqx.nn.Linear(4, 4, key=jax.random.key(1)), "weight", key=jax.random.key(2))

    @eqx.filter_jit
    def __call__(self, x: Any, state: Any) -> dict[str, Any]:
        state = self.noted(x, state=state)
        x, state = self.inner(x, state, inference=False)
        return {"out": x * self.weight, "state": state.set(self.calls, state.get(self.calls) + 1)}

    def noted(self, x: Any, *, state: Any) -> Any:
        state = state.set(self.key, jax.random.split(state.get(self.key))[0])
        return state.set(self.seen[0], x)


def counted(pair: Any) -> list[bytes]:
    model, state = pair
    values = [state.get(model.calls), state.get(model.seen[0]), *state.get(model.inner.uv_index)]
    return [np.asarray(value).tobytes() for value in values]


def key_of(pair: Any) -> bytes:
    return np.asarray(jax.random.key_data(pair[1].get(pair[0].key))).tobytes()


@pytest.mark.parametrize("inference", ["norm", "all", "none"])
def test_any_state_of_a_held_layer_stays_as_it_came(inference: Any) -> None:
    model, state = eqx.nn.make_with_state(Counting)()
    freezing = freeze((model, state), inference=inference)
    start = counted((model, state)), key_of((model, state))
    after = freezing.hold(lambda model, x, state: model(x, state))(model, jnp.asarray(X[0]), jax.tree.map(lambda leaf: leaf, state))["state"]
    assert (counted((model, after)) == start[0]) == (inference != "none")
    assert (key_of((model, after)) == start[1]) == (inference == "all"), "random numbers go on under norm"
    after = freezing.hold(lambda model, x, state: model.noted(x, state=state))(model, jnp.asarray(X[0]), jax.tree.map(lambda leaf: leaf, state))
    assert (counted((model, after)) == start[0]) == (inference != "none")


def test_hold_finds_the_module_wherever_it_is_given() -> None:
    model, state = told()
    freezing = freeze((model, state), layers="one")
    before = statistics(model.one, state)
    calls = {
        "first": lambda: freezing.hold(batched)(model, state)[1],
        "second": lambda: freezing.hold(lambda x, model: batched(model, state, x=x))(X, model)[1],
        "keyword": lambda: freezing.hold(lambda x, *, model: batched(model, state, x=x))(X, model=model)[1],
        "pair": lambda: freezing.hold(lambda pair: batched(*pair))((model, state))[1],
        "dict": lambda: freezing.hold(lambda models: batched(models["ema"], state))({"ema": model, "other": 1})[1],
        "two": lambda: freezing.hold(lambda one, two: batched(two, batched(one, state)[1])[1])(model, model),
        "itself": lambda: batched(freezing.hold(model), state)[1],
        "method": lambda: batched(freezing.hold(model.__call__), state)[1],
    }
    assert {name: statistics(model.one, run()) == before for name, run in calls.items()} == dict.fromkeys(calls, True)
    assert {name: statistics(model.two, run()) == before for name, run in calls.items()} == dict.fromkeys(calls, False)
    with pytest.raises(UnifreezeError, match="not among the arguments"):
        freezing.hold(lambda x: batched(model, state, x=x))(X)
    with pytest.raises(UnifreezeError, match=r"missing: head\.bias"):
        freezing.hold(lambda part: part)(model.head)


def test_a_teacher_beside_the_student_is_held_too() -> None:
    model, state = told()
    freezing = freeze((model, state), layers="one")

    def distilled(student: Any, teacher: Any) -> Any:
        news = batched(teacher, state)[1]
        return jnp.sum(student.head.weight), news

    _, news = freezing.grad(distilled, has_aux=True)(model, jax.tree.map(lambda leaf: leaf, model))
    assert statistics(model.one, news) == statistics(model.one, state)


def test_the_users_classes_come_back() -> None:
    model, state = told()
    freezing = freeze((model, state), layers="one")
    seen: list[Any] = []

    def run(model: Any) -> Any:
        seen.append(model.one)
        return jnp.sum(model.head.weight), {"model": model, "norms": [model.one]}

    _, returned = freezing.grad(run, has_aux=True)(model)
    assert isinstance(seen[0], eqx.nn.BatchNorm)
    assert (type(seen[0]).__name__, type(seen[0]).__module__) == ("BatchNorm", eqx.nn.BatchNorm.__module__)
    assert type(seen[0]) is not eqx.nn.BatchNorm
    assert type(returned["model"].one) is type(returned["norms"][0]) is type(model.one) is eqx.nn.BatchNorm
    assert jax.tree.structure(returned["model"].two) == jax.tree.structure(model.two)
    assert type(freezing.combine(*freezing.partition(model)).one) is eqx.nn.BatchNorm


def test_a_step_traces_once() -> None:
    model, state = told()
    traces = []

    @eqx.filter_jit
    def step(freezing: Any, model: Any, state: Any) -> Any:
        traces.append(1)
        return freezing.grad(loss, has_aux=True)(model, state)

    for _ in range(3):
        step(freeze((model, state), layers="one"), model, state)
        step(freeze((model, state), layers="two"), model, state)
    assert len(traces) == 2


def test_held_layers_under_checkpoint_scan_and_a_filtered_vmap() -> None:
    """The classes go wherever JAX takes a module apart and puts it together."""
    model, state = told()
    freezing = freeze((model, state), layers="one")

    def lifted(model: Any, state: Any) -> Any:
        once = eqx.filter_checkpoint(lambda model, state: batched(model, state, x=3 * X + 2))(model, state)[1]
        arrays, rest = eqx.partition(model, eqx.is_array)
        twice = jax.lax.scan(lambda state, _: (batched(eqx.combine(arrays, rest), state, x=X - 1)[1], None), once, length=2)[0]
        keys = jax.random.split(jax.random.key(0), 8)
        many = eqx.filter_vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(X, twice, keys)[1]
        return jnp.sum(model.head.weight), many

    _, after = eqx.filter_jit(freezing.grad(lifted, has_aux=True))(model, state)
    assert statistics(model.one, after) == statistics(model.one, state)
    assert statistics(model.two, after) != statistics(model.two, state)
