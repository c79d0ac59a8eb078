"""Layers that nn.scan, jax.lax.scan or haiku's layer_stack run over are one array: some of them are never frozen by accident, nor all of them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unifreeze import freeze, layers
from unifreeze.errors import NothingSelectedError, SelectorError
from unifreeze.select import before, first, last, nth, regex

TOKENS = jnp.zeros((2, 5), int)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        x += nn.MultiHeadDotProductAttention(4)(*2 * (nn.LayerNorm()(x),))
        return x + nn.Dense(8)(nn.relu(nn.Dense(16)(nn.RMSNorm()(x)))), None


class Transformer(nn.Module):
    axis: int = 0
    scanned: str | None = "blocks"

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(11, 8, name="embed")(tokens)
        scan = nn.scan(Block, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=3)
        x, _ = scan(**{} if self.scanned is None else {"name": self.scanned})(x, None)
        return nn.Dense(11, name="head")(nn.LayerNorm(name="norm")(x))


def plain(length: int = 6) -> dict[str, Any]:
    """A user's own net, for jax.lax.scan."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)

    body = {"w": draw(length, 4, 4), "b": draw(length, 4)}
    return {"stem": {"w": draw(5, 4), "b": draw(4)}, "net": body, "head": {"w": draw(4, 2), "b": draw(2)}}


def run(params: Any, x: Any) -> Any:
    def one(x: Any, layer: Any) -> Any:
        return jnp.tanh(x @ layer["w"] + layer["b"]), None

    x = jnp.tanh(x @ params["stem"]["w"] + params["stem"]["b"])
    for part in [params["net"]] if "w" in params["net"] else params["net"].values():
        x, _ = jax.lax.scan(one, x, part)
    return x @ params["head"]["w"] + params["head"]["b"]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scanned", ["blocks", None, "encoder"])
def test_a_scanned_part_of_a_linen_model_is_known(axis: int, scanned: str | None) -> None:
    variables = jax.eval_shape(Transformer(axis, scanned).init, jax.random.key(0), TOKENS)
    stack = scanned or "ScanBlock_0"
    assert {layer.path.partition(".")[0]: layer.stack for layer in layers(variables)} == {"embed": 0, stack: 3, "norm": 0, "head": 0}
    for part in (f"{stack}.1", f"{stack}_1", f"{stack}.[01].**", regex(rf"{stack}\.0.*")):
        with pytest.raises(NothingSelectedError, match=rf"(?s){stack} is a stack of 3 layers.*layers='{stack}' freezes all 3"):
            freeze(variables, layers=part)
    assert {path.partition(".")[0] for path in freeze(variables, layers=stack).frozen} == {stack}


def test_a_scan_by_hand_is_known_and_not_counted() -> None:
    tree = plain()
    for part in (first(2), first(3), last(2), nth(1), nth(2)):
        with pytest.raises(SelectorError, match="net is a stack of 6 layers"):
            freeze(tree, layers=part)
    with pytest.raises(NothingSelectedError, match=r"(?s)net is a stack of 6 layers.*two stacks"):
        freeze(tree, layers="net.2")
    assert freeze(tree, layers=first(1)).layers == ("stem",)
    assert freeze(tree, layers=last(1)).layers == ("head",)
    assert freeze(tree, layers=before("head")).layers == ("stem", "net")
    assert freeze(tree, layers="net").layers == freeze(tree, layers=tree["net"]).layers == ("net",)


def test_without_a_vector_the_name_of_a_stack_tells() -> None:
    tree = {"embed": jnp.ones((11, 8)), "layers": {"w1": jnp.ones((4, 8, 16)), "w2": jnp.ones((4, 16, 8))}, "head": {"w": jnp.ones((8, 11))}}
    with pytest.raises(SelectorError, match="layers is a stack of 4 layers"):
        freeze(tree, layers=first(2))


def test_haikus_layer_stack_is_known() -> None:
    def net(x: Any) -> Any:
        x = hk.experimental.layer_stack(5)(lambda x: hk.Linear(8)(hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)))(hk.Linear(8, name="stem")(x))
        return hk.Linear(2, name="head")(x)

    params = hk.transform(net).init(jax.random.key(0), jnp.ones((2, 4)))
    assert [layer.stack for layer in layers(params)] == [0, 5, 5, 0]
    with pytest.raises(NothingSelectedError, match="stack of 5 layers"):
        freeze(params, layers="__layer_stack_no_per_layer.linear.0")


