"""Layers that filter_vmap made and jax.lax.scan runs over are one module: some of them are never frozen by accident, nor all of them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unifreeze import freeze, layers
from unifreeze.errors import NothingSelectedError, SelectorError
from unifreeze.select import before, first, last, nth

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear
    conv: eqx.nn.Conv1d

    def __init__(self, key: Any) -> None:
        self.norm = eqx.nn.LayerNorm(4)
        self.linear = eqx.nn.Linear(4, 4, key=key)
        self.conv = eqx.nn.Conv1d(1, 1, 3, padding=1, key=key)

    def __call__(self, x: Any) -> Any:
        return x + jnp.tanh(self.linear(self.norm(x)) + self.conv(x[None])[0])


class Net(eqx.Module):
    stem: eqx.nn.Linear
    blocks: Block
    head: eqx.nn.Linear

    def __init__(self) -> None:
        one, two, three = jax.random.split(jax.random.key(0), 3)
        self.stem = eqx.nn.Linear(4, 4, key=one)
        self.blocks = eqx.filter_vmap(Block)(jax.random.split(two, 6))
        self.head = eqx.nn.Linear(4, 2, key=three)

    def __call__(self, x: Any) -> Any:
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        return self.head(jax.lax.scan(lambda x, block: (eqx.combine(block, rest)(x), None), self.stem(x), arrays)[0])


def loss(model: Net, x: Any) -> Any:
    return jnp.mean((jax.vmap(model)(x) - 1) ** 2)


@pytest.mark.parametrize("made", [Net, lambda: eqx.filter_eval_shape(Net)])
def test_a_scanned_part_is_known_and_not_counted(made: Any) -> None:
    model = made()
    assert {layer.path.partition(".")[0]: layer.stack for layer in layers(model)} == {"stem": 0, "blocks": 6, "head": 0}
    for part in (first(2), first(3), last(2), nth(1)):
        with pytest.raises(SelectorError, match="blocks is a stack of 6 layers"):
            freeze(model, layers=part)
    with pytest.raises(NothingSelectedError, match=r"(?s)blocks is a stack of 6 layers.*layers='blocks' freezes all 6"):
        freeze(model, layers="blocks.1")
    assert freeze(model, layers=first(1)).layers == ("stem",)
    assert freeze(model, layers=last(1)).layers == ("head",)
    assert {path.partition(".")[0] for path in freeze(model, layers=before("head")).frozen} == {"stem", "blocks"}


def test_what_is_picked_of_a_stack_by_name_is_frozen_in_every_layer_and_nothing_else() -> None:
    begun = model = Net()
    freezing = freeze(model, layers=["blocks.norm", "blocks.conv"])
    tx = freezing.optimizer(optax.adamw(0.01, weight_decay=0.1))

    @eqx.filter_jit
    def step(model: Net, state: Any) -> Any:
        updates, state = tx.update(freezing.grad(loss)(model, X), state, model)
        return freezing.apply_updates(model, updates), state

    state = tx.init(model)
    for _ in range(2):
        model, state = step(model, state)
    for part in ("norm", "conv"):
        for name in ("weight", "bias"):
            old, new = (np.asarray(getattr(getattr(one.blocks, part), name)) for one in (begun, model))
            assert old.tobytes() == new.tobytes()
    for name in ("weight", "bias"):
        old, new = (np.asarray(getattr(one.blocks.linear, name)) for one in (begun, model))
        assert all(np.any(a != b) for a, b in zip(old, new, strict=True)), "a layer of the stack stood still"


def test_ordinary_modules_are_no_stacks() -> None:
    key = jax.random.key(0)
    model = [
        eqx.nn.MLP(4, 4, 4, 3, key=key),
        Block(key),
        eqx.nn.Conv2d(3, 3, 3, key=key),
        eqx.nn.ConvTranspose2d(3, 3, 3, key=key),
        eqx.nn.LayerNorm((4, 4)),
        eqx.nn.GroupNorm(2, 4),
        eqx.nn.MultiheadAttention(4, 4, key=key),
        eqx.nn.GRUCell(4, 4, key=key),
        eqx.nn.Embedding(4, 4, key=key),
    ]
    assert [layer.path for layer in layers(eqx.nn.Sequential([eqx.nn.Lambda(jnp.tanh), *model])) if layer.stack] == []


def test_two_stacks_freeze_exactly_some_of_the_layers() -> None:
    """The way out that the error names."""
    blocks = Net().blocks
    early, late = (jax.tree.map(lambda leaf, part=part: leaf[part] if eqx.is_array(leaf) else leaf, blocks) for part in (slice(0, 4), slice(4, 6)))
    freezing = freeze(eqx.nn.Sequential([early, late]), layers="layers.0")
    assert {path.partition(".layers")[0][:8] for path in freezing.trainable} == {"layers.1"}
    assert len(freezing.frozen) == len(freezing.trainable) == 6
