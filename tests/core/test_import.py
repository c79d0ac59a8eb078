"""Importing unifreeze costs little and loads no framework."""

from __future__ import annotations

import json
import subprocess
import sys


def _loaded_by(program: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"], check=True, capture_output=True, text=True
    )
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_import_loads_no_framework_and_nothing_heavy() -> None:
    loaded = _loaded_by("import unifreeze")
    assert not loaded & {"torch", "keras", "tensorflow", "jax", "flax", "equinox", "numpy", "rich", "typer", "click", "msgspec", "pydantic", "toynet"}


def test_asking_for_the_backends_loads_no_framework() -> None:
    loaded = _loaded_by("import unifreeze; unifreeze.backends()")
    assert not loaded & {"torch", "keras", "tensorflow", "jax", "flax", "equinox", "numpy", "rich", "toynet"}


def test_a_refused_object_loads_no_framework() -> None:
    loaded = _loaded_by("import unifreeze\ntry: unifreeze.freeze({'a': 1})\nexcept TypeError: pass")
    assert not loaded & {"torch", "keras", "tensorflow", "jax", "flax", "equinox", "toynet"}


def test_selectors_can_be_had_without_a_framework() -> None:
    loaded = _loaded_by("from unifreeze.select import first, kind; first(2) | kind('conv')")
    assert not loaded & {"torch", "jax", "numpy", "rich"}
