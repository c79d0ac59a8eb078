"""The command line, run as a process, on models of the toy framework."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from kits.prompt import run
from unifreeze import Recipe, apply
from unifreeze.cli import ending
from unifreeze.cli.app import app
from unifreeze_toynet_kit import ToynetKit

FRAMEWORK = any(map(find_spec, ("keras", "torch", "jax")))

Inside = Callable[..., subprocess.CompletedProcess[str]]

MODELS = """
import warnings
import toynet
from unifreeze import freeze
from unifreeze_toynet_kit import ToynetKit

print("hello from the module")
ready = ToynetKit().reference()


class Zoo:
    reference = staticmethod(ToynetKit().reference)


def built(length=2, name="", bare=False):
    print("building", repr(name), bare)
    return ToynetKit().chain(length)


def frozen():
    model = ToynetKit().reference()
    model.stem.conv.kernel.trainable = False
    return model


def frozen_norm():
    model = ToynetKit().reference()
    model.stem.norm.scale.trainable = model.stem.norm.bias.trainable = False
    return model.train()


def freezing():
    return freeze(ToynetKit().reference(), "body")


def broken():
    return {}["no such key"]


def leaving():
    raise SystemExit(0)


def nothing():
    return None
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "half.py").write_text("import a_package_that_is_not_here")
    return tmp_path


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path) -> Inside:
    """The same without a process of its own, for many words."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("models", "half"):
        sys.modules.pop(name, None)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        status = ending.run(app, words)
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return call


def test_layers_are_listed_line_by_line(here: Path) -> None:
    done = run("layers", "models:ready", "stem", "last:1", cwd=here)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if "trainable" in line] == ["stem.conv", "stem.norm", "head"]
    assert "hello from the module" in done.stderr


def test_what_is_piped_is_plain_and_no_line_is_broken(here: Path) -> None:
    done = run("layers", "models:built", "--arg", "length=3", cwd=here, COLUMNS="20")
    assert "\x1b" not in done.stdout + done.stderr
    assert [line.split() for line in done.stdout.splitlines() if "layer_2" in line] == [["layer_2", "dense", "Dense", "2", "trainable"]]


def test_a_terminal_gets_colour_and_its_width(here: Path) -> None:
    ours, theirs = pty.openpty()
    plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color", "COLUMNS": "60"}
    program = "from unifreeze.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "freeze", "models:ready", "stem"], cwd=here, stdout=theirs, stderr=theirs, env=plain, check=False)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux says so when the other end is closed
        pass
    assert done.returncode == 0
    assert b"\x1b[36mfrozen" in shown
    assert b"building models:ready" in shown


@pytest.mark.parametrize(
    ("target", "words", "paths"),
    [
        ("models:ready", ["stem.*"], ["stem.conv", "stem.norm"]),
        ("models:Zoo.reference", ["--layers", "kind:batch_norm"], ["stem.norm", "body.bn"]),
        ("models:freezing", ["first:2", "--layers", "head"], ["stem.conv", "stem.norm", "head"]),
        ("models:built", ["--arg", "length=4", "--arg", "name=first of all", "--arg", "bare=True", "last:1"], ["layer_3"]),
    ],
)
def test_targets_arguments_and_selectors(inside: Inside, target: str, words: list[str], paths: list[str]) -> None:
    done = inside("layers", target, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert [layer["path"] for layer in json.loads(done.stdout)["layers"]] == paths
    if "bare=True" in words:
        assert "building 'first of all' True" in done.stderr


def test_the_summary_in_each_form(inside: Inside) -> None:
    words = ("summary", "models:frozen", "--depth", "1", "--format")
    told = {form: inside(*words, form).stdout for form in ("table", "markdown", "json", "html")}
    data = json.loads(told["json"])
    assert data["totals"]["frozen"] == 3 * 3 * 3 * 4
    assert {layer["depth"] for layer in data["layers"]} == {0, 1}
    assert "frozen: 108" in told["table"]
    assert "| --- |" in told["markdown"]
    assert told["html"].startswith("<!doctype html>")


def test_the_summary_shows_what_is_asked_for(inside: Inside) -> None:
    done = inside("summary", "models:frozen", "body", "--columns", "path,parameters,why", "--sort", "parameters", "--output", "page.html")
    assert done.returncode == 0, done.stderr
    assert "Path" in done.stdout
    assert "Type" not in done.stdout
    shown = [(cells[0], int(cells[1])) for line in done.stdout.splitlines() if (cells := line.split()) and cells[0].startswith("body.")]
    assert {path for path, _ in shown} >= {"body.layer_1", "body.layer_2", "body.layer_10", "body.norm", "body.bn"}
    assert [count for _, count in shown] == sorted((count for _, count in shown), reverse=True)
    assert Path("page.html").read_text().startswith("<!")


def test_an_audit_ends_with_1_where_it_finds_something(inside: Inside) -> None:
    assert inside("audit", "models:ready").returncode == 0
    found = inside("audit", "models:frozen_norm", "--json")
    assert found.returncode == 1
    told = json.loads(found.stdout)
    assert not told["ok"]
    assert {finding["code"] for finding in told["findings"]} & {"UF201", "UF202"}
    codes = [word for finding in told["findings"] for word in ("--ignore", finding["code"])]
    assert inside("audit", "models:frozen_norm", *codes).returncode == 0
    assert "stem.norm" in inside("audit", "models:frozen_norm").stdout
    table = inside("audit", "models:ready", "--format", "markdown")
    assert (table.returncode, table.stderr) == (0, "Chain (toynet): nothing found (the model)\n")


def test_a_freeze_is_shown_and_written(here: Path) -> None:
    done = run("freeze", "models:ready", "stem", "head", "--inference", "all", "--output", "r.yaml", "--record", "r.json", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    values = ToynetKit().values(ToynetKit().reference())
    expected = [path for path in values if path.startswith(("stem.", "head.")) and not path.endswith(("mean", "variance"))]
    assert told["freezing"]["frozen"] == expected
    assert told["summary"]["totals"]["frozen"] == sum(values[path].size for path in expected)
    assert "wrote r.yaml" in done.stderr
    assert [step.to_dict() for step in Recipe.read(here / "r.yaml").steps] == [{"freeze": "(stem) | (head)", "inference": "all"}]
    for file in ("r.yaml", "r.json"):
        model = ToynetKit().reference()
        apply(model, here / file)
        assert [model.stem.conv.kernel.trainable, model.body.layer_1.kernel.trainable, model.head.kernel.trainable] == [False, True, False]


def test_a_record_is_checked_and_applied_as_a_recipe_is(inside: Inside) -> None:
    assert inside("freeze", "models:ready", "stem", "--output", "r.yaml", "--record", "r.json").returncode == 0
    shown = [inside("recipe", "apply", file, "models:ready", "--format", "markdown") for file in ("r.yaml", "r.json")]
    assert shown[0].stdout == shown[1].stdout
    assert "| frozen |" in shown[0].stdout
    assert inside("recipe", "check", "r.yaml").stdout == "r.yaml: 1 step\n"
    told = json.loads(inside("recipe", "check", "r.json", "models:ready", "--json").stdout)
    assert (told["layers"], told["frozen"][0]) == (len(json.loads(Path("r.json").read_text())["layers"]), "stem.conv.kernel")
    foreign = inside("recipe", "apply", "r.json", "models:built")
    assert (foreign.returncode, foreign.stdout) == (2, "")
    assert "RecipeError: This record of Chain (toynet) does not fit" in foreign.stderr


def test_a_file_that_can_not_be_written_is_said(inside: Inside) -> None:
    done = inside("freeze", "models:ready", "stem", "--output", 300 * "x")
    assert done.returncode == 2
    assert "File name too long" in done.stderr
    assert "please report" not in done.stderr


def test_a_freeze_on_top_of_another_is_written_whole(here: Path) -> None:
    done = run("freeze", "models:frozen", "head", "--params", "bias", "--output", "r.json", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "frozen: 111" in done.stdout
    model = ToynetKit().reference()
    apply(model, here / "r.json")
    frozen = {path for path, variable in _variables(model) if not variable.trainable}
    assert frozen == {"stem.conv.kernel", "head.bias"}


def _variables(model: object, path: str = "") -> list[tuple[str, object]]:
    found = [(f"{path}{name}", variable) for name, variable in model.variables().items() if name not in {"mean", "variance"}]
    return found + [one for name, child in model.children().items() for one in _variables(child, f"{path}{name}.")]


def test_a_warning_is_a_sentence(here: Path) -> None:
    done = run("freeze", "models:ready", "**", cwd=here)
    assert done.returncode == 0
    assert "warning: Every parameter of Chain (toynet) is frozen now" in done.stderr
    assert "UnifreezeWarning" not in done.stderr


WRONG = {
    "a selector that picks nothing": (["layers", "models:ready", "steem"], 2, "NothingSelectedError", "did you mean 'stem'?"),
    "no target": (["layers", "models"], 2, "ArgumentError", "package.module:callable"),
    "no module": (["summary", "modles:ready"], 2, "ArgumentError", "modles"),
    "no attribute": (["summary", "models:redy"], 2, "ArgumentError", "did you mean 'ready'?"),
    "no option": (["layers", "models:ready", "--lyers", "x"], 2, "UsageError", "--layers"),
    "no format": (["layers", "models:ready", "--format", "pdf"], 2, "UsageError", "markdown"),
    "no argument": (["layers", "models:built", "--arg", "length"], 2, "ArgumentError", "name=value"),
    "no such argument": (["layers", "models:built", "--arg", "lenght=2"], 2, "ArgumentError", "did you mean 'length'?"),
    "an argument twice": (["layers", "models:built", "--arg", "length=2", "--arg", "length=3"], 2, "ArgumentError", "twice"),
    "an argument for a model": (["layers", "models:ready", "--arg", "length=2"], 2, "ArgumentError", "is a model already"),
    "no model": (["layers", "models:nothing"], 2, "UnknownModelError", "models:nothing gives no model"),
    "no callable": (["layers", "models:__name__"], 2, "ArgumentError", "is no model, but str"),
    "the user's code raises": (["layers", "models:broken"], 3, "TargetError", "models:broken() raised KeyError: 'no such key'"),
    "the user's code exits": (["layers", "models:leaving"], 3, "TargetError", "models:leaving() raised SystemExit: 0"),
    "the user's module raises": (["layers", "half:model"], 3, "TargetError", "import half raised ModuleNotFoundError: No module named 'a_package_that"),
    "no demo": (["demo", "--framework", "theano"], 2, "UsageError", "keras, torch, jax"),
    "no folder for a page": (["summary", "models:ready", "--format", "html", "--output", "none/p.html"], 2, "UsageError", "there is no folder"),
    "no folder for a recipe": (["recipe", "record", "models:frozen", "--output", "none/r.yaml"], 2, "UsageError", "there is no folder"),
    "no folder for one of two": (["freeze", "models:ready", "stem", "--output", "r.yaml", "--record", "none/r.json"], 2, "UsageError", "there is no folder"),
    "a folder in place of a file": (["freeze", "models:ready", "stem", "--output", "."], 2, "UsageError", "is a folder"),
    "no recipe": (["recipe", "show", "none.yaml"], 2, "RecipeError", "none.yaml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_a_sentence_and_an_exit_status(inside: Inside, case: str) -> None:
    words, status, kind, says = WRONG[case]
    done = inside(*words)
    assert done.returncode == status
    assert done.stdout == ""
    assert f"{kind}: " in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("r.yaml").exists(), "nothing was written"


@pytest.mark.parametrize("case", ["a selector that picks nothing", "no option", "the user's code raises"])
def test_an_error_is_json_where_json_is_asked_for(inside: Inside, case: str) -> None:
    words, status, kind, says = WRONG[case]
    done = inside(*words, "--json")
    assert done.stdout == ""
    told = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (done.returncode, told["exit"], told["type"]) == (status, status, kind)
    assert says in told["message"]


def test_an_error_in_the_users_code_says_where_and_debug_shows_the_way(here: Path, inside: Inside) -> None:
    line = next(place for place, text in enumerate(MODELS.splitlines(), 1) if "no such key" in text)
    assert f"models.py:{line}, in broken" in inside("summary", "models:broken").stderr
    shown = run("summary", "models:broken", "--debug", cwd=here).stderr
    assert "Traceback (most recent call last)" in shown
    assert 'return {}["no such key"]' in shown


def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    program = "from unifreeze.cli import main; main()"
    words = [sys.executable, "-c", program, "layers", "models:built", "--arg", "length=1200"]
    with subprocess.Popen(words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert "rror" not in said


ASKED = {
    "bash": {"_UNIFREEZE_COMPLETE": "complete_bash", "COMP_WORDS": "unifreeze sum", "COMP_CWORD": "1"},
    "zsh": {"_UNIFREEZE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "unifreeze recipe po"},
    "fish": {"_UNIFREEZE_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "unifreeze aud", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize(("shell", "word"), [("bash", "summary"), ("zsh", "port"), ("fish", "audit")])
def test_the_shell_completes(shell: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in ASKED[shell].items():
        monkeypatch.setenv(name, value)
    assert ending.run(app, []) == 0
    assert word in capsys.readouterr().out


def commands(group: Any, *before: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *before, name)
        else:
            yield " ".join((*before, name)), command


EVERY = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", EVERY)
def test_every_command_takes_json_and_debug(command: str) -> None:
    assert {"--json", "--debug"} <= {word for option in EVERY[command].params for word in option.opts}


@pytest.mark.parametrize(
    "words",
    [
        *(["layers", "models:ready"], ["summary", "models:ready"], ["freeze", "models:ready", "stem"], ["audit", "models:ready"], ["backends"]),
        *(["recipe", "record", "models:frozen"], ["recipe", "show", "r.json"], ["recipe", "check", "r.json", "models:ready"]),
        ["recipe", "apply", "r.json", "models:ready"],
    ],
    ids=" ".join,
)
def test_json_is_all_that_goes_to_stdout(inside: Inside, here: Path, words: list[str]) -> None:
    (here / "r.json").write_text('{"steps": [{"freeze": "stem"}]}')
    assert isinstance(json.loads(inside(*words, "--json").stdout), dict)


def test_json_was_tried_on_every_command_but_those_that_need_a_framework() -> None:
    marks = test_json_is_all_that_goes_to_stdout.pytestmark
    tried = {" ".join(words[: 2 if words[0] == "recipe" else 1]) for words in next(mark for mark in marks if mark.name == "parametrize").args[1]}
    assert set(EVERY) - tried == {"demo", "recipe port"}


@pytest.mark.parametrize("words", [[], ["layers"], ["freeze"], ["audit"], ["recipe", "check"]], ids=" ".join)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert ending.run(app, [*words, "--help"]) == 0
    assert f"Usage: {' '.join(['unifreeze', *words])}" in capsys.readouterr().out


def test_backends_are_listed_with_how_to_install_them() -> None:
    done = run("backends")
    assert done.returncode == 0
    assert "toynet" in done.stdout
    assert "pip install 'unifreeze[equinox]'" in done.stdout


def test_backends_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending.run(app, ["backends", "--json"]) == 0
    assert {info["name"] for info in json.loads(capsys.readouterr().out)["backends"]} >= {"toynet", "torch", "keras", "jax"}


@pytest.mark.skipif(FRAMEWORK, reason="a framework is installed, so the demo would play")
def test_the_demo_without_a_framework_says_what_to_install() -> None:
    done = run("demo")
    assert done.returncode == 2
    assert "pip install 'unifreeze[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_typer_it_says_so() -> None:
    done = run("backends", first="sys.modules['typer'] = None")
    assert done.returncode == 2
    assert "pip install 'unifreeze[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_python_runs_the_package_as_the_program(here: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "unifreeze", "sumary"], cwd=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'summary'?" in done.stderr
    assert "unifreeze --help" in done.stderr
