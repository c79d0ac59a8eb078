"""The summary as one self-contained page: an icicle of the parameters, a tree to fold, a search. The page itself stands in ``page.html``."""

from __future__ import annotations

import html
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .columns import COLUMNS, shape_text, size_text
from .nest import Node, nested
from .text import sentences

if TYPE_CHECKING:
    from .table import Summary


def page(summary: Summary, path: str | os.PathLike[str] | None) -> str:
    """Returns the page, and writes it to ``path`` if one is given."""
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    made = template.replace("{{label}}", html.escape(summary.label)).replace("{{data}}", _for_script(_data(summary)))
    if path is not None:
        Path(path).write_text(made, encoding="utf-8")
    return made


def _for_script(data: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element, open a comment, or be read as an entity."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(summary: Summary) -> dict[str, Any]:
    totals = summary.totals
    counts = {"trainable": totals.trainable, "frozen": totals.frozen, "buffers": totals.buffers, "parameters": totals.parameters}
    return {"label": summary.label, "counts": counts, "sentences": sentences(summary), "nodes": _nodes(summary)}


def _nodes(summary: Summary) -> list[dict[str, Any]]:
    """The rows with the layers above those that are shown, parents first, each with its depth. What says nothing is left out."""
    return [{name: value for name, value in _node(node, depth, summary.label).items() if value not in ("", 0)} for node, depth in nested(summary.rows).walk()]


def _node(node: Node, depth: int, label: str) -> dict[str, Any]:
    row = node.row
    if row is None:
        return {"d": depth, "n": label, "p": "", "c": node.parameters}
    facts = {"d": depth, "n": COLUMNS["layer"].cell(row), "p": row.path, "t": COLUMNS["type"].cell(row), "k": row.kind, "s": row.status, "c": node.parameters}
    facts |= {"o": shape_text(row.output_shape), "b": size_text(row.nbytes), "w": COLUMNS["status"].cell(row)}
    return facts | {"m": "; ".join(f"{COLUMNS[name].head}: {value}" for name, value in (row.more or {}).items() if value)}
