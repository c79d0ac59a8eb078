"""Layers that nnx.vmap made and nnx.scan runs over are one module: some of them are never frozen by accident, nor all of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unifreeze import freeze, layers, unfreeze
from unifreeze.errors import NothingSelectedError, SelectorError
from unifreeze.select import before, first, kind, last, nth

X = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)


class Block(nnx.Module):
    """As many heads as features in each, so that shapes alone would mislead."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(16, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 16, use_bias=False, rngs=rngs))

    def __call__(self, x: Any) -> Any:
        return x + self.mlp(self.drop(self.attention(self.norm(x))))


class Net(nnx.Module):
    def __init__(self, blocks: Any, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Linear(16, 16, rngs=rngs)
        self.blocks = blocks
        self.head = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.scan(Block.__call__, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, self.stem(x))
        return self.head(x)


def scanned() -> Net:
    rngs = nnx.Rngs(0)
    return Net(nnx.split_rngs(splits=3)(nnx.vmap(Block))(rngs), rngs)


def test_a_scanned_part_is_known_and_not_counted() -> None:
    model = scanned()
    assert {layer.path.partition(".")[0]: layer.stack for layer in layers(model)} == {"stem": 0, "blocks": 3, "head": 0}
    for part in (first(2), first(3), last(2), nth(1)):
        with pytest.raises(SelectorError, match="blocks is a stack of 3 layers"):
            freeze(model, layers=part)
    with pytest.raises(NothingSelectedError, match=r"(?s)blocks is a stack of 3 layers.*layers='blocks' freezes all 3"):
        freeze(model, layers="blocks.1")
    assert freeze(model, layers=first(1)).layers == ("stem",)
    assert {path.partition(".")[0] for path in unfreeze(model, layers=last(1)).layers} == {"head"}
    assert {path.partition(".")[0] for path in freeze(model, layers=before("head")).frozen} == {"stem", "blocks"}


def test_what_is_picked_of_a_stack_by_name_is_frozen_in_every_layer_and_nothing_else() -> None:
    model = scanned()
    begun = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    freezing = freeze(model, layers=["blocks.norm", "blocks.attention.**"])
    optimizer = nnx.Optimizer(model, optax.adamw(0.01, weight_decay=0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer) -> None:
        optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(X) - 1) ** 2))(model))

    for _ in range(2):
        step(model, optimizer)
    ended = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model, freezing.param_filter))}
    still = {path for path in begun if path[:2] in {("blocks", "norm"), ("blocks", "attention")}}
    assert len(still) == 10
    assert {path for path in begun if begun[path].tobytes() == ended[path].tobytes()} == still
    for path in begun.keys() - still:
        if path[0] == "blocks":
            assert all(np.any(old != new) for old, new in zip(begun[path], ended[path], strict=True)), "a layer of the stack stood still"


class Apart(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.general = nnx.LinearGeneral((4, 4), (4, 4), axis=(-2, -1), rngs=rngs)
        self.conv = nnx.Conv(3, 3, (3, 3, 3), rngs=rngs)
        self.group = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.embed = nnx.Embed(4, 4, rngs=rngs)


def test_ordinary_modules_are_no_stacks() -> None:
    for model in (Apart(nnx.Rngs(0)), nnx.eval_shape(lambda: Apart(nnx.Rngs(0)))):
        assert [layer.path for layer in layers(model) if layer.stack] == []
        assert len(freeze(model, layers=first(2)).layers) == 2


def test_two_stacks_freeze_exactly_some_of_the_layers() -> None:
    """The way out that the error names."""
    whole = scanned()
    graph, state = nnx.split(whole.blocks)
    early, late = (nnx.merge(graph, jax.tree.map(lambda x, part=part: x[part], state)) for part in (slice(0, 2), slice(2, 3)))
    model = nnx.Dict(early=early, late=late)
    freezing = freeze(model, layers="early")
    assert set(freezing.trainable) == {path for path in freezing.trainable if path.startswith("late.")} != set()
    assert [layer.stack for layer in layers(model, kind("layer_norm"))] == [2, 1]
