"""Output shapes of nnx modules, from one call in ``jax.eval_shape`` of a copy whose modules are of watching subclasses; the model itself is not touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

from flax import nnx

from unifreeze._backends.jax.shapes import Note, evaluated
from unifreeze.plugin import Inputs, Layer, Shape

from . import tree
from .parts import class_of

_note: ContextVar[Note] = ContextVar("note")
# A plain attribute: it goes through split and merge with the module, as when a layer runs under nnx.scan or nnx.remat.
_PATH = "unifreeze_path"


def output_shapes(model: nnx.Module, inputs: Inputs) -> Mapping[str, Shape]:
    """Calls a copy in inference and notes the shape of what each module's ``__call__`` returns first.

    Raises:
        BackendError: If it can't be called so.
    """
    graph, state = nnx.split(model)

    def run(note: Note, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        copy: Any = nnx.merge(graph, state)
        copy.eval()
        for layer in tree.read(copy).walk():
            _watch(layer)
        token = _note.set(note)
        try:
            copy(*args, **kwargs)
        finally:
            _note.reset(token)

    return evaluated(type(model).__name__, inputs, run, state)


def _watch(layer: Layer) -> None:
    native: Any = layer.native
    if isinstance(native, nnx.Module) and callable(native):
        setattr(native, _PATH, layer.path)
        object.__setattr__(native, "__class__", _watching(class_of(native)))


@cache
def _watching(kind: Any) -> Any:
    """A subclass like its parent, which tells what a call returned."""
    told = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__, "__call__": _told(kind.__call__)}
    return type(kind)(kind.__name__, (kind,), told, pytree=kind._pytree__is_pytree)


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(self, *args, **kwargs)
        _note.get()(getattr(self, _PATH), output)
        return output

    return told
