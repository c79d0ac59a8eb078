"""From what was recorded to a graph: biases become part of what they belong to, and fused projections fall into their parts. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from ._flow import Flow, Numbers, digest
from ._graph import Graph, Source, Unit, Weight

Flows = frozenset[Flow]
_BIASED = {"dense", "conv", "depthwise_conv", "conv_transpose", "scale"}
_PARTED = {"dense", "conv"}


@dataclass(slots=True)
class Recorded:
    """A unit while the model is traced: as ``Unit``, with flows for sources."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    flows: frozenset[Flow]
    weights: dict[str, Weight]
    settings: dict[str, object] = field(default_factory=dict)


def folded(units: Sequence[Recorded], ends: Sequence[Flows], inputs: tuple[tuple[int, ...], ...]) -> Graph:
    """The graph of what was recorded, with its outputs and the shapes of its inputs."""
    found, outs = _biased(*_used(list(units), list(ends)))
    found, outs = _parted(found, outs)
    found, outs = _biased(found, outs)
    placed = tuple(Unit(one.layer, one.kind, one.shape, frozenset(map(_source, one.flows)), one.weights, one.settings) for one in found)
    return Graph(placed, tuple(frozenset(map(_source, flows)) for flows in outs), inputs)


def _used(units: list[Recorded], ends: list[Flows]) -> tuple[list[Recorded], list[Flows]]:
    """Without the units that nothing comes of."""
    needed = {flow.unit for flows in ends for flow in flows}
    for place in range(len(units) - 1, -1, -1):
        if place in needed:
            needed |= {flow.unit for flow in units[place].flows}
    kept = [place for place in range(len(units)) if place in needed]
    where = {place: number for number, place in enumerate(kept)}
    return [replace(units[place], flows=_moved(units[place].flows, where)) for place in kept], [_moved(flows, where) for flows in ends]


def _source(flow: Flow) -> Source:
    """The flow as a source: contiguous channels by where they enter, all else by a word."""
    tags = (*flow.tags, digest(flow.part)) if flow.part else flow.tags
    if not flow.index:
        return flow.unit, 0, tags
    first = next(place for place, number in enumerate(flow.index) if number >= 0)
    count = sum(number >= 0 for number in flow.index)
    if flow.index[first : first + count] == tuple(range(count)):
        return flow.unit, first, tags
    return flow.unit, 0, (*tags, digest(flow.index))


def _biased(units: list[Recorded], ends: list[Flows]) -> tuple[list[Recorded], list[Flows]]:
    """A bias that is all that becomes of a product is the bias of that product."""
    readers = _readers(units, ends)
    into = {place: host for place, unit in enumerate(units) if (host := _host(unit, units, readers)) is not None}
    kept = [place for place in range(len(units)) if place not in into]
    where = {place: number for number, place in enumerate(kept)}
    for place, host in into.items():
        units[host] = replace(units[host], weights=units[host].weights | units[place].weights)
        where[place] = where[host]
    return [replace(units[place], flows=_moved(units[place].flows, where)) for place in kept], [_moved(flows, where) for flows in ends]


def _host(unit: Recorded, units: list[Recorded], readers: dict[int, list[Flow]]) -> int | None:
    if unit.kind != "bias" or len(unit.flows) != 1:
        return None
    (flow,) = unit.flows
    if flow.unit < 0 or flow.tags or flow.index or flow.part or flow.channel is None or len(readers[flow.unit]) > 1:
        return None
    host = units[flow.unit]
    fits = host.kind in _BIASED and "bias" not in host.weights and _width(host) == unit.shape[0]
    return flow.unit if fits else None


def _width(unit: Recorded) -> int:
    weight = next(iter(unit.weights.values()))
    return prod(weight.seen[-2:]) if unit.kind == "depthwise_conv" else weight.seen[-1]


def _readers(units: Sequence[Recorded], ends: Sequence[Flows]) -> dict[int, list[Flow]]:
    readers: dict[int, list[Flow]] = defaultdict(list)
    for flows in (*(unit.flows for unit in units), *ends):
        for flow in flows:
            readers[flow.unit].append(flow)
    return readers


def _moved(flows: Flows, where: dict[int, int]) -> Flows:
    return frozenset(replace(flow, unit=where.get(flow.unit, flow.unit)) for flow in flows)


def _parted(units: list[Recorded], ends: list[Flows]) -> tuple[list[Recorded], list[Flows]]:
    """A projection of which every reader takes one of several disjoint parts is so many projections."""
    readers = _readers(units, ends)
    parts = {place: found for place, unit in enumerate(units) if (found := _parts(unit, readers[place]))}
    number, where = 0, {}
    for place in range(len(units)):
        for part in parts.get(place, [()]):
            where[place, part] = number
            number += 1

    def moved(flows: Flows) -> Flows:
        return frozenset(_one(flow, where, parted=flow.unit in parts) for flow in flows)

    split = [one for place, unit in enumerate(units) for one in (_each(unit, parts[place]) if place in parts else [unit])]
    return [replace(unit, flows=moved(unit.flows)) for unit in split], [moved(flows) for flows in ends]


def _one(flow: Flow, where: dict[tuple[int, Numbers], int], *, parted: bool) -> Flow:
    if parted:
        return replace(flow, unit=where[flow.unit, flow.part], part=())
    flow = replace(flow, unit=where.get((flow.unit, ()), flow.unit))
    if not flow.part or flow.channel is None:
        return flow
    # No part of its own: the places count in the whole again.
    return replace(flow, part=(), index=tuple(flow.part[n] if n >= 0 else -1 for n in flow.index) if flow.index else flow.part)


def _parts(unit: Recorded, readers: list[Flow]) -> list[Numbers]:
    """The parts in order, if they are disjoint and cover the whole."""
    found = sorted({flow.part for flow in readers})
    plain = unit.kind in _PARTED and len(unit.shape) == len(unit.weights["kernel"].seen)
    covered = sorted(number for part in found for number in part)
    return found if plain and len(found) > 1 and covered == list(range(_width(unit))) else []


def _each(unit: Recorded, parts: list[Numbers]) -> Iterator[Recorded]:
    for part in parts:
        weights: dict[str, Weight] = {role: weight.part(part) for role, weight in unit.weights.items()}
        yield replace(unit, shape=(*unit.shape[:-1], len(part)), weights=weights)
