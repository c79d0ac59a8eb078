"""Keeps the compiled functions of a model, so that going back and forth between two states (as GAN training does at each step) compiles each of them once.

A compiled function has the lists of variables, the flags and the pins baked in that it was traced with. It is used again only if every one of those is as
it was, and every object it was traced with still lives.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from keras.src.utils.tracking import DotNotTrackScope

from . import pin
from .living import FUNCTIONS
from .optimizer import starts_of

_KEPT = 4


@dataclass
class _Shelf:
    """Functions by state, with the objects of that state; and the state in which we made those that are on the model now."""

    states: dict[Hashable, tuple[dict[str, Any], list[ref[Any]]]] = field(default_factory=dict)
    now: Hashable = None
    made: dict[str, Any] = field(default_factory=dict)


def _shelf(model: Any) -> _Shelf:
    """It lies on the model: the functions refer to the model, and would keep it alive anywhere else."""
    shelf: _Shelf = vars(model).setdefault("_unifreeze_shelf", _Shelf())
    return shelf


def in_use(model: Any) -> bool:
    """Whether the model has compiled anything."""
    return any(getattr(model, name, None) is not None for name in FUNCTIONS)


def shelve(model: Any) -> None:
    """Puts the functions away that the model has, before its state changes. Those that Keras made are left out: nobody knows what they were traced with."""
    shelf = _shelf(model)
    if shelf.now is None:
        return
    if any(getattr(model, name, None) is not made for name, made in shelf.made.items()):
        shelf.states.clear()  # someone had them made anew, for a reason of his own that holds for all of them
    state, objects = _state(model, model._flatten_layers())
    if state == shelf.now:
        shelf.states[state] = ({name: made for name, made in shelf.made.items() if getattr(model, name, None) is made}, [ref(one) for one in objects])
        while len(shelf.states) > _KEPT:
            del shelf.states[next(iter(shelf.states))]


def renew(model: Any, layers: Sequence[Any]) -> None:
    """Gives the model functions for its new state: at once, since a running fit would call the missing one. New ones are traced when they are called.

    ``layers`` are all those of the model, which it takes Keras a while to gather.
    """
    shelf = _shelf(model)
    shelf.now, shelf.made = None, {}
    if not in_use(model):
        return
    if getattr(model, "_trainable_variable_shardings", None) is not None:
        model._record_training_state_sharding_spec()  # Keras before 3.12 notes the lists once for a whole fit
    shelf.now, _ = _state(model, layers)
    kept, objects = shelf.states.pop(shelf.now, ({}, []))
    alive = all(one() is not None for one in objects)
    with DotNotTrackScope():
        for name in FUNCTIONS:
            if getattr(model, name, None) is None:
                continue
            if alive and name in kept:
                setattr(model, name, kept[name])
            else:
                _make(model, name)
            shelf.made[name] = getattr(model, name)
        if hasattr(model, "_compiled_trainable_state"):
            vars(model)["_compiled_trainable_state"] = {layer: layer.trainable for layer in layers}  # TensorFlow would wrap every entry


def _make(model: Any, name: str) -> None:
    """Lets Keras make a function, of a step that is an object of its own.

    JAX takes all bound methods of one model for the same function, and would use the trace of one that is kept for another.
    """
    step = name.replace("function", "step")
    own = vars(model).get(step)
    current = getattr(model, step)
    vars(model)[step] = functools.partial(current)
    try:
        getattr(model, f"make_{name}")(force=True)
    finally:
        vars(model).pop(step)
        if own is not None:
            vars(model)[step] = own


def _state(model: Any, layers: Sequence[Any]) -> tuple[Hashable, list[Any]]:
    """Everything that a trace depends on, and the objects whose identity stands in it."""
    optimizer: Any = getattr(model, "optimizer", None)
    slots = optimizer.variables if getattr(optimizer, "built", False) else []
    variables: list[Any] = []
    for layer in layers:  # ``model.variables`` goes through all that is inside once for each container
        variables += layer._trainable_variables
        variables += layer._non_trainable_variables
        variables += [generator.state for generator in layer._seed_generators]
    objects = [*variables, *slots, *(one for one in (optimizer, getattr(model, "_loss_tracker", None)) if one is not None)]
    flags = (tuple(map(id, layers)), tuple([layer._trainable for layer in layers]))
    pins = tuple([(id(layer), pin.pinned(layer)) for layer in layers if "call" in vars(layer)])
    late = tuple(sorted((str(key), start) for key, start in starts_of(optimizer).items()))
    return (flags, pins, tuple([variable._trainable for variable in variables]), tuple(map(id, objects)), late), objects
