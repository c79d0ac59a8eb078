"""Axes as products of named factors, so that reshapes and transposes are followed exactly: ``(H, W, C)`` flattened is one axis of three factors.

The axes of data are named ``n`` (batch), ``0``, ``1``, ``2`` (positions) and ``c`` (channels); those of a stored array have no name but a step in its memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from unifreeze.plugin import Weight


class Factor(NamedTuple):
    """A part of an axis: of what, how many values, and how far apart. One without a name varies with nothing: it was broadcast."""

    name: str
    size: int
    step: int


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


def axis(name: str, size: int, step: int = 1) -> Axis:
    """An axis of one factor; an axis of size one has none."""
    return (Factor(name, size, step),) if size > 1 else ()


def stored(shape: Sequence[int]) -> Axes:
    """The axes of an array as it is stored."""
    return tuple(axis("w", size, prod(shape[place + 1 :])) for place, size in enumerate(shape))


def filled(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes with those said that only an implicit broadcast makes longer than one."""
    return tuple(one or axis("", size, 0) for one, size in zip(axes, shape, strict=True))


def merged(factors: Iterable[Factor]) -> Axis:
    """Joins neighbours that are one stretch."""
    found: list[Factor] = []
    for one in factors:
        last = found[-1] if found else None
        if last and last.name == one.name and last.step == one.size * one.step:
            found[-1] = Factor(one.name, last.size * one.size, one.step)
        else:
            found.append(one)
    return tuple(found)


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes after a reshape, or ``None`` where it cuts through a factor in no even way."""
    pending = [one for whole in axes for one in whole][::-1]
    found: list[Axis] = []
    for size in shape:
        need, got = size, list[Factor]()
        while need > 1 and pending:
            one = pending.pop()
            if need % one.size and one.size % need:
                return None
            taken = min(need, one.size)
            rest = one.size // taken
            got.append(Factor(one.name, taken, one.step * rest))
            if rest > 1:
                pending.append(Factor(one.name, rest, one.step))
            need //= taken
        if need > 1:
            return None
        found.append(merged(got))
    return None if pending else tuple(found)


def beside(one: Axis, other: Axis) -> list[tuple[Factor, Factor]] | None:
    """Two axes of the same size cut into pairs of factors of the same size."""
    ours, theirs = list(one[::-1]), list(other[::-1])
    found: list[tuple[Factor, Factor]] = []
    while ours and theirs:
        a, b = ours.pop(), theirs.pop()
        taken = min(a.size, b.size)
        if a.size % taken or b.size % taken:
            return None
        for whole, queue in ((a, ours), (b, theirs)):
            if whole.size > taken:
                queue.append(Factor(whole.name, whole.size // taken, whole.step))
        found.append((_head(a, taken), _head(b, taken)))
    return None if ours or theirs else found


def _head(whole: Factor, taken: int) -> Factor:
    return Factor(whole.name, taken, whole.step * (whole.size // taken))


def joined(all_axes: Sequence[Axes]) -> Axes | None:
    """The axes of what is computed element by element of several values, or ``None`` where they lie across each other."""
    found = list(all_axes[0])
    for axes in all_axes[1:]:
        for place, (ours, theirs) in enumerate(zip(found, axes, strict=True)):
            if not ours or not theirs:
                found[place] = ours or theirs
                continue
            pairs = beside(ours, theirs)
            if pairs is None or any(a.name and b.name and a != b for a, b in pairs):
                return None
            found[place] = merged(a if a.name else b for a, b in pairs)
    return tuple(found)


def factors_of(axes: Iterable[Axis], name: str = "") -> list[Factor]:
    """All factors that vary, or those of one name, largest step first."""
    found = [one for whole in axes for one in whole if (one.name == name if name else one.name)]
    return sorted(found, key=lambda one: (one.name, -one.step))


def weight(path: str, shape: tuple[int, ...], groups: Sequence[Sequence[Factor]]) -> Weight | None:
    """How to bring a stored array to these groups of its factors, one for each axis of the shared layout; ``None`` if they are not the whole array."""
    order = [one for group in groups for one in group if one.size > 1]
    stretches = sorted(order, key=lambda one: -one.step)
    steps = [prod(one.size for one in stretches[place + 1 :]) for place in range(len(stretches))]
    if [one.step for one in stretches] != steps or prod(one.size for one in stretches) != prod(shape):
        return None
    turned = tuple(stretches.index(one) for one in order)
    final = tuple(prod(one.size for one in group) for group in groups)
    if turned == tuple(range(len(turned))):
        return Weight(path, (), (), final)
    return Weight(path, tuple(one.size for one in stretches), turned, final)
