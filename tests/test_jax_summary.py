"""The summary of linen variables and other pytrees: output shapes by ``eval_shape``, what training needs, why something is frozen."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from unifreeze import errors, freeze, summary, unfreeze


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.remat(Block, static_argnums=(2,))(name="first")(x, train)
        x = Block(name="second")(x, train)
        return {"z": nn.Dense(3, name="head")(x.mean((1, 2))), "a": x}


X = jnp.zeros((2, 8, 8, 3))


def variables() -> Any:
    return jax.jit(functools.partial(Net().init, train=False))(jax.random.key(0), X)


def shapes(model: Any, **given: Any) -> dict[str, Any]:
    return {row.path: row.output_shape for row in summary(model, **given).rows if row.output_shape is not None}


@pytest.mark.parametrize("training", [True, False])
def test_output_shapes_are_those_that_linen_captures(training: bool) -> None:
    tree = variables()
    real = functools.partial(Net().apply, train=training, rngs={"dropout": jax.random.key(0)}, mutable=True, capture_intermediates=True)
    _, kept = jax.jit(real)(tree, X)
    paths = jax.tree_util.tree_flatten_with_path(kept["intermediates"], is_leaf=lambda leaf: isinstance(leaf, tuple))[0]
    captured = {".".join(key.key for key in keys[:-1]): next(iter(jax.tree.leaves(outs[0]) if not keys[:-1] else [outs[0]])) for keys, outs in paths}
    found = shapes(tree, call=Net(), inputs={"x": X, "train": training})
    assert found.pop("") == (2, 3)
    captured.pop("")
    inside = {path: out.shape for path, out in captured.items() if "Dropout" not in path}  # a dropout has no arrays, so no row
    assert found == inside
    assert len(found) >= 7


def test_shapes_need_no_values_and_know_an_open_axis() -> None:
    abstract = jax.eval_shape(lambda: Net().init(jax.random.key(0), X, train=False))
    assert shapes(abstract, call=Net(), input_shape=(None, 8, 8, 3))["head"] == (None, 3)
    frozen = freeze(variables(), layers="first")
    assert {row.path: row.output_shape for row in frozen.summary(call=Net(), input_shape=(2, 8, 8, 3)).rows}["second"] == (2, 8, 8, 4)


def test_asking_for_shapes_computes_nothing() -> None:
    tree = variables()
    before = jax.tree.map(lambda leaf: (id(leaf), leaf.tolist()), tree)
    with jax.log_compiles(False), jax.transfer_guard("disallow"):
        shapes(tree, call=Net(), inputs=jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert jax.tree.map(lambda leaf: (id(leaf), leaf.tolist()), tree) == before


def test_a_tree_that_can_not_be_called_says_what_to_give() -> None:
    with pytest.raises(errors.BackendError, match="Give the linen module as call="):
        summary(variables(), inputs=X)
    with pytest.raises(errors.BackendError, match="Net can't be called on these inputs"):
        summary(variables(), call=Net(), input_shape=(2, 8, 8, 5))


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "nadam": lambda: optax.nadam(0.1),
    "nadamw": lambda: optax.nadamw(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "radam": lambda: optax.radam(0.1),
    "adamax": lambda: optax.adamax(0.1),
    "adabelief": lambda: optax.adabelief(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "adagrad": lambda: optax.adagrad(0.1),
    "adadelta": lambda: optax.adadelta(0.1),
    "lion": lambda: optax.lion(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_training_needs_is_what_the_optimizer_holds(name: str, dtype: Any) -> None:
    trained = {
        "conv": jnp.ones((3, 3, 200, 130), dtype),
        "dense": {"kernel": jnp.ones((7, 5), dtype), "bias": jnp.ones(5, dtype)},
        "wide": jnp.ones((150, 9), dtype),
    }
    needed = freeze({**trained, "still": {"kernel": jnp.ones((4, 4), dtype)}}, layers="still").summary(optimizer=name).training
    state = OPTIMIZERS[name]().init(trained)
    assert needed.state == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert needed.gradients == sum(leaf.nbytes for leaf in jax.tree.leaves(trained))


def test_a_freezing_says_which_call_froze_what() -> None:
    one = freeze(variables(), layers="first")
    two = freeze(one, layers="head", params="bias")

    def why(freezing: Any) -> dict[str, str]:
        return {row.path: row.more["why"] for row in summary(freezing, columns=["path", "why"]).rows}

    assert why(two)["first.Conv_0"] == "freeze(layers='first')"
    assert why(two)["head"] == "freeze(layers='head', params='bias')"
    assert why(two.undo())["head"] == ""
    assert why(unfreeze(two, layers="first"))["first.Conv_0"] == ""
    assert why(one)["head"] == ""


def test_a_diff_of_two_states_of_a_tree() -> None:
    one = freeze(variables(), layers="first")
    changed = summary(one).diff(freeze(one, layers="head"))
    assert set(changed.frozen) == {"head.kernel", "head.bias"}
    assert dict(changed.totals) == {"trainable": -15, "frozen": 15}
