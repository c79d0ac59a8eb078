"""Networks in flax.nnx as the field writes them, with torchvision's padding."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from flax import nnx

SAME3 = ((1, 1), (1, 1))


class ConvNorm(nnx.Module):
    def __init__(self, ins, outs, kernel, stride=1, *, rngs):
        self.conv = nnx.Conv(ins, outs, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(outs, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.conv(x))


class Bottleneck(nnx.Module):
    def __init__(self, ins, width, stride, *, rngs):
        # The projection is defined first here, and computed last.
        self.shortcut = ConvNorm(ins, 4 * width, 1, stride, rngs=rngs) if stride > 1 or ins != 4 * width else None
        self.reduce = ConvNorm(ins, width, 1, rngs=rngs)
        self.middle = ConvNorm(width, width, 3, stride, rngs=rngs)
        self.expand = ConvNorm(width, 4 * width, 1, rngs=rngs)

    def __call__(self, x):
        y = self.expand(nnx.relu(self.middle(nnx.relu(self.reduce(x)))))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet50(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = ConvNorm(3, 64, 7, 2, rngs=rngs)
        blocks, ins = [], 64
        for stage, size in enumerate((3, 4, 6, 3)):
            for number in range(size):
                blocks.append(Bottleneck(ins, 64 * 2**stage, 2 if stage and not number else 1, rngs=rngs))
                ins = 256 * 2**stage
        self.blocks = nnx.List(blocks)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(ins, 1000, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), strides=(2, 2), padding=SAME3)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(jnp.mean(x, axis=(1, 2))))


class MLP(nnx.Module):
    def __init__(self, *, rngs):
        sizes = (20, 32, 32, 16)
        self.norms = nnx.List([nnx.LayerNorm(size, epsilon=1e-5, rngs=rngs) for size in sizes[1:]])
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.out = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(nnx.gelu(layer(x)))
        return self.out(x)
