"""Short texts that name what is frozen and its values: equal in every process, on every device and rank that has the same."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from ._tree import Layer, Parameter


@dataclass(frozen=True, slots=True)
class Digest:
    """What ``Freezing.digest`` returns. ``str`` of it is one short word for a log.

    Attributes:
        plan: Of what is frozen: the place of each frozen parameter in the model, its shape, type and frozen rows, and how layers are held at inference. Names
            that a framework counted up by itself do not count.
        values: Of the bytes of all that is promised to stay still; empty where they are not known.
    """

    plan: str
    values: str

    def __str__(self) -> str:
        return f"{self.plan}-{self.values}" if self.values else self.plan


def short(facts: object) -> str:
    """Sixteen hexadecimal digits of a value whose ``repr`` is the same in every process.

    >>> short(b"abc")
    'e83707d08697888f'
    """
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def digest_of(tree: Layer, prints: Mapping[str, Hashable]) -> Digest:
    """The digest of what a tree shows to be frozen, with the fingerprints of it."""
    names: dict[str, str] = {}
    plan: list[tuple[object, ...]] = []
    for place, layer in structural(tree):
        names |= {array.path: f"{place}.{own(layer, array)}" for array in (*layer.parameters, *layer.buffers)}
        if layer.inference is not None:
            plan.append((place, layer.inference))
    first = _first_names(tree, names)
    frozen = {first[id(p.array)]: p for p in tree.arrays() if p.status == "frozen" or p.rows is not None}
    plan += [(name, tuple(p.shape), p.dtype, str(p.rows or "")) for name, p in frozen.items()]
    known = prints and all(value is not None for value in prints.values())
    return Digest(short(sorted(map(repr, plan))), short(sorted((names[path], short(value)) for path, value in prints.items())) if known else "")


def structural(tree: Layer) -> Iterator[tuple[str, Layer]]:
    """Yields every layer with a path in which its class and its place among its siblings stand for a name that the framework counted up."""
    pending = [("", tree)]
    while pending:
        place, layer = pending.pop()
        yield place, layer
        for number, child in reversed(list(enumerate(layer.children))):
            name = f"{child.type}@{number}" if child.auto_named else child.path[len(layer.path) + 1 if layer.path else 0 :]
            pending.append((f"{place}.{name}" if place else name, child))


def own(layer: Layer, array: Parameter) -> str:
    """The name of an array below the path of its layer."""
    return array.path[len(layer.path) + 1 if layer.path else 0 :]


def _first_names(tree: Layer, names: Mapping[str, str]) -> dict[int, str]:
    """A shared array has one name, whichever place is read first."""
    found: dict[int, str] = {}
    for array in tree.arrays():
        found[id(array.array)] = min(found.get(id(array.array), names[array.path]), names[array.path])
    return found
