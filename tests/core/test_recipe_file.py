"""Recipes as files: what is read, what is refused and where, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import toynet
from unifreeze import Phase, Recipe, Step, UnifreezeWarning, apply, freeze
from unifreeze.cli import ending
from unifreeze.cli.app import app
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


def frozen(part: str = "stem") -> toynet.Layer:
    model = build()
    freeze(model, part)
    return model


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom unifreeze.cli import main\nmain()"
    env = {"COLUMNS": "160", "NO_COLOR": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True, env=env)


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same without a process of its own."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        status = ending.run(app, words)
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return call


def test_at_the_prompt(tmp_path: Path, inside: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    file = str(tmp_path / "stem.yaml")
    done = _run("recipe", "record", "test_recipe_file:frozen", "--output", file)
    assert done.returncode == 0, done.stderr
    assert "freeze(model, layers='stem')" in inside("recipe", "show", file).stdout
    assert "4 of 16 parameters frozen" in inside("recipe", "check", file, "test_recipe_file:build").stdout
    assert "frozen" in inside("recipe", "apply", file, "test_recipe_file:build").stdout
    done = inside("recipe", "record", "test_recipe_file:frozen", "--arg", "part=head")
    assert [step.layers for step in Recipe.read(done.stdout).steps] == ["head"]


BUILD = "test_recipe_file:build"
PORT = ("port", "--source", BUILD, "--target", BUILD)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "FILE", "test_recipe_file:nobody"), "can't be found"),
        (("check", "none.yaml"), "can't be read as a recipe"),
        (("record", BUILD), "Nothing is frozen"),
        ((*PORT, "FILE", "--shape", "big"), "--shape big is no shape"),
        ((*PORT, "FILE"), "can't trace"),
    ],
)
def test_what_is_wrong_at_the_prompt_is_a_sentence_and_exit_status_2(
    tmp_path: Path, inside: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "stem.json"
    file.write_text('{"steps": [{"freeze": "stem"}]}')
    done = inside("recipe", *(str(file) if word == "FILE" else word for word in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        ({"steps": []}, "^A recipe is an object with a list of steps"),
        ({"steps": [{"freeze": "a", "unfreeze": "b"}]}, r"^steps\[0\]: a step says either freeze or unfreeze"),
        ({"steps": [{"freeze": "a", "param": "bias"}]}, r"(?s)^steps\[0\].param: unknown key.*did you mean 'params'"),
        ({"steps": [{"freeze": "a", "inference": "nrom"}]}, r"(?s)^steps\[0\].inference: .*did you mean 'norm'"),
        ({"steps": [{"freeze": 3}]}, r"^steps\[0\].freeze: layers are the text form"),
        ({"steps": [{"do": "freez", "layers": "a"}]}, r"(?s)^steps\[0\].do: 'freez' is no step.*did you mean 'freeze'"),
        ({"step": [], "steps": [{"freeze": "a"}]}, "(?s)^step: unknown key.*did you mean 'steps'"),
        ({"version": True, "steps": [{"freeze": "a"}]}, "^version: True"),
        ({"steps": [{"freeze": "a"}], "phases": {}}, "^phases: Expected `array`"),
        ({"steps": [{"freeze": "a"}], "phases": [{"epoch": -1}]}, r"^phases\[0\]: A phase begins"),
        ({"steps": [{"freeze": "a"}], "phases": [{"epoch": 1.5}]}, r"^phases\[0\]: A phase begins"),
        ({"steps": [{"freeze": "a"}], "phases": [{"epoch": 1, "learning_rate": {"kind:dens": 1}}]}, r"^phases\[0\].learning_rate: unknown kind 'dens'"),
        ({"steps": [{"freeze": "a"}], "phases": [{"epoch": 1, "learning_rate": {"a": float("nan")}}]}, r"^phases\[0\]: learning_rate"),
        ({"steps": [{"freeze": "a"}], "phases": [{"epoch": 1, "epoc": 2}]}, r"(?s)^phases\[0\].epoc: unknown key.*did you mean 'epoch'"),
    ],
)
def test_a_dictionary_is_read_as_strictly_as_a_file(recipe: dict[str, object], place: str) -> None:
    with pytest.raises(RecipeError, match=place):
        Recipe.read(recipe)


def test_a_file_that_is_too_large_is_not_read_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take all memory there is
    with pytest.raises(RecipeError, match="larger than a recipe may be"):
        Recipe.read(large)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00steps")
    with pytest.raises(RecipeError, match="can't be read"):
        Recipe.read(tmp_path / "binary.yaml")
    with pytest.raises(RecipeError, match="is no recipe"):
        Recipe.read(str(large))


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    with pytest.raises(RecipeError, match="aliases"):
        Recipe.read(bomb + "steps: *j\n")


def test_the_calls_of_a_phase_wait_in_a_function() -> None:
    told = PHASED.to_python()
    assert "# learning rate of 'body': 0.1 times the base rate" in told
    scope: dict[str, object] = {"model": ToynetKit().reference()}
    exec(told, scope)
    assert set(scope["freezing"].trainable) == {"head.kernel", "head.bias"}  # type: ignore[attr-defined]
    later = scope["from_epoch_3"](scope["freezing"])  # type: ignore[operator]
    assert {path.partition(".")[0] for path in later.trainable} == {"head", "body"}
