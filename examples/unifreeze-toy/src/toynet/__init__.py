"""toynet: a deep-learning framework in two hundred lines of NumPy, for the worked example of a unifreeze backend.

It is small and real: layers with forward and backward passes, statistics, dropout, and optimizers with momentum and decay. Like its big
brothers it does not keep its promise by itself: ``trainable = False`` stops the optimizer, and statistics go on moving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

Values = np.ndarray[Any, np.dtype[Any]]
Pull = Callable[[Values], Values]


class Variable:
    """An array that a layer owns, with its gradient."""

    def __init__(self, value: Values, *, trainable: bool = True) -> None:
        self.value: Values = np.asarray(value, np.float32)
        self.trainable = trainable
        self.gradient: Values | None = None

    def collect(self, gradient: Values) -> None:
        if self.trainable:
            self.gradient = gradient if self.gradient is None else self.gradient + gradient


class Layer:
    """Owns variables and child layers as plain attributes. ``pinned`` layers run as at inference whatever ``train`` says."""

    def __init__(self) -> None:
        self.training = True
        self.pinned: Literal["norm", "all"] | None = None

    @property
    def learning(self) -> bool:
        return self.training and self.pinned is None

    def variables(self) -> dict[str, Variable]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Variable)}

    def children(self) -> dict[str, Layer]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Layer)}

    def walk(self) -> Iterator[Layer]:
        yield self
        for child in self.children().values():
            yield from child.walk()

    def train(self, mode: bool = True) -> Layer:
        for layer in self.walk():
            layer.training = mode
        return self

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        raise NotImplementedError


class Chain(Layer):
    """Runs its children one after the other."""

    def __init__(self, **layers: Layer) -> None:
        super().__init__()
        vars(self).update(layers)

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        pulls = []
        for child in self.children().values():
            x, pull = child.forward(x, rng)
            pulls.append(pull)

        def back(gradient: Values) -> Values:
            for pull in reversed(pulls):
                gradient = pull(gradient)
            return gradient

        return x, back


def _random(rng: np.random.Generator, *shape: int) -> Variable:
    return Variable(rng.normal(size=shape) / np.sqrt(max(shape[0], 4)))


class Dense(Layer):
    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.kernel, self.bias = _random(rng, inputs, outputs), _random(rng, outputs)

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        def back(gradient: Values) -> Values:
            self.kernel.collect(x.T @ gradient)
            self.bias.collect(gradient.sum(0))
            return gradient @ self.kernel.value.T

        return x @ self.kernel.value + self.bias.value, back


class Conv(Layer):
    """A 3×3 convolution with padding, on images with channels last."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.kernel, self.bias = _random(rng, 3, 3, inputs, outputs), _random(rng, outputs)

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        _, height, width, _ = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        offsets = [(i, j) for i in range(3) for j in range(3)]
        y: Values = sum(padded[:, i : i + height, j : j + width] @ self.kernel.value[i, j] for i, j in offsets) + self.bias.value

        def back(gradient: Values) -> Values:
            kernel, source = np.zeros_like(self.kernel.value), np.zeros_like(padded)
            for i, j in offsets:
                kernel[i, j] = np.einsum("bhwi,bhwo->io", padded[:, i : i + height, j : j + width], gradient)
                source[:, i : i + height, j : j + width] += gradient @ self.kernel.value[i, j].T
            self.kernel.collect(kernel)
            self.bias.collect(gradient.sum((0, 1, 2)))
            return source[:, 1:-1, 1:-1]

        return y, back


