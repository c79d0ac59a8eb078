"""Where two models of one family part ways: which of the layers that both have are certain, and which are some of a number that differs."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

from unifreeze._graph import Graph, Unit

Key = tuple[Hashable, ...]


def unsettled(source: Graph, target: Graph, pairs: Mapping[int, int]) -> tuple[set[int], set[int]]:
    """The source's units that have a partner only as "the k-th of its kind", and the whole stage that they lie in, in a match that is a prefix.

    ResNet50 has six blocks of 1024 channels and ResNet101 has 23: the first six are equal seen from the input, and yet a freeze of "all six" could as well
    mean all 23. Such are the units that the other model goes on to repeat, found by walking back from where the models part. To the stage belong, too, the
    units that lead nowhere else, such as the first convolution of the stage.
    """
    back = {theirs: ours for ours, theirs in pairs.items()}
    repeated: set[int] = set()
    for units, partner in ((source.units, {place: place for place in pairs}), (target.units, back)):
        keys = _keys(units)
        beyond = {keys[place] for place in range(len(units)) if place not in partner}
        repeated |= {partner[place] for place in _walked_back(units, partner.keys(), keys, beyond)}
    return repeated, repeated | _entries(source.units, repeated, pairs.keys())


def _keys(units: Sequence[Unit]) -> list[Key]:
    """Kind and shape; a norm counts as a part of the one unit that it follows."""
    keys: list[Key] = []
    for unit in units:
        before = {source for source, _, _ in unit.sources}
        follows = unit.kind.endswith("_norm") and len(before) == 1 and min(before) >= 0
        keys.append((unit.kind, unit.shape, *(keys[min(before)] if follows else ())))
    return keys


def _walked_back(units: Sequence[Unit], common: Collection[int], keys: list[Key], beyond: set[Key]) -> set[int]:
    """From the first units without a partner towards the inputs, as long as the model repeats there what it had before."""
    pending = [source for place, unit in enumerate(units) if place not in common for source, _, _ in unit.sources if source in common]
    found: set[int] = set()
    while pending:
        place = pending.pop()
        if place in common and place not in found and keys[place] in beyond:
            found.add(place)
            pending += [source for source, _, _ in units[place].sources]
    return found


def _entries(units: Sequence[Unit], repeated: set[int], common: Collection[int]) -> set[int]:
    """Units before the repeated ones that nothing but these read, with the norms that follow them."""
    readers: dict[int, set[int]] = {}
    for place, unit in enumerate(units):
        for source, _, _ in unit.sources:
            readers.setdefault(source, set()).add(place)
    norms = {place for place in common if units[place].kind.endswith("_norm")}
    found: set[int] = set()
    for place in sorted({*common} - repeated, reverse=True):
        inside = repeated | (found & norms)
        after = readers.get(place, set())
        if repeated and after and all(one in inside or one not in common for one in after):
            found.add(place)
    return found
