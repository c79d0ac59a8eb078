"""Growing and shrinking what trains: what an optimizer knows goes on, and what is new starts as if it were the first step, as torch's add_param_group does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unifreeze import Freezing, freeze, unfreeze

X = jax.random.normal(jax.random.key(7), (8, 5))
NAMES = ("stem", "body", "head")
SCHEDULE = optax.join_schedules([optax.linear_schedule(0.001, 0.02, 4), optax.cosine_decay_schedule(0.02, 20)], [4])


def net(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32), "bias": jnp.asarray(rng.normal(size=shape[1:]), jnp.float32)}
        for name, shape in zip(NAMES, itertools.pairwise((5, 6, 4, 3)), strict=True)
    }


@jax.jit
def loss(params: Any) -> Any:
    x = X
    for name in NAMES:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean((x - 2.0) ** 2)


GRAD = jax.jit(jax.grad(loss))


# One parameter by itself, with a clock of its own: what torch's optimizers do. ``t`` counts the parameter's steps, ``lr`` is the schedule's.


def sgd(w: Any, g: Any, s: dict[str, Any], t: int, lr: float) -> Any:
    s["m"] = 0.9 * s.get("m", 0.0) + g
    return w - lr * s["m"]


def adam(w: Any, g: Any, s: dict[str, Any], t: int, lr: float) -> Any:
    s["m"], s["v"] = 0.9 * s.get("m", 0.0) + 0.1 * g, 0.999 * s.get("v", 0.0) + 0.001 * g**2
    return w - lr * (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)


def adamw(w: Any, g: Any, s: dict[str, Any], t: int, lr: float) -> Any:
    return adam(w, g, s, t, lr) - lr * 0.2 * w


def lion(w: Any, g: Any, s: dict[str, Any], t: int, lr: float) -> Any:
    m = s.get("m", np.zeros_like(g))
    s["m"] = 0.99 * m + 0.01 * g
    return w - lr * (np.sign(0.9 * m + 0.1 * g) + 0.1 * w)


def accumulated(w: Any, g: Any, s: dict[str, Any], t: int, lr: float) -> Any:
    """SGD over the mean of two gradients."""
    s["g"] = s.get("g", 0.0) + g / 2
    return w if t % 2 else w - lr * s.pop("g")


RULES: dict[str, tuple[Callable[[], Any], Any, Callable[[int], float]]] = {
    "sgd": (lambda: optax.sgd(0.1, momentum=0.9), sgd, lambda _: 0.1),
    "adam": (lambda: optax.adam(0.01), adam, lambda _: 0.01),
    "adamw": (lambda: optax.adamw(0.01, weight_decay=0.2), adamw, lambda _: 0.01),
    "lion": (lambda: optax.lion(0.01, weight_decay=0.1), lion, lambda _: 0.01),
    "chained schedules": (lambda: optax.adam(SCHEDULE), adam, lambda step: float(SCHEDULE(step))),
    "injected schedule": (lambda: optax.inject_hyperparams(optax.adamw)(SCHEDULE, weight_decay=0.2), adamw, lambda step: float(SCHEDULE(step))),
    "injected value": (lambda: optax.inject_hyperparams(optax.adam)(0.01), adam, lambda _: 0.01),
    "masked decay": (
        lambda: optax.adamw(0.01, weight_decay=0.2, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 0, tree)),
        adamw,
        lambda _: 0.01,
    ),
    "accumulating": (lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), accumulated, lambda _: 0.1),
}


def by_hand(rule: Any, lr: Callable[[int], float], stages: Collection[tuple[Collection[str], int]]) -> Any:
    """Trains parameters one by one in numpy. What leaves a stage and comes back later is new again."""
    params: Any = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), net())
    states: dict[tuple[str, str], dict[str, Any]] = {}
    step = 0
    for trainable, steps in stages:
        states = {key: state for key, state in states.items() if key[0] in trainable}
        for _ in range(steps):
            grads = GRAD(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))
            for name, leaf in itertools.product(trainable, ("kernel", "bias")):
                state = states.setdefault((name, leaf), {"t": 0})
                state["t"] += 1
                params[name][leaf] = rule(params[name][leaf], np.asarray(grads[name][leaf], np.float64), state, state["t"], lr(step))
            step += 1
    return params


def stage(freezing: Freezing, tx: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(freezing.grad(loss)(params), state, params)
        return freezing.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("name", list(RULES))
def test_growing_equals_parameters_with_clocks_of_their_own(name: str) -> None:
    make, rule, lr = RULES[name]
    early = freeze(net(), layers=["stem", "body"])
    middle, late = unfreeze(early, layers="body"), unfreeze(early)
    params, state = stage(early, early.optimizer(make()), net(), early.optimizer(make()).init(net()), 4)
    for freezing in (middle, late):
        tx = freezing.optimizer(make())
        before, state = state, freezing.carry(tx, state, params)
        new = {id(leaf) for leaf in jax.tree.leaves(state)}
        assert all(id(leaf) in new for path, leaf in leaves(before).items() if "'kernel'" in path or "'bias'" in path), "the moments were copied"
        params, state = stage(freezing, tx, params, state, 4)
    expected = by_hand(rule, lr, [(("head",), 4), (("body", "head"), 4), (NAMES, 4)])
    for key, leaf in leaves(params).items():
        np.testing.assert_allclose(leaf, leaves(expected)[key], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["sgd", "adam", "lion", "chained schedules"])
def test_shrinking_keeps_the_rest_and_what_comes_back_is_new(name: str) -> None:
    make, rule, lr = RULES[name]
    all_of_it = unfreeze(freeze(net()))
    params, state = stage(all_of_it, all_of_it.optimizer(make()), net(), all_of_it.optimizer(make()).init(net()), 4)
    for freezing in (freeze(all_of_it, layers="stem"), all_of_it):
        before, state = state, freezing.carry(freezing.optimizer(make()), state, params)
        old = {id(leaf) for leaf in jax.tree.leaves(before)}
        assert all(id(leaf) in old for path, leaf in leaves(state.groups[0]).items())
        params, state = stage(freezing, freezing.optimizer(make()), params, state, 4)
    expected = by_hand(rule, lr, [(NAMES, 4), (("body", "head"), 4), (NAMES, 4)])
    for key, leaf in leaves(params).items():
        np.testing.assert_allclose(leaf, leaves(expected)[key], atol=1e-5, err_msg=key)


def test_adafactor_grows_as_two_of_them() -> None:
    """Its own bookkeeping is too long to repeat, so the hand keeps one optax optimizer for each stage's newcomers."""

    def make() -> Any:
        return optax.adafactor(0.05, min_dim_size_to_factor=4)

    early = freeze(net(), layers="stem")
    late = unfreeze(early)
    params, state = stage(early, early.optimizer(make()), net(), early.optimizer(make()).init(net()), 4)
    tx = late.optimizer(make())
    params, state = stage(late, tx, params, late.carry(tx, state, params), 4)
    theirs, states = net(), {}
    for step in range(8):
        grads = GRAD(theirs)
        for names in (("body", "head"), ("stem",))[: 1 if step < 4 else 2]:
            part = {name: theirs[name] for name in names}
            state = states.get(names) or make().init(part)
            updates, states[names] = make().update({name: grads[name] for name in names}, state, part)
            theirs = {**theirs, **optax.apply_updates(part, updates)}
    for key, leaf in leaves(params).items():
        np.testing.assert_allclose(leaf, leaves(theirs)[key], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", [*RULES, "adafactor"])
def test_a_state_of_another_plan_never_trains(name: str) -> None:
    tx = RULES[name][0]() if name in RULES else optax.adafactor(0.05, min_dim_size_to_factor=4)
    one, other, more = freeze(net(), layers="stem"), freeze(net(), layers="body"), unfreeze(freeze(net()))
    state = one.optimizer(tx).init(net())
    for freezing in (other, more):
        for run in (freezing.optimizer(tx).update, jax.jit(freezing.optimizer(tx).update)):
            with pytest.raises(ValueError, match=r"(?s)not one of this freezing.*stem\.bias is trainable now.*f\.carry"):
                run(freezing.grad(loss)(net()), state, net())


def test_a_schedule_goes_on_through_a_stage_without_training() -> None:
    def make() -> Any:
        return optax.sgd(optax.linear_schedule(0.1, 0.0, 10))

    loose = unfreeze(freeze(net()))
    params, state = stage(loose, loose.optimizer(make()), net(), loose.optimizer(make()).init(net()), 3)
    still = freeze(loose)
    tx = still.optimizer(make())
    state = tx.update(still.grad(loss)(params), still.carry(tx, state, params), params)[1]
    assert [int(leaf) for leaf in jax.tree.leaves(state)] == [4]
    state = loose.carry(loose.optimizer(make()), state, params)
    assert [int(leaf) for leaf in jax.tree.leaves(state)] == [4]


SEARCHES: dict[str, Callable[[], Any]] = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(optax.sgd(0.5), optax.scale_by_backtracking_linesearch(10)),
}


