"""How the tests of Keras look at a model: at arrays read with numpy, at flags, at real steps. Nothing here goes through unifreeze."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
from numpy.typing import NDArray

from kits.keras import value_of

X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(2).normal(size=(8, 4)).astype("float32")


@contextmanager
def drawing() -> Iterator[None]:
    """Draws weights with numpy: the same on each backend, and JAX would compile a program for each shape of a weight."""

    def draw(initializer: Any, shape: tuple[int, ...], dtype: str | None = None, **_: object) -> NDArray[Any]:
        del initializer
        limit = np.sqrt(6 / (int(np.prod(shape[:-2])) * sum(shape[-2:])))
        return numbers.uniform(-limit, limit, shape).astype(dtype or "float32")

    numbers = np.random.default_rng(5)
    keras.utils.set_random_seed(5)
    with patch.object(keras.initializers.VarianceScaling, "__call__", draw):
        yield


def dense(*names: str, units: int = 4, **kwargs: Any) -> Any:
    """Equal-shaped dense layers in a row."""
    return keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(units, name=name, **kwargs) for name in names)])


def ready(model: Any) -> Any:
    """Makes the arrays of the optimizer: left to the first step, TensorFlow makes them inside it, and traces it twice."""
    model.optimizer.build(model.trainable_variables)
    return model


def look(variables: Any) -> list[NDArray[Any]]:
    return [value_of(variable) for variable in variables]


def which_moved(variables: Any, before: list[NDArray[Any]]) -> list[str]:
    """Paths of the variables of which any byte changed."""
    return [variable.path for variable, old in zip(variables, before, strict=True) if value_of(variable).tobytes() != old.tobytes()]


def moved_layers(model: Any, run: Callable[[], object]) -> set[str]:
    """Names of the layers in which anything changes while something runs; random states aside."""
    variables = list(model.weights)
    before = look(variables)
    run()
    return {path.split("/")[-2] for path in which_moved(variables, before)}


def counts(model: Any) -> tuple[int, int, int]:
    """As ``model.summary()`` counts: trainable tensors; trainable and non-trainable elements, with statistics among the latter."""
    size = lambda weights: sum(int(np.prod(v.shape)) for v in weights)  # noqa: E731
    return len(model.trainable_weights), size(model.trainable_weights), size(model.non_trainable_weights)
