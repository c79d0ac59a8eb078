"""Real equinox models, a ResNet with BatchNorm and a transformer of 20 million parameters: frozen, trained, and read without unifreeze."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unifreeze import freeze, summary, unfreeze
from unifreeze.errors import FrozenMovedError
from unifreeze.select import before, first, kind, last

Arrays = dict[str, np.ndarray]


def arrays(tree: Any) -> Arrays:
    """Every array of a module or State, by JAX's own path."""
    return {jax.tree_util.keystr(keys): np.array(leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0] if eqx.is_array(leaf)}


def moved(old: Any, new: Any) -> set[str]:
    """Paths of what has other bytes now."""
    before, after = arrays(old), arrays(new)
    assert before.keys() == after.keys()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


class Block(eqx.Module):
    """A basic block of a ResNet."""

    conv1: eqx.nn.Conv2d
    bn1: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    bn2: eqx.nn.BatchNorm
    down: eqx.nn.Conv2d | None

    def __init__(self, inputs: int, outputs: int, stride: int, key: Any) -> None:
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(inputs, outputs, 3, stride, padding=1, use_bias=False, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(outputs, outputs, 3, padding=1, use_bias=False, key=keys[1])
        self.bn1, self.bn2 = (eqx.nn.BatchNorm(outputs, axis_name="batch", mode="batch") for _ in range(2))
        self.down = eqx.nn.Conv2d(inputs, outputs, 1, stride, use_bias=False, key=keys[2]) if stride > 1 else None

    def __call__(self, x: Any, state: Any) -> Any:
        y, state = self.bn1(self.conv1(x), state)
        y, state = self.bn2(self.conv2(jax.nn.relu(y)), state)
        return jax.nn.relu(y + (x if self.down is None else self.down(x))), state


class ResNet(eqx.Module):
    """ResNet-10's plan, four stages of one block, or ResNet-18's, of two; on small images and eight times narrower."""

    stem: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    layers: list[Block]
    fc: eqx.nn.Linear

    def __init__(self, key: Any, blocks: int, width: int = 8) -> None:
        keys = jax.random.split(key, 2 + 4 * blocks)
        self.stem = eqx.nn.Conv2d(3, width, 3, padding=1, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(width, axis_name="batch", mode="batch")
        sizes = [(width * 2 ** max(0, stage - (block == 0)), width * 2**stage, 1 + (stage > 0 and block == 0)) for stage in range(4) for block in range(blocks)]
        self.layers = [Block(*size, key) for size, key in zip(sizes, keys[1:-1], strict=True)]
        self.fc = eqx.nn.Linear(width * 8, 10, key=keys[-1])

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.norm(self.stem(x), state)
        x = jax.nn.relu(x)
        for block in self.layers:
            x, state = block(x, state)
        return self.fc(x.mean((1, 2))), state


def image_loss(model: Any, state: Any, images: Any, labels: Any) -> Any:
    logits, state = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(images, state)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state


def pictures(step: int) -> Any:
    rng = np.random.default_rng(step)
    return rng.normal(0.5, 1, (4, 3, 16, 16)).astype(np.float32), rng.integers(10, size=4)


def statistics(norm: Any, state: Any) -> list[bytes]:
    indices = jax.tree.leaves(norm, is_leaf=lambda node: isinstance(node, eqx.nn.StateIndex))
    values = [state.get(index) for index in indices if isinstance(index, eqx.nn.StateIndex)]
    assert values
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(values)]


def of_resnet(blocks: int, width: int = 8) -> int:
    """The parameters of that ResNet, counted by its plan."""
    norm, total, inputs = 2 * width, 3 * 9 * width + 2 * width, width
    for stage in range(4):
        for block in range(blocks):
            outputs = width * 2**stage
            norm = 2 * outputs
            down = inputs * outputs if stage > 0 and block == 0 else 0
            total += 9 * inputs * outputs + 9 * outputs * outputs + 2 * norm + down
            inputs = outputs
    return total + inputs * 10 + 10


@pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.deep)])
def test_a_resnet_with_batch_norm(blocks: int) -> None:
    model, state = begun = eqx.nn.make_with_state(ResNet)(jax.random.key(0), blocks)
    freezing = freeze(begun, layers=before(f"layers.{3 * blocks}"))
    tx = freezing.optimizer(optax.adamw(1e-3, weight_decay=0.1), pre=optax.clip_by_global_norm(1.0))

    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        loose = eqx.nn.inference_mode(model, value=False)
        (_, state), grads = freezing.value_and_grad(image_loss, has_aux=True)(loose, state, *batch)
        updates, opt_state = tx.update(grads, opt_state, model)
        return freezing.apply_updates(model, updates), state, opt_state

    opt_state = tx.init(model)
    for i in range(2):
        model, state, opt_state = step(model, state, opt_state, *pictures(i))
    last = range(3 * blocks, 4 * blocks)
    late = (*(f".layers[{i}]" for i in last), ".fc")
    assert moved(begun[0], model) == {path for path in arrays(model) if path.startswith(late)}
    norms = {"norm": model.norm} | {f"layers.{i}.{name}": getattr(model.layers[i], name) for i in range(4 * blocks) for name in ("bn1", "bn2")}
    still = {name for name, norm in norms.items() if statistics(norm, begun[1]) == statistics(norm, state)}
    assert norms.keys() - still == {f"layers.{i}.{name}" for i in last for name in ("bn1", "bn2")}
    assert len(freezing.verify((model, state)).arrays) == 1 + 2 + 3 * blocks * 6 + 2 + (1 + 6 * blocks) * 3
    totals = summary(freezing).totals
    assert totals.parameters == of_resnet(blocks) == sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
    assert totals.trainable == sum(leaf.size for leaf in jax.tree.leaves(eqx.filter((model.layers[3 * blocks :], model.fc), eqx.is_inexact_array)))
    back = freezing.undo()
    assert back.frozen == back.held == ()
    assert set(back.trainable) == set(freezing.frozen) | set(freezing.trainable)
    disturbed = eqx.tree_at(lambda tree: tree.layers[0].bn1.weight, model, replace_fn=lambda leaf: leaf.at[0].add(1e-6))
    with pytest.raises(FrozenMovedError, match=r"layers\.0\.bn1\.weight"):
        freezing.verify((disturbed, state))


