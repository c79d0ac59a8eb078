"""The backend for flax.nnx. Modules carry their state, so freezing changes them: classes are swapped, and the user's own training code obeys."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import jax
from flax import nnx

from unifreeze._backends.jax import fingerprint
from unifreeze._backends.jax.slots import SLOTS
from unifreeze.plugin import Applied, Backend, ExitStack, Inputs, Layer, Request, Shape, Slots, hookimpl, named

from . import swap, tree
from .optimizer import Tools
from .parts import raw
from .shapes import output_shapes


class NnxBackend(Backend):
    """Speaks for ``nnx.Module``."""

    name = "nnx"

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

    def output_shapes(self, model: nnx.Module, tree: Layer, inputs: Inputs) -> Mapping[str, Shape]:  # noqa: ARG002 - a copy is read
        """Calls a copy of the module in inference, on shapes."""
        return output_shapes(model, inputs)

    def mode(self, layer: Layer) -> str:
        """What the module's own switches say."""
        switches = [vars(layer.native).get(name) for name in ("deterministic", "use_running_average")] if isinstance(layer.native, nnx.Module) else []
        return next(("eval" if switch else "train" for switch in switches if isinstance(switch, bool)), "")

    def slots(self, optimizer: str) -> Slots:
        """Those of optax."""
        return named(optimizer, SLOTS)

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
