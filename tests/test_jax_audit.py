"""The audit on pytrees: chains of optax that people write, run for real beside it; and what unifreeze makes has no finding."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from unifreeze import audit, freeze
from unifreeze.errors import ArgumentError

MASK = {"a": True, "b": False}  # True: trainable
NOT = {"a": False, "b": True}


def params() -> Any:
    def dense(seed: int, *shape: int) -> Any:
        return {"kernel": jax.random.normal(jax.random.key(seed), shape), "bias": jnp.ones(shape[-1])}

    return {"a": dense(0, 4, 6), "b": dense(1, 6, 2)}


def loss(p: Any) -> Any:
    return jnp.mean(((jnp.ones((8, 4)) @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"] + p["b"]["bias"]) ** 2)


def really_moves(tx: Any) -> set[str]:
    """What moves in real training, read without unifreeze."""
    p = start = params()
    state = tx.init(p)

    @jax.jit
    def step(p: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(p)
        updates, state = optax.with_extra_args_support(tx).update(grads, state, p, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(p, updates), state

    for _ in range(16):
        p, state = step(p, state)
    return {f"{a}.{b}" for a in p for b in p[a] if not np.array_equal(p[a][b], start[a][b])}


def labels(p: Any) -> Any:
    return {"a": jax.tree.map(lambda _: "adam", p["a"]), "b": jax.tree.map(lambda _: "none", p["b"])}


RIGHT = {
    "partition": lambda: optax.partition({"adam": optax.adamw(1e-2), "none": optax.set_to_zero()}, labels),
    "a chain in the right order": lambda: optax.chain(optax.adamw(1e-2), optax.masked(optax.set_to_zero(), NOT)),
    "a plateau": lambda: optax.partition({"adam": optax.chain(optax.sgd(1e-2), optax.contrib.reduce_on_plateau()), "none": optax.set_to_zero()}, labels),
    "L-BFGS": lambda: optax.chain(optax.masked(optax.set_to_zero(), NOT), optax.lbfgs()),
    "MultiSteps": lambda: optax.MultiSteps(optax.partition({"adam": optax.sgd(1e-2), "none": optax.set_to_zero()}, labels), 4).gradient_transformation(),
    "a schedule from zero": lambda: optax.partition(
        {"adam": optax.sgd(optax.linear_schedule(0, 1e-2, 5)), "none": optax.set_to_zero()},
        labels,
    ),
}
WRONG = {
    "raw gradients": (lambda: optax.masked(optax.adamw(1e-2), MASK), "UF601", "lets its raw gradient through"),
    "all of it": (lambda: optax.sgd(1e-2), "UF601", "by its gradient"),
    "decay outside": (lambda: optax.chain(optax.masked(optax.set_to_zero(), NOT), optax.adamw(1e-2, weight_decay=0.1)), "UF602", "weight decay"),
    "noise outside": (lambda: optax.chain(optax.masked(optax.set_to_zero(), NOT), optax.add_noise(0.1, 0.5, 0)), "UF602", "noise"),
    "decay outside, behind a plateau": (
        lambda: optax.chain(optax.masked(optax.set_to_zero(), NOT), optax.adamw(1e-2, weight_decay=0.1), optax.contrib.reduce_on_plateau()),
        "UF602",
        "weight decay",
    ),
    "every sixteenth step": (lambda: optax.MultiSteps(optax.masked(optax.sgd(1e-2), MASK), 16).gradient_transformation(), "UF601", "is frozen"),
    "nothing moves": (optax.set_to_zero, "UF603", "nor anything else in 128 steps"),
    "the wrong way round": (
        lambda: optax.partition({"adam": optax.adamw(1e-2), "none": optax.set_to_zero()}, {"a": "none", "b": "adam"}),
        "UF604",
        "the wrong way round",
    ),
    "too much is still": (lambda: optax.masked(optax.set_to_zero(), {"a": {"kernel": True, "bias": False}, "b": True}), "UF603", "does not move"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.deep if name == "L-BFGS" else ()) for name in RIGHT])
def test_what_is_right_has_no_finding(name: str) -> None:
    assert really_moves(RIGHT[name]()) == {"a.kernel", "a.bias"}
    assert audit(params(), RIGHT[name](), trainable=MASK).findings == ()


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    make, code, why = WRONG[name]
    assert really_moves(make()) != {"a.kernel", "a.bias"}, "the finding is true"
    report = audit(params(), make(), trainable=MASK)
    assert report.codes == (code,)
    assert why in report.findings[0].why
    assert not report.ok


def test_what_a_freezing_makes_has_no_finding_and_a_mask_against_it_has() -> None:
    freezing = freeze(params(), layers="b")
    tx = freezing.optimizer(optax.adamw(1e-2, weight_decay=0.1), pre=optax.clip_by_global_norm(1.0))
    for model, said in ((freezing, None), (params(), freezing), (freezing, MASK)):
        assert audit(model, tx, trainable=said).findings == ()
    report = audit(freezing, tx, trainable=NOT)
    assert (report.codes, set(report.findings[0].paths)) == (("UF604",), {"a.bias", "a.kernel", "b.bias", "b.kernel"})
    some = audit(freezing, tx, trainable={"a": {"kernel": True, "bias": False}, "b": False})
    assert [(one.code, one.paths) for one in some] == [("UF606", ("a.bias",))]


def test_one_array_with_two_statuses() -> None:
    shared = jnp.ones(3)
    assert audit({"a": shared, "b": shared}, trainable=MASK).codes == ("UF301",)
    assert audit({"a": shared, "b": shared + 0}, trainable=MASK).codes == ()


def test_the_transformation_in_a_training_state_is_found_and_what_has_none_is_refused() -> None:
    state = TrainState.create(apply_fn=None, params=params(), tx=optax.masked(optax.adamw(1e-2), MASK))
    assert audit(params(), state, trainable=MASK).codes == ("UF601",)
    for wrong in (state.opt_state, "adam", optax.adamw, {"tx": state.tx}):
        with pytest.raises(ArgumentError, match="optimizer= is an optax transformation"):
            audit(params(), wrong, trainable=MASK)


def test_a_tree_of_which_nothing_is_said_is_taken_as_trainable_and_the_report_says_so() -> None:
    assert "all of it as trainable" in str(audit(params(), optax.sgd(1e-2)))
    freezing = freeze(params(), layers="b")
    for model, said in ((freezing, None), (params(), MASK)):
        assert "all of it as trainable" not in str(audit(model, freezing.optimizer(optax.sgd(1e-2)), trainable=said))


def test_a_part_that_alone_is_differentiated() -> None:
    assert audit({"a": params()["a"]}, optax.adamw(1e-2)).findings == ()


def test_a_transformation_that_can_not_be_run_is_said() -> None:
    def refuses(updates: Any, state: Any, params: Any = None) -> Any:
        raise ZeroDivisionError("no")

    report = audit(params(), optax.GradientTransformation(lambda _: (), refuses), trainable=MASK)
    assert (report.codes, report.ok) == (("UF605",), True)
    assert "ZeroDivisionError: no" in report.findings[0].why


class Block(nn.Module):
    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.BatchNorm(use_running_average=not train)(nn.Conv(self.features, (3, 3), use_bias=False)(y))
        return nn.relu(y + (x if x.shape == y.shape else nn.Conv(self.features, (1, 1), self.strides)(x)))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool = True) -> Any:
        x = nn.Conv(8, (3, 3), name="stem")(x)
        for stage in range(2):
            x = Block(8, name=f"block_{stage}")(x, train=train)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def test_a_resnet_that_unifreeze_froze_has_a_clean_bill_and_one_frozen_by_hand_has_not() -> None:
    shapes = jax.eval_shape(ResNet().init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    variables = jax.tree.map(lambda one: np.ones(one.shape, one.dtype), shapes)
    freezing = freeze(variables, layers=["stem", "block_*"])
    assert audit(variables, freezing.optimizer(optax.adamw(1e-3)), trainable=freezing).findings == ()
    by_hand = jax.tree_util.tree_map_with_path(lambda path, _: "head" in jax.tree_util.keystr(path), variables)
    report = audit(variables, optax.masked(optax.sgd(1e-3), by_hand["params"]), trainable=by_hand)
    assert report.codes == ("UF601", "UF202")
    assert len(report.findings[1].paths) == 4


def test_it_changes_nothing_and_needs_no_values() -> None:
    p = params()
    before = jax.tree.map(np.array, p)
    abstract = jax.eval_shape(params)
    for model in (p, abstract):
        assert audit(model, optax.masked(optax.adamw(1e-2), MASK), trainable=MASK).codes == ("UF601",)
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(p)))


def test_what_is_no_way_to_say_it() -> None:
    with pytest.raises(ArgumentError, match="is not one of"):
        audit(params(), trainable=freeze({"c": jnp.ones(3)}))
