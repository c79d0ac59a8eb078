"""The command line on a builder of one's own, in the current directory, as a process."""

from __future__ import annotations

import json
from pathlib import Path

from kits.prompt import run

BUILDER = """
import flax.linen as nn
import jax
import jax.numpy as jnp


class Net(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(self.features)(x))
        return nn.Dense(2)(x)


def build(features):
    return Net(features).init(jax.random.key(0), jnp.zeros((4, 3)))
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
