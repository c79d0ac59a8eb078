"""The tutorial runs as it stands, and what it prints and claims is true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial_inception.md"


def test_the_page_runs_and_its_figures_are_those_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    import torchvision_cpu  # noqa: F401

    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 7
    scope: dict[str, object] = {}
    exec("\n".join(blocks), scope)
    said = capsys.readouterr().out
    assert "<Correspondence: exact up to the head, 188 pairs of layers>" in said
    for figure in ("10,653,472", "10,664,160"):
        assert figure in said
        assert figure in text
    # The two figures that no block checks, with our own eyes.
    model = scope["keras_model"]
    assert sum(int(np.prod(v.shape)) for v in model.non_trainable_weights) == 10_687_904  # type: ignore[attr-defined]
    assert sum(p.numel() for p in scope["scales"]) == 10_688  # type: ignore[attr-defined]
