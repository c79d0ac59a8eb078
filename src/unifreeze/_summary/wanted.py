"""What ``summary`` was asked for, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from unifreeze._tree import natural
from unifreeze.errors import ArgumentError, near

from .rows import Row
from .table import checked_depth

SORTS: dict[str, Callable[[Row], Any]] = {
    "path": lambda row: natural(row.path),
    "type": lambda row: row.type,
    "kind": lambda row: row.kind,
    "status": lambda row: row.status,
    "parameters": lambda row: -row.parameters,
    "buffers": lambda row: -row.buffers,
    "bytes": lambda row: -row.nbytes,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What ``summary`` was asked for; see there."""

    depth: int | None = None
    layers: object = None
    columns: object = None
    sort: str = "model"
    collapse: bool = False
    inputs: object = None
    input_shape: object = None
    call: object = None
    optimizer: str | None = None

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Self:
        """Reads keywords.

        Raises:
            ArgumentError: If there is an unknown one; the message names the one that was meant.
        """
        for unknown in words.keys() - cls.__slots__:
            raise ArgumentError(f"summary() has no argument {unknown!r}.\n  it has: {', '.join(cls.__slots__)}\n  {near(unknown, cls.__slots__)}".rstrip())
        return cls(**words)

    def __post_init__(self) -> None:
        """Refuses what can't be understood before anything is read."""
        checked_depth(self.depth)
        if self.sort != "model" and self.sort not in SORTS:
            raise ArgumentError(f"sort={self.sort!r} is no order.\n  there are: model, {', '.join(SORTS)}\n  {near(str(self.sort), SORTS)}".rstrip())
        if self.collapse and self.sort != "model":
            raise ArgumentError(f"collapse=True joins neighbours, and sort={self.sort!r} parts them.\n  Give one of the two.")
        if self.inputs is not None and self.input_shape is not None:
            raise ArgumentError("inputs= and input_shape= were both given.\n  inputs= are arrays, input_shape= is a shape: one tells what the other does.")
        if self.call is not None and not self.shapes:
            raise ArgumentError("call= says what computes, and nothing says on what.\n  Give inputs= or input_shape= as well.")

    @property
    def shapes(self) -> bool:
        """Whether output shapes are asked for."""
        return self.inputs is not None or self.input_shape is not None
