"""What moved, by how much and why, and the guard, on the toy backend. Each cause is really brought about by a freeze by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import toynet
from unifreeze import freeze, guard, unfreeze
from unifreeze._moves import Difference, Moved, difference
from unifreeze.errors import ArgumentError, FrozenMovedError, NothingSelectedError
from unifreeze_toynet_kit import ToynetKit


@pytest.fixture
def model() -> toynet.Layer:
    return ToynetKit().reference()


def by_hand(part: toynet.Layer) -> None:
    for layer in part.walk():
        for name, variable in layer.variables().items():
            variable.trainable = variable.trainable and name not in {"kernel", "bias", "scale", "table"}


def step(model: toynet.Layer, optimizer: toynet.Optimizer) -> None:
    rng = np.random.default_rng(3)
    y, pull = model.train().forward(rng.normal(size=(8, 8, 8, 3)).astype(np.float32), rng)
    pull(y)
    optimizer.step()


def moves(model: toynet.Layer, optimizer: toynet.Optimizer, *, exact: bool) -> dict[str, Moved]:
    with pytest.raises(FrozenMovedError) as caught, guard(model, exact=exact) as watch:
        step(model, optimizer)
        watch.check(optimizer=optimizer)
    return {one.path: one for one in caught.value.moves}


def every(model: toynet.Layer) -> list[toynet.Variable]:
    return [variable for layer in model.walk() for name, variable in layer.variables().items() if name not in {"mean", "variance"}]


@pytest.mark.parametrize("exact", [False, True])
def test_statistics_that_a_freeze_by_hand_lets_move(model: toynet.Layer, exact: bool) -> None:
    by_hand(model.stem)
    found = moves(model, toynet.Optimizer([v for v in every(model) if v.trainable], 0.1), exact=exact)
    assert {path: one.cause for path, one in found.items()} == {"stem.norm.mean": "statistics", "stem.norm.variance": "statistics"}
    assert (found["stem.norm.mean"].difference is not None) == exact


def test_a_gradient_that_was_left(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer(every(model), 0.1)
    model.head.kernel.gradient = np.ones((6, 3), np.float32)
    by_hand(model.head)
    found = moves(model, optimizer, exact=True)["head.kernel"]
    assert found.cause == "gradient"
    assert found.difference is not None
    assert found.difference.largest == pytest.approx(0.1, rel=1e-4), "the rate times a gradient of ones"
    assert found.difference.elements == found.difference.size == 18


def test_a_gradient_of_zeros_and_decay(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer(every(model), 0.1, decay=0.2)
    model.head.kernel.gradient = np.zeros((6, 3), np.float32)
    by_hand(model.head)
    found = moves(model, optimizer, exact=True)["head.kernel"]
    assert (found.cause, found.difference and found.difference.factor) == ("decay", pytest.approx(0.98, rel=1e-6))
    assert "a gradient of zeros" in found.why
    assert "decays by 0.2" in found.why


def test_a_gradient_of_zeros_and_momentum(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer(every(model), 0.1, momentum=0.9)
    step(model, optimizer)
    model.head.kernel.gradient = np.zeros((6, 3), np.float32)
    by_hand(model.head)
    with pytest.raises(FrozenMovedError, match="a gradient of zeros was left on it, which is enough for momentum"), guard(model):
        optimizer.variables[:] = [model.head.kernel]
        for variable in optimizer.variables:
            variable.value = variable.value - optimizer.rate * optimizer._update(variable, variable.gradient)


def test_an_optimizer_that_still_trains_it(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer(every(model), 0.1, momentum=0.9)
    step(model, optimizer)
    by_hand(model.head)
    with pytest.raises(FrozenMovedError) as caught, guard(model) as watch:
        model.head.kernel.value = model.head.kernel.value - optimizer.slots[id(model.head.kernel)][0]
        watch.check(optimizer=optimizer)
    assert caught.value.moves[0].cause == "moments"
    fresh = toynet.Optimizer(every(model), 0.1)
    with pytest.raises(FrozenMovedError) as caught, guard(model) as watch:
        model.head.kernel.value = model.head.kernel.value + 1
        watch.check(optimizer=fresh)
    assert caught.value.moves[0].cause == "optimizer"


def test_a_layer_that_was_replaced_and_one_that_was_wrapped(model: toynet.Layer) -> None:
    freezing = freeze(model, layers=["head", "body.layer_2"])
    twin = copy.deepcopy(model.head)
    twin.kernel.value = twin.kernel.value + 1
    model.head = twin
    model.body.layer_2 = toynet.Chain(base=model.body.layer_2)
    with pytest.raises(FrozenMovedError) as caught:
        freezing.verify()
    found = {one.path: one for one in caught.value.moves}
    assert found["head.kernel"].cause == "replaced"
    assert found["body.layer_2.kernel"].cause == "wrapped"
    assert "body.layer_2.base.kernel" in found["body.layer_2.kernel"].why


def test_what_nothing_tells_of_is_said_so(model: toynet.Layer) -> None:
    freezing = freeze(model, layers="head")
    model.head.kernel.value = model.head.kernel.value[::-1].copy()
    with pytest.raises(FrozenMovedError, match=r"head.kernel: moved \(nothing tells by what\).*\n.*exact=True") as caught:
        freezing.verify()
    assert caught.value.moves[0].cause == "unknown"


def test_copies_see_what_a_fingerprint_can_not(model: toynet.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    freezing = freeze(model, layers="head").remember(exact=True)
    cheap = freeze(model, layers="head")
    for one in (freezing, cheap):
        monkeypatch.setattr(type(one._backend), "fingerprint", lambda self, array: b"the same")
    freezing, cheap = freezing.remember(exact=True), cheap.remember()
    model.head.kernel.value.flat[0] = np.float32(-0.0)
    cheap.verify()
    with pytest.raises(FrozenMovedError, match=r"in 1 of 18 elements"):
        freezing.verify()


def test_a_proof_says_how_it_was_compared(model: toynet.Layer) -> None:
    assert not freeze(model, layers="head").verify().exact
    assert "compared with copies" in str(freeze(model, layers="head").remember(exact=True).verify())


def test_the_guard_covers_what_unifreeze_froze_and_what_is_inside_a_frozen_part(model: toynet.Layer) -> None:
    freeze(model, layers="stem")
    with guard(model) as watch:
        step(model, toynet.Optimizer(every(model), 0.1))
    assert set(watch.arrays) == {"stem.conv.kernel", "stem.conv.bias", "stem.norm.scale", "stem.norm.bias", "stem.norm.mean", "stem.norm.variance"}
    by_hand(model.body.bn)
    assert {"body.bn.mean", "body.bn.variance"} <= set(guard(model).arrays)
    assert not {"body.bn.mean"} & set(guard(model, buffers=False).arrays)


def test_the_guard_sees_a_flag_and_lets_errors_pass(model: toynet.Layer) -> None:
    freeze(model, layers="head")
    with pytest.raises(FrozenMovedError, match="is trainable again"), guard(model):
        unfreeze(model)
    freeze(model, layers="head")
    with pytest.raises(ZeroDivisionError), guard(model):
        model.head.kernel.value = model.head.kernel.value + 1
        raise ZeroDivisionError


def test_the_guard_of_nothing_is_refused(model: toynet.Layer) -> None:
    with pytest.raises(NothingSelectedError, match="nothing to guard"):
        guard(model)
    with pytest.raises(TypeError):
        guard(model, trainabel="head")  # type: ignore[call-arg]


def test_the_guard_takes_what_trains(model: toynet.Layer) -> None:
    assert set(guard(model, trainable="body.*").arrays) >= {"head.kernel", "stem.norm.mean"}
    other = freeze(ToynetKit().question())
    with pytest.raises(ArgumentError, match="is not one of Chain"):
        guard(model, trainable=other)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], Difference(0.0, 0.0, 0, 2, None)),
        ([3.0, 4.0], [3.0, 9.0], Difference(5.0, 1.0, 1, 2, None)),
        ([2.0, 4.0], [1.0, 2.0], Difference(2.0, 0.5, 2, 2, 0.5)),
        ([0.0, 0.0], [0.0, -0.0], Difference(0.0, float("inf"), 1, 2, None)),
        ([2.0, 4.0], [4.0, 8.0], Difference(4.0, 1.0, 2, 2, None)),
    ],
)
def test_by_how_much(before: list[float], now: list[float], expected: Difference) -> None:
    found = difference(np.array(before), np.array(now))
    assert found is not None
    assert (found.largest, found.elements, found.size) == (expected.largest, expected.elements, expected.size)
    assert found.factor == (None if expected.factor is None else pytest.approx(expected.factor))
    assert found.relative == pytest.approx(expected.relative)
    assert ("away from zeros (at most" in str(found)) == (expected.relative == float("inf"))


def test_a_number_that_is_none_now_is_counted() -> None:
    found = difference(np.array([1.0, 2.0], np.float32), np.array([np.nan, 2.0], np.float32))
    assert found is not None
    assert (found.elements, np.isnan(found.largest)) == (1, True)
