"""Which unit of one graph is which unit of another: colours, refined until nothing more can be told apart. Pure functions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

from unifreeze._graph import Graph, Source, Sources, Unit

Certificate = Literal["exact", "exact up to the head", "prefix"]
Colours = list[int]
_HEAD = 3
_OUTPUTS = 3


@dataclass(frozen=True, slots=True)
class Match:
    """What matching found.

    Attributes:
        certificate: How much of the graphs is equal; empty where nothing is.
        pairs: The units of both graphs that are the same, by their places.
        groups: Sets of places in the source that no graph can tell apart.
        divergence: The first units, by place, that have no partner: of the source and of the target; ``None`` where there is none.
        head: The places of the units on either side that were taken for the head.
        outputs: For each output of the source, which of the target's it is; empty where they come in the same order.
    """

    certificate: Certificate | Literal[""]
    pairs: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    divergence: tuple[int | None, int | None] = (None, None)
    head: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    outputs: tuple[int, ...] = ()


def match(source: Graph, target: Graph) -> Match:
    """Matches two graphs, and says how far they are equal."""
    for order in permutations(range(len(target.outputs))) if len(target.outputs) <= _OUTPUTS else [tuple(range(len(target.outputs)))]:
        whole = _isomorphism(source, replace(target, outputs=tuple(target.outputs[place] for place in order)))
        if whole:
            return Match("exact", *whole, outputs=() if order == tuple(sorted(order)) else order)
    heads = sorted(((a, b) for a in _beheaded(source) for b in _beheaded(target)), key=lambda ab: len(ab[0][1]) + len(ab[1][1]))
    for (body, head), (other, other_head) in heads:
        found = _isomorphism(body, other) if body.units and len(body.units) == len(other.units) else None
        if found:
            return Match("exact up to the head", *found, head=(head, other_head))
    return _prefix(source, target)


def _beheaded(graph: Graph) -> list[tuple[Graph, tuple[int, ...]]]:
    """The graph, and the graph without its last dense unit, its last two, …, as long as the only output comes from one such unit at the very end."""
    found: list[tuple[Graph, tuple[int, ...]]] = [(graph, ())]
    for _ in range(_HEAD):
        body, head = found[-1]
        last = len(body.units) - 1
        alone = len(body.outputs) == 1 and last >= 0 and {unit for unit, _, _ in body.outputs[0]} == {last}
        if not alone or body.units[last].kind != "dense":
            break
        found.append((replace(body, units=body.units[:-1], outputs=(body.units[last].sources,)), (last, *head)))
    return found


def _isomorphism(source: Graph, target: Graph) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, ...], ...]] | None:
    """The pairs, and what is interchangeable, if the graphs are equal but for the order of their units; the equality is checked, not inferred."""
    if len(source.units) != len(target.units) or len(source.outputs) != len(target.outputs):
        return None
    colours = refine(source, target)
    if Counter(colours[0]) != Counter(colours[1]):
        return None
    groups = tuple(tuple(places) for places in _classes(colours[0]).values() if len(places) > 1)
    while True:
        ours, theirs = map(_classes, colours)
        several = [colour for colour, places in ours.items() if len(places) > 1]
        if not several:
            break
        first = min(several, key=lambda colour: ours[colour])
        place = ours[first][0]
        partner = max(theirs[first], key=lambda other: _alike(source.units[place].layer, target.units[other].layer))
        colours = refine(source, target, _marked(colours, place, partner))
        if Counter(colours[0]) != Counter(colours[1]):
            return None
    pairs = tuple((places[0], theirs[colour][0]) for colour, places in ours.items())
    return (pairs, groups) if _equal(source, target, dict(pairs)) else None


_ROLES = ({"q", "query"}, {"k", "key"}, {"v", "value"}, {"left", "l"}, {"right", "r"}, {"a", "1", "first"}, {"b", "2", "second"})


def _alike(one: str, other: str) -> int:
    """How many words of role two names share. This pairs what no graph can tell apart, and such pairs are reported as a choice."""
    words = [set(re.split(r"[^a-z0-9]+", name.lower())) for name in (one, other)]
    return len(words[0] & words[1]) + 2 * sum(bool(role & words[0]) and bool(role & words[1]) for role in _ROLES)


def _marked(colours: tuple[Colours, Colours], place: int, other: int) -> tuple[Colours, Colours]:
    """Tells one unit on either side apart from its likes."""
    fresh = 1 + max(colours[0])
    marked = list(colours[0]), list(colours[1])
    marked[0][place] = marked[1][other] = fresh
    return marked


def _equal(source: Graph, target: Graph, pairs: dict[int, int]) -> bool:
    """Whether the pairs carry one graph into the other: every kind, shape, edge and output."""

    def carried(sources: Sources) -> Sources:
        return frozenset((pairs[unit] if unit >= 0 else unit, at, tags) for unit, at, tags in sources)

    same = all(
        (unit.kind, unit.shape, carried(unit.sources)) == (other.kind, other.shape, other.sources)
        for unit, other in ((source.units[a], target.units[b]) for a, b in pairs.items())
    )
    return same and tuple(map(carried, source.outputs)) == target.outputs and _shares(source, pairs.keys()) == _shares(target, pairs.values())


def _shares(graph: Graph, order: Iterable[int]) -> list[int]:
    """For each unit in this order, the number of the first that has its weights."""
    first: dict[Hashable, int] = {}
    arrays = (_arrays(graph.units[place]) for place in order)
    return [first.setdefault(paths or number, number) for number, paths in enumerate(arrays)]


def _arrays(unit: Unit) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((weight.path, weight.take) for weight in unit.weights.values())


def refine(source: Graph, target: Graph, given: tuple[Colours, Colours] | None = None) -> tuple[Colours, Colours]:
    """Colours of the units of both graphs: the same where neither the unit, nor what it reads, nor what reads it, and so on, tells them apart."""
    graphs = (source, target)
    names: dict[Hashable, int] = {}
    keys = tuple([(unit.kind, unit.shape, given[side][i] if given else 0) for i, unit in enumerate(graph.units)] for side, graph in enumerate(graphs))
    twins = tuple(map(_twins, graphs))
    readers = tuple(map(_readers, graphs))
    colours = tuple(_downward(graph, key, names) for graph, key in zip(graphs, keys, strict=True))
    colours = tuple(_upward(colour, read, names) for colour, read in zip(colours, readers, strict=True))
    count = len({*colours[0], *colours[1]})
    while True:
        colours = tuple(_joint(graph, colour, read, twin, names) for graph, colour, read, twin in zip(graphs, colours, readers, twins, strict=True))
        found = len({*colours[0], *colours[1]})
        if found == count:
            return colours[0], colours[1]
        count = found


def _name(key: Hashable, names: dict[Hashable, int]) -> int:
    return names.setdefault(key, len(names))


def _readers(graph: Graph) -> list[list[Source]]:
    """For each unit, who reads it, where and through which merges; outputs count from -1 down."""
    readers: list[list[Source]] = [[] for _ in graph.units]
    ends = [(-1 - number, sources) for number, sources in enumerate(graph.outputs)]
    for reader, sources in [*((place, unit.sources) for place, unit in enumerate(graph.units)), *ends]:
        for unit, at, tags in sources:
            if unit >= 0:
                readers[unit].append((reader, at, tags))
    return readers


def _downward(graph: Graph, keys: Sequence[Hashable], names: dict[Hashable, int]) -> Colours:
    """What leads to a unit, in one pass from the inputs."""
    colours: Colours = []
    for unit, key in zip(graph.units, keys, strict=True):
        colours.append(_name(("down", key, _around(unit.sources, colours)), names))
    return colours


def _upward(colours: Colours, readers: list[list[Source]], names: dict[Hashable, int]) -> Colours:
    """What becomes of a unit, in one pass from the outputs."""
    found = list(colours)
    for place in range(len(colours) - 1, -1, -1):
        found[place] = _name(("up", colours[place], _around(readers[place], found)), names)
    return found


def _joint(graph: Graph, colours: Colours, readers: list[list[Source]], twins: list[list[int]], names: dict[Hashable, int]) -> Colours:
    around = ((_around(unit.sources, colours), _around(read, colours)) for unit, read in zip(graph.units, readers, strict=True))
    shared = (tuple(sorted(colours[place] for place in twin)) for twin in twins)
    return [_name(("both", colour, *both, others), names) for colour, both, others in zip(colours, around, shared, strict=True)]


def _twins(graph: Graph) -> list[list[int]]:
    """For each unit, the others that have one of its arrays."""
    users: dict[Hashable, list[int]] = defaultdict(list)
    for place, unit in enumerate(graph.units):
        for array in _arrays(unit):
            users[array].append(place)
    return [sorted({other for array in _arrays(unit) for other in users[array] if other != place}) for place, unit in enumerate(graph.units)]


def _around(edges: Iterable[Source], colours: Colours) -> tuple[object, ...]:
    return tuple(sorted((colours[unit] if unit >= 0 else unit, at, tags) for unit, at, tags in edges))


def _classes(colours: Colours) -> dict[int, list[int]]:
    classes: dict[int, list[int]] = defaultdict(list)
    for place, colour in enumerate(colours):
        classes[colour].append(place)
    return classes


def _prefix(source: Graph, target: Graph) -> Match:
    """The largest part, closed towards the inputs, that is equal on both sides."""
    names: dict[Hashable, int] = {}
    down = tuple(_downward(graph, [(unit.kind, unit.shape) for unit in graph.units], names) for graph in (source, target))
    counts = Counter(down[0]), Counter(down[1])
    common = {colour for colour in counts[0] if counts[0][colour] == counts[1][colour]}
    parts = _closed(source, down[0], common), _closed(target, down[1], common)
    first = tuple(next((place for place in range(len(graph.units)) if place not in kept), None) for graph, kept in zip((source, target), parts, strict=True))
    found = _isomorphism(_part(source, parts[0]), _part(target, parts[1])) if parts[0] else None
    divergence = (first[0], first[1])
    if not found:
        return Match("", divergence=divergence)
    ours, theirs = (sorted(part) for part in parts)
    pairs = tuple((ours[a], theirs[b]) for a, b in found[0])
    return Match("prefix", pairs, tuple(tuple(ours[place] for place in group) for group in found[1]), divergence)


def _closed(graph: Graph, colours: Colours, common: set[int]) -> set[int]:
    kept: set[int] = set()
    for place, unit in enumerate(graph.units):
        if colours[place] in common and all(source in kept or source < 0 for source, _, _ in unit.sources):
            kept.add(place)
    return kept


def _part(graph: Graph, kept: set[int]) -> Graph:
    number = {place: i for i, place in enumerate(sorted(kept))}
    units = (
        replace(graph.units[place], sources=frozenset((number.get(unit, unit), at, tags) for unit, at, tags in graph.units[place].sources))
        for place in sorted(kept)
    )
    return Graph(tuple(units), ())