class Attention(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width: int, heads: int, key: Any) -> None:
        keys = jax.random.split(key, 3)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(heads, width, dropout_p=0.1, key=keys[0])
        self.up, self.down = eqx.nn.Linear(width, 4 * width, key=keys[1]), eqx.nn.Linear(4 * width, width, key=keys[2])

    def __call__(self, x: Any, key: Any) -> Any:
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)), key=key)
        return x + jax.vmap(lambda row: self.down(jax.nn.gelu(self.up(self.norm2(row)))))(x)


class Transformer(eqx.Module):
    """A decoder: 6 blocks of width 512, 4,096 words."""

    embed: eqx.nn.Embedding
    position: eqx.nn.Embedding
    blocks: list[Attention]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: Any, words: int = 4096, width: int = 512, depth: int = 6) -> None:
        keys = jax.random.split(key, depth + 3)
        self.embed, self.position = eqx.nn.Embedding(words, width, key=keys[0]), eqx.nn.Embedding(16, width, key=keys[1])
        self.blocks = [Attention(width, 8, key) for key in keys[3:]]
        self.norm, self.head = eqx.nn.LayerNorm(width), eqx.nn.Linear(width, words, use_bias=False, key=keys[2])

    def __call__(self, tokens: Any, key: Any) -> Any:
        x = jax.vmap(self.embed)(tokens) + self.position.weight[: len(tokens)]
        for i, block in enumerate(self.blocks):
            x = block(x, jax.random.fold_in(key, i))
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def token_loss(model: Any, tokens: Any, key: Any) -> Any:
    logits = jax.vmap(model)(tokens[:, :-1], jax.random.split(key, len(tokens)))
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@pytest.mark.deep
def test_a_transformer_of_twenty_million_parameters() -> None:
    begun = model = Transformer(jax.random.key(0))
    freezing = freeze(model, layers=[first(2), *(f"blocks.{i}.**" for i in range(5))], inference="all")
    width, words = 512, 4096
    block = 4 * width * width + 2 * 4 * width * width + 4 * width + width + 4 * width
    assert summary(freezing).totals.parameters == 2 * words * width + 16 * width + 6 * block + 2 * width >= 20_000_000
    assert summary(freezing).totals.trainable == block + 2 * width + words * width
    tx = freezing.optimizer(optax.adamw(1e-3, weight_decay=0.1))

    @eqx.filter_jit
    def step(model: Any, opt_state: Any, tokens: Any, key: Any) -> Any:
        value, grads = freezing.value_and_grad(token_loss)(model, tokens, key)
        updates, opt_state = tx.update(grads, opt_state, model)
        return freezing.apply_updates(model, updates), opt_state, value

    opt_state, tokens = tx.init(model), np.random.default_rng(0).integers(words, size=(2, 9))
    assert sum(leaf.size for leaf in jax.tree.leaves(opt_state)) == 2 * summary(freezing).totals.trainable + 1
    losses = []
    for i in range(2):
        model, opt_state, value = step(model, opt_state, tokens, jax.random.key(i))
        losses.append(float(value))
    assert losses[1] < losses[0]
    assert moved(begun, model) == {path for path in arrays(model) if path.startswith((".blocks[5]", ".norm", ".head"))}
    assert freezing.verify(model)
    after = unfreeze(freezing, layers=kind("layer_norm"))
    assert set(after.changed) == {f"blocks.{i}.norm{n}.{name}" for i in range(5) for n in (1, 2) for name in ("weight", "bias")}
    assert freeze(after, layers=last(1)).undo().frozen == after.frozen
