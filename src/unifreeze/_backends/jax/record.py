"""The record of a plan: plain data that is saved beside an optimizer's state, so that no state is restored into another plan unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from unifreeze.plugin import UnifreezeError

_KEYS = ("plan", "trainable", "frozen", "held", "groups")


class StructureError(UnifreezeError, ValueError):
    """A tree, an optimizer's state or a record that does not belong to the plan."""


def fingerprint_of(statuses: Iterable[tuple[str, str]], held: Mapping[str, str]) -> str:
    """A digest of what is frozen, trainable and held: the same in every process and for every container of the same leaves."""
    parameters = sorted((name, status) for name, status in statuses if status in {"trainable", "frozen"})
    return hashlib.blake2b(repr((parameters, sorted(held.items()))).encode(), digest_size=8).hexdigest()


def recorded(statuses: Mapping[str, str], held: Mapping[str, str], groups: list[list[str]]) -> dict[str, Any]:
    """The record of a plan and of the groups in an optimizer's state."""
    return {
        "plan": fingerprint_of(statuses.items(), held),
        "trainable": sorted(name for name, status in statuses.items() if status == "trainable"),
        "frozen": sorted(name for name, status in statuses.items() if status == "frozen"),
        "held": dict(sorted(held.items())),
        "groups": groups,
    }


def require_same(saved: object, here: Mapping[str, Any]) -> list[list[str]]:
    """Returns the groups of a record.

    Raises:
        StructureError: If it is no record, or that of another plan; the message names both plans.
    """
    if not isinstance(saved, Mapping) or set(_KEYS) - saved.keys():
        given = f"one without {', '.join(key for key in _KEYS if key not in saved)}" if isinstance(saved, Mapping) else type(saved).__name__
        raise StructureError(f"This is no record of a plan.\n  given: {given}\n  Save f.record(state) beside the state, and give it back as it was.")
    if saved["plan"] != here["plan"]:
        lines = ["The state was saved under another plan than this one.", f"  saved: {_named(saved)}", f"  here:  {_named(here)}", *_differences(saved, here)]
        repair = "  Freeze as it was saved, restore, and then change what is frozen: f2 = unfreeze(f, …); state = f2.carry(f2.optimizer(tx), state, params)."
        raise StructureError("\n".join([*lines, repair]))
    return [list(group) for group in saved["groups"]]


def _named(record: Mapping[str, Any]) -> str:
    trainable, frozen = record["trainable"], record["frozen"]
    return f"plan {record['plan']}, {len(frozen)} of {len(frozen) + len(trainable)} parameters frozen{_shown(': ', frozen)}"


def _differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    facts = []
    for words, theirs, ours in (("trainable", saved["trainable"], here["trainable"]), ("frozen", saved["frozen"], here["frozen"])):
        facts += [_shown(f"  {words} only as saved: ", sorted(set(theirs) - set(ours))), _shown(f"  {words} only here: ", sorted(set(ours) - set(theirs)))]
    odd = sorted(path for path in {*saved["held"], *here["held"]} if saved["held"].get(path) != here["held"].get(path))
    return [fact for fact in [*facts, _shown("  held otherwise at inference: ", odd)] if fact]


def _shown(words: str, names: list[str]) -> str:
    return words + ", ".join(names[:4]) + (f", … and {len(names) - 4} more" if len(names) > 4 else "") if names else ""
