"""The table as plain lines: what rich prints without colour, from rich's own head and widths, at a fraction of its cost for each row."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import zip_longest
from typing import TYPE_CHECKING

from .columns import COLUMNS
from .text import empty_table, sentences, shown_columns, texts_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from .table import Summary


def terminal_width() -> int:
    """How wide the terminal is, or 100 where there is none; 60 at least."""
    return max(shutil.get_terminal_size((100, 24)).columns, 60)


def plain(summary: Summary, width: int) -> str:
    """Returns the table without colours, ``width`` characters wide at most."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=StringIO(), width=width, color_system=None)
    rows = list(texts_of(summary, "  "))
    if not all(cell.isprintable() for row in rows for cell in row):  # names with tabs and the like are rich's business
        return _joined(_printed(summary, console))
    widths = _widths(summary, rows, console)
    # The one row, which is blank, and the blank line below it.
    *head, _, _ = _printed(_with_row(summary, widths), console)
    caption = Text("\n".join(sentences(summary))).wrap(console, sum(widths) + 3 * len(widths) + 1)
    return _joined([*head, *_body(summary, rows, widths, console), "", *(line.plain for line in caption)])


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _with_row(summary: Summary, widths: Sequence[int]) -> RenderableType:
    table = empty_table(summary, widths)
    table.add_row(*("" for _ in widths))
    return table


def _printed(thing: RenderableType | Summary, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(thing)
    return captured.get().splitlines()


def _widths(summary: Summary, rows: Sequence[Sequence[str]], console: Console) -> list[int]:
    """The widths that rich gives the columns, which depend on the widest cell of each: read off the rule below the heads."""
    from rich.box import Box
    from rich.text import Text

    table = empty_table(summary)
    table.box = Box("    \n    \n ─┼ \n    \n    \n    \n    \n    \n")
    table.title = None
    if rows:
        table.add_row(*(Text(max(column, key=_length)) for column in zip(*rows, strict=True)))
    rule = next(line for line in _printed(table, console) if "─" in line and not line.strip(" ─┼"))
    return [len(part) - 2 for part in rule.strip().split("┼")]


def _length(text: str) -> int:
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)


def _body(summary: Summary, rows: Sequence[Sequence[str]], widths: Sequence[int], console: Console) -> Iterator[str]:
    right = [COLUMNS[name].right for name in shown_columns(summary)]
    line = "  " + "   ".join(f"{{:{'>' if to_right else '<'}{width}}}" for width, to_right in zip(widths, right, strict=True))
    for row in rows:
        if all(cell.isascii() and len(cell) <= width for cell, width in zip(row, widths, strict=True)):
            yield line.format(*row)
        else:
            parts = (_folded(cell, width, console) for cell, width in zip(row, widths, strict=True))
            yield from (_line(cells, widths, right) for cells in zip_longest(*parts, fillvalue=""))


def _line(cells: Iterable[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (" " * (width - _length(cell)) for cell, width in zip(cells, widths, strict=True))
    return "  " + "   ".join(pad + cell if to_right else cell + pad for cell, pad, to_right in zip(cells, padded, right, strict=True))


def _folded(cell: str, width: int, console: Console) -> list[str]:
    """A cell that is too wide, or has signs of another width than one, in lines that fit, as rich breaks them."""
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(cell).wrap(console, width, overflow="fold")]
