"""What outlives the process in nnx: a record beside a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from unifreeze import apply, freeze, record
from unifreeze.errors import FrozenMovedError, RecipeError


class Network(nnx.Module):
    def __init__(self, seed: int, out: int = 2) -> None:
        rngs = nnx.Rngs(seed)
        self.body = nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs), nnx.relu)
        self.head = nnx.Linear(6, out, rngs=rngs)


def values(model: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in flat}


def test_a_record_is_applied_and_checked_after_a_checkpoint_was_restored(tmp_path: Path) -> None:
    model, file = Network(0), tmp_path / "model.json"
    freezing = freeze(model, layers="body")
    record(model, values=True).save(file)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "weights", nnx.state(model))
    other = Network(1)
    with pytest.raises(FrozenMovedError, match=r"(?s)one array of Network .* differs .*body\.layers\.0\.kernel"):
        apply(other, file)
    assert len(jax.tree.leaves(nnx.state(other, nnx.Param))) == 6, "a call that raises has changed nothing"
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(other, checkpointer.restore(tmp_path / "weights", jax.eval_shape(lambda: nnx.state(other))))
    again = apply(other, file)
    assert (again.frozen, again.held, again.digest()) == (freezing.frozen, freezing.held, freezing.digest())
    assert len(jax.tree.leaves(nnx.state(other, nnx.Param))) == 2, "nothing else trains, as nnx itself says"
    assert {path: value.tobytes() for path, value in values(other).items()} == {path: value.tobytes() for path, value in values(model).items()}


def test_a_foreign_module_is_refused() -> None:
    model = Network(0)
    freeze(model, layers="body")
    with pytest.raises(RecipeError, match=r"(?s)the record has head \(Linear\) with \(6, 2\).*the model has head \(Linear\) with \(6, 3\)"):
        apply(Network(0, 3), record(model))
