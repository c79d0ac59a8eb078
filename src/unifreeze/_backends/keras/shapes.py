"""Output shapes of layers, from a call on shapes, as Keras makes to build a model: no memory, no computation, and no node is added to any graph."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

from unifreeze.plugin import BackendError, Inputs, Layer, Shape, Spec


def output_shapes(model: Any, tree: Layer, inputs: Inputs) -> Mapping[str, Shape]:
    """Calls the model in inference and notes the shape of what each layer returns first.

    Raises:
        BackendError: If it can't be called so.
    """
    found: dict[str, Shape] = {}
    paths: dict[int, list[str]] = {}
    layers: dict[int, Any] = {}
    for layer in tree.walk():
        if isinstance(layer.native, keras.layers.Layer):
            paths.setdefault(id(layer.native), []).append(layer.path)
            layers[id(layer.native)] = layer.native

    def note(layer: Any, output: Any) -> None:
        first = _first(output)
        for path in paths[id(layer)] if first is not None else ():
            found.setdefault(path, tuple(first.shape))

    args, kwargs = _packed(model, *inputs.mapped(_symbolic))
    try:
        with _noting(list(layers.values()), note):
            keras.src.backend.compute_output_spec(_inference(model), *args, **kwargs)
    except Exception as error:
        what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackendError(
            f"{type(model).__name__} {model.name!r} can't be called on these inputs without computing anything.\n  {type(error).__name__}: {what[:300]}\n"
            "  Give inputs= as its call takes them: an array, a tuple, or a dict of named ones; keras.KerasTensor(shape, dtype) will do."
        ) from error
    return found


def _inference(model: Any) -> Callable[..., Any]:
    return functools.partial(model, training=False) if model._call_has_training_arg else model


def _symbolic(value: Any) -> Any:
    if isinstance(value, Spec):
        return keras.KerasTensor(value.shape, "int32" if value.whole else keras.config.floatx())
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, keras.KerasTensor):
        return keras.KerasTensor(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))
    return value


def _packed(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call takes its first argument in one piece: several inputs of a graph stand in a list, named ones in a dict."""
    try:
        inspect.signature(model.call).bind(*args, **kwargs)
        several = len(args) > 1 and len(getattr(model, "inputs", None) or ()) == len(args)
    except TypeError:
        return ((kwargs,), {}) if kwargs and not args else ((list(args),), kwargs)
    return ((list(args),), kwargs) if several else (args, kwargs)


def _first(output: Any) -> Any:
    """The first tensor of an output, in its own order."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((one for one in map(_first, output) if one is not None), None)
    return output if hasattr(output, "shape") else None


@contextmanager
def _noting(layers: list[Any], note: Callable[[Any, Any], None]) -> Iterator[None]:
    """Puts a watch on the call of every layer, past Keras's attribute hooks; afterwards each layer holds what it held, its losses among it."""
    before = [(layer, dict(layer.__dict__), list(layer._losses), set(layer._loss_ids)) for layer in layers]
    watched = [(layer, _watched(layer, layer.call, note)) for layer in layers]
    try:
        for layer, call in watched:
            layer.__dict__["call"] = call
        yield
    finally:
        for layer, own, losses, ids in before:
            layer.__dict__.clear()
            layer.__dict__.update(own)
            layer._losses[:] = losses
            layer._loss_ids.clear()
            layer._loss_ids.update(ids)


def _watched(layer: Any, call: Callable[..., Any], note: Callable[[Any, Any], None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        note(layer, output)
        return output

    return watched
