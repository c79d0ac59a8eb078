"""What came of a port, told to people: both counts, what exists on one side only, what was left, and which settings differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from unifreeze._freezing import Freezing

from .correspondence import Correspondence


@dataclass(frozen=True, slots=True)
class Lone:
    """A frozen parameter that one layer of a pair has and the other has not.

    Attributes:
        side: Which has it: ``source`` or ``target``.
        source: The source's layer.
        target: The target's layer.
        role: What it does there, such as ``bias``.
        size: The number of its elements.
    """

    side: Literal["source", "target"]
    source: str
    target: str
    role: str
    size: int

    def __str__(self) -> str:
        return f"{self.source} = {self.target}: only the {self.side}'s {getattr(self, self.side)} has a {self.role} ({self.size:,})"


@dataclass(frozen=True, slots=True)
class Ported:
    """What came of ``port``; ``print`` it for the report.

    Attributes:
        freezing: The ``Freezing`` of the target.
        correspondence: How the layers were found.
        frozen: The numbers of frozen elements, of the source and of the target.
        notes: Why these numbers differ, and what could not be carried, layer by layer.
        lone: The frozen parameters that exist on one side of a pair only; without them, and without what ``notes`` calls left out, the numbers are equal.
        labels: What the models are called.
    """

    freezing: Freezing
    correspondence: Correspondence
    frozen: tuple[int, int]
    notes: tuple[str, ...]
    lone: tuple[Lone, ...] = ()
    labels: tuple[str, str] = ("source", "target")

    def to_dict(self) -> dict[str, object]:
        """Returns the report as plain data."""
        found = self.correspondence
        return {
            "source": self.labels[0],
            "target": self.labels[1],
            "certificate": found.certificate,
            "pairs": [list(pair) for pair in found.pairs],
            "frozen": {"source": self.frozen[0], "target": self.frozen[1]},
            "unmatched": {"source": list(found.unmatched[0]), "target": list(found.unmatched[1])},
            "divergence": found.divergence,
            "differences": [list(one) for one in found.differences],
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Returns the report as a list in Markdown; what is alike stands in one line."""
        title, *facts = self._lines()
        return "\n".join([f"**{title}**", "", *(f"- {fact}" for fact in facts)])

    def __str__(self) -> str:
        title, *facts = self._lines()
        return "\n".join([title, *(f"  {fact}" for fact in facts)])

    def _lines(self) -> Iterator[str]:
        found = self.correspondence
        yield f"{self.labels[0]} → {self.labels[1]}: {found.certificate}, {len(found.pairs)} pairs of layers"
        yield f"frozen: {self.frozen[0]:,} parameters in the source, {self.frozen[1]:,} in the target"
        for side in ("source", "target"):
            alike: dict[str, list[Lone]] = {}
            for one in self.lone:
                if one.side == side:
                    alike.setdefault(one.role, []).append(one)
            yield from (f"only the {side} has a {role} in {_layers(len(lone))} ({sum(one.size for one in lone):,} parameters)" for role, lone in alike.items())
        told = {str(one) for one in self.lone}
        yield from (f"{note}" for note in _shortened([note for note in self.notes if note not in told]))
        yield from (line.strip() for line in found.divergence.splitlines())
        yield from (f"interchangeable, frozen all or none: {', '.join(group)}" for group in found.interchangeable)
        yield from self._settings()

    def _settings(self) -> Iterator[str]:
        alike: dict[tuple[str, str, str], list[str]] = {}
        for ours, _, setting, one, other in self.correspondence.differences:
            alike.setdefault((setting, _shown(one), _shown(other)), []).append(ours)
        for (setting, one, other), layers in alike.items():
            yield f"{setting} differs in {_layers(len(layers))}: {one} in the source, {other} in the target, such as {layers[0]}"


def _layers(number: int) -> str:
    return f"{number} layers" if number != 1 else "1 layer"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _shortened(notes: list[str]) -> Iterator[str]:
    """Notes that say the same of several layers, in one line."""
    alike: dict[str, list[str]] = {}
    for note in notes:
        path, colon, what = note.partition(": ")
        alike.setdefault(what if colon else note, []).append(path if colon else "")
    for what, paths in alike.items():
        named = [path for path in paths if path]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        yield f"{', '.join(named[:3])}{more}: {what}" if named else what
