"""Keras's own figures beside the true ones: its summary counts the optimizer among "Total params", and statistics among "Non-trainable params"."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import keras

from unifreeze.plugin import Layer

from . import tree


def compared(root: Layer) -> tuple[str, ...]:
    """What ``model.summary()`` prints, where a reader would take it for another figure; and the optimizer's arrays once there are any."""
    model: Any = root.native
    if not isinstance(model, keras.Model):
        return ()
    sums = dict.fromkeys(("trainable", "frozen", "buffer"), 0)
    for status, size in _weights(root):
        sums[status] += size
    trainable, frozen, statistics = sums.values()
    optimizer: Any = getattr(model, "optimizer", None) if getattr(model, "compiled", False) else None
    arrays = sum([prod(variable._shape) for variable in optimizer.variables]) if getattr(optimizer, "built", False) else 0
    because = [*(["the total counts the optimizer"] if arrays else []), *(["the non-trainable count statistics of layers as well"] if statistics else [])]
    notes = [f"Optimizer: {arrays:,}"] if arrays else []
    if because:
        says = f"Total params: {trainable + frozen + statistics + arrays:,}, Trainable params: {trainable:,}, Non-trainable params: {frozen + statistics:,}"
        notes.append(f"Keras's own summary says {says} ({'; '.join(because)})")
    return (*notes, *_hidden(root), *_leaking(root))


def _weights(root: Layer) -> Iterator[tuple[str, int]]:
    """Status and size of each weight, once; Keras counts no random state."""
    seen = set()
    for array in root.arrays():
        if id(array.array) not in seen and array.role != "rng" and isinstance(array.array, keras.Variable):
            seen.add(id(array.array))
            yield array.status, prod(array.shape)


def _hidden(root: Layer) -> Iterator[str]:
    """Flags inside that read True and do nothing, since the model's own reads False."""
    model: Any = root.native
    hidden = [] if model.trainable else [node.path for node in root.walk() if any(tree.trains(parameter.array) for parameter in node.parameters)]
    if hidden:
        yield (
            f"{model.name}.trainable is False, which hides that {_some(hidden)} may train: nothing trains. "
            "unfreeze(model, layers=…) lets what it picks train, and nothing else"
        )


def _leaking(root: Layer) -> Iterator[str]:
    """Layers whose own flag reads False while something inside trains: the constructor's ``trainable=False`` does not reach inside."""
    leaking = [node.path for node in root.walk() if node.path and not _native(node).trainable and _trains(node)]
    if leaking:
        yield f"trainable=False of {_some(leaking)} does not reach what is inside, which trains; freeze(model, layers=…) does reach it"


def _native(node: Layer) -> Any:
    return node.native


def _trains(node: Layer) -> bool:
    return any(array.status == "trainable" for array in node.arrays())


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
