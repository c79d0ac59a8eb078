"""The example in ``examples/``, with few steps."""

from __future__ import annotations

import pytest

from kits.examples import check


def test_head_first_then_a_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check("with_torch", monkeypatch, capsys)
