"""The command line on a builder of one's own, in the current directory, as a process."""

from __future__ import annotations

import json
from pathlib import Path

from kits.prompt import run

BUILDER = """
import equinox as eqx
import jax


def build(features):
    one, two = jax.random.split(jax.random.key(0))
    return eqx.nn.Sequential([eqx.nn.Linear(3, features, key=one), eqx.nn.LayerNorm(features), eqx.nn.Linear(features, 2, key=two)])
"""


def test_a_builder_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "builder.py").write_text(BUILDER)
    done = run("freeze", "builder:build", "first:2", "--arg", "features=8", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)["summary"]["totals"]
    assert (totals["frozen"], totals["trainable"], totals["buffers"]) == (3 * 8 + 8 + 2 * 8, 8 * 2 + 2, 0)
