"""What is given where something else belongs: each its error, which says what was meant."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from unifreeze import UnifreezeError, freeze
from unifreeze.errors import ArgumentError


def params() -> dict[str, Any]:
    return {name: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for name in ("stem", "head")}


X = np.ones((1, 2), np.float32)


def loss(tree: Any, x: Any = X) -> Any:
    return jnp.sum((x @ tree["stem"]["kernel"] @ tree["head"]["kernel"] + tree["head"]["bias"]) ** 2)


F = freeze(params(), layers="stem")
TX = optax.adamw(0.1)
WRONG = {
    "uncalled": (lambda: F.optimizer(optax.adam), r"(?s)function adam.*optax\.adam\(1e-3\)"),
    "uncalled before": (lambda: F.optimizer(TX, pre=optax.clip_by_global_norm), r"(?s)pre of.*optax\.clip_by_global_norm\(1e-3\)"),
    "a rate": (lambda: F.optimizer(1e-3), r"(?s)given: float.*adamw"),
    "nothing": (lambda: F.optimizer(None), r"(?s)given: NoneType"),
    "a class": (lambda: F.optimizer(optax.GradientTransformation), r"class GradientTransformation"),
    "its state": (lambda: F.optimizer(TX.init(params())), r"(?s)given: tuple"),
    "a train state": (lambda: F.optimizer(TrainState.create(apply_fn=None, params=params(), tx=TX)), r"(?s)given: TrainState.*trainstate\.tx"),
    "one made already": (lambda: F.optimizer(F.optimizer(TX)), r"(?s)already.*f\.carry"),
    "a value": (lambda: F.value_and_grad(loss(params())), r"(?s)takes a function.*not f\.value_and_grad\(loss\("),
    "gradients of a value": (lambda: F.grad(loss(params())), r"takes a function"),
    "a held value": (lambda: F.hold(loss(params())), r"(?s)takes a function.*f\.hold"),
    "two places": (lambda: F.value_and_grad(loss, argnums=(0, 1)), r"(?s)one number.*given: tuple"),
    "a wrong place": (lambda: F.value_and_grad(loss, argnums=3)(params()), r"(?s)position 3.*arguments: 1"),
    "by name": (lambda: F.value_and_grad(loss)(tree=params()), r"(?s)position 0.*arguments: 0"),
    "the batch": (lambda: F.value_and_grad(loss)(jnp.ones((2, 2)), params()), r"must have the leaves"),
    "states first": (lambda: F.carry(TX.init(params()), F.optimizer(TX), params()), r"carry\(\) takes what optimizer\(\)"),
    "a plain optimizer": (lambda: F.carry(TX, TX.init(params()), params()), r"carry\(\) takes what optimizer\(\)"),
    "updates first": (lambda: F.apply_updates({"head": None}, params()), r"must have the leaves"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_argument_is_named(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(UnifreezeError, match=message) as caught:
        call()
    assert isinstance(caught.value, ArgumentError | ValueError)
    assert len(str(caught.value).splitlines()) >= 2


def test_any_position_will_do() -> None:
    """``argnums`` from the front and from the back; other arguments by position or by name; a jitted loss, and a bound one."""

    class Model:
        def loss(self, x: Any, tree: Any, *, scale: float = 1.0) -> Any:
            return scale * loss(tree, x), {"scale": scale}

    expected = jax.grad(loss)(params())["head"]
    for fn in (Model().loss, jax.jit(Model().loss)):
        for argnums in (1, -1):
            (value, aux), grads = F.value_and_grad(fn, has_aux=True, argnums=argnums)(X, params(), scale=2.0)
            assert float(value) == 2 * float(loss(params()))
            assert float(aux["scale"]) == 2.0
            assert jax.tree.leaves(grads["stem"]) == []
            jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, 2 * theirs, rtol=1e-6), grads["head"], expected)
            grads, again = F.grad(fn, has_aux=True, argnums=argnums)(X, params(), scale=2.0)
            assert (float(again["scale"]), grads["stem"]["kernel"]) == (2.0, None)
