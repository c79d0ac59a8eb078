"""The command line, run as a process."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

FRAMEWORK = any(map(find_spec, ("keras", "torch", "jax")))


def _run(*arguments: str, blocked: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys\nsys.modules[{blocked!r}] = None\nfrom unifreeze.cli import main\nmain()" if blocked else "from unifreeze.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True, env={"COLUMNS": "160", "NO_COLOR": "1"})


def test_backends_are_listed_with_how_to_install_them() -> None:
    done = _run("backends")
    assert done.returncode == 0
    assert "toynet" in done.stdout
    assert "pip install 'unifreeze[equinox]'" in done.stdout


@pytest.mark.skipif(FRAMEWORK, reason="a framework is installed, so the demo would play")
def test_the_demo_without_a_framework_says_what_to_install() -> None:
    done = _run("demo")
    assert done.returncode == 2
    assert "pip install 'unifreeze[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_framework_without_a_demo_is_refused() -> None:
    done = _run("demo", "--framework", "theano")
    assert done.returncode == 2
    assert "keras, torch, jax" in done.stderr


def test_without_typer_it_says_so() -> None:
    done = _run("backends", blocked="typer")
    assert done.returncode == 2
    assert "pip install 'unifreeze[cli]'" in done.stderr
