"""Positions that move into the channels: by strided slices that are put side by side, or by a reshape. Both are said as a reshape, so that they read alike.

Swin merges patches so (Liu et al. 2021, section 3.1): four slices in torchvision and transformers, a reshape in timm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from ._flow import Axis, Flow, Key, Value, renamed

# Rank, start, step and count of a slice, as it is tagged.
Slice = tuple[int, int, int, int]

_TAG = re.compile(r"(\d+)\[(\d+):(\d+):(\d+)\]")


def gathered(value: Value, axis: int) -> Value:
    """A concatenation along an axis, with strided slices as digits of that axis; as it is where they are not all of one grid."""
    if len(value.axes[axis]) != 1:
        return value
    ((key, total),) = value.axes[axis]
    width = min((sum(number >= 0 for number in flow.index) for flow in value.flows), default=0)
    parts = _parts(value.flows, key, width) if width > 1 else {}
    if len(parts) < 2 or set(parts) != set(range(total // width)) or len({flows for flows, _ in parts.values()}) != 1:
        return value
    keys = sorted(one[0][0] for one in value.axes if one)
    grid = _grid([parts[place][1] for place in range(len(parts))], [value.digits[one] for one in keys])
    if grid is None or keys.index(key) in grid:
        return value
    moved: Axis = tuple(((*keys[rank], 1), step) for rank, step in grid.items())
    plain = replace(value, axes=(*value.axes[:axis], (*moved, (key, width)), *value.axes[axis + 1 :]), flows=parts[0][0])
    named = renamed(plain, {keys[rank]: (*keys[rank], 0) for rank in grid})
    return replace(named, flows=frozenset(replace(flow, spans=flow.spans.union(dict(moved))) for flow in named.flows))


def _parts(flows: Iterable[Flow], key: Key, width: int) -> dict[int, tuple[frozenset[Flow], tuple[Slice, ...]]]:
    """The flows that fill each part of the axis, without their slices, and these; nothing where a flow fills no part or comes through other slices."""
    found: dict[int, tuple[frozenset[Flow], tuple[Slice, ...]]] = {}
    for flow in flows:
        start = next((at for at, number in enumerate(flow.index) if number >= 0), 0)
        run = flow.index[start : start + width]
        plain, slices = _unsliced(replace(flow, index=() if run == tuple(range(width)) else run))
        others, known = found.get(start // width, (frozenset(), slices))
        if flow.channel != (key,) or start % width or -1 in run or len(run) != sum(number >= 0 for number in flow.index) or slices != known:
            return {}
        found[start // width] = (others | {plain}, slices)
    return found


def _unsliced(flow: Flow) -> tuple[Flow, tuple[Slice, ...]]:
    """The flow without the slices that it went through last, and these, by rank."""
    found = [_TAG.fullmatch(tag) for tag in flow.tags]
    kept = next((place + 1 for place in reversed(range(len(found))) if found[place] is None), 0)
    slices = sorted((int(one[1]), int(one[2]), int(one[3]), int(one[4])) for one in found[kept:] if one)
    return replace(flow, tags=flow.tags[:kept]), tuple(slices)


def _grid(parts: Sequence[tuple[Slice, ...]], sizes: Sequence[int]) -> Mapping[int, int] | None:
    """The steps of the axes that are sliced, by rank, the slowest first; ``None`` unless every place of the grid is there, in an order that a reshape has."""
    steps = {rank: step for rank, _, step, _ in parts[0]}
    starts = [{rank: start for rank, start, _, _ in slices} for slices in parts]
    whole = [(rank, step, sizes[rank]) for rank, step in steps.items()]
    alike = all(whole == [(rank, step, count) for rank, _, step, count in slices] for slices in parts)
    if not alike or prod(steps.values()) != len(parts):
        return None
    strides = {rank: next((place for place, start in enumerate(starts) if start[rank] == 1), 0) for rank in steps}
    places = [sum(start[rank] * stride for rank, stride in strides.items()) for start in starts]
    beyond = any(start[rank] >= step for start in starts for rank, step in steps.items())
    if beyond or not all(strides.values()) or places != list(range(len(parts))):
        return None
    return {rank: steps[rank] for rank in sorted(steps, key=strides.__getitem__, reverse=True)}
