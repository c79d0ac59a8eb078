"""Real linen and haiku models and a plain tree: frozen by selectors, trained by real steps, read without unifreeze, counted by hand."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from unifreeze import freeze, summary, unfreeze
from unifreeze.errors import FrozenMovedError
from unifreeze.select import kind


def moved(old: Any, new: Any) -> set[str]:
    """Dotted paths of the leaves that have other bytes now."""
    both = zip(jax.tree_util.tree_flatten_with_path(old)[0], jax.tree.leaves(new), strict=True)
    return {".".join(str(key.key) for key in keys) for (keys, was), now in both if np.asarray(was).tobytes() != np.asarray(now).tobytes()}


def paths(tree: Any) -> set[str]:
    return {".".join(str(key.key) for key in keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


class Block(nn.Module):
    """A basic block of a ResNet."""

    outputs: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        train = self.train
        y = nn.Conv(self.outputs, (3, 3), self.stride, use_bias=False, name="conv1")(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn1")(y))
        y = nn.Conv(self.outputs, (3, 3), use_bias=False, name="conv2")(y)
        y = nn.BatchNorm(momentum=0.9, name="bn2")(y, use_running_average=not train)
        x = x if self.stride == 1 else nn.Conv(self.outputs, (1, 1), self.stride, use_bias=False, name="down")(x)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """ResNet-10's plan, four stages of one block, or ResNet-18's, of two; on small images and eight times narrower; every other block is rematerialised."""

    blocks: int
    width: int = 8

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        for i in range(4 * self.blocks):
            block = Block if i % 2 else nn.remat(Block)
            stage, place = divmod(i, self.blocks)
            x = block(self.width * 2**stage, 1 + (stage > 0 and place == 0), train, name=f"layers_{i}")(x)
        return nn.Dense(10, name="fc")(x.mean((1, 2)))


def of_resnet(blocks: int, width: int = 8) -> tuple[int, int]:
    """The parameters and the statistics of that ResNet, counted by its plan."""
    total, statistics, inputs = 27 * width + 2 * width, 2 * width, width
    for stage in range(4):
        for block in range(blocks):
            outputs = width * 2**stage
            total += 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs + (inputs * outputs if stage > 0 and block == 0 else 0)
            statistics, inputs = statistics + 4 * outputs, outputs
    return total + inputs * 10 + 10, statistics


class State(TrainState):
    batch_stats: Any


def pictures(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.normal(0.5, 1, (4, 16, 16, 3)).astype(np.float32), rng.integers(10, size=4)


@pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.deep)])
@pytest.mark.parametrize("inference", ["norm", pytest.param("none", marks=pytest.mark.deep), pytest.param("all", marks=pytest.mark.deep)])
def test_a_linen_resnet_with_batch_norm(inference: Any, blocks: int) -> None:
    """In flax's own TrainState; the loss asks for training mode everywhere."""
    model = ResNet(blocks)
    variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), pictures(0)[0])
    freezing = freeze(variables, layers=["stem", "norm", *(f"layers_{i}.**" for i in range(3 * blocks))], inference=inference)
    tx = freezing.optimizer(optax.adamw(1e-3, weight_decay=0.1), pre=optax.clip_by_global_norm(1.0))
    train = begun = State.create(apply_fn=model.apply, params=variables["params"], tx=tx, batch_stats=variables["batch_stats"])

    @jax.jit
    def step(train: State, images: Any, labels: Any) -> State:
        def loss(params: Any) -> Any:
            logits, news = train.apply_fn({"params": params, "batch_stats": train.batch_stats}, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), news

        grads, news = freezing.grad(loss, has_aux=True)(train.params)
        return train.apply_gradients(grads=grads, **news)

    for seed in range(2):
        train = step(train, *pictures(seed))
    parts = [*(f"layers_{i}" for i in range(3 * blocks, 4 * blocks)), "fc"]
    late = tuple(f"{part}." for part in parts)
    assert moved(begun.params, train.params) == {path for path in paths(begun.params) if path.startswith(late)}
    statistics = {path for path in paths(begun.batch_stats) if inference == "none" or path.startswith(late)}
    assert moved(begun.batch_stats, train.batch_stats) == statistics
    ended = {"params": train.params, "batch_stats": train.batch_stats}
    assert len(freezing.verify(ended).arrays) == 3 + 18 * blocks + 2 + (0 if inference == "none" else 2 + 12 * blocks)
    totals = summary(freezing).totals
    assert (totals.parameters, totals.buffers) == of_resnet(blocks) == (size(train.params), size(train.batch_stats))
    assert totals.trainable == size([train.params[name] for name in parts])
    assert size(train.opt_state) == 2 * totals.trainable + 1
    assert freezing.undo().frozen == ()
    poked = jax.tree.map(lambda leaf: leaf, ended)
    poked["params"]["layers_0"]["bn1"]["scale"] = poked["params"]["layers_0"]["bn1"]["scale"].at[0].add(1e-6)
    with pytest.raises(FrozenMovedError, match=r"layers_0\.bn1\.scale"):
        freezing.verify(poked)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.MultiHeadDotProductAttention(8, dropout_rate=0.1, deterministic=False, name="attention")(nn.LayerNorm(name="norm1")(x), mask=mask)
        x = x + nn.Dropout(0.1, deterministic=False)(y)
        y = nn.Dense(4 * x.shape[-1], name="up")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(y))


