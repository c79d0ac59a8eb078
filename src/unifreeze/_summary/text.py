"""The summary as text: a table for the terminal, and Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

from .columns import COLUMNS, DEFAULT, size_text

if TYPE_CHECKING:
    from rich.table import Table

    from .rows import Row
    from .table import Summary

_STYLE = {"trainable": "green", "frozen": "cyan", "partial": "yellow", "held": "cyan"}


def shown_columns(summary: Summary) -> tuple[str, ...]:
    """The columns; unless they were chosen, output shapes are left out where none is known (in PyTorch)."""
    if summary.columns != DEFAULT or any(row.output_shape is not None for row in summary.rows):
        return summary.columns
    return tuple(name for name in summary.columns if name != "output_shape")


def cells(summary: Summary, row: Row, indent: str = "") -> list[str]:
    """A row as text, with its name indented by depth; in a list, its name is its path."""
    return [_layer(summary, row, indent) if name == "layer" else COLUMNS[name].cell(row) for name in shown_columns(summary)]


def _layer(summary: Summary, row: Row, indent: str) -> str:
    return row.path or row.type if summary.listed else indent * row.depth + COLUMNS["layer"].cell(row)


def sentences(summary: Summary) -> list[str]:
    """Returns the totals in words, and the notes."""
    t = summary.totals
    by_dtype = ", ".join(f"{dtype} {size_text(size)}" for dtype, size in sorted(t.bytes_by_dtype.items()))
    return [
        f"Parameters: {t.parameters:,} ({size_text(t.bytes_trainable + t.bytes_frozen)})",
        f"trainable: {t.trainable:,} ({size_text(t.bytes_trainable)})",
        f"frozen: {t.frozen:,} ({size_text(t.bytes_frozen)})",
        f"Buffers: {t.buffers:,} ({size_text(t.bytes_buffers)})",
        f"Bytes by type: {by_dtype or 'none'}",
        *_training(summary),
        *([f"Shown: {len(summary.rows):,} of {summary.layers:,} layers"] if summary.listed and len(summary.rows) < summary.layers else []),
        *summary.notes,
    ]


def _training(summary: Summary) -> Iterator[str]:
    needed = summary.training
    if needed is not None:
        yield f"Training needs besides: gradients {size_text(needed.gradients)}, state of {needed.optimizer} {size_text(needed.state)} ({needed.formula})"


def markdown(summary: Summary) -> str:
    """Returns a Markdown table and the totals below it."""
    heads = [COLUMNS[name] for name in shown_columns(summary)]
    lines = [[head.head for head in heads], ["--:" if head.right else "---" for head in heads]]
    lines += [[_escaped(cell) for cell in cells(summary, row, "&nbsp;&nbsp;")] for row in summary.rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *(f"- {_escaped(line)}" for line in sentences(summary))])


def _escaped(text: str) -> str:
    """A name can neither end a cell nor become markup; the indent of a cell is ours and stays."""
    indent, _, name = text.rpartition("&nbsp;") if text.startswith("&nbsp;") else ("", "", text)
    marked = re.sub(r"([\\|`*\[])|(?<!\w)_|_(?!\w)", r"\\\g<0>", html.escape(name, quote=False))
    return (f"{indent}&nbsp;" if indent or text != name else "") + re.sub(r"\s+", " ", marked)


def rich_table(summary: Summary) -> Table:
    """Returns the table with colours, for a rich console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = shown_columns(summary)
    table = Table(title=Text(summary.label), caption=Text("\n".join(sentences(summary))), caption_justify="left", box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(COLUMNS[name].head, justify="right" if COLUMNS[name].right else "left", overflow="fold")
    for row in summary.rows:
        style = _STYLE.get(row.status, "dim")
        table.add_row(*(Text(cell, style=style if name == "status" else "") for name, cell in zip(names, cells(summary, row, "  "), strict=True)))
    return table


def plain(summary: Summary) -> str:
    """Returns the table without colours, as wide as the terminal."""
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=_width(), color_system=None).print(summary)
    return out.getvalue().rstrip()


def _width() -> int:
    import shutil

    return max(shutil.get_terminal_size((100, 24)).columns, 60)
