"""Rows: which part of a parameter is frozen, where it is not all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .errors import NothingSelectedError, SelectorError


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows (indices of axis 0) of a parameter, as ascending spans that do not touch.

    Attributes:
        spans: The first row of each span and the one after its last.

    Example:
        >>> rows = Rows.read(slice(0, 3), 5) | Rows.read([-1], 5)
        >>> str(rows), len(rows), list(rows)
        ('0:3, 4:5', 4, [0, 1, 2, 4])
    """

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, indices: Iterable[int]) -> Rows:
        """Collects row numbers, in any order."""
        spans: list[tuple[int, int]] = []
        for index in sorted(set(indices)):
            if spans and spans[-1][1] == index:
                spans[-1] = spans[-1][0], index + 1
            else:
                spans.append((index, index + 1))
        return cls(tuple(spans))

    @classmethod
    def read(cls, rows: object, length: int, of: str = "the parameter") -> Rows:
        """Reads what a user gave as ``rows=``, for a parameter with ``length`` rows. A negative number counts from the end, as everywhere in Python.

        Raises:
            SelectorError: If it is no rows, or goes past the end.
            NothingSelectedError: If it picks no row.
        """
        found = range(length)[_within(rows, length, of)] if isinstance(rows, slice) else _indices(rows, of)
        beyond = [index for index in found if not -length <= index < length]
        if beyond:
            raise _past_the_end(rows, length, of)
        if not found:
            raise NothingSelectedError(f"rows={_shown(rows)} picks no row of {of}.\n  it has {length:,} rows")
        return cls.of(index % length for index in found)

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.spans:
            yield from range(start, stop)

    def __or__(self, other: Rows) -> Rows:
        return Rows.of([*self, *other])

    def __sub__(self, other: Rows) -> Rows:
        return Rows.of(set(self).difference(other))

    def __str__(self) -> str:
        shown = ", ".join(f"{start}:{stop}" for start, stop in self.spans[:3])
        return f"{shown}, …" if len(self.spans) > 3 else shown


def _within(rows: slice, length: int, of: str) -> slice:
    """A slice is not cut to length, as Python would: rows that are not there were meant for another parameter."""
    bounds = [bound for bound in (rows.start, rows.stop) if bound is not None]
    if not all(isinstance(bound, int) for bound in bounds):
        raise _no_rows(rows, of)
    if any(not -length <= bound <= length for bound in bounds):
        raise _past_the_end(rows, length, of)
    return rows


def _indices(rows: Any, of: str) -> list[int]:
    plain = rows.tolist() if hasattr(rows, "tolist") else rows
    if not isinstance(plain, list | tuple | range | set | frozenset) or any(isinstance(index, bool) or not hasattr(index, "__index__") for index in plain):
        raise _no_rows(rows, of)
    return [index.__index__() for index in plain]


def _no_rows(rows: object, of: str) -> SelectorError:
    return SelectorError(
        f"rows={_shown(rows)} does not pick rows of {of}.\n  rows are a slice, a range, or a list or array of row numbers; not a single number, not a mask\n"
        "  Write rows=slice(0, 30_000) or rows=[5]; of a mask, its nonzero()."
    )


def _past_the_end(rows: object, length: int, of: str) -> SelectorError:
    return SelectorError(
        f"rows={_shown(rows)} goes past the end of {of}.\n  it has {length:,} rows\n  Narrow layers= or params= to the parameters that are meant."
    )


def _shown(rows: object) -> str:
    text = repr(rows)
    return text if len(text) <= 60 else f"{text[:57]}…"
