"""The summary as text: a table for the terminal, and Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
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


def texts_of(summary: Summary, indent: str = "") -> Iterator[list[str]]:
    """Every row as text, with its name indented by depth; in a list, its name is its path."""
    ways = [_layer(summary, indent) if name == "layer" else COLUMNS[name].cell for name in shown_columns(summary)]
    return ([way(row) for way in ways] for row in summary.rows)


def _layer(summary: Summary, indent: str) -> Callable[[Row], str]:
    if summary.listed:
        return lambda row: row.path or row.type
    return lambda row: indent * row.depth + COLUMNS["layer"].cell(row)


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
    lines += [[_escaped(cell) for cell in texts] for texts in texts_of(summary, "&nbsp;&nbsp;")]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *(f"- {_escaped(line)}" for line in sentences(summary))])


def _escaped(text: str) -> str:
    """A name can neither end a cell nor become markup; the indent of a cell is ours and stays."""
    indent, _, name = text.rpartition("&nbsp;") if text.startswith("&nbsp;") else ("", "", text)
    marked = re.sub(r"([\\|`*\[])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", html.escape(name, quote=False))
    return (f"{indent}&nbsp;" if indent or text != name else "") + re.sub(r"\s+", " ", marked)


def rich_table(summary: Summary) -> Table:
    """Returns the table with colours, for a rich console."""
    from rich.text import Text

    table = empty_table(summary)
    table.caption, table.caption_justify = Text("\n".join(sentences(summary))), "left"
    names = shown_columns(summary)
    for row, texts in zip(summary.rows, texts_of(summary, "  "), strict=True):
        style = _STYLE.get(row.status, "dim")
        table.add_row(*(Text(cell, style=style if name == "status" else "") for name, cell in zip(names, texts, strict=True)))
    return table


def empty_table(summary: Summary, widths: Sequence[int] | None = None) -> Table:
    """Returns the title and the heads of the columns, as wide as they are told to be."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(summary.label), box=box.SIMPLE_HEAD)
    for place, name in enumerate(shown_columns(summary)):
        column = COLUMNS[name]
        table.add_column(column.head, justify="right" if column.right else "left", overflow="fold", width=widths[place] if widths else None)
    return table
