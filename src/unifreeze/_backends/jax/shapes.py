"""Output shapes by ``jax.eval_shape``: what the backends of JAX have in common, and how linen's modules are watched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unifreeze.plugin import BackendError, Inputs, Shape, Spec

from .tree import collections_of, is_array

Note = Callable[[str, Any], None]


def evaluated(label: str, inputs: Inputs, run: Callable[[Note, Any, tuple[Any, ...], dict[str, Any]], Any], state: Any) -> dict[str, Shape]:
    """Runs a function on shapes and returns what it noted.

    Args:
        label: What to call the model in an error.
        inputs: What the function is given. Arrays are shapes inside; anything else stays what it is, such as ``train=False``.
        run: Takes ``note``, the arrays, and the arguments; it calls ``note`` with the path of a layer and what that layer returned.
        state: The arrays of the model, in any tree.

    Raises:
        BackendError: If it can't be run so.
    """
    found: dict[str, Shape] = {}

    def note(path: str, output: Any) -> None:
        first = _first(output)
        if first is not None:
            found.setdefault(path, tuple(first.shape))

    leaves, treedef = jax.tree.flatten(inputs.mapped(_shape), is_leaf=lambda leaf: leaf is None)
    arrays = [leaf for leaf in leaves if is_array(leaf)]

    def call(state: Any, arrays: list[Any]) -> None:
        rest = iter(arrays)
        args, kwargs = treedef.unflatten([next(rest) if is_array(leaf) else leaf for leaf in leaves])
        run(note, state, args, kwargs)

    try:
        jax.eval_shape(call, state, arrays)
    except BackendError:
        raise
    except Exception as error:
        what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackendError(
            f"{label} can't be called on these inputs without computing anything.\n  {type(error).__name__}: {what[:300]}\n"
            "  Give inputs= as its call takes them: an array, a tuple, or a dict of named ones such as {'x': x, 'train': False}; jax.ShapeDtypeStruct will do."
        ) from error
    return found


def _shape(value: Any) -> Any:
    if isinstance(value, Spec):
        return jax.ShapeDtypeStruct(value.shape, jnp.int32 if value.whole else jnp.float32)
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if is_array(value) else value


def _first(output: Any) -> Any:
    """The first array of an output, in the output's own order, which JAX's flattening would not keep for a dict."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, list | tuple):
        return next((one for one in map(_first, output) if one is not None), None)
    return output if is_array(output) else None


def linen_shapes(variables: Any, inputs: Inputs) -> Mapping[str, Shape]:
    """Applies a linen module to abstract variables and notes the shape of what each ``__call__`` returns first.

    Raises:
        BackendError: If ``call`` is no linen module, or can't be applied so.
    """
    linen = sys.modules.get("flax.linen")
    module: Any = inputs.call
    if linen is None or not isinstance(module, linen.Module):
        raise BackendError(
            "A tree of arrays does not say what computes with it, so its layers have no output shapes.\n"
            "  Give the linen module as call=: summary(variables, call=module, inputs=x). Plain trees and haiku's have no layers that can be called."
        )
    tree = variables if collections_of(variables) else {"params": variables}

    def run(note: Note, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def watch(call: Any, inner_args: Any, inner_kwargs: Any, context: Any) -> Any:
            output = call(*inner_args, **inner_kwargs)
            if context.method_name == "__call__":
                note(".".join(context.module.path), output)
            return output

        with linen.intercept_methods(watch):
            module.apply(state, *args, rngs={"params": jax.random.key(0), "dropout": jax.random.key(1)}, mutable=True, **kwargs)

    return evaluated(type(module).__name__, inputs, run, tree)
