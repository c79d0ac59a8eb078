"""Writes what the pages say of the program from the program itself: the help of every command, and what each selector picks in the reference model.

``python docs/generate.py`` writes docs/generated/; with ``--check`` it exits with 1 where a file is not what would be written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import typer

from unifreeze import layers, select
from unifreeze.errors import SelectorError
from unifreeze_toynet_kit import ToynetKit

PAGES = Path(__file__).parent / "generated"

SELECTORS = (
    '"stem"',
    '"stem.*"',
    '"body.layer_*"',
    '"body.layer_1"',
    '"**.norm"',
    'name("norm")',
    'regex(r"body\\.layer_\\d")',
    'kind("dense")',
    'kind("*_norm")',
    'type("Conv")',
    "first(2)",
    "last(1)",
    "nth(0, -1)",
    'before("body.layer_10")',
    'upto("body.layer_1")',
    'after("body.layer_2")',
    'between("stem", "body.layer_10")',
    'where(lambda layer: layer.kind == "conv")',
    "everything",
    '"stem" | last(1)',
    'kind("batch_norm") & "body.**"',
    'kind("dense") - "head"',
    "~last(1)",
    '["stem", last(1)]',
)


def selectors() -> str:
    """The table: each selector, its text, and the layers that it picks; a place for every weighted layer of the model, in its order."""
    model = ToynetKit().reference()
    paths = [layer.path for layer in layers(model)]
    vocabulary = {word: getattr(select, word) for word in [*select.__all__, "type"]}
    lines = ["The eight places stand for " + ", ".join(f"`{path}`" for path in paths) + ".", "", "| in code | as text | picks |", "|---|---|---|"]
    for code in SELECTORS:
        chosen = eval(code, {}, vocabulary)  # noqa: S307 - the texts stand above
        picked = {layer.path for layer in layers(model, chosen)}
        places = "".join("●" if path in picked else "·" for path in paths)
        lines.append(f"| `{_cell(code)}` | {_text(chosen)} | `{places}` |")
    return "\n".join(lines) + "\n"


def _text(chosen: object) -> str:
    try:
        return f"`{_cell(select.selector(chosen).text)}`"
    except SelectorError:
        return "–"


def _cell(code: str) -> str:
    return code.replace("|", "\\|")


def commands() -> str:
    """The help of every command, as the program prints it."""
    from unifreeze.cli.app import app

    words = [(), *((name,) for name in _names(app)), *((group.name, name) for group in app.registered_groups for name in _names(group.typer_instance))]
    return "\n".join(f"### {' '.join(('unifreeze', *each))}\n\n```text\n{_help(each)}\n```\n" for each in words)


def _names(app: typer.Typer) -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands]


def _help(words: tuple[str, ...]) -> str:
    program = "from unifreeze.cli import main; main()"
    plain = os.environ | {"COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    return subprocess.run([sys.executable, "-c", program, *words, "--help"], check=True, capture_output=True, text=True, env=plain).stdout.strip()


def main(words: list[str]) -> int:
    """Writes or checks the files, and returns the exit status."""
    made = {"selectors.md": selectors(), "cli.md": commands()}
    old = [page for page, text in made.items() if not (PAGES / page).exists() or (PAGES / page).read_text(encoding="utf-8") != text]
    for page in old:
        if "--check" in words:
            print(f"docs/generated/{page} is not what the program says now.\n  python docs/generate.py writes it anew", file=sys.stderr)
        else:
            PAGES.mkdir(exist_ok=True)
            (PAGES / page).write_text(made[page], encoding="utf-8")
    return 1 if old and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
