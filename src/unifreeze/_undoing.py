"""In which order the calls on a model that is changed in place are undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref


@dataclass(eq=False)
class _Revert:
    """How to undo one call on a model that is changed in place, after the later calls on the same paths: undoing out of order ends where undoing in order does.

    Attributes:
        undo: Undoes this call alone.
        scope: The paths that it concerns.
        entries: All calls on the model that are not undone, in order.
        done: Whether it has been undone.
    """

    undo: Callable[[], None]
    scope: frozenset[str]
    entries: _Calls
    done: bool = False

    def __call__(self) -> None:
        if self.done:
            return
        for later in [one for one in reversed(self.entries[self.entries.index(self) :]) if one.scope & self.scope]:
            later.undo()
            later.done = True
            self.entries.remove(later)


class _Calls(list[_Revert]):
    """The calls on one model. The Freezings keep it, and nothing else does: it reaches the model, which must not outlive its last user."""


_calls: WeakKeyDictionary[Any, ref[_Calls]] = WeakKeyDictionary()


def after_later_ones(model: object, undo: Callable[[], None], scope: frozenset[str]) -> Callable[[], None]:
    """Enters a call in the register of its model, and returns how to undo it with the later ones on the same paths."""
    try:
        found = _calls.get(model)
        entries = (found and found()) or _Calls()
        _calls[model] = ref(entries)
    except TypeError:  # a model that can't be referred to weakly
        entries = _Calls()
    entries.append(_Revert(undo, scope, entries))
    return entries[-1]
