"""Printing: a table in a terminal, plain lines in a pipe, Markdown, JSON, HTML. What is said beside the result goes to stderr."""

import html
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unifreeze import Summary
from unifreeze._summary.plain import plain

from .options import Format

_WIDE = 100_000


def put(thing: Any) -> None:
    """Prints what rich can draw: in the terminal's width and colour, or as plain lines, where a pipe takes them whole."""
    if sys.stdout.isatty():
        Console().print(thing)
        return
    if isinstance(thing, Summary):
        print(plain(thing, _WIDE))
        return
    out = StringIO()
    Console(file=out, width=_WIDE if isinstance(thing, Table) else 120, color_system=None).print(thing)
    print("\n".join(line.rstrip() for line in out.getvalue().splitlines()))


def waiting(what: str) -> AbstractContextManager[object]:
    """Says what takes its time, and takes it away again; nothing where nobody watches."""
    return Console(stderr=True).status(f"{what} …")


def say(*sentences: str) -> None:
    """Says something beside the result."""
    for sentence in sentences:
        print(sentence, file=sys.stderr)


def as_json(data: object) -> None:
    """Prints plain data."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def show(summary: Summary, form: Format) -> None:
    """Prints a summary."""
    if form is Format.table:
        put(summary)
    elif form is Format.html:
        print(summary.to_html())
    else:
        print(summary.to_markdown() if form is Format.markdown else summary.to_json())


@dataclass(frozen=True)
class Lines:
    """A small table of text.

    Attributes:
        head: The names of the columns.
        rows: The cells.
        numbers: The columns that stand to the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()

    def show(self, form: Format, data: Any) -> None:
        """Prints the table, or ``data`` where JSON is asked for."""
        if form is Format.json:
            as_json(data)
        elif form is Format.table:
            put(self._table())
        else:
            print(self._html() if form is Format.html else self._markdown())

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        for word in self.head:
            table.add_column(word, justify="right" if word in self.numbers else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def _markdown(self) -> str:
        rule = ["--:" if word in self.numbers else "---" for word in self.head]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.head, rule, *cells))

    def _html(self) -> str:
        def line(tag: str, row: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

        body = "".join(line("td", row) for row in self.rows)
        return f"<table><thead>{line('th', self.head)}</thead><tbody>{body}</tbody></table>"
