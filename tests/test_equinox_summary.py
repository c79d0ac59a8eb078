"""The summary of equinox modules: output shapes of single examples, from a copy."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from unifreeze import errors, freeze, summary


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    drop: eqx.nn.Dropout
    inner: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        self.conv, self.drop = eqx.nn.Conv2d(3, 4, 3, key=key), eqx.nn.Dropout()
        self.inner, self.head = eqx.nn.MLP(4, 6, 5, 1, key=key), eqx.nn.Linear(6, 2, key=key)

    def __call__(self, x: Any) -> Any:
        y = self.inner(self.drop(self.conv(x)).mean((1, 2)))
        return jax.vmap(self.head)(jnp.stack([y, y, y]))


def shapes(model: Any, **given: Any) -> dict[str, Any]:
    return {row.path: row.output_shape for row in summary(model, **given).rows if row.output_shape is not None}


def test_output_shapes_are_those_of_a_real_run() -> None:
    model = eqx.nn.inference_mode(Net(jax.random.key(0)))
    x = jnp.zeros((3, 8, 8))
    y = model.conv(x)
    inner = {"inner.layers.0": (5,), "inner.layers.1": (6,)}
    expected = {"conv": y.shape, "drop": model.drop(y).shape, "inner": model.inner(y.mean((1, 2))).shape, "head": (2,), "": model(x).shape, **inner}
    assert shapes(model, inputs=x) == expected
    abstract = eqx.filter_eval_shape(Net, jax.random.key(0))
    assert shapes(abstract, input_shape=(3, 8, 8)) == expected


@pytest.mark.parametrize("works", [True, False])
def test_asking_for_shapes_changes_nothing(works: bool) -> None:
    model = Net(jax.random.key(0))
    before = [(type(node), list(vars(node))) for node in (model, model.conv, model.drop, model.inner)], jax.tree.map(id, jax.tree.leaves(model))
    if works:
        assert freeze(model, layers="conv").summary(input_shape=(3, 8, 8)).rows[1].output_shape == (4, 6, 6)
    else:
        with pytest.raises(errors.BackendError, match="Net can't be called on these inputs"):
            summary(model, input_shape=(5, 8, 8))
    after = [(type(node), list(vars(node))) for node in (model, model.conv, model.drop, model.inner)], jax.tree.map(id, jax.tree.leaves(model))
    assert after == before
    assert model.drop.inference is False
