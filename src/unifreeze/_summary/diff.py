"""What changed between two summaries: statuses, and what appeared, went or changed its shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from unifreeze.errors import ArgumentError

from .columns import shape_text
from .rows import Array
from .table import Summary, summary_of

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True, slots=True)
class Change:
    """Something of one path that is another than it was.

    Attributes:
        path: Path of the array or, for an output, of the layer.
        before: What it was.
        after: What it is.
    """

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from one summary to another; empty, and ``False`` as a truth value, where nothing did.

    Attributes:
        before: The first model's label.
        after: The second's.
        frozen: Paths of the parameters that became frozen.
        trainable: Paths of those that became trainable.
        rows: Parameters of which other rows are frozen than were.
        held: Layers that came to be held at inference, are let go, or are held otherwise.
        appeared: Paths of the arrays, parameters and buffers alike, that only the second has.
        went: Paths of those that only the first has.
        shapes: Arrays whose shape or element type changed.
        outputs: Layers whose output shape changed, where both summaries know it.
        types: Layers whose type changed.
        totals: How much larger each total is in the second.
    """

    before: str
    after: str
    frozen: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()
    rows: tuple[Change, ...] = ()
    held: tuple[Change, ...] = ()
    appeared: tuple[str, ...] = ()
    went: tuple[str, ...] = ()
    shapes: tuple[Change, ...] = ()
    outputs: tuple[Change, ...] = ()
    types: tuple[Change, ...] = ()
    totals: tuple[tuple[str, int], ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in _SAID)

    def to_dict(self) -> dict[str, Any]:
        """Returns the difference as plain data."""
        return {**asdict(self), "totals": dict(self.totals)}

    def __rich__(self) -> Text:
        from rich.text import Text

        text = Text()
        for sign, line in _lines(self):
            text.append(f"{sign} {line}\n" if sign else f"{line}\n", style=_STYLE.get(sign, ""))
        text.rstrip()
        return text

    def __str__(self) -> str:
        from rich.console import Console

        out = StringIO()
        Console(file=out, width=10_000, color_system=None).print(self, soft_wrap=True)
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


_SAID = ("frozen", "trainable", "rows", "held", "appeared", "went", "shapes", "outputs", "types")
_WORDS = {
    "frozen": ("*", "became frozen"),
    "trainable": ("~", "became trainable"),
    "rows": ("*", "have other rows frozen"),
    "held": ("*", "are held at inference otherwise"),
    "appeared": ("+", "appeared"),
    "went": ("-", "went"),
    "shapes": ("!", "changed shape or element type"),
    "outputs": ("!", "put out another shape"),
    "types": ("!", "are of another type"),
}
# How many of a kind are printed; the attributes have all.
_MOST = 20
_STYLE = {"*": "cyan", "~": "green", "+": "green", "-": "red", "!": "yellow"}


def _lines(found: Difference) -> Iterator[tuple[str, str]]:
    yield "", found.before if found.before == found.after else f"{found.before} → {found.after}"
    if not found:
        yield "", "  nothing changed"
    for name, (sign, words) in _WORDS.items():
        several = getattr(found, name)
        if several:
            yield "", f"{len(several):,} {words}:"
            yield from ((sign, one if isinstance(one, str) else f"{one.path}: {one.before} → {one.after}") for one in several[:_MOST])
            if len(several) > _MOST:
                yield "", f"  … and {len(several) - _MOST:,} more"
    for name, by in found.totals:
        yield "", f"{name}: {by:+,}"


def difference(summary: Summary, other: object) -> Difference:
    """Compares two summaries of the whole model, array by array and layer by layer.

    Raises:
        ArgumentError: If either was made without its arrays.
    """
    after = other if isinstance(other, Summary) else summary_of(other)
    for one in (summary, after):
        if one.totals.bytes and not one._arrays:  # noqa: SLF001 - of the same class
            raise ArgumentError(f"This summary of {one.label} knows no arrays to compare.\n  Make it by unifreeze.summary(model).")
    was, now = _arrays(summary), _arrays(after)
    both = [path for path in was if path in now]
    turned = [path for path in both if was[path][3] != now[path][3]]
    return Difference(
        summary.label,
        after.label,
        frozen=tuple(path for path in turned if now[path][3] == "frozen"),
        trainable=tuple(path for path in turned if now[path][3] == "trainable"),
        rows=tuple(Change(path, _rows(was[path]), _rows(now[path])) for path in both if was[path][3] == now[path][3] and was[path][4] != now[path][4]),
        held=tuple(_changes(summary, after, "inference", lambda how: how or "not held")),
        appeared=tuple(path for path in now if path not in was),
        went=tuple(path for path in was if path not in now),
        shapes=tuple(Change(path, _form(was[path]), _form(now[path])) for path in both if was[path][1:3] != now[path][1:3]),
        outputs=tuple(one for one in _changes(summary, after, "output_shape", shape_text) if one.before and one.after),
        types=tuple(_changes(summary, after, "type", str)),
        totals=tuple((name, by) for name in ("parameters", "trainable", "frozen", "buffers", "bytes") if (by := _by(summary, after, name))),
    )


def _arrays(summary: Summary) -> dict[str, Array]:
    return {array[0]: array for array in summary._arrays}  # noqa: SLF001 - of the same class


def _by(one: Summary, other: Summary, name: str) -> int:
    return int(getattr(other.totals, name) - getattr(one.totals, name))


def _form(array: Array) -> str:
    return f"{shape_text(array[1])} {array[2]}"


def _rows(array: Array) -> str:
    return "no rows" if array[4] is None else str(array[4])


def _changes(one: Summary, other: Summary, name: str, text: Any) -> Iterator[Change]:
    was = {row.path: getattr(row, name) for row in one.rows}
    for row in other.rows:
        value = getattr(row, name)
        if row.path in was and was[row.path] != value:
            yield Change(row.path, text(was[row.path]), text(value))
