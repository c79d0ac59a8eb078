"""What an optimizer keeps in memory of each parameter that it trains, as formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from .errors import ArgumentError, near


def times(count: int) -> Callable[[tuple[int, ...]], int]:
    """So many arrays of the parameter's own shape.

    >>> times(2)((3, 4))
    24
    """
    return lambda shape: count * prod(shape)


@dataclass(frozen=True, slots=True)
class Slots:
    """What an optimizer keeps of a parameter.

    Attributes:
        elements: How many elements, of the parameter's own type, it keeps of a parameter of a shape.
        formula: The same in words.
        source: Where the formula stands.
        each: Bytes that it keeps of each parameter besides, whatever its size, such as a count of steps.
        once: Bytes that it keeps once.
    """

    elements: Callable[[tuple[int, ...]], int]
    formula: str
    source: str
    each: int = 0
    once: int = 0


def named(optimizer: str, known: Mapping[str, Slots]) -> Slots:
    """Looks an optimizer up by its name.

    Raises:
        ArgumentError: If it is none of those that are known.
    """
    found = known.get(optimizer.lower())
    if found is None:
        raise ArgumentError(f"optimizer={optimizer!r} is not known here.\n  there are: {', '.join(known)}\n  {near(optimizer, known)}".rstrip())
    return found
