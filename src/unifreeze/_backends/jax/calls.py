"""How a model of JAX may be called on inputs of which only shapes are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from unifreeze.plugin import UnifreezeError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Inputs: for each its name (or none), its shape with channels last, and whether it is ids."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    ids: tuple[bool, ...]

    def bound(self, inputs: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments, positional and by name."""
        pairs = list(zip(self.names, inputs, strict=True))
        return [one for name, one in pairs if not name], {name: one for name, one in pairs if name}

    def abstract(self) -> list[Any]:
        """One example of each input."""
        pairs = zip(self.shapes, self.ids, strict=True)
        return [jax.ShapeDtypeStruct((1, *shape[1:]), jnp.int32 if ids else jnp.float32) for shape, ids in pairs]

    def given(self, inputs: list[Any]) -> list[Any]:
        """Inputs as JAX arrays."""
        return [jnp.asarray(one, jnp.int32) if ids else jnp.asarray(one) for one, ids in zip(inputs, self.ids, strict=True)]


def calls(shape: Any) -> Iterator[Call]:
    """Every way in which inputs of these shapes may be meant: as numbers, or as ids."""
    named = dict(shape) if isinstance(shape, Mapping) else {}
    shapes = tuple(map(tuple, named.values())) if named else tuple(map(tuple, shape)) if isinstance(shape, list) else (tuple(shape),)
    names = tuple(named) or ("",) * len(shapes)
    for ids in sorted(product((False, True), repeat=len(shapes)), key=lambda kinds: (len(set(kinds)), kinds)):
        if not any(one and len(size) > 3 for one, size in zip(ids, shapes, strict=True)):
            yield Call(names, shapes, ids)


def first_that_runs(shape: Any, run: Callable[[Call], Any], failed: Callable[[Exception], Exception]) -> Any:
    """What the first way gives in which the model can be run."""
    first: Exception | None = None
    for call in calls(shape):
        try:
            return call, run(call)
        except UnifreezeError:
            raise
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything at a shape that it is not made for
            first = first or error
    assert first is not None
    raise failed(first) from first
