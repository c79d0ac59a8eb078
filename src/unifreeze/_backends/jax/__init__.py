"""The backend for JAX pytrees: nested dicts and lists, linen variables, haiku parameters, and any registered container of arrays.

A pytree can't carry a flag, so ``freeze`` leaves it as it is and returns a ``Freezing`` that carries the state: a plan, with the verbs that a training
step needs (``optimizer``, ``value_and_grad``, ``partition``, …). See ``plan.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jax

from unifreeze.plugin import Applied, Backend, Clue, Finding, Inputs, Layer, Request, Rows, Slots, Traced, hookimpl, named, with_state
from unifreeze.plugin import Shape as OutputShape

from .audit import findings, known
from .clues import clues, values
from .fingerprint import fingerprint, fingerprints
from .layers import layer_of
from .nodes import Shape, read
from .plan import Plan, plan_of
from .refusals import makes_parameters, refuse_rows, refuse_training_state, refuse_what_makes_parameters
from .said import trainable
from .shapes import linen_shapes
from .slots import SLOTS
from .tree import Copies, collections_of, entries, is_array

__all__ = ["BACKEND", "JaxBackend", "Plan", "abstract", "clues", "findings", "fingerprint", "fingerprints", "known", "plan_of", "trainable", "values"]


class JaxBackend(Backend):
    """Speaks for pytrees of arrays."""

    name = "jax"
    in_place = False
    takes_apply = True

    def layers(self, model: Any) -> Layer:
        """Reads the containers that hold arrays as layers; linen's collections are laid over each other.

        Raises:
            UnbuiltModelError: For a linen module or a haiku transform, which only make parameters.
            ArgumentError: For a training state, and for a tree in which nothing can train.
        """
        refuse_what_makes_parameters(model)
        refuse_training_state(model)
        return layer_of(read(model), bare=not collections_of(model))

    def apply(self, model: Any, request: Request) -> Applied:
        """Returns the plan; the tree itself is left alone."""
        copies = abstracts()
        shapes = copies.of(model)
        return Applied(shapes, tools=plan_of(model, request), tree=with_state(request.tree, request.state, copies.made))

    def fingerprint(self, array: Any) -> Hashable:
        """A digest of the bytes that this process holds."""
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
        return findings(model, tree, optimizers)

    def trainable(self, model: Any, tree: Layer, said: Any) -> Iterable[str]:
        """Reads a mask of what trains, labels or a filter."""
        return trainable(model, tree, said)

    def output_shapes(self, model: Any, tree: Layer, inputs: Inputs) -> Mapping[str, OutputShape]:  # noqa: ARG002 - linen names its modules itself
        """Applies the linen module that is given as ``call``, on shapes."""
        return linen_shapes(model, inputs)

    def slots(self, optimizer: str) -> Slots:
        """Those of optax."""
        return named(optimizer, SLOTS)

    def graph(self, model: Any, shape: Any, apply: Callable[..., Any] | None = None) -> Traced:
        """Follows the weights through the jaxpr of ``apply``.

        Raises:
            ArgumentError: If ``apply`` is not given.
        """
        from .graph import trace

        return trace(model, self.layers, shape, apply)

    def adopt(self, freezing: type) -> None:
        """Makes every Freezing a pytree without leaves, so that it can be handed to jitted functions and ride in a train state."""
        adopt(freezing)


_adopted: set[type] = set()


def adopt(freezing: type) -> None:
    """Registers the class once."""
    if freezing not in _adopted:
        jax.tree_util.register_static(freezing)
        _adopted.add(freezing)


def abstract(tree: Any) -> Any:
    """Returns a copy of a tree with shapes and dtypes in place of arrays. Keys keep their order, and what was one array stays one."""
    return abstracts().of(tree)


def abstracts() -> Copies:
    """Copies of trees with shapes in place of arrays."""

    def shape(leaf: Any) -> Any:
        return leaf if type(leaf) is jax.ShapeDtypeStruct or not is_array(leaf) else Shape(leaf.shape, leaf.dtype)

    return Copies(shape, kept={jax.ShapeDtypeStruct})


def _foreign(model: object) -> bool:
    """Whether a sibling backend speaks for this pytree: its layers are objects, and carry more than arrays."""
    classes = [(sys.modules.get(name), kind) for name, kind in (("equinox", "Module"), ("flax.nnx", "Module"), ("flax.linen", "Module"))]
    return any(module is not None and isinstance(model, getattr(module, kind)) for module, kind in classes)


def is_tree_of_arrays(model: object) -> bool:
    """Whether this is a container, registered with JAX, that holds at least one array."""
    if is_array(model) or _foreign(model):
        return False
    pending = [model]
    while pending:  # until the first array, which in most trees is at the very front
        node = pending.pop()
        if is_array(node):
            return True
        pending.extend(reversed(node.values() if type(node) is dict else [child for _, child in entries(node) or ()]))
    return False


BACKEND = JaxBackend()


@hookimpl(trylast=True)
def unifreeze_backend(model: object) -> Backend | None:
    """Answers for pytrees of arrays, after every backend whose models are pytrees, too; and for what makes them, to say so."""
    return BACKEND if is_tree_of_arrays(model) or makes_parameters(model) else None
