"""Networks in equinox as the field writes them: one sample at a time, channels first, the running statistics in a State."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp


class ConvNorm(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, ins, outs, kernel, stride=1, mode="batch", *, key):
        self.conv = eqx.nn.Conv2d(ins, outs, kernel, stride, kernel // 2, use_bias=False, key=key)
        self.norm = eqx.nn.BatchNorm(outs, axis_name="batch", momentum=0.9, mode=mode)

    def __call__(self, x, state):
        return self.norm(self.conv(x), state)


class Block(eqx.Module):
    first: ConvNorm
    second: ConvNorm
    shortcut: ConvNorm | None

    def __init__(self, ins, width, stride, mode, *, key):
        one, two, three = jax.random.split(key, 3)
        self.second = ConvNorm(width, width, 3, mode=mode, key=two)
        self.first = ConvNorm(ins, width, 3, stride, mode, key=one)
        self.shortcut = ConvNorm(ins, width, 1, stride, mode, key=three) if stride > 1 or ins != width else None

    def __call__(self, x, state):
        y, state = self.first(x, state)
        y, state = self.second(jax.nn.relu(y), state)
        if self.shortcut is not None:
            x, state = self.shortcut(x, state)
        return jax.nn.relu(x + y), state


class ResNet18(eqx.Module):
    stem: ConvNorm
    pool: eqx.nn.MaxPool2d
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, mode="batch", *, key):
        keys = iter(jax.random.split(key, 10))
        self.stem = ConvNorm(3, 64, 7, 2, mode, key=next(keys))
        self.pool = eqx.nn.MaxPool2d(3, 2, 1)
        self.blocks, ins = [], 64
        for stage in range(4):
            for number in range(2):
                self.blocks.append(Block(ins, 64 * 2**stage, 2 if stage and not number else 1, mode, key=next(keys)))
                ins = 64 * 2**stage
        self.head = eqx.nn.Linear(ins, 1000, key=next(keys))

    def __call__(self, x, state):
        x, state = self.stem(x, state)
        x = self.pool(jax.nn.relu(x))
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(jnp.mean(x, axis=(1, 2))), state


class MLP(eqx.Module):
    layers: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, *, key):
        keys, sizes = jax.random.split(key, 4), (20, 32, 32, 16)
        self.layers = [eqx.nn.Linear(a, b, key=k) for a, b, k in zip(sizes, sizes[1:], keys, strict=False)]
        self.norms = [eqx.nn.LayerNorm(size) for size in sizes[1:]]
        self.dropout = eqx.nn.Dropout(0.3)
        self.out = eqx.nn.Linear(16, 5, key=keys[3])

    def __call__(self, x, key=None):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(jax.nn.gelu(layer(x)))
        return self.out(self.dropout(x, key=key))
