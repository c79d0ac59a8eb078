"""What the user says trains, for models that can't carry it: a Freezing, a selector, or what the framework's users write (a mask, labels, a filter)."""

from __future__ import annotations

from ._backend import Backend
from ._freezing import Freezing, label_of
from ._resolve import resolve
from ._tree import Layer, State, with_state
from .errors import ArgumentError
from .select import Selector


def as_said(backend: Backend, model: object, tree: Layer, trainable: object) -> Layer:
    """Returns the tree as it reads when exactly this is trainable; as it is, when nothing is said.

    Raises:
        ArgumentError: If the Freezing is that of another model.
        BackendError: If the backend can't read it.
    """
    if trainable is None:
        return tree
    if isinstance(trainable, Freezing):
        _need_same(trainable, tree, label_of(tree, backend))
        return with_state(tree, trainable._state)
    every = {parameter.path for layer in tree.walk() for parameter in layer.parameters}
    return with_state(tree, State(frozenset(every - _trainable(backend, model, tree, trainable))))


def _trainable(backend: Backend, model: object, tree: Layer, said: object) -> set[str]:
    if isinstance(said, str | Selector):
        picked = resolve(said, tree, label_of(tree, backend)).layers
        return {parameter.path for layer in tree.walk() if layer.path in picked for parameter in layer.parameters}
    return set(backend.trainable(model, tree, said))


def _need_same(freezing: Freezing, tree: Layer, label: str) -> None:
    here = {parameter.path for layer in tree.walk() for parameter in layer.parameters}
    odd = sorted((freezing._state.frozen | freezing._trained) ^ here)
    if odd:
        raise ArgumentError(
            f"The Freezing given as trainable= is not one of {label}.\n  {odd[0]} is in one of them alone\n  Freeze this model: freeze(model, …)."
        )
