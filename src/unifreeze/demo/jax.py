"""The scene in JAX: a GoogLeNet written in flax nnx, or in equinox where flax is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from unifreeze import Freezing, freeze
from unifreeze.select import first

#: Inception blocks: channels in, then out of the 1×1, the two of the 3×3, the two of the second 3×3, and the pool. ``None`` is a pool between blocks.
BLOCKS: dict[str, tuple[int, ...] | None] = {
    "inception3a": (192, 64, 96, 128, 16, 32, 32),
    "inception3b": (256, 128, 128, 192, 32, 96, 64),
    "pool3": None,
    "inception4a": (480, 192, 96, 208, 16, 48, 64),
    "inception4b": (512, 160, 112, 224, 24, 64, 64),
    "inception4c": (512, 128, 128, 256, 24, 64, 64),
    "inception4d": (512, 112, 144, 288, 32, 64, 64),
    "inception4e": (528, 256, 160, 320, 32, 128, 128),
    "pool4": None,
    "inception5a": (832, 256, 160, 320, 32, 128, 128),
    "inception5b": (832, 384, 192, 384, 48, 128, 128),
}


def build() -> NnxScene | EquinoxScene:
    """Builds the scene."""
    return NnxScene() if find_spec("flax") else EquinoxScene()


def _batch() -> tuple[NDArray[Any], NDArray[Any]]:
    return np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32), np.array([3, 7])


def _random(key: Any, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """Random weights for ReLUs, drawn by NumPy: JAX would compile a function for every shape."""
    del key
    draw = np.random.default_rng(list(shape))
    return jnp.asarray(draw.normal(scale=np.sqrt(2 / np.prod(shape[:-1])), size=shape), dtype)


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class NnxScene:
    """Two made images, one step of AdamW at a time, over all parameters."""

    title = "GoogLeNet, written in flax nnx"
    code = """
model = GoogLeNet(classes=10, rngs=nnx.Rngs(0))
freeze(model, layers=first(2))

optimizer = nnx.Optimizer(model, optax.adamw(1e-3, weight_decay=0.1), wrt=nnx.Param)

@nnx.jit                                # not a word of unifreeze from here on
def step(model, optimizer, images, labels):
    loss, gradients = nnx.value_and_grad(cross_entropy)(model, images, labels)
    optimizer.update(model, gradients)
    return loss
