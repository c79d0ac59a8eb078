"""The summary in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from .text import COUNT, lines, sentences

if TYPE_CHECKING:
    from .table import Summary


def table(summary: Summary) -> str:
    """Returns an HTML table and the totals below it."""
    head, *rows = lines(summary, "\u2003")
    align = ["right" if word == COUNT else "left" for word in head]
    marked = [
        "".join(f"<{tag} style='text-align:{side}'>{html.escape(cell)}</{tag}>" for cell, side in zip(line, align, strict=True))
        for tag, line in [("th", head), *(("td", row) for row in rows)]
    ]
    body = "".join(f"<tr>{line}</tr>" for line in marked[1:])
    totals = "<br>".join(map(html.escape, sentences(summary)))
    return f"<table><caption>{html.escape(summary.label)}</caption><thead><tr>{marked[0]}</tr></thead><tbody>{body}</tbody></table><p>{totals}</p>"
