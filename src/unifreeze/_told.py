"""Why something is frozen: the calls on a model that still hold, in the words in which they were made."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from ._tree import Layer, Parameter

#: What some calls were told, each of which may have several steps.
Calls = tuple[tuple["Told", ...], ...]

_number = count()
_calls: WeakKeyDictionary[Any, list[Told]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What one call, or one step of a recipe, was told.

    Attributes:
        text: The call as it was written, such as ``freeze(layers=first(2))``.
        frozen: Whether it froze, rather than unfroze.
        parameters: Paths of the parameters that it was about.
        layers: Paths of the layers that it was about.
        number: Its place among all calls.
    """

    text: str
    frozen: bool
    parameters: Collection[str]
    layers: Collection[str]
    number: int = field(default_factory=lambda: next(_number))


def remember(model: object, told: Calls) -> list[Told]:
    """Keeps with a model what it was told, as long as the model lives; returns the list, from which an undo takes it out."""
    try:
        calls = _calls.setdefault(model, [])
    except TypeError:  # a model that can't be referred to weakly
        return []
    calls.extend(one for call in told for one in call)
    return calls


def forget(calls: list[Told], told: Calls) -> None:
    """Takes out what was undone."""
    gone = {id(one) for call in told for one in call}
    calls[:] = [one for one in calls if id(one) not in gone]


class Reasons:
    """Answers why something in a tree is frozen, from what the model and its parts were told."""

    def __init__(self, tree: Layer, told: Collection[Told] = ()) -> None:
        known = [("", one) for one in told] + [(layer.path and layer.path + ".", one) for layer in tree.walk() for one in _told_to(layer.native)]
        self._known = sorted(known, key=lambda pair: -pair[1].number)
        self._first: dict[int, list[str]] = {}
        for layer in tree.walk():
            for parameter in layer.parameters:
                self._first.setdefault(id(parameter.array), []).append(parameter.path)

    def of(self, layer: Layer) -> str:
        """Returns why a layer's own parameters are frozen, or, where it has none, why it is held; each reason once."""
        frozen = [parameter for parameter in layer.parameters if parameter.status == "frozen" or parameter.rows is not None]
        if frozen:
            return "; ".join(dict.fromkeys(map(self._why, frozen)))
        return self._found([layer.path], lambda one: one.layers) if layer.inference is not None else ""

    def _why(self, parameter: Parameter) -> str:
        if parameter.untrainable:
            return parameter.untrainable
        return self._found(self._first[id(parameter.array)], lambda one: one.parameters, partly=parameter.rows is not None)

    def _found(self, paths: list[str], about: Any, *, partly: bool = False) -> str:
        for prefix, one in self._known:
            if partly and not one.frozen:
                continue
            if any(path.removeprefix(prefix) in about(one) for path in paths if path.startswith(prefix)):
                return one.text if one.frozen else BY_HAND
        return BY_HAND


BY_HAND = "by hand (no call is known)"


def _told_to(native: object) -> Iterator[Told]:
    try:
        yield from _calls.get(native, ())
    except TypeError:
        return


def call_text(verb: str, **arguments: object) -> str:
    """Writes a call as it was made, without what was left out.

    >>> call_text("freeze", layers="stem", params=None)
    "freeze(layers='stem')"
    """
    return f"{verb}({', '.join(f'{name}={_shown(value)}' for name, value in arguments.items() if value is not None)})"


def _shown(value: object) -> str:
    """A value in a few words: the framework's own objects would fill pages."""
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(map(_shown, value))}]" if len(value) <= 3 else f"<{len(value)} of {type(next(iter(value))).__name__}>"
    plain = isinstance(value, str | int | slice | range) or type(value).__module__ == "unifreeze.select"
    text = repr(value) if plain else getattr(value, "__name__", f"<{type(value).__name__}>")
    return text if len(text) <= 80 else f"{text[:79]}…"
