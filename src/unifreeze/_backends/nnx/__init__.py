"""The backend for flax.nnx. Modules carry their state, so freezing changes them: classes are swapped, and the user's own training code obeys."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax
from flax import nnx

from unifreeze._backends.jax import fingerprint
from unifreeze.plugin import Applied, Backend, ExitStack, Layer, Request, Traced, hookimpl

from . import swap, tree
from .optimizer import Tools
from .parts import raw


class NnxBackend(Backend):
    """Speaks for ``nnx.Module``."""

    name = "nnx"
    takes_apply = True

    def layers(self, model: nnx.Module) -> Layer:
        """Reads the module and everything inside it."""
        return tree.read(model)

    def apply(self, model: nnx.Module, request: Request) -> Applied:
        """Swaps the classes of the variables that are frozen and of the modules that are held."""
        before: swap.Before = []
        with ExitStack() as undo:
            undo.callback(swap.restore, before)
            for layer in request.tree.walk():
                for parameter in layer.parameters:
                    if parameter.path in request.parameters:
                        swap.set_frozen(parameter.array, parameter.path, parameter.path in request.state.frozen, before)
            for layer in request.tree.walk():
                if isinstance(layer.native, nnx.Module) and (layer.path in request.layers or isinstance(layer.native, swap.REWRITERS)):
                    how = request.state.inference.get(layer.path) if layer.path in request.layers else layer.inference
                    swap.hold(layer.native, how, before)
            return Applied(model, undo.pop_all().close, Tools(model))

    def graph(self, model: Any, shape: Any, apply: Callable[..., Any] | None = None) -> Traced:
        """Follows the weights through the jaxpr of a call, of a copy in evaluation mode."""
        from .graph import trace

        return trace(model, shape, apply)

    def fingerprint(self, array: Any) -> Hashable:
        """A digest of the value's bytes; ``None`` where there is none."""
        value = raw(array)
        prints = [fingerprint(leaf) for leaf in ([value] if isinstance(value, jax.Array) else jax.tree.leaves(value))]
        return None if None in prints else tuple(prints)


BACKEND = NnxBackend()


@hookimpl
def unifreeze_backend(model: object) -> Backend | None:
    """Answers for modules."""
    return BACKEND if isinstance(model, nnx.Module) else None
