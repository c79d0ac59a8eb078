"""What is given to the tools of an nnx freezing where something else belongs, and what can't be frozen: each its error, and nothing changes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from unifreeze import freeze
from unifreeze.errors import ArgumentError, BackendError


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem, self.head = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.stem(x))


def loss(model: Net) -> Any:
    return jnp.sum(model(jnp.ones((2, 3))) ** 2)


TX = optax.adamw(0.1)
WRONG = {
    "attach a transformation": (lambda f, _: f.attach(TX), r"(?s)takes the nnx\.Optimizer.*GradientTransformation.*f\.optimizer\("),
    "attach an uncalled one": (lambda f, _: f.attach(optax.adam), r"(?s)takes the nnx\.Optimizer.*function adam"),
    "attach the class": (lambda f, _: f.attach(nnx.Optimizer), r"(?s)takes the nnx\.Optimizer.*class Optimizer"),
    "attach the model": (lambda f, model: f.attach(model), r"(?s)takes the nnx\.Optimizer.*given: Net"),
    "attach nothing": (lambda f, _: f.attach(None), r"(?s)takes the nnx\.Optimizer.*NoneType"),
    "optimizer of an uncalled one": (lambda f, _: f.optimizer(optax.adam), r"(?s)function adam.*optax\.adam\(1e-3\)"),
    "optimizer of a live one": (lambda f, model: f.optimizer(nnx.Optimizer(model, TX, wrt=nnx.Param)), r"(?s)given: Optimizer.*optimizer\.tx.*f\.attach"),
    "optimizer of a rate": (lambda f, _: f.optimizer(1e-3), r"(?s)given: float.*adamw"),
    "pre uncalled": (lambda f, _: f.optimizer(TX, pre=optax.clip_by_global_norm), r"pre of optimizer\(\)"),
    "gradients of a value": (lambda f, model: f.value_and_grad(loss(model)), r"takes a function"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_argument_is_named(name: str) -> None:
    call, message = WRONG[name]
    model = Net()
    freezing = freeze(model, layers="stem")
    with pytest.raises(ArgumentError, match=message):
        call(freezing, model)
    assert set(nnx.state(model, nnx.Param)) == {"head"}
    assert freezing.verify()


class Slotted(nnx.Param):
    __slots__ = ("extra",)


def test_what_cannot_be_swapped_is_refused_alone() -> None:
    """A class with slots, or a hijax variable: the call raises and names it, and the rest of the model can be frozen."""
    model = Net()
    model.head.kernel = Slotted(model.head.kernel[...])
    with pytest.raises(BackendError, match="__slots__"):
        freeze(model, layers="head")
    assert type(model.head.bias) is nnx.Param
    assert freeze(model, layers="stem").frozen == ("stem.kernel", "stem.bias")
    mixed = Net()
    with nnx.var_defaults(hijax=True):
        mixed.head = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(BackendError, match=r"head\.kernel can't be frozen in place: it is a hijax variable"):
        freeze(mixed)
    assert type(mixed.stem.kernel) is nnx.Param
    assert freeze(mixed, layers="stem").frozen == ("stem.kernel", "stem.bias")


def test_rows_are_refused_and_nothing_changes() -> None:
    model = Net()
    with pytest.raises(BackendError, match=r"(?s)rows= is not known to the nnx backend.*Keep two arrays"):
        freeze(model, layers="stem", params="kernel", rows=[0])
    assert set(nnx.state(model, nnx.Param)) == {"stem", "head"}
