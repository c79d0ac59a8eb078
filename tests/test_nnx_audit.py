"""The audit, the guard and causes on nnx: filters by hand, and what unifreeze froze."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unifreeze import audit, freeze, guard
from unifreeze.errors import ArgumentError, FrozenMovedError

HEAD = nnx.All(nnx.Param, nnx.PathContains("head"))
X = jax.random.normal(jax.random.key(1), (16, 4))


class Network(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.body = nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs), nnx.relu)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.body(x))


def train(model: Any, optimizer: Any, wrt: Any, steps: int = 2) -> None:
    model.train()

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        grads = nnx.grad(lambda m: (m(X) ** 2).mean(), argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, grads)

    for _ in range(steps):
        step(model, optimizer)


def paths(report: Any) -> dict[str, tuple[str, ...]]:
    return {one.code: one.paths for one in report}


def test_a_filter_by_hand_lets_statistics_move() -> None:
    model = Network()
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=HEAD)
    assert paths(audit(model, optimizer, trainable=HEAD)) == {"UF201": ("body.layers.1",)}
    with pytest.raises(FrozenMovedError) as error, guard(model, trainable=HEAD, exact=True):
        train(model, optimizer, HEAD)
    assert {one.path: one.cause for one in error.value.moves} == {"body.layers.1.mean": "statistics", "body.layers.1.var": "statistics"}
    model.body.layers[1].use_running_average = True
    assert audit(model, optimizer, trainable=HEAD).findings == ()


def test_an_optimizer_of_everything_moves_what_is_meant_to_be_frozen() -> None:
    model = Network()
    model.body.layers[1].use_running_average = True
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    assert {"UF601", "UF602"} & paths(audit(model, optimizer, trainable=HEAD)).keys()
    before = np.array(model.body.layers[0].kernel[...])
    with pytest.raises(FrozenMovedError) as error, guard(model, trainable=HEAD) as watch:
        train(model, optimizer, nnx.Param)
        watch.check(optimizer=optimizer)
    assert not np.array_equal(before, model.body.layers[0].kernel[...])
    assert {one.path: one.cause for one in error.value.moves}["body.layers.0.kernel"] == "moments"


def test_what_unifreeze_froze_has_a_clean_bill_and_holds_in_the_guard() -> None:
    model = Network()
    freezing = freeze(model, layers="body")
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2, weight_decay=0.1), wrt=nnx.Param)
    assert audit(model, optimizer).findings == audit(model, optimizer, trainable=freezing).findings == ()
    with guard(model, exact=True) as watch:
        train(model, optimizer, nnx.Param)
    assert len(watch.arrays) == 6


class Tied(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed, self.head = (nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(2))
        self.head.kernel = self.embed.kernel


def test_a_filter_that_says_two_things_of_a_tied_kernel() -> None:
    model = Tied()
    assert not jax.tree.leaves(nnx.state(model, HEAD)), "nnx asks at the first path alone, so the head would not train"
    assert jax.tree.leaves(nnx.state(model, nnx.PathContains("embed"))), "and here the head would"
    for said in (HEAD, nnx.PathContains("embed")):
        assert paths(audit(model, trainable=said)) == {"UF301": ("embed.kernel", "head.kernel")}
    assert paths(audit(model, trainable=nnx.Param)) == {}


def test_dropout_of_attention_and_the_vectors_of_spectral_normalisation() -> None:
    class Part(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.1, rngs=rngs)
            self.spectral = nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

    model = Part()
    assert paths(audit(model, trainable=HEAD)) == {"UF201": ("spectral",), "UF203": ("attention",)}
    freeze(model, layers="attention|spectral", inference="all")
    assert paths(audit(model, trainable=HEAD)) == {}


def test_what_is_no_optimizer_is_refused() -> None:
    model = Network()
    for wrong in ("adam", nnx.state(model), nnx.Optimizer):
        with pytest.raises(ArgumentError, match="optimizer= is an optax transformation"):
            audit(model, wrong)


def test_a_flag_and_a_part_that_was_replaced() -> None:
    model = Network()
    freezing = freeze(model, layers="body")
    model.body.layers[0] = nnx.Linear(4, 6, rngs=nnx.Rngs(3))
    with pytest.raises(FrozenMovedError) as error:
        freezing.verify()
    assert {one.path: one.cause for one in error.value.moves}["body.layers.0.kernel"] == "replaced"


def test_it_changes_nothing() -> None:
    model = Network()
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state((model, optimizer))))
    classes = [type(node) for _, node in nnx.iter_graph(model)]
    audit(model, optimizer, trainable=HEAD)
    after = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state((model, optimizer))))
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(after)))
    assert classes == [type(node) for _, node in nnx.iter_graph(model)]
    assert jnp.all(model.body.layers[1].mean[...] == 0)