def ordinary() -> dict[str, Any]:
    image, sequence = jnp.ones((1, 8, 8, 3)), jnp.ones((2, 5, 8))
    models = {
        "attention": (Block(), sequence),
        "conv and batch norm": (nn.Sequential([nn.Conv(4, (3, 3)), nn.BatchNorm(use_running_average=True), nn.Conv(4, (3, 3))]), image),
        "norm over several axes": (nn.Sequential([nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3)), nn.Dense(8)]), image),
        "general dense": (nn.DenseGeneral((4, 2)), sequence),
        "recurrent": (nn.RNN(nn.LSTMCell(8)), sequence),
        "attention with as many heads as axes in one": (nn.MultiHeadDotProductAttention(4), jnp.ones((2, 5, 16))),
        "attention wider than its input": (nn.MultiHeadDotProductAttention(8, qkv_features=64), jnp.ones((2, 5, 16))),
        "general dense, square": (nn.Sequential([nn.DenseGeneral((3, 3)), nn.DenseGeneral(4, axis=(-2, -1))]), sequence),
        "square": (nn.Sequential([nn.Dense(8), nn.Dense(8)]), sequence),
    }
    return {name: jax.eval_shape(model.init, jax.random.key(0), x) for name, (model, x) in models.items()}


@pytest.mark.parametrize("name", list(ordinary()))
def test_ordinary_layers_are_no_stacks(name: str) -> None:
    assert [layer.path for layer in layers(ordinary()[name]) if layer.stack] == []


def test_convolutions_as_torch_lays_them_out_are_no_stacks() -> None:
    """Their bias has an axis of length 1 for every axis of the pixels."""
    tree = {
        "one": {"weight": jnp.ones((8, 3, 5)), "bias": jnp.ones((8, 1))},
        "two": {"weight": jnp.ones((8, 3, 5, 5)), "bias": jnp.ones((8, 1, 1))},
        "deep": {"weight": jnp.ones((8, 1, 5, 5)), "bias": jnp.ones((8, 1, 1))},
        "head": {"weight": jnp.ones((8, 2)), "bias": jnp.ones((1, 2))},
    }
    assert freeze(tree, layers=first(3)).layers == ("one", "two", "deep")


def test_layers_with_one_output_are_a_stack() -> None:
    tree = {"stem": {"w": jnp.ones((3, 8)), "b": jnp.ones(8)}, "net": {"gate": {"w": jnp.ones((6, 8, 1)), "b": jnp.ones((6, 1))}, "scale": jnp.ones((6, 8))}}
    with pytest.raises(SelectorError, match=r"(?s)net is a stack of 6 layers.*by name"):
        freeze(tree, layers=first(2))
    assert freeze(tree, layers="net.gate").frozen == ("net.gate.w", "net.gate.b")


def test_matrices_of_one_width_under_a_name_of_stacks_are_no_stack() -> None:
    tree = {"h": {"query": jnp.ones((8, 16)), "value": jnp.ones((8, 16))}, "stack_0": {"w1": jnp.ones((8, 8)), "w2": jnp.ones((8, 8))}, "out": jnp.ones((8, 2))}
    assert [layer.path for layer in layers(tree) if layer.stack] == []


def test_numbered_layers_under_a_name_of_stacks_are_no_stack() -> None:
    tree = {"layers": {str(i): {"query": jnp.ones((8, 4, 2)), "gate": jnp.ones((8, 16))} for i in range(3)}}
    assert freeze(tree, layers=first(2)).layers == ("layers.0", "layers.1")


def test_two_stacks_freeze_exactly_some_of_the_layers() -> None:
    """The way out that the error names, against one stack whose gradients are zeroed by hand."""
    x, start = jax.random.normal(jax.random.key(1), (8, 5)), plain()

    def loss(params: Any) -> Any:
        return jnp.mean((run(params, x) - 1.0) ** 2)

    parts = {"frozen": jax.tree.map(lambda x: x[:4], start["net"]), "rest": jax.tree.map(lambda x: x[4:], start["net"])}
    params = {**start, "net": parts}
    freezing = freeze(params, layers="net.frozen")
    tx = freezing.optimizer(optax.sgd(0.1))
    state, theirs = tx.init(params), start
    for _ in range(5):
        updates, state = tx.update(freezing.grad(loss)(params), state, params)
        params = freezing.apply_updates(params, updates)
        grads = jax.grad(loss)(theirs)
        grads["net"] = jax.tree.map(lambda g: g.at[:4].set(0.0), grads["net"])
        theirs = jax.tree.map(lambda p, g: p - 0.1 * g, theirs, grads)
    for name in ("w", "b"):
        assert np.asarray(params["net"]["frozen"][name]).tobytes() == np.asarray(start["net"][name][:4]).tobytes()
        np.testing.assert_allclose(params["net"]["rest"][name], theirs["net"][name][4:], atol=1e-6)
        assert not np.array_equal(params["net"]["rest"][name], start["net"][name][4:])
