"""Transformers in flax.linen, of ``nn.MultiHeadDotProductAttention``, as the field writes them."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp


class Mlp(nn.Module):
    width: int
    exact: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.width)(x), approximate=not self.exact))


class ViT(nn.Module):
    """As torchvision's VisionTransformer."""

    patch: int = 8
    width: int = 32
    heads: int = 4
    layers: int = 2
    classes: int = 10

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(self.width, (self.patch, self.patch), (self.patch, self.patch), padding="VALID", name="embedding")(x)
        n, h, w, c = x.shape
        token = self.param("cls", nn.initializers.zeros, (1, 1, c))
        x = jnp.concatenate([jnp.tile(token, (n, 1, 1)), x.reshape(n, h * w, c)], axis=1)
        x = x + self.param("posembed", nn.initializers.normal(0.02), (1, 1 + h * w, c))
        for _ in range(self.layers):
            y = nn.LayerNorm(epsilon=1e-6)(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, deterministic=not train)(y)
            x = x + Mlp(2 * self.width)(nn.LayerNorm(epsilon=1e-6)(x))
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(epsilon=1e-6)(x)[:, 0])


class Bert(nn.Module):
    """As transformers' BertModel: the last hidden state, and the pooled one."""

    vocabulary: int = 50
    width: int = 32
    heads: int = 4
    layers: int = 2
    positions: int = 24

    @nn.compact
    def __call__(self, ids, train=True):
        x = nn.Embed(self.vocabulary, self.width, name="word")(ids) + nn.Embed(2, self.width, name="type")(jnp.zeros_like(ids))
        x = x + nn.Embed(self.positions, self.width, name="position")(jnp.arange(ids.shape[1])[None])
        x = nn.LayerNorm(epsilon=1e-12)(x)
        for _ in range(self.layers):
            x = nn.LayerNorm(epsilon=1e-12)(x + nn.MultiHeadDotProductAttention(self.heads, deterministic=not train)(x))
            x = nn.LayerNorm(epsilon=1e-12)(x + Mlp(64)(x))
        return x, jnp.tanh(nn.Dense(self.width, name="pooler")(x[:, 0]))


class GPT2(nn.Module):
    """As transformers' GPT2Model, which keeps query, key and value in one matrix."""

    vocabulary: int = 50
    width: int = 32
    heads: int = 4
    layers: int = 2
    positions: int = 24

    @nn.compact
    def __call__(self, ids, train=True):
        x = nn.Embed(self.vocabulary, self.width, name="wte")(ids) + nn.Embed(self.positions, self.width, name="wpe")(jnp.arange(ids.shape[1]))
        mask = nn.make_causal_mask(ids)
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.heads, deterministic=not train)(nn.LayerNorm(epsilon=1e-5)(x), mask=mask)
            x = x + Mlp(128, exact=False)(nn.LayerNorm(epsilon=1e-5)(x))
        return nn.LayerNorm(epsilon=1e-5)(x)
