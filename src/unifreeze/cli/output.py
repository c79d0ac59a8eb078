"""Printing: a table in a terminal, plain lines in a pipe, Markdown, JSON, HTML. What is said beside the result goes to stderr."""

import html
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unifreeze import Summary

from .options import Format


class _Stdout(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to ``ending``: rich would exit with 1, which means here that something was found."""
        raise BrokenPipeError


def terminal() -> Console:
    """Returns where to print: the terminal in its width, or a pipe, where no line is broken."""
    return _Stdout() if sys.stdout.isatty() else _Stdout(width=100_000)


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
        terminal().print(summary)
    elif form is Format.html:
        print(summary._repr_html_())
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
            terminal().print(self._table())
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
