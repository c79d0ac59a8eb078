"""A model as a weighted dataflow graph: plain data that a backend traces and that the matching of models works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Where a value comes from: the unit (or, below zero, the model's input), the channel at which it enters, and the merges on the way.
Source = tuple[int, int, tuple[str, ...]]
Sources = frozenset[Source]


@dataclass(frozen=True, slots=True)
class Weight:
    """One array of a unit, and how to bring it to the layout that all frameworks share.

    The shared layouts: convolution ``HWIO``; dense, and a 1×1 convolution, ``(in, out)``; depthwise ``(H, W, channel, multiplier)``; the rest is one axis.

    Attributes:
        path: The array's path in the model's tree.
        split: The shape to give it first; ``()`` leaves it.
        axes: The order of axes after that; ``()`` leaves it.
        shape: The shape to give it last.
        take: Which of the last axis, where the array is one of several that lie fused in it; ``()`` takes all.
    """

    path: str
    split: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    take: tuple[int, ...] = ()

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape of what ``shared`` returns."""
        return (*self.shape[:-1], len(self.take)) if self.take else self.shape

    def part(self, take: tuple[int, ...]) -> Weight:
        """Some of the last axis of this weight."""
        return replace(self, take=tuple(self.take[place] for place in take) if self.take else take)

    def shared(self, array: Any) -> Any:
        """Brings an array from its framework's layout to the shared one."""
        array = self._whole(array)
        return array[..., list(self.take)] if self.take else array

    def _whole(self, array: Any) -> Any:
        array = array.reshape(self.split) if self.split else array
        return (array.transpose(self.axes) if self.axes else array).reshape(self.shape)

    def into(self, before: Any, array: Any) -> Any:
        """The framework's array ``before`` with this weight replaced by an array in the shared layout."""
        if not self.take:
            return self.own(array, before.shape)
        whole = self._whole(before).astype(array.dtype, copy=True)
        whole[..., list(self.take)] = array
        return self.own(whole, before.shape)

    def own(self, array: Any, shape: tuple[int, ...]) -> Any:
        """Brings a whole array from the shared layout to its framework's."""
        split = self.split or shape
        if self.axes:
            back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
            array = array.reshape(tuple(split[axis] for axis in self.axes)).transpose(back)
        return array.reshape(shape)


@dataclass(frozen=True, slots=True)
class Unit:
    """One place where weights are applied; a layer that is applied twice is two units.

    Attributes:
        layer: The path of the layer that owns the weights.
        kind: ``dense``, also for a convolution whose windows do not overlap; ``conv``, ``depthwise_conv``, ``conv_transpose``; ``batch_norm``; ``scale``, by
            channel and with a shift, also that of layer, group and RMS norms; ``bias``, where it belongs to no other unit; ``embedding``, also a table that
            is added or joined to the data; ``prelu``.
        shape: The shape of the main weight in the shared layout. Whether there is a bias or a scale is no part of it.
        sources: Where its input comes from.
        weights: Its arrays by role: ``kernel``, ``bias``, ``scale``, ``mean``, ``variance``, ``embedding``.
        settings: What differs between frameworks without changing which layer is which: ``epsilon``, ``momentum``, ``stride``.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    sources: Sources
    weights: Mapping[str, Weight] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graph:
    """The weighted dataflow of a model in inference, with everything weightless contracted away.

    Attributes:
        units: The units, each after all that it depends on.
        outputs: Where each output comes from.
        inputs: The shapes of the inputs, channels last.
    """

    units: tuple[Unit, ...]
    outputs: tuple[Sources, ...]
    inputs: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Traced:
    """A model that has been traced, and what carrying weights needs of its framework.

    Attributes:
        graph: The weighted dataflow.
        read: Returns the arrays at these paths as numpy arrays.
        write: Puts numpy arrays at these paths, and returns the model that has them: the same, or for pytrees a new one.
        run: Computes the outputs in inference on numpy inputs, channels last in and out.
    """

    graph: Graph
    read: Callable[[list[str]], dict[str, Any]]
    write: Callable[[dict[str, Any]], Any]
    run: Callable[[list[Any]], list[Any]]


def merged(word: str, *values: Sources) -> Sources:
    """What comes out of a commutative merge such as an addition. Values from the same places, as in ``x * sigmoid(x)``, are an activation and no merge."""
    if len(set(values)) == 1:
        return values[0]
    return frozenset((unit, at, tags if tags[-1:] == (word,) else (*tags, word)) for value in values for unit, at, tags in value)


def concatenated(values: list[tuple[Sources, int]], word: str = "") -> Sources:
    """What comes out of a concatenation: each value with its width. Along channels, which need no ``word``, the offset is remembered."""
    found: set[Source] = set()
    offset = 0
    for value, width in values:
        found |= {(unit, at + offset, (*tags, f"{word}{offset}") if word else tags) for unit, at, tags in value}
        offset += width
    return frozenset(found)
