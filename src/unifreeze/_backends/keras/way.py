"""The way back of an optimizer that was pointed at fewer variables: what it was made of, to be put back as it was, without a build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Way:
    """What stood in an optimizer before it was changed, and what was written into it.

    Attributes:
        before: Its attributes before.
        listed: All its arrays before, in order.
        starts: At which iteration its variables had joined, of those that joined late.
        since: The attributes that were written.
        listing: All its arrays that were written.
    """

    before: dict[str, Any]
    listed: list[Any]
    starts: dict[object, int]
    since: dict[str, Any]
    listing: list[Any]

    def leads(self, optimizer: Any, variables: Sequence[Any]) -> bool:
        """Whether the optimizer shall train what it trained before, more than now, and is still what was made of it."""
        targets, now = self.before["_trainable_variables"], set(map(id, optimizer._trainable_variables[:]))
        return (
            _same(targets, variables)
            and now <= set(map(id, targets))
            and _same(optimizer._variables, self.listing)
            and all(_equal(vars(optimizer).get(name), value) for name, value in self.since.items())
        )


def _same(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    """Compares slices: TensorFlow wraps lists, and goes through a wrapped one item by item in Python."""
    return list(map(id, ones[:])) == list(map(id, others[:]))


def _equal(now: Any, written: Any) -> bool:
    """TensorFlow wraps lists and dicts that are written into an object."""
    return _same(now or (), written) if isinstance(written, list) else bool(now == written)
