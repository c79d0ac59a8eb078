"""BERT, GPT-2 and a vision transformer as one writes them in Keras: subclassed layers, attention by ``EinsumDense``, tables, tied output."""

from __future__ import annotations

import keras
import numpy as np

L, ops = keras.layers, keras.ops


def randomised(model, seed=0):
    """Every weight random, scales near one, so that nothing hides."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" in variable.path:
            continue
        gain = variable.path.rpartition("/")[2] in {"gamma", "moving_variance"}
        variable.assign(rng.uniform(0.8, 1.2, variable.shape) if gain else rng.normal(0, 0.15, variable.shape))
    return model


class Positions(L.Layer):
    """A table of positions, sliced to the length of what it is added to."""

    def __init__(self, length, **more):
        super().__init__(**more)
        self.length = length

    def build(self, shape):
        self.table = self.add_weight(name="table", shape=(self.length, shape[-1]))

    def call(self, x):
        length = ops.shape(x)[-2]
        found = ops.slice(ops.convert_to_tensor(self.table), (0, 0), (length, x.shape[-1]))
        return ops.broadcast_to(found, ops.shape(x))


class Attention(L.Layer):
    """Attention with a projection for each of query, key and value."""

    def __init__(self, heads, causal=False, **more):
        super().__init__(**more)
        self.heads, self.causal = heads, causal

    def build(self, shape):
        width = shape[-1]
        size = width // self.heads
        for name in ("value", "query", "key"):
            dense = L.EinsumDense("abc,cde->abde", output_shape=(None, self.heads, size), bias_axes="de", name=name)
            dense.build(shape)
            setattr(self, f"{name}_dense", dense)
        self.output_dense = L.EinsumDense("abde,dec->abc", output_shape=(None, width), bias_axes="c", name="out")
        self.output_dense.build((*shape[:-1], self.heads, size))

    def call(self, x):
        query, key, value = self.query_dense(x), self.key_dense(x), self.value_dense(x)
        scores = ops.einsum("aecd,abcd->acbe", key, query) / np.sqrt(query.shape[-1])
        if self.causal:
            length = x.shape[1]
            scores = ops.where(np.tril(np.ones((length, length), "bool")), scores, -1e9)
        mixed = ops.einsum("acbe,aecd->abcd", ops.softmax(scores), value)
        return self.output_dense(mixed)


class Block(L.Layer):
    """A transformer block, with its norms first or last."""

    def __init__(self, heads, width, *, first, causal=False, epsilon=1e-5, activation="gelu", mha=False, **more):
        super().__init__(**more)
        self.first, self.width, self.epsilon, self.activation, self.mha = first, width, epsilon, activation, mha
        self.attention = L.MultiHeadAttention(heads, width // 4 // heads, name="mha") if mha else Attention(heads, causal, name="attention")

    def build(self, shape):
        if self.mha:
            self.attention.build(shape, shape)
        else:
            self.attention.build(shape)
        self.norm_1, self.norm_2 = L.LayerNormalization(epsilon=self.epsilon), L.LayerNormalization(epsilon=self.epsilon)
        self.up, self.down = L.Dense(self.width, activation=self.activation), L.Dense(shape[-1])
        for norm in (self.norm_1, self.norm_2):
            norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], self.width))

    def mix(self, x):
        return self.attention(x, x) if self.mha else self.attention(x)

    def call(self, x):
        if self.first:
            x = x + self.mix(self.norm_1(x))
            return x + self.down(self.up(self.norm_2(x)))
        x = self.norm_1(x + self.mix(x))
        return self.norm_2(x + self.down(self.up(x)))


def bert(*, vocabulary=50, length=16, width=24, heads=4, depth=2, open_length=False):
    """A BERT that takes tokens and segments, with a pooled output."""
    tokens = keras.Input((None if open_length else length,), dtype="int32", name="token_ids")
    segments = keras.Input((None if open_length else length,), dtype="int32", name="segment_ids")
    x = L.Embedding(vocabulary, width, name="tokens")(tokens)
    x = x + Positions(length)(x) + L.Embedding(2, width, name="segments")(segments)
    x = L.LayerNormalization(epsilon=1e-12)(x)
    for _ in range(depth):
        x = Block(heads, 4 * width, first=False, epsilon=1e-12, activation=lambda x: keras.activations.gelu(x, approximate=False))(x)
    return randomised(keras.Model([tokens, segments], [x, L.Dense(width, activation="tanh")(x[:, 0, :])]))


class Gpt(keras.Model):
    """A GPT-2 as a subclassed model, whose output is tied to its tokens."""

    def __init__(self, vocabulary=50, length=16, width=24, heads=4, depth=2):
        super().__init__()
        self.tokens = L.Embedding(vocabulary, width)
        self.positions = L.Embedding(length, width)
        self.blocks = [Block(heads, 4 * width, first=True, causal=True, activation=lambda x: keras.activations.gelu(x, approximate=True)) for _ in range(depth)]
        self.norm = L.LayerNormalization(epsilon=1e-5)

    def call(self, ids):
        x = self.tokens(ids) + self.positions(ops.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return ops.matmul(self.norm(x), ops.transpose(self.tokens.embeddings))


def gpt(**more):
    """A built GPT-2."""
    model = Gpt(**more)
    model(np.zeros((1, 16), "int32"))
    return randomised(model)


class ClassToken(L.Layer):
    """Puts a learned token first."""

    def build(self, shape):
        self.token = self.add_weight(name="token", shape=(1, 1, shape[-1]))

    def call(self, x):
        return ops.concatenate([ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1])), x], axis=1)


def vit(*, size=32, patch=8, width=24, heads=4, depth=2, classes=5, mha=True):
    """A vision transformer with Keras's own attention."""
    image = keras.Input((size, size, 3))
    x = L.Conv2D(width, patch, patch)(image)
    x = ClassToken()(L.Reshape((-1, width))(x))
    x = x + Positions((size // patch) ** 2 + 1)(x)
    for _ in range(depth):
        x = Block(heads, 4 * width, first=True, epsilon=1e-6, activation=lambda x: keras.activations.gelu(x, approximate=False), mha=mha)(x)
    x = L.LayerNormalization(epsilon=1e-6)(x)
    return randomised(keras.Model(image, L.Dense(classes)(x[:, 0])))
