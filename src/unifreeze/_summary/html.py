"""The summary in a notebook: a tree to fold, without a script."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .columns import COLUMNS
from .nest import Node, nested
from .text import sentences, shown_columns, texts_of

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
    names = shown_columns(summary)
    parts.append(f"<div class='line head'>{_spans(names, [COLUMNS[name].head for name in names])}</div>")
    lines = {id(row): _spans(names, texts, row.status) for row, texts in zip(summary.rows, texts_of(summary), strict=True)}
    if summary.listed:
        parts += [_leaf(lines[id(row)], 0) for row in summary.rows]
    else:
        _write(nested(summary.rows), lines, 1 if len(lines) > _OPEN else len(lines), parts)
    parts.append(f"<p>{'<br>'.join(map(html.escape, sentences(summary)))}</p></div>")
    return "".join(parts)


def _write(root: Node, lines: Mapping[int, str], unfolded: int, parts: list[str]) -> None:
    """Appends the tree, with an own stack, so that depth is no limit."""
    pending: list[tuple[Node | str, int]] = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, str):
            parts.append(node)
        elif node.row is None:
            pending += [(child, depth) for child in reversed(node.children)]
        elif not node.children:
            parts.append(_leaf(lines[id(node.row)], depth))
        else:
            opened = " open" if depth < unfolded else ""
            parts.append(f"<details{opened}><summary class='line' style='--depth:{depth}'>{lines[id(node.row)]}</summary>")
            pending.append(("</details>", 0))
            pending += [(child, depth + 1) for child in reversed(node.children)]


def _leaf(line: str, depth: int) -> str:
    return f"<div class='line' style='--depth:{depth}'>{line}</div>"


def _spans(names: Iterable[str], texts: Iterable[str], status: str = "") -> str:
    return "".join(_span(name, text, status) for name, text in zip(names, texts, strict=True))


def _span(name: str, text: str, status: str) -> str:
    mark = "number" if COLUMNS[name].right else status if name == "status" else ""
    return f"<span class='{mark}' style='--width:{_WIDTHS.get(name, '7em')}'>{html.escape(text)}</span>"
