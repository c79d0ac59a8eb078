"""The summary of nnx modules: output shapes from a copy, which leaves the module as it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unifreeze import errors, freeze, summary


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv, self.norm = nnx.Conv(3, 3, (3, 3), rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.drop(self.norm(self.conv(x)))


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = nnx.remat(lambda block, x: block(x))(block, x)
        return {"z": self.head(x.mean((1, 2))), "a": x}


def real(model: Net, x: Any) -> dict[str, tuple[int, ...]]:
    """Each layer's output by hand, one after the other."""
    found = {}
    for i, block in enumerate(model.blocks):
        for name in ("conv", "norm", "drop"):
            x = getattr(block, name)(x)
            found[f"blocks.{i}.{name}"] = x.shape
        found[f"blocks.{i}"] = x.shape
    return found | {"head": model.head(x.mean((1, 2))).shape, "": model.head(x.mean((1, 2))).shape}


def shapes(model: Any, **given: Any) -> dict[str, Any]:
    return {row.path: row.output_shape for row in summary(model, **given).rows if row.output_shape is not None}


def test_output_shapes_are_those_of_a_real_run() -> None:
    x = jnp.zeros((2, 8, 8, 3))
    assert shapes(Net(nnx.Rngs(0)), inputs=x) == real(Net(nnx.Rngs(0)), x)
    assert shapes(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), input_shape=(None, 8, 8, 3))["head"] == (None, 2)


@pytest.mark.parametrize("works", [True, False])
def test_asking_for_shapes_changes_nothing(works: bool) -> None:
    model = Net(nnx.Rngs(0))
    freeze(model, layers="blocks.0")

    def state() -> Any:
        classes = [(path, type(node), sorted(vars(node))) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
        values = [
            np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf).tolist()
            for leaf in jax.tree.leaves(nnx.state(model))
        ]
        return classes, values, [block.drop.deterministic for block in model.blocks], [block.norm.use_running_average for block in model.blocks]

    before = state()
    if works:
        assert shapes(model, input_shape=(2, 8, 8, 3))["blocks.1.conv"] == (2, 8, 8, 3)
    else:
        with pytest.raises(errors.BackendError, match="Net can't be called on these inputs"):
            summary(model, input_shape=(2, 8, 8, 4))
    assert state() == before


def test_modes_reasons_and_what_training_needs() -> None:
    model = Net(nnx.Rngs(0))
    freeze(model, layers="blocks.0")
    shown = summary(model, columns=["mode", "why", "statistics"], optimizer="adamw")
    rows = {row.path: row.more for row in shown.rows}
    assert rows["blocks.0.norm"] == {"mode": "held (norm)", "why": "freeze(layers='blocks.0')", "statistics": "still"}
    assert rows["blocks.1.norm"] == {"mode": "train", "why": "", "statistics": "move"}
    trained = nnx.state(model, nnx.Param)
    assert shown.training.state == sum(leaf.nbytes for leaf in jax.tree.leaves(optax.adamw(1e-3).init(trained)))
