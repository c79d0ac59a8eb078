"""Carrying the weights of one model over to another, along the pairs of a match."""

from __future__ import annotations

from typing import Any

from unifreeze._graph import Traced, Unit, Weight
from unifreeze.errors import CorrespondenceError

from .match import Match

_NEUTRAL = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "variance": 1.0}


def transfer(source: Traced, target: Traced, match: Match) -> Any:
    """Writes the source's weights into the target's, each in its layout, and returns the target.

    A scale or bias that only the target has becomes neutral. A bias that only the source has is carried by the mean of the batch normalisation that follows.

    Raises:
        CorrespondenceError: If the target has no place for an array that is not neutral. Nothing has been written then.
    """
    pairs = [(source.graph.units[a], target.graph.units[b]) for a, b in match.pairs]
    arrays = source.read(sorted({weight.path for unit, _ in pairs for weight in unit.weights.values()}))
    before = target.read(sorted({w.path for _, unit in pairs for w in unit.weights.values()}))
    values = [{role: weight.shared(arrays[weight.path]) for role, weight in unit.weights.items()} for unit, _ in pairs]
    _absorb_biases(source, target, match, values)
    new: dict[str, Any] = {}
    written: list[tuple[Unit, Weight, Any]] = []
    for (ours, theirs), found in zip(pairs, values, strict=True):
        _refuse_homeless(ours, theirs, found)
        for role, weight in theirs.weights.items():
            value = found[role] if role in found else _neutral(ours, theirs, role, found)
            new[weight.path] = weight.into(new.get(weight.path, before[weight.path]), value)
            written.append((ours, weight, value))
    for ours, weight, value in written:
        if (weight.shared(new[weight.path]) != value).any():
            raise CorrespondenceError(f"{weight.path} is used twice, and {ours.layer} would give it other values there.\n  Nothing was carried over.")
    return target.write(new)


def _neutral(ours: Unit, theirs: Unit, role: str, found: dict[str, Any]) -> Any:
    if role not in _NEUTRAL:
        raise CorrespondenceError(f"{theirs.layer} has a {role}, and {ours.layer} has none.\n  Nothing was carried over.")
    import numpy as np

    return np.full(theirs.weights[role].seen, _NEUTRAL[role], next(iter(found.values())).dtype)


def _refuse_homeless(ours: Unit, theirs: Unit, found: dict[str, Any]) -> None:
    for role, value in found.items():
        if role not in theirs.weights and not (role in _NEUTRAL and (value == _NEUTRAL[role]).all()):
            raise CorrespondenceError(
                f"{ours.layer} has a {role}, and {theirs.layer} has no place for it.\n"
                "  It is not neutral, and no batch normalisation follows that could carry it.\n  Nothing was carried over."
            )


def _absorb_biases(source: Traced, target: Traced, match: Match, values: list[dict[str, Any]]) -> None:
    """``batch_norm(x + b)`` with mean m is ``batch_norm(x)`` with mean m - b."""
    place = {ours: number for number, (ours, _) in enumerate(match.pairs)}
    theirs = dict(match.pairs)
    units = source.graph.units
    readers: dict[int, list[int]] = {}
    for reader, unit in enumerate(units):
        for before, _, _ in unit.sources:
            readers.setdefault(before, []).append(reader)
    read_outside = {unit for sources in source.graph.outputs for unit, _, _ in sources}
    for ours, number in place.items():
        after = readers.get(ours, [])
        alone = len(after) == 1 and ours not in read_outside and units[after[0]].sources == frozenset({(ours, 0, ())})
        if (
            "bias" not in target.graph.units[theirs[ours]].weights
            and "bias" in values[number]
            and alone
            and after[0] in theirs
            and units[after[0]].kind == "batch_norm"
        ):
            norm = values[place[after[0]]]
            norm["mean"] = norm["mean"] - values[number].pop("bias")


def differences(source: Traced, target: Traced, match: Match) -> list[tuple[str, str, str, object, object]]:
    """The settings that differ between the pairs: both layers, the setting, both values. Floats that differ by rounding are the same."""
    found: list[tuple[str, str, str, object, object]] = []
    for a, b in match.pairs:
        ours, theirs = source.graph.units[a], target.graph.units[b]
        for setting in sorted(ours.settings.keys() & theirs.settings.keys()):
            one, other = ours.settings[setting], theirs.settings[setting]
            near = isinstance(one, float) and isinstance(other, float) and abs(one - other) <= 1e-9 * max(abs(one), abs(other))
            if not near and type(one) is type(other) and one != other:
                found.append((ours.layer, theirs.layer, setting, one, other))
    return found
