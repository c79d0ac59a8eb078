"""Plays an example, and looks at the arrays that it read at the start and after each of its two phases."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
BACKBONE = ("stem", "block1", "block2")


def check(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the head moves in the first phase; in the second ``block2`` moves with it, all of it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "made", raising=False)
    start, head, both = import_module(name).main(steps=3)
    assert start.keys() == head.keys() == both.keys()
    parts = {path: next((part for part in (*BACKBONE, "head") if path.startswith(part)), None) for path in start}
    assert set(parts.values()) == {*BACKBONE, "head"}
    for path, part in parts.items():
        first, second = [not np.array_equal(before[path], after[path]) for before, after in ((start, head), (head, both))]
        assert (first, second) == (part == "head", part in {"head", "block2"}), path
    shown = capsys.readouterr().out
    assert shown.count("largest change 0, every byte the same") == 2
    assert "compared, none" in shown
