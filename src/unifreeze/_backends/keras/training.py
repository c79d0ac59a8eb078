"""Makes running training obey: finds the models that train the layers, hands over JAX's values, renews optimizers and compiled functions."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras.src.ops.function import make_node_key

from unifreeze.plugin import BackendError

from . import drift, functions
from .optimizer import Bank, retarget


def trainers(model: Any, natives: Iterable[Any]) -> list[Any]:
    """The models whose training or compiled functions the layers take part in: those inside the tree, and live ones around it.

    A layer does not know the models that use it. Where the given model has become a part of another one, or one of its layers was called in another one,
    the living objects are searched for it, which takes a tenth of a second; a model that is trained itself and was never called as a layer costs nothing.
    """
    inside = {id(native): native for native in natives}
    found = [native for native in inside.values() if isinstance(native, keras.Model)]
    others = (
        [other for other in _living_models() if id(other) not in inside and _in_use(other)] if _may_be_a_part(model) or _shared(found, inside.values()) else []
    )
    return found + [other for other in others if not inside.keys().isdisjoint(map(id, other._flatten_layers()))]


def _may_be_a_part(model: Any) -> bool:
    if not isinstance(model, keras.Model) or model._inbound_nodes:
        return True
    extended = any(tensor._keras_history.operation._outbound_nodes for tensor in getattr(model, "_outputs", ()))
    return extended or (model._called and getattr(model, "train_function", None) is None)


def _shared(models: Sequence[Any], natives: Iterable[Any]) -> bool:
    """Whether any layer was called in a graph that is none of these models'."""
    graphs = [graph for graph in (getattr(model, "_functional", model) for model in models) if hasattr(graph, "_nodes")]
    known = {key for graph in graphs for key in graph._nodes}
    return bool(graphs) and any(make_node_key(native, place) not in known for native in natives for place in range(len(native._inbound_nodes)))


def _living_models() -> list[Any]:
    kinds, pending = set(), [keras.Model]
    while pending:
        kind = pending.pop()
        kinds.add(kind)
        pending += [below for below in type.__subclasses__(kind) if below not in kinds]
    return [one for one in gc.get_objects() if type(one) in kinds]


def _in_use(model: Any) -> bool:
    return functions.in_use(model) or getattr(getattr(model, "optimizer", None), "built", False)


def hand_over(models: Sequence[Any]) -> None:
    """On JAX, a running fit holds the values of the variables; this brings them back, as for a callback that saves weights."""
    for model in models:
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()


def pause(models: Sequence[Any]) -> None:
    """What must precede any change of flags."""
    hand_over(models)
    for model in models:
        functions.shelve(model)


def need_values(variables: Iterable[Any]) -> None:
    """Refuses variables whose values a running fit of an unknown model holds: whatever is changed now would be lost or mixed up."""
    away = [variable.path for variable in variables if variable._value is None and variable._initializer is None]
    if away:
        raise BackendError(
            f"The values of {len(away)} variables, such as {away[0]}, are held by a running fit of another model.\n"
            "  Nothing was changed.\n"
            "  Give the model that is being fitted (self.model in a callback), and name the layers in it."
        )


def settle(models: Sequence[Any], bank: Bank, *, changed: bool) -> None:
    """Brings optimizers and compiled functions in line with the flags."""
    for model in models:
        layers = model._flatten_layers()
        drift.note(model, layers)
        optimizer = getattr(model, "optimizer", None)
        other = isinstance(optimizer, keras.optimizers.Optimizer) and retarget(optimizer, model.trainable_variables, bank)
        if changed or other:
            functions.renew(model, layers)


def obey(model: Any, bank: Bank) -> None:
    """Brings one model in line with flags that were set by hand, or with a new ``compile``. The bank gives moments back when they are set back."""
    pause([model])
    settle([model], bank, changed=True)
