"""The demo's proof: it holds where it should, and it fails on a model that moves."""

from __future__ import annotations

import sys
from io import StringIO
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

import toynet
from unifreeze import Freezing, demo, freeze
from unifreeze.select import first
from unifreeze_toynet_kit import ToynetKit


class ToyScene:
    title, code = "the toy", "freeze(model, layers=first(2))"

    def __init__(self) -> None:
        self.model: toynet.Layer = ToynetKit().reference()
        self.trainer = ToynetKit().trainer(self.model, "momentum")

    def freeze(self) -> Freezing:
        return freeze(self.model, layers=first(2))

    def step(self) -> float:
        self.trainer.step()
        return 1.25

    def values(self) -> dict[str, np.ndarray]:
        return dict(ToynetKit().values(self.model))


class MovingScene(ToyScene):
    def step(self) -> float:
        self.model.stem.norm.mean.value = self.model.stem.norm.mean.value + np.float32(1e-6)
        return super().step()


class StuckScene(ToyScene):
    def step(self) -> float:
        return 0.0


def _play(scene: type[ToyScene], monkeypatch: pytest.MonkeyPatch) -> tuple[demo.Played, str]:
    module = ModuleType("unifreeze.demo.toy")
    module.build = scene  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    out = StringIO()
    played = demo.run(Console(file=out, width=140), "toy", steps=3)
    return played, out.getvalue()


def test_it_shows_the_code_the_summary_the_proof_and_what_to_type_next(monkeypatch: pytest.MonkeyPatch) -> None:
    played, shown = _play(ToyScene, monkeypatch)
    assert played.held
    assert set(played.frozen.values()) == {0}
    assert (played.moved, played.others) == (14, 14)
    assert "first(2) is stem.conv and stem.norm" in shown
    for words in ("freeze(model, layers=first(2))", "frozen: 120", "stem.conv.kernel", "of the other 14 arrays 14 moved", "frozen stayed frozen", "Next"):
        assert words in shown
    assert shown.count("identical") == 6


@pytest.mark.parametrize("scene", [MovingScene, StuckScene])
def test_the_proof_fails_when_a_frozen_array_moves_or_nothing_trains(scene: type[ToyScene], monkeypatch: pytest.MonkeyPatch) -> None:
    played, shown = _play(scene, monkeypatch)
    assert not played.held
    assert "the promise was not kept" in shown
