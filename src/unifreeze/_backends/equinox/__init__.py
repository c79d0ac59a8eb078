"""The backend for equinox. A module is a pytree and can't carry a flag, so the ``Freezing`` carries the plan, as for any tree of JAX."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import equinox as eqx

from unifreeze._backends.jax import abstract, adopt, clues, findings, fingerprint, fingerprints, known, trainable, values
from unifreeze._backends.jax.plan import plan_of
from unifreeze._backends.jax.refusals import refuse_rows
from unifreeze._backends.jax.slots import SLOTS
from unifreeze.plugin import Applied, Backend, Clue, Finding, Inputs, Layer, Request, Rows, Shape, Slots, Traced, hookimpl, named

from . import tree
from .plan import EquinoxPlan
from .shapes import output_shapes


class EquinoxBackend(Backend):
    """Speaks for ``equinox.Module``, and for the pair of a module and its ``equinox.nn.State`` that ``make_with_state`` gives."""

    name = "equinox"
    in_place = False
    takes_apply = True

    def layers(self, model: Any) -> Layer:
        """Reads the module in the order of its fields, with the state of each layer as its buffers."""
        module, state = _parted(model)
        return tree.read(module, state)

    def apply(self, model: Any, request: Request) -> Applied:
        """Returns the plan; the module itself is left alone."""
        module, _ = _parted(model)
        return Applied(abstract(model), tools=plan_of(module, request, kind=EquinoxPlan))

    def output_shapes(self, model: Any, tree: Layer, inputs: Inputs) -> Mapping[str, Shape]:  # noqa: ARG002 - a copy is read
        """Calls a copy of the module in inference, on the shapes of one example."""
        return output_shapes(_parted(model)[0], inputs)

    def mode(self, layer: Layer) -> str:
        """What the module's own switch says."""
        switch = getattr(layer.native, "inference", None)
        return ("eval" if switch else "train") if isinstance(switch, bool) else ""

    def slots(self, optimizer: str) -> Slots:
        """Those of optax."""
        return named(optimizer, SLOTS)

    def graph(self, model: Any, shape: Any, apply: Callable[..., Any] | None = None) -> Traced:
        """Follows the weights through the jaxpr of a call, in inference."""
        from .graph import trace

        return trace(model, shape, apply)

    def fingerprint(self, array: Any) -> Hashable:
        """A digest of the array's bytes."""
        return fingerprint(array)

    def fingerprints(self, arrays: Sequence[Any]) -> Sequence[Hashable]:
        """An accelerator reads all of them while the host waits for the first."""
        return fingerprints(arrays)

    def take(self, array: Any, rows: Rows) -> NoReturn:  # noqa: ARG002 - refused whatever they are
        """Refuses rows, with the way to have them."""
        refuse_rows(self.name)

    def values(self, array: Any) -> Any:
        """A copy on the host."""
        return values(array)

    def clues(self, model: Any, tree: Layer, optimizer: Any = None, *, living: bool = True) -> Mapping[str, Clue]:
        """What an optimizer's state keeps for a leaf."""
        del model, living
        return clues(tree, optimizer)

    def optimizer(self, given: Any) -> Any:
        """A transformation of optax, or the one in a training state."""
        return known(given)

    def audit(self, model: Any, tree: Layer, optimizers: tuple[Any, ...]) -> Iterable[Finding]:
        """What an optax chain moves."""
        return findings(_parted(model)[0], tree, optimizers)

    def modes(self, model: Any, tree: Layer) -> Mapping[str, Literal["training", "still"]]:
        """A module whose ``inference`` is on is still; how the others are called is not to be seen."""
        del model
        return {layer.path: "still" for layer in tree.walk() if getattr(layer.native, "inference", None) is True or getattr(layer.native, "p", None) == 0}

    def trainable(self, model: Any, tree: Layer, said: Any) -> Iterable[str]:
        """Reads a mask of what trains, labels or a filter."""
        return trainable(_parted(model)[0], tree, said)

    def adopt(self, freezing: type) -> None:
        """Makes every Freezing a pytree without leaves."""
        adopt(freezing)


def _parted(model: Any) -> tuple[Any, Any]:
    return model if isinstance(model, tuple) else (model, None)


BACKEND = EquinoxBackend()


@hookimpl
def unifreeze_backend(model: object) -> Backend | None:
    """Answers for modules, and for pairs of a module and its state."""
    pair = isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], eqx.Module) and isinstance(model[1], eqx.nn.State)
    return BACKEND if pair or isinstance(model, eqx.Module) else None
