"""The scene in Keras: InceptionV3, the GoogLeNet of ``keras.applications``, on whichever backend is at hand."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from unifreeze import Freezing, freeze
from unifreeze.select import first

from .engine import choose_backend

_CODE = """
model = keras.applications.InceptionV3(weights=None, input_shape=(75, 75, 3), classes=10)

freeze(model, layers=first(2))

model.compile("adam", "sparse_categorical_crossentropy")
model.fit(images, labels)
"""


def build() -> KerasScene:
    """Builds the scene; chooses a backend first where the configured one is not installed."""
    choose_backend()
    import keras

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)  # a few steps do not earn back what optimising costs
    with patch.object(keras.initializers.GlorotUniform, "__call__", _draw):
        model = keras.applications.InceptionV3(weights=None, input_shape=(75, 75, 3), classes=10)
    return KerasScene(model, keras.backend.backend())


class KerasScene:
    """Two made images, one step of Adam at a time."""

    code = _CODE

    def __init__(self, model: Any, backend: str) -> None:
        self.model = model
        self.title = f"InceptionV3 of keras.applications, on the {backend} backend"
        draw = np.random.default_rng(0)
        self._batch = draw.uniform(-1, 1, (2, 75, 75, 3)).astype("float32"), np.array([3, 7])

    def freeze(self) -> Freezing:
        """Freezes the first two weighted layers, and compiles the model."""
        freezing = freeze(self.model, layers=first(2))
        self.model.compile("adam", "sparse_categorical_crossentropy")
        return freezing

    def step(self) -> float:
        """Takes one training step, and returns the loss."""
        return float(self.model.train_on_batch(*self._batch))

    def values(self) -> dict[str, NDArray[Any]]:
        """Copies every weight and statistic."""
        return {f"{layer.name}.{variable.name}": np.array(variable.numpy()) for layer in self.model.layers for variable in layer.weights}


def _draw(initializer: Any, shape: tuple[int, ...], dtype: str | None = None, **_: Any) -> NDArray[Any]:
    """Draws what ``glorot_uniform`` does, with numpy: JAX would compile a program for each of 57 shapes."""
    receptive = int(np.prod(shape[:-2]))
    limit = np.sqrt(6 / (receptive * (shape[-2] + shape[-1])))
    return np.random.default_rng(initializer.seed if isinstance(initializer.seed, int) else None).uniform(-limit, limit, shape).astype(dtype or "float32")
