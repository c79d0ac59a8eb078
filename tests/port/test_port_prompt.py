"""Porting at the prompt, run as a process; what is said otherwise is run in this one, which has Keras and PyTorch already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from unifreeze import Recipe, apply
from unifreeze.cli import ending
from unifreeze.cli.app import app

Inside = Callable[..., subprocess.CompletedProcess[str]]

MODELS = """
import keras
from torch import nn

L = keras.layers


def ours(width=4, frozen=False):
    image = keras.Input((9, 9, 3))
    x = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(int(width), 3, name="stem")(image)))
    model = keras.Model(image, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))
    if frozen:
        for layer in model.layers[:3]:
            layer.trainable = False
    return model


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.conv, self.bn = nn.Linear(4, 2), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))

"""


class Theirs(nn.Module):
    """As in the module that the process imports."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv, self.bn = nn.Linear(4, 2), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mymodels.py").write_text(MODELS)
    (tmp_path / "ours.yaml").write_text("version: 1\nname: the stem\nsteps:\n- freeze: before:head\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "160", "NO_COLOR": "1"}
    program = "from unifreeze.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", program, "recipe", *arguments], check=False, capture_output=True, text=True, cwd=folder, env=env)


@pytest.fixture
def inside(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    """The same without a process of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)
    return lambda *words: subprocess.CompletedProcess(words, ending.run(app, ["recipe", *words]), *capsys.readouterr())


TWO = ("--source", "mymodels:ours", "--target", "mymodels:Theirs")


def test_a_recipe_is_carried_to_the_words_of_the_target(folder: Path) -> None:
    done = run(folder, "port", "ours.yaml", *TWO, "--shape", "1,9,9,3", "--output", "theirs.yaml")
    assert done.returncode == 0, done.stderr
    for said in (
        "exact, 3 pairs",
        "frozen: 120 parameters in the source, 116 in the target",
        "only the source has a bias in 1 layer (4 param",
        "epsilon differs",
    ):
        assert said in done.stdout
    recipe = Recipe.read(folder / "theirs.yaml")
    assert recipe.name == "the stem"
    theirs = Theirs()
    apply(theirs, recipe)
    assert {name for name, p in theirs.named_parameters() if not p.requires_grad} == {"conv.weight", "bn.weight", "bn.bias"}


def test_without_a_file_what_the_source_comes_frozen_with_is_carried_and_arguments_reach_the_callable(inside: Inside) -> None:
    done = inside("port", *TWO, "--source-arg", "frozen=True")
    assert done.returncode == 0, done.stderr
    assert [step.do for step in Recipe.read(done.stdout).steps] == ["freeze"]
    assert "exact, 3 pairs" in done.stderr


def test_models_that_do_not_correspond_are_a_sentence_and_exit_status_2(inside: Inside, folder: Path) -> None:
    done = inside("port", "ours.yaml", *TWO, "--source-arg", "width=5", "--output", "theirs.yaml")
    assert done.returncode == 2
    assert "not even the first layers are the same" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "theirs.yaml").exists()
