"""Linen's boxes round parameters (``nn.Partitioned``, ``nn.LogicallyPartitioned``): a box is its array, and stays in its place, with its names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from unifreeze import Freezing, freeze, layers, summary
from unifreeze.errors import NothingSelectedError

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
BOXES: dict[str, Any] = {"partitioned": nn.with_partitioning, "logical": nn.with_logical_partitioning}


class Block(nn.Module):
    boxed: str

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        box = BOXES[self.boxed]
        x = nn.Dense(4, kernel_init=box(nn.initializers.lecun_normal(), ("in", "out")), bias_init=box(nn.initializers.ones, ("out",)), name="dense")(x)
        return nn.LayerNorm(scale_init=box(nn.initializers.ones, ("out",)), use_bias=False, name="norm")(x), None


class Net(nn.Module):
    """Boxed layers in a scan, whose boxes name the axis of the scan too, between a boxed layer and a bare one."""

    boxed: str

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(4, kernel_init=BOXES[self.boxed](nn.initializers.lecun_normal(), ("in", "out")), name="stem")(x)
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3, metadata_params={nn.PARTITION_NAME: "layers"})
        return nn.Dense(2, name="head")(scan(self.boxed, name="net")(x, None)[0])


def variables(boxed: str) -> Any:
    return jax.jit(Net(boxed).init)(jax.random.key(0), X)


def boxes(tree: Any) -> dict[str, tuple[Any, ...]]:
    """The names in each box, by path."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, nn.Partitioned))[0]
    return {jax.tree_util.keystr(keys): node.names for keys, node in found if isinstance(node, nn.Partitioned)}


@pytest.mark.parametrize("boxed", BOXES)
def test_a_boxed_model_is_read_frozen_and_trained(boxed: str) -> None:
    params = begun = variables(boxed)["params"]
    freezing = freeze(params, layers=["stem", "net.dense"])
    assert set(freezing.frozen) == {"stem.kernel", "stem.bias", "net.dense.kernel", "net.dense.bias"}
    totals = summary(freezing).totals
    assert (totals.frozen, totals.trainable) == (4 * 4 + 4 + 3 * (4 * 4 + 4), 3 * 4 + 4 * 2 + 2)
    assert {type(leaf) for leaf in jax.tree.leaves(freezing.trainable_mask)} == {bool}
    assert boxes(begun)["['net']['dense']['kernel']"] == ("layers", "in", "out")

    @jax.jit
    def step(train: TrainState) -> TrainState:
        return train.apply_gradients(grads=jax.grad(lambda params: (Net(boxed).apply({"params": params}, X) ** 2).mean())(train.params))

    train = TrainState.create(apply_fn=None, params=params, tx=freezing.optimizer(optax.adamw(0.1, weight_decay=0.1), pre=optax.clip_by_global_norm(1.0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(train.opt_state)) == 2 * totals.trainable + 1
    params = step(train).params
    assert jax.tree.structure(params) == jax.tree.structure(begun)
    assert boxes(params) == boxes(begun)
    still = {
        jax.tree_util.keystr(keys)
        for (keys, was), now in zip(jax.tree_util.tree_flatten_with_path(begun)[0], jax.tree.leaves(params), strict=True)
        if np.asarray(was).tobytes() == np.asarray(now).tobytes()
    }
    assert {path.removesuffix(".value") for path in still} == {f"['{part}']['{leaf}']" for part in ("stem", "net']['dense") for leaf in ("kernel", "bias")}
    assert freezing.verify(params)


@pytest.mark.parametrize("boxed", BOXES)
def test_a_boxed_stack_is_known(boxed: str) -> None:
    for tree in (variables(boxed), jax.eval_shape(Net(boxed).init, jax.random.key(0), X)):
        assert {layer.path: layer.stack for layer in layers(tree)} == {"stem": 0, "net.dense": 3, "net.norm": 3, "head": 0}
        with pytest.raises(NothingSelectedError, match="net is a stack of 3 layers"):
            freeze(tree, layers="net.1")


def test_boxes_taken_off_make_no_other_layers() -> None:
    """``nn.unbox`` is what most training scripts call next; selectors and paths stay as they are."""
    boxed = variables("partitioned")
    bare = nn.unbox(boxed)

    def told(freezing: Freezing) -> Any:
        return freezing.frozen, freezing.trainable, {layer.path: layer.kind for layer in layers(freezing)}

    assert boxes(bare) == {}
    assert told(freeze(bare, layers="net")) == told(freeze(boxed, layers="net"))
