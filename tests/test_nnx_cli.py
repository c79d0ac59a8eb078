"""The command line on a builder of one's own, in the current directory, as a process."""

from __future__ import annotations

import json
from pathlib import Path

from kits.prompt import run

BUILDER = """
from flax import nnx


def build(features):
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(3, features, rngs=rngs), nnx.BatchNorm(features, rngs=rngs), nnx.Linear(features, 2, rngs=rngs))
"""


def test_a_builder_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "builder.py").write_text(BUILDER)
    done = run("freeze", "builder:build", "first:2", "--arg", "features=8", "--output", "recipe.json", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)["summary"]["totals"]
    # Dense 3 → 8, its BatchNorm, dense 8 → 2.
    assert (totals["frozen"], totals["trainable"], totals["buffers"]) == (3 * 8 + 8 + 2 * 8, 8 * 2 + 2, 2 * 8)
    shown = run("recipe", "apply", "recipe.json", "builder:build", "--arg", "features=4", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"frozen: {3 * 4 + 4 + 2 * 4}" in shown.stdout
