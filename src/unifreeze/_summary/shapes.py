"""Output shapes of layers, from a call that computes nothing and leaves everything as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from unifreeze._backend import Backend
from unifreeze._inputs import Inputs, Shape, given, has_free_axes, shaped
from unifreeze._tree import Layer
from unifreeze.errors import BackendError

from .wanted import Wanted

# Two sizes for an axis that was left open: where the shapes of an output differ, its axis is open, too.
_FREE = (2, 3)


def output_shapes(backend: Backend, model: Any, tree: Layer, wanted: Wanted) -> Mapping[str, Shape]:
    """Returns the shape of each layer's first output by path, for layers that the call reaches.

    Raises:
        BackendError: If the model can't be called so, or its backend does not know how; the message says why.
        ArgumentError: If the shape is none.
    """
    with _still():
        if wanted.inputs is not None:
            return backend.output_shapes(model, tree, given(wanted.inputs, wanted.call))
        run = partial(_of_shape, partial(backend.output_shapes, model, tree), wanted)
        if not has_free_axes(wanted.input_shape):
            return run(_FREE[0])
        one, other = map(run, _FREE)
        return {path: _joined(found, other.get(path)) for path, found in one.items()}


def _of_shape(run: Callable[[Inputs], Mapping[str, Shape]], wanted: Wanted, free: int) -> Mapping[str, Shape]:
    """Takes the input as floating point, and as whole numbers where the model does not take that."""
    floating, whole = (shaped(wanted.input_shape, wanted.call, free=free, whole=whole) for whole in (False, True))
    try:
        return run(floating)
    except BackendError as error:
        try:
            return run(whole)
        except BackendError:
            raise error from None


def _joined(one: Shape, other: Shape | None) -> Shape:
    if other is None or len(one) != len(other):
        return one
    return tuple(axis if axis == again else None for axis, again in zip(one, other, strict=True))


@contextmanager
def _still() -> Iterator[None]:
    """Restores the random state of Python and NumPy, which a model's own code may use when it is called."""
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        random.setstate(before[0])
        if numpy:
            numpy.random.set_state(before[1])
