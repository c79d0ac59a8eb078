"""Rows that repeat: neighbours that are equal in everything but the number in their name."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import replace

from unifreeze._tree import Layer, Parameter

from .rows import Row


def collapsed(rows: list[Row], tree: Layer) -> list[Row]:
    """Returns the rows with one for each run of equal neighbours: of one type, with arrays of the same names, shapes, types and statuses, all the way down.

    Linear in the number of layers: what two layers are made of is compared by a number that equal ones share.
    """
    shown = {row.path: row for row in rows}
    nodes = list(tree.walk())
    likeness = _likeness(nodes, shown)
    hidden: set[str] = set()
    for layer in nodes:
        for run in _runs(layer.children, likeness):
            first, last = run[0].path, run[-1].path
            if first in shown:
                shown[first] = replace(shown[first], repeat=len(run), last=last)
            hidden |= {node.path for other in run[1:] for node in other.walk()}
    return [shown[row.path] for row in rows if row.path not in hidden]


def _runs(siblings: tuple[Layer, ...], likeness: dict[str, int]) -> Iterator[list[Layer]]:
    """Neighbours whose names count up (``3``, ``4``; ``block_3``, ``block_4``) and that are alike, two or more."""
    run: list[Layer] = []
    for layer in siblings:
        if run and likeness[run[-1].path] == likeness[layer.path] and _counts_up(run[-1].name, layer.name):
            run.append(layer)
            continue
        if len(run) > 1:
            yield run
        run = [layer]
    if len(run) > 1:
        yield run


def _counts_up(before: str, after: str) -> bool:
    one, other = re.fullmatch(r"(.*?)(\d+)", before), re.fullmatch(r"(.*?)(\d+)", after)
    return one is not None and other is not None and one[1] == other[1] and int(one[2]) + 1 == int(other[2])


def _likeness(nodes: list[Layer], shown: dict[str, Row]) -> dict[str, int]:
    """A number for each layer, the same for equal ones; from the leaves up."""
    known: dict[Hashable, int] = {}
    found: dict[str, int] = {}
    for layer in reversed(nodes):
        below = tuple((child.name, found[child.path]) for child in layer.children)
        row = shown.get(layer.path)
        of_row = None if row is None else (row.parameters, row.buffers, row.output_shape, row.shared_with, row.drifts, tuple((row.more or {}).items()))
        arrays = tuple(map(_array, (*layer.parameters, *layer.buffers)))
        found[layer.path] = known.setdefault((layer.type, layer.kind, layer.inference, of_row, arrays, below), len(known))
    return found


def _array(parameter: Parameter) -> Hashable:
    return parameter.name, parameter.shape, parameter.dtype, parameter.status, parameter.role, parameter.rows
