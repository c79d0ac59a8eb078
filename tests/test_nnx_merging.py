"""What taking an nnx model apart and putting it together does to a freeze, as docs/limits.md says it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unifreeze import freeze
from unifreeze.errors import FrozenMovedError


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem, self.norm, self.head = nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.norm(self.stem(x)))


def gradients(model: Net) -> set[Any]:
    return set(nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 3))) ** 2))(model))


def test_the_state_of_another_model_unfreezes_and_verify_says_so() -> None:
    model, old = Net(), nnx.state(Net())
    freezing = freeze(model, layers=["stem", "norm"])
    graphdef, new = nnx.split(model)
    assert gradients(nnx.merge(graphdef, new)) == {"head"}
    assert freezing.verify(nnx.merge(graphdef, new))
    merged = nnx.merge(graphdef, old)
    assert gradients(merged) != {"head"}
    with pytest.raises(FrozenMovedError, match=r"stem\.kernel: is trainable again"):
        freezing.verify(merged)


def test_old_values_can_be_loaded_into_a_frozen_model() -> None:
    model, other = Net(), Net()
    other.stem.kernel[...] = jnp.full((3, 3), 2.0)
    freeze(model, layers=["stem", "norm"])
    nnx.update(model, nnx.state(other))
    assert gradients(model) == {"head"}
    np.testing.assert_array_equal(model.stem.kernel[...], 2.0)


def test_the_filter_for_saving_goes_round_through_pure_values() -> None:
    model = Net()
    freezing = freeze(model, layers=["stem", "norm"])
    saved = nnx.to_pure_dict(nnx.state(model, freezing.param_filter))
    assert set(saved) == {"stem", "norm", "head"}
    assert set(nnx.to_pure_dict(nnx.state(model, nnx.Param))) == {"head"}
    fresh = Net()
    fresh.stem.kernel[...] = jnp.zeros((3, 3))
    again = freeze(fresh, layers=["stem", "norm"])
    state = nnx.state(fresh, again.param_filter)
    nnx.replace_by_pure_dict(state, saved)
    nnx.update(fresh, state)
    assert freezing.verify(fresh)
    assert gradients(fresh) == {"head"}


def test_vmapped_ensembles_and_copies_keep_what_is_frozen() -> None:
    model = Net()
    freezing = freeze(model, layers=["stem", "norm"])
    assert gradients(nnx.clone(model)) == {"head"}

    @nnx.vmap(in_axes=(None, 0), out_axes=0)
    def run(model: Net, x: Any) -> Any:
        return model(x)

    assert run(model, jnp.ones((4, 2, 3))).shape == (4, 2, 2)
    assert freezing.verify()
