"""Recipes as files: what is read, what is refused and where, and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import toynet
from unifreeze import Phase, Recipe, Step, UnifreezeWarning, apply, freeze
from unifreeze.errors import RecipeError
from unifreeze_toynet_kit import ToynetKit

PHASED = Recipe(
    (Step("freeze", "**"), Step("unfreeze", "head")), "two phases", phases=(Phase((Step("unfreeze", "body"),), epoch=3, learning_rate={"body": 0.1}),)
)


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.yml"])
def test_a_file_reads_back(tmp_path: Path, name: str) -> None:
    PHASED.save(tmp_path / name)
    assert Recipe.read(tmp_path / name) == PHASED


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"version": 2, "steps": [{"freeze": "a"}]}', r"(?s)^version: 2 .*pip install -U"),
        (
            '{"steps": [{"freeze": "a"}, {"freeze": "b"}, {"do": "freeze", "layers": "kind:dens"}]}',
            r"^steps\[2\].layers: unknown kind 'dens', did you mean 'dense'\?",
        ),
        ('{"steps": [{"freeze": "a | ~(b & kind:dens)"}]}', r"^steps\[0\].freeze: unknown kind 'dens'"),
        ('{"steps": [{"freeze": "a", "freeze": "b"}]}', "freeze: stands twice"),
        ('{"name": 3, "steps": [{"freeze": "a"}]}', "^name: Expected `str`"),
        ('{"steps": [{"freeze": "a"}], "notes": [1]}', r"^notes\[0\]: Expected"),
        ('{"steps": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than"),
        ('{"steps": [{"freeze": "' + "a" * (1 << 20) + '"}]}', "larger than"),
        ("steps:\n- freeze: **\n", r"(?s)quotes: freeze: '\*\*'"),
        ("a: &a [x, x]\nsteps: [*a, *a]\n", "(?s)line 2: .*aliases"),
        ("steps:\n- freeze: !!python/object/apply:os.system ['false']\n", "line 2: .*no YAML tags"),
        ("steps:\n- freeze: a\n  freeze: b\n", "stands twice"),
        ("steps: " + "[" * 50 + "]" * 50, "nested more than"),
        ('{"steps": [{"freeze": "a"}], "phases": [{"epoch": 1, "step": 2}]}', r"^phases\[0\]: "),
        ('{"steps": [{"freeze": "a"}], "phases": [{"epoch": 1, "steps": [{"freez": "a"}]}]}', r"^phases\[0\].steps\[0\].freez"),
        ('{"steps": [{"freeze": "a"}], "phases": [{"epoch": 1, "learning_rate": {"a": -1}}]}', r"^phases\[0\]: learning_rate"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, place: str) -> None:
    with pytest.raises(RecipeError, match=place):
        Recipe.read(text)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(RecipeError):
        Recipe.read(f"steps:\n- freeze: !!python/object/apply:builtins.open ['{mark}', 'w']\n")
    assert not mark.exists()


def test_the_calls_do_what_the_recipe_does() -> None:
    recipe = Recipe.read({"steps": [{"freeze": "~head | kind:batch_norm", "inference": "all"}, {"unfreeze": "body", "params": "bias"}]})
    one, other = ToynetKit().reference(), ToynetKit().reference()
    scope: dict[str, object] = {"model": one}
    exec(recipe.to_python(), scope)
    assert scope["freezing"].frozen == apply(other, recipe).frozen  # type: ignore[attr-defined]


def test_apply_twice_is_apply_once_and_says_that_phases_wait() -> None:
    model = ToynetKit().reference()
    with pytest.warns(UnifreezeWarning, match="1 phases"):
        first = apply(model, PHASED)
    with pytest.warns(UnifreezeWarning, match="1 phases"):
        assert apply(model, PHASED).changed == ()
    assert set(first.trainable) == {"head.kernel", "head.bias"}


def build() -> toynet.Layer:
    return ToynetKit().reference()


def frozen() -> toynet.Layer:
    model = build()
    freeze(model, "stem")
    return model


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom unifreeze.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True, env={"COLUMNS": "160", "NO_COLOR": "1"})


def test_at_the_prompt(tmp_path: Path) -> None:
    file = str(tmp_path / "stem.yaml")
    done = _run("recipe", "record", "test_recipe_file:frozen", "--out", file)
    assert done.returncode == 0, done.stderr
    assert "freeze(model, layers='stem')" in _run("recipe", "show", file).stdout
    assert "4 of 16 parameters frozen" in _run("recipe", "check", file, "test_recipe_file:build").stdout
    assert "frozen" in _run("recipe", "apply", file, "test_recipe_file:build").stdout
    for arguments in (("check", file, "test_recipe_file:nobody"), ("check", file, "nocolon"), ("check", str(tmp_path / "none.yaml"))):
        done = _run("recipe", *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
