"""The tables of docs/coming.md: what people wrote, and what they write with unifreeze."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import unifreeze
from unifreeze import select

PAGE = Path(__file__).parent.parent.parent / "docs" / "coming.md"
WORDS = {"freeze": unifreeze.freeze, "unfreeze": unifreeze.unfreeze} | {word: getattr(select, word) for word in ("before", "first", "kind", "last", "regex")}


def rows(section: str) -> list[Any]:
    """The pairs of code in one section's table."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    found = re.findall(r"^\| `(.*?)` \| `(.*?)` \|$", text, re.MULTILINE)
    # Every line of the table but its head and its rule is a pair.
    assert len(found) == len(re.findall(r"^\|", text, re.MULTILINE)) - 2
    return [pytest.param(*(code.replace("\\|", "|") for code in pair), id=pair[0]) for pair in found]


def run(code: str, **names: Any) -> dict[str, Any]:
    """Executes a cell, and returns the names that it leaves."""
    space = WORDS | names
    exec(code, space)
    return space