class _Norm(Layer):
    def __init__(self, features: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.scale, self.bias = Variable(1 + 0.1 * rng.normal(size=features)), _random(rng, features)

    def _affine(self, hat: Values) -> tuple[Values, Pull]:
        axes = tuple(range(hat.ndim - 1))

        def back(gradient: Values) -> Values:
            self.scale.collect((gradient * hat).sum(axes))
            self.bias.collect(gradient.sum(axes))
            return gradient * self.scale.value

        return hat * self.scale.value + self.bias.value, back


def _standardise(x: Values, axes: tuple[int, ...]) -> tuple[Values, Values, Values, Pull]:
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    width = np.sqrt(variance + 1e-5)
    hat = (x - mean) / width

    def back(gradient: Values) -> Values:
        inner: Values = (gradient - gradient.mean(axes, keepdims=True) - hat * (gradient * hat).mean(axes, keepdims=True)) / width
        return inner

    return hat, mean, variance, back


class LayerNorm(_Norm):
    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        hat, _, _, inner = _standardise(x, (-1,))
        y, outer = self._affine(hat)
        return y, lambda gradient: inner(outer(gradient))


class BatchNorm(_Norm):
    def __init__(self, features: int, rng: np.random.Generator) -> None:
        super().__init__(features, rng)
        self.mean = Variable(0.3 * rng.normal(size=features), trainable=False)
        self.variance = Variable(1 + rng.uniform(size=features), trainable=False)

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        if self.learning:
            hat, mean, variance, inner = _standardise(x, tuple(range(x.ndim - 1)))
            self.mean.value = 0.9 * self.mean.value + 0.1 * mean.reshape(-1)
            self.variance.value = 0.9 * self.variance.value + 0.1 * variance.reshape(-1)
        else:
            width = np.sqrt(self.variance.value + 1e-5)
            hat, inner = (x - self.mean.value) / width, lambda gradient: gradient / width
        y, outer = self._affine(hat)
        return y, lambda gradient: inner(outer(gradient))


class Relu(Layer):
    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        return np.maximum(x, 0), lambda gradient: gradient * (x > 0)


class Pool(Layer):
    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        return x.mean((1, 2)), lambda gradient: np.broadcast_to(gradient[:, None, None] / (x.shape[1] * x.shape[2]), x.shape)


class Dropout(Layer):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        if not self.learning:
            return x, lambda gradient: gradient
        keep = (rng.uniform(size=x.shape) > self.rate) / (1 - self.rate)
        return (x * keep).astype(np.float32), lambda gradient: gradient * keep


class Embedding(Layer):
    def __init__(self, entries: int, features: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.table = _random(rng, entries, features)

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        def back(gradient: Values) -> Values:
            table = np.zeros_like(self.table.value)
            np.add.at(table, x, gradient)
            self.table.collect(table)
            return gradient

        return self.table.value[x], back


class Unembedding(Layer):
    """Projects back through an embedding's own table."""

    def __init__(self, table: Variable) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Values, rng: np.random.Generator) -> tuple[Values, Pull]:
        def back(gradient: Values) -> Values:
            self.table.collect(gradient.T @ x)
            return gradient @ self.table.value

        return x @ self.table.value.T, back


class Optimizer:
    """SGD with momentum, or Adam, both with decoupled decay. It holds every variable it is given and skips those without a gradient."""

    def __init__(self, variables: list[Variable], rate: float, *, momentum: float = 0.0, adam: bool = False, decay: float = 0.0) -> None:
        self.variables, self.rate, self.momentum, self.adam, self.decay = variables, rate, momentum, adam, decay
        self.slots: dict[int, list[Values]] = {}
        self.steps: dict[int, int] = {}

    def step(self) -> None:
        for variable in {id(v): v for v in self.variables}.values():
            if variable.gradient is not None:
                update = self._update(variable, variable.gradient)
                variable.value = (variable.value * (1 - self.rate * self.decay) - self.rate * update).astype(np.float32)
            variable.gradient = None

    def _update(self, variable: Variable, gradient: Values) -> Values:
        key = id(variable)
        if self.adam:
            t = self.steps[key] = self.steps.get(key, 0) + 1
            first, second = self.slots.setdefault(key, [np.zeros_like(gradient), np.zeros_like(gradient)])
            self.slots[key] = [0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2]
            return (self.slots[key][0] / (1 - 0.9**t)) / (np.sqrt(self.slots[key][1] / (1 - 0.999**t)) + 1e-8)
        if self.momentum:
            self.slots[key] = [self.momentum * self.slots.setdefault(key, [np.zeros_like(gradient)])[0] + gradient]
            return self.slots[key][0]
        return gradient
