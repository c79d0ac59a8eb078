"""In which order calls on models that are changed in place are undone."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from ._backend import Request

_NUMBERS = count()


@dataclass(eq=False)
class _Revert:
    """How to undo one call on a model that is changed in place, after the later ones on the same layers: undoing out of order ends where undoing in order does.

    Attributes:
        undo: Undoes this call alone.
        paths: The paths that it concerns.
        concerned: The arrays and layers there, and no others: the rest of the model may be replaced, and its memory given back.
        entries: All calls on the model that are not undone, in order.
        done: Whether it has been undone.
        number: Which of all calls it is.
    """

    undo: Callable[[], None]
    paths: frozenset[str]
    concerned: list[object]
    entries: _Calls
    done: bool = False
    number: int = field(default_factory=lambda: next(_NUMBERS))

    @cached_property
    def scope(self) -> frozenset[Hashable]:
        """What it concerns, by path and by identity: another model may hold the same arrays and layers. Worked out when there are later calls."""
        return frozenset([*map(id, self.concerned), *((id(self.entries), path) for path in self.paths)])

    def __call__(self) -> None:
        if self.done:
            return
        for later in reversed(self._with_later_ones()):
            later.undo()
            later.done = True
            later.entries.remove(later)

    def _with_later_ones(self) -> list[_Revert]:
        """This call and the later ones on the same layers, and those on the same layers as one of these, in order."""
        later = sorted((one for calls in _all.values() for one in calls if one.number > self.number), key=lambda one: one.number)
        found, scope = [self], set(self.scope if later else ())
        for one in later:
            if not scope.isdisjoint(one.scope):
                found.append(one)
                scope |= one.scope
        return found


class _Calls(list[_Revert]):
    """The calls on one model. The Freezings keep it, and nothing else does: it reaches the model, which must not outlive its last user."""


_calls: WeakKeyDictionary[Any, ref[_Calls]] = WeakKeyDictionary()
_all: WeakValueDictionary[int, _Calls] = WeakValueDictionary()


def after_later_ones(model: object, undo: Callable[[], None], request: Request) -> Callable[[], None]:
    """Enters a call in the register of its model, and returns how to undo it with the later ones on the same layers."""
    try:
        found = _calls.get(model)
        entries = (found and found()) or _Calls()
        _calls[model] = ref(entries)
    except TypeError:  # a model that can't be referred to weakly
        entries = _Calls()
    _all[id(entries)] = entries
    entries.append(_Revert(undo, request.parameters | request.layers, _concerned(request), entries))
    return entries[-1]


def _concerned(request: Request) -> list[object]:
    nodes = list(request.tree.walk())
    arrays = [p.array for node in nodes for p in node.parameters if p.path in request.parameters and p.array is not None]
    return arrays + [node.native for node in nodes if node.path in request.layers and node.native is not None]
