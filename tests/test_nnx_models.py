"""Real nnx models in the user's own unchanged step, a ResNet with BatchNorm and a transformer of 20 million parameters, read without unifreeze."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unifreeze import freeze, summary, unfreeze
from unifreeze.errors import FrozenMovedError
from unifreeze.select import before, first, kind

Arrays = dict[str, np.ndarray]


def arrays(model: nnx.Module) -> Arrays:
    """Parameters and statistics, by path."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.array(leaf[...]) for path, leaf in flat if not isinstance(leaf, nnx.RngState)}


def moved(old: Arrays, new: Arrays) -> set[str]:
    assert old.keys() == new.keys()
    return {path for path in old if old[path].tobytes() != new[path].tobytes()}


class Block(nnx.Module):
    """A basic block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), stride, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.down = nnx.Conv(inputs, outputs, (1, 1), stride, use_bias=False, rngs=rngs) if stride > 1 else None

    def __call__(self, x: Any) -> Any:
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + (x if self.down is None else self.down(x)))


class ResNet(nnx.Module):
    """ResNet-10's plan, four stages of one block, or ResNet-18's, of two; on small images and eight times narrower."""

    def __init__(self, rngs: nnx.Rngs, blocks: int, width: int = 8) -> None:
        self.stem = nnx.Conv(3, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        sizes = [(width * 2 ** max(0, stage - (block == 0)), width * 2**stage, 1 + (stage > 0 and block == 0)) for stage in range(4) for block in range(blocks)]
        self.layers = nnx.List([Block(*size, rngs) for size in sizes])
        self.fc = nnx.Linear(width * 8, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.layers:
            x = block(x)
        return self.fc(x.mean((1, 2)))


def image_loss(model: ResNet, images: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def of_resnet(blocks: int, width: int = 8) -> tuple[int, int]:
    """The parameters and the statistics of that ResNet, counted by its plan."""
    total, statistics, inputs = 27 * width + 2 * width, 2 * width, width
    for stage in range(4):
        for block in range(blocks):
            outputs = width * 2**stage
            total += 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs + (inputs * outputs if stage > 0 and block == 0 else 0)
            statistics, inputs = statistics + 4 * outputs, outputs
    return total + inputs * 10 + 10, statistics


@nnx.jit
def image_step(model: ResNet, optimizer: nnx.Optimizer, images: Any, labels: Any) -> None:
    optimizer.update(model, nnx.grad(image_loss)(model, images, labels))


def fit(model: ResNet, optimizer: nnx.Optimizer, seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        model.train()
        image_step(model, optimizer, rng.normal(0.5, 1, (4, 16, 16, 3)).astype(np.float32), rng.integers(10, size=4))


@pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.deep)])
def test_a_resnet_with_batch_norm(blocks: int) -> None:
    model = nnx.jit(lambda: ResNet(nnx.Rngs(0), blocks))()
    freezing = freeze(model, layers=before(f"layers.{3 * blocks}"))
    begun = arrays(model)
    optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1)), wrt=nnx.Param)
    fit(model, optimizer, range(2))
    late = (*(f"layers.{3 * blocks + i}." for i in range(blocks)), "fc.")
    assert moved(begun, arrays(model)) == {path for path in begun if path.startswith(late)}, "both statistics and weights"
    assert len(freezing.verify().arrays) == 5 + 3 * blocks * 10 + 2
    assert (summary(model).totals.parameters, summary(model).totals.buffers) == of_resnet(blocks)
    assert summary(model).totals.trainable == sum(begun[path].size for path in begun if path.startswith(late) and not path.endswith(("mean", "var")))
    freezing.undo()
    assert {type(leaf) for _, leaf in nnx.to_flat_state(nnx.state(model))} == {nnx.Param, nnx.BatchStat}
    assert {type(block.bn1) for block in model.layers} == {nnx.BatchNorm}
    freezing.attach(optimizer)
    middle = arrays(model)
    fit(model, optimizer, range(2, 3))
    assert moved(middle, arrays(model)) == set(begun), "after undo, everything trains"
    freezing = freeze(model, layers=kind("batch_norm"))
    model.layers[0].bn1.mean[...] += 1e-6
    with pytest.raises(FrozenMovedError, match=r"layers\.0\.bn1\.mean"):
        freezing.verify()


class Attention(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, dropout_rate=0.1, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A decoder: 6 blocks of width 512, 4,096 words; the head is the embedding, as in GPT-2, or of its own."""

    def __init__(self, rngs: nnx.Rngs, *, tied: bool, words: int = 4096, width: int = 512, depth: int = 6) -> None:
        self.embed = nnx.Embed(words, width, rngs=rngs)
        self.blocks = nnx.List([Attention(width, 8, rngs) for _ in range(depth)])
        self.norm, self.head = nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, words, use_bias=False, rngs=rngs)
        if tied:
            self.head = Unembed(self.embed.embedding)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Unembed(nnx.Module):
    def __init__(self, embedding: nnx.Param) -> None:
        self.embedding = embedding

    def __call__(self, x: Any) -> Any:
        return x @ self.embedding[...].T


def token_loss(model: Transformer, tokens: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:]).mean()


BLOCK = 4 * (512 * 512 + 512) + 8 * 512 * 512 + 5 * 512 + 4 * 512


@pytest.mark.deep
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_a_transformer_of_twenty_million_parameters(tied: bool) -> None:
    model = Transformer(nnx.Rngs(0), tied=tied)
    words, width = 4096, 512
    freezing = freeze(model, layers=[first(1), *(f"blocks.{i}.**" for i in range(5))], inference="all")
    assert summary(model).totals.parameters == (1 if tied else 2) * words * width + 6 * BLOCK + 2 * width >= 20_000_000
    assert summary(model).totals.trainable == BLOCK + 2 * width + (0 if tied else words * width), "a tied head is frozen with its embedding"
    begun = arrays(model)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3, weight_decay=0.1), wrt=nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(optimizer.opt_state)) == 2 * summary(model).totals.trainable + 1

    @nnx.jit
    def step(model: Transformer, optimizer: nnx.Optimizer, tokens: Any) -> Any:
        value, gradients = nnx.value_and_grad(token_loss)(model, tokens)
        optimizer.update(model, gradients)
        return value

    tokens = np.random.default_rng(0).integers(words, size=(2, 9))
    model.train()
    losses = [float(step(model, optimizer, tokens)) for _ in range(2)]
    assert losses[1] < losses[0]
    late = ("blocks.5.", "norm.", *(() if tied else ("head.",)))
    assert moved(begun, arrays(model)) == {path for path in begun if path.startswith(late)}
    assert freezing.verify()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model, freezing.param_filter)))
    saved = nnx.state(model, freezing.param_filter)
    assert sum(leaf.size for leaf in jax.tree.leaves(saved)) == summary(model).totals.parameters, "the filter for saving misses something"
    after = unfreeze(model, layers=kind("layer_norm"))
    assert set(after.changed) == {f"blocks.{i}.norm{n}.{name}" for i in range(5) for n in (1, 2) for name in ("scale", "bias")}
    freezing.undo()
    assert nnx.state(model, nnx.Param).keys() == saved.keys()
    assert jnp.all(model.embed.embedding[...] == begun["embed.embedding"])