"""

    def __init__(self) -> None:
        from flax import nnx

        self.model = _nnx_googlenet(10)
        self._nnx, self._optimizer = nnx, None

        @nnx.jit
        def step(model: Any, optimizer: Any, images: Any, labels: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda model: _cross_entropy(model(images), labels))(model)
            optimizer.update(model, gradients)
            return loss

        self._step = step

    def freeze(self) -> Freezing:
        """Freezes the first two weighted layers."""
        return freeze(self.model, layers=first(2))

    def step(self) -> float:
        """Takes one training step, and returns the loss."""
        if self._optimizer is None:
            self._optimizer = self._nnx.Optimizer(self.model, optax.adamw(1e-3, weight_decay=0.1), wrt=self._nnx.Param)
        self.model.train()
        return float(self._step(self.model, self._optimizer, *_batch()))

    def values(self) -> dict[str, NDArray[Any]]:
        """Copies every parameter and buffer."""
        flat = self._nnx.to_flat_state(self._nnx.state(self.model, self._nnx.Not(self._nnx.RngState)))
        return {".".join(map(str, path)): np.array(leaf[...]) for path, leaf in flat}


def _nnx_googlenet(classes: int) -> Any:  # noqa: C901 - three classes, which need flax
    from flax import nnx

    def pool(x: Any, stride: int = 2) -> Any:
        return nnx.max_pool(x, (3, 3), (stride, stride), padding="SAME")

    class Convolution(nnx.Module):
        """A convolution, its normalisation, and a ReLU."""

        def __init__(self, channels: int, features: int, size: int = 1, stride: int = 1, *, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(channels, features, (size, size), stride, use_bias=False, kernel_init=_random, rngs=rngs)
            self.bn = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return nnx.relu(self.bn(self.conv(x)))

    class Inception(nnx.Module):
        """Four ways side by side: 1×1, 3×3, a second 3×3 for the 5×5 of the paper, and a pool."""

        def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
            channels, one, three, three_out, five, five_out, pooled = sizes
            self.branch1 = Convolution(channels, one, rngs=rngs)
            self.branch2 = nnx.Sequential(Convolution(channels, three, rngs=rngs), Convolution(three, three_out, 3, rngs=rngs))
            self.branch3 = nnx.Sequential(Convolution(channels, five, rngs=rngs), Convolution(five, five_out, 3, rngs=rngs))
            self.branch4 = Convolution(channels, pooled, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return jnp.concatenate([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(pool(x, 1))], axis=-1)

    class GoogLeNet(nnx.Module):
        """Inception v1 with batch normalisation (Szegedy and others, 2014), without the auxiliary heads."""

        def __init__(self, classes: int, rngs: nnx.Rngs) -> None:
            self.conv1 = Convolution(3, 64, 7, 2, rngs=rngs)
            self.conv2 = Convolution(64, 64, rngs=rngs)
            self.conv3 = Convolution(64, 192, 3, rngs=rngs)
            for name, sizes in BLOCKS.items():
                if sizes is not None:
                    setattr(self, name, Inception(sizes, rngs=rngs))
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.fc = nnx.Linear(1024, classes, kernel_init=_random, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = pool(self.conv3(self.conv2(pool(self.conv1(x)))))
            for name, sizes in BLOCKS.items():
                x = pool(x) if sizes is None else getattr(self, name)(x)
            return self.fc(self.dropout(x.mean((1, 2))))

    return GoogLeNet(classes, nnx.Rngs(0))


class EquinoxScene:
    """Two made images, one step of AdamW at a time."""

    title = "GoogLeNet, written in equinox"
    code = """
model, state = eqx.nn.make_with_state(GoogLeNet)(classes=10, key=key)
f = freeze((model, state), layers=first(2))

