"""Networks in flax.linen as the field writes them; the ResNet follows flax's own example, with torchvision's padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

SAME3 = ((1, 1), (1, 1))


class BasicBlock(nn.Module):
    filters: int
    strides: int
    conv: Any
    norm: Any
    expansion = 1

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), (self.strides, self.strides), padding=SAME3)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(self.filters, (3, 3), padding=SAME3)(y))
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), (self.strides, self.strides), name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class Bottleneck(nn.Module):
    filters: int
    strides: int
    conv: Any
    norm: Any
    first: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x):
        residual = x
        early, late = (self.strides, 1) if self.first else (1, self.strides)
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1), (early, early))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), (late, late), padding=SAME3)(y)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(4 * self.filters, (1, 1))(y))
        if residual.shape != y.shape:
            residual = self.conv(4 * self.filters, (1, 1), (self.strides, self.strides), name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    sizes: Sequence[int]
    block: Any
    epsilon: float = 1e-5
    classes: int = 1000
    remat: bool = False

    @nn.compact
    def __call__(self, x, train=True):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=self.epsilon)
        block = nn.remat(self.block) if self.remat else self.block
        x = conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=SAME3)
        for stage, size in enumerate(self.sizes):
            for number in range(size):
                x = block(64 * 2**stage, 2 if stage and not number else 1, conv=conv, norm=norm)(x)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


ResNet18 = partial(ResNet, (2, 2, 2, 2), BasicBlock)
ResNet50 = partial(ResNet, (3, 4, 6, 3), Bottleneck)
#: With its strides where Keras has them.
ResNet50OfKeras = partial(ResNet, (3, 4, 6, 3), partial(Bottleneck, first=True), epsilon=1.001e-5)


class VGG16(nn.Module):
    """With the pool between that torchvision has, which at 224 pixels does nothing."""

    @nn.compact
    def __call__(self, x, train=True):
        for filters, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(number):
                x = nn.relu(nn.Conv(filters, (3, 3), padding=1)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        for _ in range(2):
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(4096)(x)))
        return nn.Dense(1000)(x)


class MobileNetV2(nn.Module):
    """Torchvision's, layer by layer."""

    @nn.compact
    def __call__(self, x, train=True):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)

        def conv(x, filters, kernel=1, stride=1, groups=1):
            return nn.Conv(filters, (kernel, kernel), (stride, stride), kernel // 2, feature_group_count=groups, use_bias=False)(x)

        x = nn.relu6(norm()(conv(x, 32, 3, 2)))
        for expand, filters, number, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
            for place in range(number):
                before, wide = x, x.shape[-1] * expand
                if expand > 1:
                    x = nn.relu6(norm()(conv(x, wide)))
                x = nn.relu6(norm()(conv(x, wide, 3, stride if place == 0 else 1, groups=wide)))
                x = norm()(conv(x, filters))
                x = x + before if before.shape == x.shape else x
        x = nn.relu6(norm()(conv(x, 1280)))
        return nn.Dense(1000)(nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2))))


class Inception(nn.Module):
    """Two modules of GoogLeNet's kind behind a stem, with norms."""

    widths = ((32, 48, 64, 8, 16, 16), (64, 64, 96, 16, 48, 32))

    @nn.compact
    def __call__(self, x, train=True):
        def unit(x, filters, kernel=1, stride=1):
            x = nn.Conv(filters, (kernel, kernel), (stride, stride), kernel // 2, use_bias=False)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=1e-3)(x))

        x = nn.max_pool(unit(x, 32, 3, 2), (3, 3), strides=(2, 2), padding=SAME3)
        for a, b, c, d, e, f in self.widths:
            pooled = nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
            x = jnp.concatenate([unit(x, a), unit(unit(x, b), c, 3), unit(unit(x, d), e, 5), unit(pooled, f)], axis=-1)
        return nn.Dense(10)(x.mean((1, 2)))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (32, 32, 16):
            x = nn.LayerNorm(epsilon=1e-5)(nn.gelu(nn.Dense(width)(x)))
        return nn.Dense(5)(x)
