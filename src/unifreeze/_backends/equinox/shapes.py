"""Output shapes of equinox modules, from one call in ``jax.eval_shape`` of a copy whose modules are of watching subclasses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

import equinox as eqx

from unifreeze._backends.jax.shapes import Note, evaluated
from unifreeze._backends.jax.tree import is_array
from unifreeze.plugin import Inputs, Shape

from . import tree

_note: ContextVar[Note] = ContextVar("note")
_PATH = "_unifreeze_path"


def output_shapes(module: Any, inputs: Inputs) -> Mapping[str, Shape]:
    """Calls a copy in inference and notes the shape of what each module's ``__call__`` returns first. As modules take single examples, so are the shapes.

    A module that is taken apart and put together before it is called, as by a transformation that is given the module itself, is not noted.

    Raises:
        BackendError: If it can't be called so.
    """
    arrays, rest = eqx.partition(module, is_array)

    def run(note: Note, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        copy = eqx.nn.inference_mode(eqx.combine(state, rest))
        for layer in tree.read(copy, None).walk():
            native: Any = layer.native
            if isinstance(native, eqx.Module) and callable(native):
                object.__setattr__(native, _PATH, layer.path)
                object.__setattr__(native, "__class__", _watching(type(native)))
        token = _note.set(note)
        try:
            copy(*args, **kwargs)
        finally:
            _note.reset(token)

    return evaluated(type(module).__name__, inputs, run, arrays)


@cache
def _watching(kind: Any) -> Any:
    """A subclass like its parent, which tells what a call returned."""
    told = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__, "__call__": _told(kind.__call__)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what equinox has to say of the class, it has said
        return type(kind)(kind.__name__, (kind,), told)


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(self, *args, **kwargs)
        path = getattr(self, _PATH, None)
        if path is not None:
            _note.get()(path, output)
        return output

    return told