class Transformer(nn.Module):
    """A decoder: 6 blocks of width 512, 4,096 words."""

    words: int = 4096
    width: int = 512

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(self.words, self.width, name="embed")(tokens)
        for i in range(6):
            x = Attention(name=f"blocks_{i}")(x)
        return nn.Dense(self.words, use_bias=False, name="head")(nn.LayerNorm(name="norm")(x))


@pytest.mark.deep
def test_a_linen_transformer_of_twenty_million_parameters() -> None:
    """The user's step is unchanged but for ``tx``."""
    model, tokens = Transformer(), np.random.default_rng(0).integers(4096, size=(2, 9))
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    begun = params = jax.jit(model.init)(rngs, tokens)["params"]
    freezing = freeze(params, layers=["embed", *(f"blocks_{i}.**" for i in range(5))])
    width, words = 512, 4096
    block = 4 * (width * width + width) + 8 * width * width + 5 * width + 4 * width
    assert summary(freezing).totals.parameters == 2 * words * width + 6 * block + 2 * width >= 20_000_000
    assert summary(freezing).totals.trainable == block + 2 * width + words * width
    tx = freezing.optimizer(optax.adamw(1e-3, weight_decay=0.1))

    @jax.jit
    def step(params: Any, state: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = model.apply({"params": params}, tokens[:, :-1], rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    assert size(state) == 2 * summary(freezing).totals.trainable + 1
    for i in range(2):
        params, state, value = step(params, state, jax.random.key(i))
        losses.append(float(value))
    assert losses[1] < losses[0]
    assert moved(begun, params) == {path for path in paths(begun) if path.startswith(("blocks_5.", "norm.", "head."))}
    assert freezing.verify(params)
    after = unfreeze(freezing, layers=kind("layer_norm"))
    assert set(after.changed) == {f"blocks_{i}.norm{n}.{name}" for i in range(5) for n in (1, 2) for name in ("scale", "bias")}


def perceptron(x: Any, is_training: bool) -> Any:
    """Two layers with averages of their own beside a BatchNorm, a SpectralNorm-like average and a counter."""
    for i, width in enumerate((16, 16)):
        x = jax.nn.relu(hk.Linear(width, name=f"layer_{i}")(x))
        x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.5, name=f"norm_{i}")(x, is_training)
        x = Scaled(name=f"scaled_{i}")(x)
    return hk.Linear(3, name="head")(x)


class Scaled(hk.Module):
    """A stateful layer of the user's own: it divides by a running maximum."""

    def __call__(self, x: Any) -> Any:
        top = hk.get_state("top", (), init=jnp.ones)
        hk.set_state("top", jnp.maximum(top, jnp.abs(x).max()) + 0.1)
        return hk.get_parameter("gain", (), init=jnp.ones) * x / top


@pytest.mark.parametrize("inference", ["norm", "none"])
def test_a_haiku_perceptron_with_state(inference: Any) -> None:
    net, rng = hk.transform_with_state(perceptron), np.random.default_rng(0)
    params, state = begun = net.init(jax.random.key(0), rng.normal(size=(8, 4)), is_training=True)
    freezing = freeze({"params": params, "state": state}, layers=["layer_0", "norm_0", "scaled_0"], inference=inference)
    tx = freezing.optimizer(optax.lion(1e-2, weight_decay=0.1), pre=optax.clip_by_global_norm(1.0))

    @jax.jit
    def step(params: Any, state: Any, opt_state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, news = net.apply(params, state, None, x, is_training=True)
            return jnp.mean((outputs - x[:, :3]) ** 2), news

        grads, news = freezing.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), news, opt_state

    opt_state = tx.init(params)
    for _ in range(3):
        params, state, opt_state = step(params, state, opt_state, rng.normal(1, 1, size=(8, 4)).astype(np.float32))
    assert {path.partition(".")[0] for path in moved(begun[0], params)} == {"layer_1", "norm_1", "scaled_1", "head"}
    assert not moved(begun[0], params) & {path for path in paths(begun[0]) if path.partition(".")[0].endswith("_0")}
    owners = {path.replace("/", ".").partition(".")[0] for path in moved(begun[1], state)}
    assert owners == ({"norm_1", "scaled_1"} if inference == "norm" else {"norm_0", "norm_1", "scaled_0", "scaled_1"})
    assert freezing.verify({"params": params, "state": state})
    assert summary(freezing).totals.parameters == size(params) == 4 * 16 + 16 + 32 + 1 + 16 * 16 + 16 + 32 + 1 + 16 * 3 + 3
    assert freezing.undo().held == ()


class Dropping(hk.Module):
    """A layer that is told at its call whether to drop."""

    def __call__(self, x: Any, is_training: bool) -> Any:
        x = hk.get_parameter("gain", (), init=jnp.ones) * x
        return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def test_all_stops_a_dropout_of_haiku_and_norm_does_not() -> None:
    net = hk.transform(lambda x: hk.Linear(3, name="head")(Dropping(name="drop")(x, is_training=True)))
    x = jnp.ones((8, 4))
    params = net.init(jax.random.key(0), x)
    for inference, same in (("norm", False), ("all", True)):
        held = jax.jit(freeze(params, layers="drop", inference=inference).hold(net.apply))
        assert np.array_equal(held(params, jax.random.key(1), x), held(params, jax.random.key(2), x)) is same


def test_a_plain_tree_of_dicts_and_lists() -> None:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)

    blocks = [{"attention": {"q": array(6, 6), "kv": [array(6, 6), array(6, 6)]}, "mlp": {"w": array(6, 6), "b": array(6)}} for _ in range(3)]
    params = {"blocks": blocks, "scale": array(6), "out": {"w": array(6, 2)}}
    freezing = freeze(params, layers=["blocks.0.**", "blocks.1.mlp"])
    tx = freezing.optimizer(optax.adafactor(0.01))

    def forward(params: Any, x: Any) -> Any:
        for block in params["blocks"]:
            x = jnp.tanh(x @ block["attention"]["q"] @ block["attention"]["kv"][0] @ block["attention"]["kv"][1]) @ block["mlp"]["w"] + block["mlp"]["b"]
        return jnp.sum((x * params["scale"] @ params["out"]["w"] - 1) ** 2)

    @jax.jit
    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = tx.update(jax.grad(forward)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    begun, state = params, tx.init(params)
    for _ in range(3):
        params, state = step(params, state, rng.normal(size=(4, 6)).astype(np.float32))
    still = [begun["blocks"][0], begun["blocks"][1]["mlp"]]
    for was, now in zip(jax.tree.leaves(still), jax.tree.leaves([params["blocks"][0], params["blocks"][1]["mlp"]]), strict=True):
        assert np.asarray(was).tobytes() == np.asarray(now).tobytes()
    rest = [begun["blocks"][1]["attention"], begun["blocks"][2], begun["scale"], begun["out"]]
    ended = [params["blocks"][1]["attention"], params["blocks"][2], params["scale"], params["out"]]
    assert all(np.any(np.asarray(was) != np.asarray(now)) for was, now in zip(jax.tree.leaves(rest), jax.tree.leaves(ended), strict=True))
    assert summary(freezing).totals.frozen == size(still) == 4 * 36 + 6 + 36 + 6
    assert freezing.verify(params)
