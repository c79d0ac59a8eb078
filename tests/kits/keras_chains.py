"""Chains of dense layers, one or more models around the same ones, and what each of them has to do: in numpy, and in plain dictionaries of flags.

Nothing here asks unifreeze or Keras which variables train, or what a model computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Names = tuple[str, ...]
Key = tuple[str, str]
Values = Mapping[Key, NDArray[Any]]
PARTS = ("kernel", "bias")


def keys(names: Collection[str], part: str | None = None) -> set[Key]:
    return {(name, one) for name in names for one in PARTS if part in (None, one)}


def outputs(values: Values, chain: Names, x: NDArray[Any]) -> list[NDArray[Any]]:
    """What goes in, and what comes out of each layer: ``tanh(x @ kernel + bias)``."""
    found = [x]
    for name in chain:
        found.append(np.tanh(found[-1] @ values[name, "kernel"] + values[name, "bias"]))
    return found


def loss(values: Values, chain: Names, x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.mean((outputs(values, chain, x)[-1] - y) ** 2))


def descended(values: Values, chain: Names, batch: tuple[NDArray[Any], NDArray[Any]], rate: float, trains: set[Key]) -> Values:
    """The values after a step of gradient descent on the mean squared error."""
    x, y = batch
    out = outputs(values, chain, x)
    slope = 2 * (out[-1] - y) / y.size
    after = dict(values)
    for place in reversed(range(len(chain))):
        slope = slope * (1 - out[place + 1] ** 2)
        for part, gradient in (("kernel", out[place].T @ slope), ("bias", slope.sum(0))):
            key = chain[place], part
            after[key] = after[key] - rate * gradient * (key in trains)
        slope = slope @ values[chain[place], "kernel"].T
    return after


class Oracle:
    """Which kernel or bias trains in which model: its own flag, which all models share, under the flag of the model that is trained.

    Attributes:
        chains: What each model runs.
        parts: The models in each model, itself first and what lies inside after what it lies in, with their layers.
        undos: What undo of each call has to bring back, in order: flags of variables, and of models.
        standing: How many calls have not been undone: as long as there are any, flags that are set by hand are obeyed.
    """

    def __init__(self) -> None:
        self.flags: dict[Key, bool] = {}
        self.own: dict[str, bool] = {}
        self.chains: dict[str, Names] = {}
        self.parts: dict[str, dict[str, Names]] = {}
        self.undos: list[tuple[dict[Key, bool], dict[str, bool]]] = []
        self.standing = 0

    def enter(self, model: str, chain: Names, inside: Mapping[str, Names]) -> None:
        self.chains[model], self.parts[model] = chain, {model: chain, **inside}
        self.flags = dict.fromkeys(keys(chain), True) | self.flags
        self.own = dict.fromkeys(self.parts[model], True) | self.own

    def trains(self, model: str) -> set[Key]:
        return {key for key in keys(self.chains[model]) if self.flags[key] and self.own[model]}

    def call(self, model: str, picked: Names | str, part: str | None, *, on: bool) -> None:
        """Layers by name, or a model with all that is in it. A model that is frozen as a whole keeps the rest frozen when some of it is unfrozen."""
        flags, own = dict(self.flags), dict(self.own)
        parts = self.parts[model]
        names = parts[picked] if isinstance(picked, str) else picked
        if on and not self.own[model]:
            self.flags |= dict.fromkeys(keys(self.chains[model]), False)
        self.flags |= dict.fromkeys(keys(names, part), on)
        if on:
            self.own |= {one: True for one, below in parts.items() if not set(below).isdisjoint(names)}
        elif part is None and isinstance(picked, str):
            self.own |= dict.fromkeys(list(parts)[list(parts).index(picked) :], False)
        self.undos.append(
            ({key: old for key, old in flags.items() if old != self.flags[key]}, {one: old for one, old in own.items() if old != self.own[one]}),
        )
        self.standing += 1

    def undo(self) -> None:
        flags, own = self.undos.pop()
        self.flags |= flags
        self.own |= own
        self.standing -= 1

    def by_hand(self, model: str, picked: str, *, on: bool) -> None:
        """A layer, or the model with all that is in it. What undo means after that is told by a test of its own."""
        self.undos = []
        whole = picked == model
        self.flags |= dict.fromkeys(keys(self.chains[model] if whole else [picked]), on)
        if whole:
            self.own |= dict.fromkeys(self.parts[model], on)


def elements(found: Collection[Key], units: int) -> int:
    """How many numbers are in them."""
    count = Counter(part for _, part in found)
    return units * units * count["kernel"] + units * count["bias"]