def searched(freezing: Freezing, tx: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads = freezing.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return freezing.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("name", list(SEARCHES))
def test_a_line_search_starts_anew_over_all_that_trains(name: str) -> None:
    """One step spans all parameters there, so groups with clocks of their own would each search along a part of it."""
    make = SEARCHES[name]
    early = freeze(net(), layers="stem")
    late = unfreeze(early)
    tx = early.optimizer(make())
    params, state = searched(early, tx, net(), tx.init(net()), 3)
    assert all(a is b for a, b in zip(jax.tree.leaves(early.carry(tx, state, params)), jax.tree.leaves(state), strict=True))
    wide = late.optimizer(make())
    carried = late.carry(wide, state, params)
    assert [set(group.members) for group in carried.groups] == [set(late.trainable)]
    ours, carried = searched(late, wide, params, carried, 3)
    plain, theirs, fresh = make(), params, make().init(params)
    for _ in range(3):
        value, grads = jax.value_and_grad(loss)(theirs)
        updates, fresh = plain.update(grads, fresh, theirs, value=value, grad=grads, value_fn=loss)
        theirs = optax.apply_updates(theirs, updates)
    for key, leaf in leaves(ours).items():
        np.testing.assert_allclose(leaf, leaves(theirs)[key], atol=1e-5, err_msg=key)
    assert loss(ours) < loss(params)
    fewer = freeze(late, layers="body")
    again = fewer.carry(fewer.optimizer(make()), carried, ours)
    assert jax.tree.structure(again) == jax.tree.structure(fewer.optimizer(make()).init(ours))
    end, _ = searched(fewer, fewer.optimizer(make()), ours, again, 2)
    assert end["body"]["kernel"] is not None
    assert np.array_equal(end["body"]["kernel"], ours["body"]["kernel"])
    assert loss(end) < loss(ours)
    assert jax.tree.leaves(freeze(late).optimizer(make()).init(ours)) == []
