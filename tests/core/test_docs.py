"""The documentation names everything that is public, and its blocks all say where they run."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
PYTHON = re.compile(r"^[ \t]*```python", re.MULTILINE)
MARK = re.compile(r"<!-- runs: (.*?) -->")
SESSIONS = {"core", "nowhere", "torch", "keras", "keras-tensorflow", "keras-jax", "keras-torch", "jax", "nnx", "equinox", "port"}


def _public() -> list[str]:
    rooms = ("unifreeze", "unifreeze.plugin", "unifreeze.testing", "unifreeze.select")
    # Python's own, handed on because a backend may import nothing else.
    return [f"{room}.{name}" for room in rooms for name in import_module(room).__all__ if name != "ExitStack"]


def _found(path: str) -> object:
    """The object at a dotted path."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        room, _, name = path.rpartition(".")
        return getattr(import_module(room), name)


def _documented() -> list[object]:
    """What the reference asks for: an object, or of a module the members that are listed (all that it defines, where none are)."""
    objects: list[object] = []
    for path, listed in re.findall(r"^::: ([\w.]+)\n(?:    options: \{ members: \[(.*?)\] \})?", (DOCS / "reference.md").read_text(), re.MULTILINE):
        found = _found(path)
        names = listed.split(", ") if listed else [name for name in vars(found) if isinstance(found, ModuleType) and not name.startswith("_")]
        objects += [found, *(getattr(found, name) for name in names)]
    return objects


@pytest.mark.parametrize("path", _public())
def test_the_reference_has_every_public_name(path: str) -> None:
    wanted = _found(path)
    assert any(one is wanted for one in _documented())


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_every_block_of_python_says_where_it_runs(page: Path) -> None:
    text = page.read_text()
    marks = list(MARK.finditer(text))
    assert {name for mark in marks for name in mark[1].split()} <= SESSIONS
    for block in PYTHON.finditer(text):
        assert any(mark.start() < block.start() for mark in marks), f"line {text[: block.start()].count(chr(10)) + 1}"
