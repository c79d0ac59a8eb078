"""The backend for flax.nnx. Modules carry their state, so freezing changes them: classes are swapped, and the user's own training code obeys."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NoReturn

import jax
import numpy as np
from flax import nnx

from unifreeze._backends.jax import clues, fingerprints, known, values
from unifreeze._backends.jax.refusals import refuse_rows
from unifreeze._backends.jax.slots import SLOTS
from unifreeze.plugin import Applied, Backend, Clue, ExitStack, Finding, Inputs, Layer, Request, Rows, Shape, Slots, Traced, hookimpl, named

from . import swap, tree
from .audit import findings, modes
from .optimizer import Tools
from .parts import raw
from .said import filtered
from .shapes import output_shapes


class NnxBackend(Backend):
    """Speaks for ``nnx.Module``."""

    name = "nnx"
    has_flags = False  # by hand, filters say what trains
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

    def graph(self, model: Any, shape: Any, apply: Callable[..., Any] | None = None) -> Traced:
        """Follows the weights through the jaxpr of a call, of a copy in evaluation mode."""
        from .graph import trace

        return trace(model, shape, apply)

    def fingerprint(self, array: Any) -> Hashable:
        """A digest of the value's bytes; ``None`` where there is none."""
        return self.fingerprints([array])[0]

    def fingerprints(self, arrays: Sequence[Any]) -> Sequence[Hashable]:
        """An accelerator reads all of them while the host waits for the first."""
        leaves = [[value] if isinstance(value, jax.Array) else jax.tree.leaves(value) for value in map(raw, arrays)]
        read = iter(fingerprints([leaf for some in leaves for leaf in some]))
        prints = [tuple(islice(read, len(some))) for some in leaves]
        return [None if None in some else some for some in prints]

    def take(self, array: Any, rows: Rows) -> NoReturn:  # noqa: ARG002 - refused whatever they are
        """Refuses rows, with the way to have them."""
        refuse_rows(self.name)

    def values(self, array: Any) -> Any:
        """A copy on the host; ``None`` for a variable whose value is no array."""
        value = raw(array)
        return values(value) if isinstance(value, jax.Array | np.ndarray) else None

    def clues(self, model: nnx.Module, tree: Layer, optimizer: Any = None, *, living: bool = True) -> Mapping[str, Clue]:
        """What an optimizer's state keeps for a variable."""
        del model, living
        return clues(tree, optimizer)

    def modes(self, model: nnx.Module, tree: Layer) -> Mapping[str, Literal["training", "still"]]:
        """Modes that are attributes."""
        del model
        return modes(tree)

    def optimizer(self, given: Any) -> Any:
        """An ``nnx.Optimizer``, or a transformation of optax."""
        return given if isinstance(given, nnx.Optimizer) else known(given)

    def audit(self, model: nnx.Module, tree: Layer, optimizers: tuple[Any, ...]) -> Iterable[Finding]:
        """What an optimizer moves."""
        return findings(model, tree, optimizers)

    def trainable(self, model: nnx.Module, tree: Layer, said: Any) -> Iterable[str]:
        """Reads a filter, such as the ``wrt`` of an optimizer."""
        return filtered(model, tree, said)


BACKEND = NnxBackend()


@hookimpl
def unifreeze_backend(model: object) -> Backend | None:
    """Answers for modules."""
    return BACKEND if isinstance(model, nnx.Module) else None
