"""Names layers and variables as their owner does: ``self.encoder = keras.layers.Dense(4)`` is ``encoder``, and ``self.w = self.add_weight(shape)`` is ``w``.

Keras's own ``dense_3`` and ``variable_7`` depend on what was made before. A name that the user gave stays. So do the names of layers in Sequential and
Functional models, which have no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.utils.naming import to_snake_case

# What Keras itself keeps in a layer or model, or tracks in an order of its own.
_KERAS = {"layers", "_functional", "_layers", "_metrics", "_losses", "_tracker", "_modules", "_loss_tracker", "_compile_metrics"}
_COUNTED = re.compile(r"variable(_\d+)?")


def named(owner: Any, inside: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The layers right inside a layer with their names: ``blocks_0`` for the first of a list, ``heads_left`` in a dictionary."""
    inside = list(inside)
    if isinstance(owner, Functional | keras.Sequential) or not any(map(_is_automatic, inside)):
        return ((layer.name, layer) for layer in inside)
    given = dict(_attributes(owner, keras.layers.Layer))
    return ((given.get(id(layer), layer.name) if _is_automatic(layer) else layer.name, layer) for layer in inside)


def renamed(owner: Any, own: list[tuple[str, tuple[Any, bool]]]) -> list[tuple[str, tuple[Any, bool]]]:
    """A layer's own variables by the names of its attributes, where they have no name of their own; those that no attribute holds, by their order."""
    given = dict(_attributes(owner, keras.Variable))
    return [(given.get(id(fact[0]), "variable") if is_counted(name) else name, fact) for name, fact in own]


def is_counted(name: str) -> bool:
    """Whether Keras gave a variable its name because nobody else did."""
    return name.startswith("variable") and _COUNTED.fullmatch(name) is not None


def _is_automatic(layer: Any) -> bool:
    return re.fullmatch(rf"{to_snake_case(type(layer).__name__)}(_\d+)?", layer.name) is not None


def _attributes(owner: Any, wanted: type) -> Iterator[tuple[int, str]]:
    """The name of each layer or variable that an attribute holds, the first one last: the one that counts. On torch, modules lie in a place of their own."""
    attributes = {**vars(owner), **vars(owner).get("_modules", {})}
    for name, value in reversed([item for item in attributes.items() if item[0] not in _KERAS]):
        plain = name.strip("_")
        if isinstance(value, wanted):
            yield id(value), plain
        elif not name.startswith("_"):
            yield from _collected(value, plain, wanted)


def _collected(value: Any, name: str, wanted: type) -> Iterator[tuple[int, str]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, one in items:
        if isinstance(one, wanted):
            yield id(one), f"{name}_{key}"
        elif isinstance(one, Mapping | list | tuple):
            yield from _collected(one, f"{name}_{key}", wanted)
