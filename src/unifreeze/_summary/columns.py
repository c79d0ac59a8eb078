"""The columns that a summary may have, each with its head and how a row reads in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unifreeze.errors import ArgumentError, near

from .rows import Row


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        head: What stands above it.
        cell: A row's text in it.
        right: Whether it holds numbers, which are set to the right.
    """

    head: str
    cell: Callable[[Row], str]
    right: bool = False


def _name(row: Row) -> str:
    first, last = row.path.rpartition(".")[2] or row.type, row.last.rpartition(".")[2]
    if not last:
        return first
    return f"{first}–{last}" if last.isdigit() else f"{first} – {last}"


def _type(row: Row) -> str:
    return f"{row.repeat} × {row.type}" if row.repeat > 1 else row.type


def _count(row: Row) -> str:
    if not row.parameters and row.shared_with:
        return ""
    return f"each {row.parameters:,}" if row.repeat > 1 else f"{row.parameters:,}"


def _status(row: Row) -> str:
    notes = [f"{row.frozen_rows:,} rows frozen"] if row.frozen_rows else []
    if row.shared_with:
        notes.append(f"shared with {row.shared_with}")
    if row.drifts:
        notes.append("statistics move")
    return row.status + (f" ({', '.join(notes)})" if notes else "")


def shape_text(shape: tuple[int | None, ...] | None) -> str:
    """A shape as Python writes it, with a dash for a free axis."""
    return "" if shape is None else "(" + ", ".join("-" if axis is None else str(axis) for axis in shape) + ")"


def size_text(size: float) -> str:
    """Bytes in the unit that suits them, of 1,024 of the one before.

    >>> size_text(14248)
    '13.91 KB'
    """
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:,.2f} {unit}"
        size /= 1024
    return f"{size:,.2f} GB"


def _extra(key: str) -> Callable[[Row], str]:
    return lambda row: row.more[key] if row.more and key in row.more else ""


#: What ``columns=`` may name. ``layer`` is the name, indented by depth; ``parameters``, ``buffers`` and ``bytes`` are of a layer with everything inside it.
COLUMNS = {
    "layer": Column("Layer", _name),
    "path": Column("Path", lambda row: row.path + (f" – {row.last}" if row.last else "")),
    "type": Column("Type", _type),
    "kind": Column("Kind", lambda row: row.kind),
    "output_shape": Column("Output shape", lambda row: shape_text(row.output_shape)),
    "parameters": Column("Parameters", _count, right=True),
    "buffers": Column("Buffers", lambda row: f"{row.buffers:,}", right=True),
    "bytes": Column("Bytes", lambda row: size_text(row.nbytes), right=True),
    "dtype": Column("Dtype", _extra("dtype")),
    "status": Column("Status", _status),
    "statistics": Column("Statistics", _extra("statistics")),
    "mode": Column("Mode", _extra("mode")),
    "why": Column("Why it is frozen", _extra("why")),
}
DEFAULT = ("layer", "type", "output_shape", "parameters", "status")
#: What takes more than the count of arrays to know, and is computed where it is asked for.
COMPUTED = ("dtype", "statistics", "mode", "why")


def chosen(columns: object) -> tuple[str, ...]:
    """Reads ``columns=``.

    Raises:
        ArgumentError: If it names no column, or one that there is not.
    """
    if columns is None:
        return DEFAULT
    names = (columns,) if isinstance(columns, str) else tuple(columns) if isinstance(columns, list | tuple) else ()
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or not names:
        what = f"{unknown[0]!r} is no column" if unknown else f"columns={columns!r} names no column"
        hint = near(str(unknown[0]), COLUMNS) if unknown else ""
        raise ArgumentError(f"{what}.\n  there are: {', '.join(COLUMNS)}\n  {hint}".rstrip())
    return names
