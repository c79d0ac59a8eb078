"""The summary in a notebook: a tree to fold, without a script."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from .columns import COLUMNS
from .nest import Node, nested
from .rows import Row
from .text import cells, sentences, shown_columns

if TYPE_CHECKING:
    from .table import Summary

# A model of more layers than this starts folded below its first level.
_OPEN = 40
_STYLE = """
.unifreeze-summary { font: 13px/1.5 system-ui, sans-serif; }
.unifreeze-summary .line { display: flex; gap: 1em; align-items: baseline; cursor: default; }
.unifreeze-summary summary.line { cursor: pointer; list-style: none; }
.unifreeze-summary summary.line::-webkit-details-marker { display: none; }
.unifreeze-summary .line > span { flex: 0 0 var(--width); width: var(--width); overflow-wrap: anywhere; }
.unifreeze-summary .line > span:first-child { flex: 1 1 16em; padding-left: calc(var(--depth) * 1.2em); }
.unifreeze-summary summary.line > span:first-child::before { content: "▸ "; }
.unifreeze-summary details[open] > summary.line > span:first-child::before { content: "▾ "; }
.unifreeze-summary .number { text-align: right; font-variant-numeric: tabular-nums; }
.unifreeze-summary .head { font-weight: 600; border-bottom: 1px solid currentColor; }
.unifreeze-summary div.line > span:first-child { padding-left: calc(var(--depth) * 1.2em + 1em); }
.unifreeze-summary div.head > span:first-child { padding-left: 0; }
.unifreeze-summary .frozen, .unifreeze-summary .held { color: #0072b2; }
.unifreeze-summary .trainable { color: #b35900; }
.unifreeze-summary .partial { color: #8a2f6b; }
@media (prefers-color-scheme: dark) {
  .unifreeze-summary .frozen, .unifreeze-summary .held { color: #56b4e9; }
  .unifreeze-summary .trainable { color: #e69f00; }
  .unifreeze-summary .partial { color: #cc79a7; }
}
""".strip()
_WIDTHS = {"path": "16em", "type": "11em", "kind": "8em", "output_shape": "10em", "dtype": "8em", "status": "11em", "mode": "7em", "why": "18em"}


def tree(summary: Summary) -> str:
    """Returns an HTML tree of ``details`` elements with the totals below it. Every name and every word in it is escaped."""
    parts = [f"<div class='unifreeze-summary'><style>{_STYLE}</style><strong>{html.escape(summary.label)}</strong>"]
    parts.append(f"<div class='line head'>{_spans(summary, [COLUMNS[name].head for name in shown_columns(summary)])}</div>")
    unfolded = 1 if len(summary.rows) > _OPEN else len(summary.rows)
    if summary.listed:
        parts += [_leaf(summary, row, 0) for row in summary.rows]
    else:
        _write(summary, nested(summary.rows), unfolded, parts)
    parts.append(f"<p>{'<br>'.join(map(html.escape, sentences(summary)))}</p></div>")
    return "".join(parts)


def _write(summary: Summary, root: Node, unfolded: int, parts: list[str]) -> None:
    """Appends the tree, with an own stack, so that depth is no limit."""
    pending: list[tuple[Node | str, int]] = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, str):
            parts.append(node)
        elif node.row is None:
            pending += [(child, depth) for child in reversed(node.children)]
        elif not node.children:
            parts.append(_leaf(summary, node.row, depth))
        else:
            opened = " open" if depth < unfolded else ""
            line = f"<summary class='line' style='--depth:{depth}'>{_spans(summary, cells(summary, node.row), node.row.status)}</summary>"
            parts.append(f"<details{opened}>{line}")
            pending.append(("</details>", 0))
            pending += [(child, depth + 1) for child in reversed(node.children)]


def _leaf(summary: Summary, row: Row, depth: int) -> str:
    return f"<div class='line' style='--depth:{depth}'>{_spans(summary, cells(summary, row), row.status)}</div>"


def _spans(summary: Summary, texts: list[str], status: str = "") -> str:
    return "".join(_span(name, text, status) for name, text in zip(shown_columns(summary), texts, strict=True))


def _span(name: str, text: str, status: str) -> str:
    mark = "number" if COLUMNS[name].right else status if name == "status" else ""
    return f"<span class='{mark}' style='--width:{_WIDTHS.get(name, '7em')}'>{html.escape(text)}</span>"
