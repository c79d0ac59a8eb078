"""The summary as text: a table for the terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from .rows import Row
    from .table import Summary

HEAD = ("Layer", "Type", "Output shape", "Parameters", "Status")
COUNT = "Parameters"
_STYLE = {"trainable": "green", "frozen": "cyan", "partial": "yellow", "held": "cyan"}


def cells(row: Row, indent: str) -> tuple[str, ...]:
    """Returns a row as text, its name indented by depth."""
    name = indent * row.depth + (row.path.rpartition(".")[2] or row.type)
    count = f"{row.parameters:,}" if row.parameters or not row.shared_with else ""
    notes = [f"{row.frozen_rows:,} rows frozen"] if row.frozen_rows else []
    if row.shared_with:
        notes.append(f"shared with {row.shared_with}")
    if row.drifts:
        notes.append("statistics move")
    return name, row.type, _shape(row.output_shape), count, row.status + (f" ({', '.join(notes)})" if notes else "")


def lines(summary: Summary, indent: str) -> Iterator[list[str]]:
    """The head and the rows as text. A column that would be empty in every row (output shapes in PyTorch) is left out."""
    shapes = any(row.output_shape is not None for row in summary.rows)
    kept = [place for place, word in enumerate(HEAD) if shapes or word != "Output shape"]
    for line in (HEAD, *(cells(row, indent) for row in summary.rows)):
        yield [line[place] for place in kept]


def sentences(summary: Summary) -> list[str]:
    """Returns the totals in words, and the notes."""
    t = summary.totals
    by_dtype = ", ".join(f"{dtype} {_bytes(size)}" for dtype, size in sorted(t.bytes_by_dtype.items()))
    return [
        f"Parameters: {t.parameters:,} ({_bytes(t.bytes_trainable + t.bytes_frozen)})",
        f"trainable: {t.trainable:,} ({_bytes(t.bytes_trainable)})",
        f"frozen: {t.frozen:,} ({_bytes(t.bytes_frozen)})",
        f"Buffers: {t.buffers:,} ({_bytes(t.bytes_buffers)})",
        f"Bytes by type: {by_dtype or 'none'}",
        *summary.notes,
    ]


def markdown(summary: Summary) -> str:
    """Returns a Markdown table and the totals below it."""
    head, *rows = ([cell.replace("|", "\\|") for cell in line] for line in lines(summary, "&nbsp;&nbsp;"))
    rule = ["--:" if word == COUNT else "---" for word in head]
    table = [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]
    return "\n".join([*table, "", *(f"- {line}" for line in sentences(summary))])


def rich_table(summary: Summary) -> Table:
    """Returns the table with colours, for a rich console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head, *rows = lines(summary, "  ")
    table = Table(title=summary.label, caption="\n".join(sentences(summary)), caption_justify="left", box=box.SIMPLE_HEAD)
    for word in head:
        table.add_column(word, justify="right" if word == COUNT else "left", overflow="fold")
    for *plain_cells, status in rows:
        table.add_row(*map(Text, plain_cells), Text(status, style=_STYLE.get(status.partition(" ")[0], "dim")))
    return table


def plain(summary: Summary) -> str:
    """Returns the table without colours, as wide as the terminal."""
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=_width(), color_system=None).print(summary)
    return out.getvalue().rstrip()


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return "" if shape is None else "(" + ", ".join("-" if axis is None else str(axis) for axis in shape) + ")"


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:,.2f} {unit}"
        amount /= 1024
    raise AssertionError


def _width() -> int:
    import shutil

    return max(shutil.get_terminal_size((100, 24)).columns, 60)