tx = f.optimizer(optax.adamw(1e-3, weight_decay=0.1))
(loss, state), gradients = f.value_and_grad(cross_entropy, has_aux=True)(model, state, images, labels)
updates, opt_state = tx.update(gradients, opt_state, model)
model = f.apply_updates(model, updates)
"""

    def __init__(self) -> None:
        import equinox as eqx

        self._eqx, self._count = eqx, 0
        self._module, self._state = eqx.nn.make_with_state(_equinox_googlenet())(10, jax.random.key(0))

    @property
    def model(self) -> object:
        """The module with its state."""
        return self._module, self._state

    def freeze(self) -> Freezing:
        """Freezes the first two weighted layers."""
        freezing = freeze(self.model, layers=first(2))
        tx = freezing.optimizer(optax.adamw(1e-3, weight_decay=0.1))
        self._optimizer_state = tx.init(self._module)

        def loss(model: Any, state: Any, images: Any, labels: Any, keys: Any) -> Any:
            run = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
            logits, state = run(images, state, keys)
            return _cross_entropy(logits, labels), state

        @self._eqx.filter_jit
        def step(model: Any, state: Any, optimizer_state: Any, *batch: Any) -> Any:
            (value, state), gradients = freezing.value_and_grad(loss, has_aux=True)(model, state, *batch)
            updates, optimizer_state = tx.update(gradients, optimizer_state, model)
            return freezing.apply_updates(model, updates), state, optimizer_state, value

        self._step = step
        return freezing

    def step(self) -> float:
        """Takes one training step, and returns the loss."""
        self._count += 1
        images, labels = _batch()
        keys = jax.random.split(jax.random.key(self._count), 2)
        batch = (images.transpose(0, 3, 1, 2), labels, keys)
        self._module, self._state, self._optimizer_state, loss = self._step(self._module, self._state, self._optimizer_state, *batch)
        return float(loss)

    def values(self) -> dict[str, NDArray[Any]]:
        """Copies every parameter and buffer."""
        eqx = self._eqx
        found: dict[str, NDArray[Any]] = {}
        for keys, leaf in jax.tree_util.tree_flatten_with_path(self._module, is_leaf=lambda node: isinstance(node, eqx.nn.BatchNorm))[0]:
            path = ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in keys)
            if isinstance(leaf, eqx.nn.BatchNorm):
                mean, var = self._state.get(leaf.ema_state_index)
                own = {"weight": leaf.weight, "bias": leaf.bias, "mean": mean, "var": var}
                found |= {f"{path}.{name}": np.array(value) for name, value in own.items()}
            elif eqx.is_array(leaf):
                found[path] = np.array(leaf)
        return found


def _equinox_googlenet() -> Any:  # noqa: C901 - three classes, which need equinox
    import equinox as eqx

    def pool(x: Any, stride: int = 2) -> Any:
        return eqx.nn.MaxPool2d(3, stride, padding=1)(x)

    class Convolution(eqx.Module):
        """A convolution, its normalisation, and a ReLU."""

        conv: Any
        bn: Any

        def __init__(self, channels: int, features: int, size: int = 1, stride: int = 1, *, key: Any) -> None:
            self.conv = eqx.nn.Conv2d(channels, features, size, stride, padding=size // 2, use_bias=False, key=key)
            self.bn = eqx.nn.BatchNorm(features, axis_name="batch", mode="ema", momentum=0.9)

        def __call__(self, x: Any, state: Any) -> Any:
            x, state = self.bn(self.conv(x), state)
            return jax.nn.relu(x), state

    class Inception(eqx.Module):
        """Four ways side by side: 1×1, 3×3, a second 3×3 for the 5×5 of the paper, and a pool."""

        branches: list[list[Convolution]]

        def __init__(self, sizes: tuple[int, ...], *, key: Any) -> None:
            channels, one, three, three_out, five, five_out, pooled = sizes
            keys = jax.random.split(key, 6)
            self.branches = [
                [Convolution(channels, one, key=keys[0])],
                [Convolution(channels, three, key=keys[1]), Convolution(three, three_out, 3, key=keys[2])],
                [Convolution(channels, five, key=keys[3]), Convolution(five, five_out, 3, key=keys[4])],
                [Convolution(channels, pooled, key=keys[5])],
            ]

        def __call__(self, x: Any, state: Any) -> Any:
            ends = []
            for place, branch in enumerate(self.branches):
                y = pool(x, 1) if place == 3 else x
                for layer in branch:
                    y, state = layer(y, state)
                ends.append(y)
            return jnp.concatenate(ends), state

    class GoogLeNet(eqx.Module):
        """Inception v1 with batch normalisation (Szegedy and others, 2014), without the auxiliary heads."""

        conv1: Convolution
        conv2: Convolution
        conv3: Convolution
        blocks: dict[str, Inception]
        dropout: Any
        fc: Any

        def __init__(self, classes: int, key: Any) -> None:
            keys = iter(jax.random.split(key, 16))
            self.conv1 = Convolution(3, 64, 7, 2, key=next(keys))
            self.conv2 = Convolution(64, 64, key=next(keys))
            self.conv3 = Convolution(64, 192, 3, key=next(keys))
            self.blocks = {name: Inception(sizes, key=next(keys)) for name, sizes in BLOCKS.items() if sizes is not None}
            self.dropout = eqx.nn.Dropout(0.2)
            self.fc = eqx.nn.Linear(1024, classes, key=next(keys))

        def __call__(self, x: Any, state: Any, key: Any) -> Any:
            x, state = self.conv1(x, state)
            x, state = self.conv2(pool(x), state)
            x, state = self.conv3(x, state)
            x = pool(x)
            for name, sizes in BLOCKS.items():
                x, state = (pool(x), state) if sizes is None else self.blocks[name](x, state)
            return self.fc(self.dropout(x.mean((1, 2)), key=key)), state

    return GoogLeNet
