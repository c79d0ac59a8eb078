"""Lets variables that join Nadam late follow its momentum schedule from their own beginning.

Nadam multiplies up, for all variables together, a momentum that depends on nothing but the number of iterations; so what the product would be in a
fresh optimizer can be computed for any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

# The product of 1 - 0.96 ** i / 2 over i; its factors are 1 in single precision long before the end.
_WARMING = np.cumprod([1.0, *(1 - 0.5 * 0.96 ** np.arange(1, 600))]).astype("float32")


def is_one(optimizer: Any) -> bool:
    """Whether the optimizer is Nadam, with nothing else that all variables share."""
    return type(optimizer).build is keras.optimizers.Nadam.build


class _Product:
    """Stands in for the array of the product where an update both reads and writes it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def assign(self, value: Any) -> None:
        """Leaves the array alone, which is the product of the variables that were there from the start."""


@contextmanager
def since(optimizer: Any, start: int) -> Iterator[None]:
    """Shows an update the product that variables have which joined at an iteration; ``optimizer.iterations`` counts from there already."""
    if not (start and is_one(optimizer)):
        yield
        return
    shared = vars(optimizer)["_u_product"]
    together = hasattr(optimizer, "_parallel_update_step")
    product = _after(optimizer, optimizer.iterations + (0 if together else 1))
    vars(optimizer)["_u_product"] = _Product(product) if together else product
    try:
        yield
    finally:
        vars(optimizer)["_u_product"] = shared


def go_on(optimizer: Any) -> None:
    """Carries the shared product on in a step that none of the first variables took part in; Keras's torch Nadam does so only with them."""
    if is_one(optimizer):
        optimizer._u_product.assign(_after(optimizer, optimizer.iterations + 1))


def _after(optimizer: Any, iterations: Any) -> Any:
    """The product after so many iterations, as float32."""
    ops = keras.ops
    warming = ops.take(ops.convert_to_tensor(_WARMING), ops.minimum(ops.cast(iterations, "int32"), len(_WARMING) - 1))
    return warming * ops.power(ops.cast(optimizer.beta_1, "float32"), ops.cast(iterations, "float32"))
