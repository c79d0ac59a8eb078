"""Freezing some rows of a parameter: what a call means, and that a backend which does not know rows says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import toynet
import unifreeze_toynet
from unifreeze import apply, freeze, summary, unfreeze
from unifreeze._rows import Rows
from unifreeze.errors import BackendError, ConflictError, FrozenMovedError, NothingSelectedError, SelectorError, UntrainableError
from unifreeze.plugin import Applied, Layer, Parameter, Request
from unifreeze_toynet import ToynetBackend
from unifreeze_toynet_kit import ToynetKit


class RowBackend(ToynetBackend):
    """The toy backend, with rows."""

    def parameter(self, path: str, kind: str, variable: toynet.Variable) -> Parameter:
        seen = super().parameter(path, kind, variable)
        return replace(seen, rows=getattr(variable, "rows", None) if seen.status == "trainable" else None)

    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        applied = super().apply(model, request)
        before = [(p.array, p.rows) for p in _parameters(request.tree) if p.path in request.parameters]
        for parameter in _parameters(request.tree):
            if parameter.path in request.parameters:
                parameter.array.rows = request.state.rows.get(parameter.path)

        def undo() -> None:
            applied.undo()
            for variable, rows in before:
                variable.rows = rows

        return replace(applied, undo=undo)

    def take(self, array: toynet.Variable, rows: Rows) -> toynet.Variable:
        return toynet.Variable(array.value[list(rows)])


def _parameters(tree: Layer) -> list[Parameter]:
    return [parameter for layer in tree.walk() for parameter in layer.parameters]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> toynet.Layer:
    monkeypatch.setattr(unifreeze_toynet, "BACKEND", RowBackend())
    return ToynetKit().reference()


KERNEL = {"layers": "body.layer_2", "params": "kernel"}


def kernel(model: toynet.Layer) -> toynet.Variable:
    return model.children()["body"].children()["layer_2"].kernel


def spans(freezing: object) -> dict[str, tuple[tuple[int, int], ...]]:
    return {path: rows.spans for path, rows in freezing.rows.items()}


# What is meant.


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (slice(0, 3), [0, 1, 2]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(-2, None), [3, 4]),
        (slice(3, 1, -1), [2, 3]),
        (range(1, 3), [1, 2]),
        ([4, 0, 0, -1], [0, 4]),
        ((2,), [2]),
        (np.array([1, 3]), [1, 3]),
        (slice(0, 5), [0, 1, 2, 3, 4]),
    ],
)
def test_rows_mean_what_they_mean_in_python(given: object, meant: list[int]) -> None:
    rows = Rows.read(given, 5)
    assert list(rows) == meant
    assert len(rows) == len(meant)


@pytest.mark.parametrize(
    "given", [3, True, [True, False, True, False, True], np.array([True] * 5), "0:3", 1.5, [0.5], np.array([0.0]), [[0, 1]], slice("a", "b"), {}]
)
def test_what_is_no_rows_is_refused(given: object) -> None:
    with pytest.raises(SelectorError, match=r"(?s)does not pick rows of table.*Write rows=slice"):
        Rows.read(given, 5, "table")


@pytest.mark.parametrize("given", [slice(0, 6), slice(-6, None), slice(7, None), [5], [-6], range(3, 6), np.array([0, 9])])
def test_what_goes_past_the_end_is_refused(given: object) -> None:
    with pytest.raises(SelectorError, match=r"(?s)past the end of table.*it has 5 rows.*Narrow"):
        Rows.read(given, 5, "table")


@pytest.mark.parametrize("given", [slice(2, 2), slice(3, 1), [], range(0), np.array([], int)])
def test_no_row_is_refused(given: object) -> None:
    with pytest.raises(NothingSelectedError, match="picks no row of table"):
        Rows.read(given, 5, "table")


def test_rows_add_up_and_take_away() -> None:
    some, more = Rows.of([0, 1, 2, 8]), Rows.of([2, 3])
    assert (some | more).spans == ((0, 4), (8, 9))
    assert (some - more).spans == ((0, 2), (8, 9))
    assert str(Rows.of(range(0, 20, 2))) == "0:1, 2:3, 4:5, …"


# What a call does.


def test_a_backend_that_does_not_know_rows_says_so_and_changes_nothing() -> None:
    model = ToynetKit().reference()
    for verb in (freeze, unfreeze):
        with pytest.raises(BackendError, match=r"rows= is not known to the toynet backend\.\n  Freeze whole parameters"):
            verb(model, layers="head", rows=[0])
    assert all(parameter.status == "trainable" for parameter in _parameters(unifreeze_toynet.BACKEND.layers(model)))


def test_a_parameter_with_frozen_rows_is_trainable_and_says_which_are_not(model: toynet.Layer) -> None:
    freezing = freeze(model, **KERNEL, rows=slice(0, 3))
    assert freezing.frozen == ()
    assert "body.layer_2.kernel" in freezing.trainable
    assert freezing.changed == ("body.layer_2.kernel",)
    assert freezing.held == ()
    assert spans(freezing) == {"body.layer_2.kernel": ((0, 3),)}
    assert "0 of 16 parameters frozen, some rows of 1, 1 changed" in repr(freezing)
    assert freeze(model, **KERNEL, rows=[1]).changed == ()


def test_freezing_adds_rows_and_unfreezing_takes_them_away(model: toynet.Layer) -> None:
    length = kernel(model).value.shape[0]
    freeze(model, **KERNEL, rows=[0, 1])
    assert spans(freeze(model, **KERNEL, rows=[1, 3])) == {"body.layer_2.kernel": ((0, 2), (3, 4))}
    assert spans(unfreeze(model, **KERNEL, rows=[0])) == {"body.layer_2.kernel": ((1, 2), (3, 4))}
    whole = freeze(model, **KERNEL, rows=slice(None))
    assert whole.frozen == ("body.layer_2.kernel",)
    assert not whole.rows
    new = unfreeze(model, **KERNEL, rows=[-1])
    assert spans(new) == {"body.layer_2.kernel": ((0, length - 1),)}
    assert new.frozen == ()
    assert freeze(model, **KERNEL).frozen == ("body.layer_2.kernel",)
    assert not unfreeze(model, **KERNEL).rows
    assert unfreeze(model, **KERNEL, rows=[0]).changed == ()


def test_undo_restores_rows(model: toynet.Layer) -> None:
    freeze(model, **KERNEL, rows=[0, 1])
    with freeze(model, **KERNEL):
        assert kernel(model).trainable is False
    with unfreeze(model, **KERNEL, rows=[1]) as less:
        assert spans(less) == {"body.layer_2.kernel": ((0, 1),)}
    with apply(model, {"steps": [{"freeze": "head"}]}) as exact:
        assert not exact.rows
    last = freeze(model, **KERNEL, rows=[4])
    assert spans(last.undo()) == {"body.layer_2.kernel": ((0, 2),)}


def test_rows_go_with_params_and_hold_nothing(model: toynet.Layer) -> None:
    freezing = freeze(model, layers="stem", params="kernel", rows=[0])
    assert set(freezing.rows) == {"stem.conv.kernel"}
    assert freezing.held == ()


def test_a_summary_counts_frozen_rows_as_frozen(model: toynet.Layer) -> None:
    rows = kernel(model).value
    freeze(model, **KERNEL, rows=[0, 2, 3])
    seen = summary(model)
    assert seen.totals.frozen == 3 * rows.shape[1]
    assert seen.totals.bytes_frozen == 3 * rows[0].nbytes
    assert seen.totals.parameters == sum(p.size for p in _parameters(RowBackend().layers(ToynetKit().reference())))
    row = next(row for row in seen.rows if row.path == "body.layer_2")
    assert (row.status, row.frozen_rows) == ("partial", 3)
    assert "partial (3 rows frozen)" in str(seen)


def test_verify_proves_the_rows_and_nothing_else(model: toynet.Layer) -> None:
    freezing = freeze(model, **KERNEL, rows=[0, 2])
    kernel(model).value[1] += 1
    proof = freezing.verify()
    assert proof.arrays == ("body.layer_2.kernel",)
    assert proof.nbytes == 2 * kernel(model).value[0].nbytes
    kernel(model).value[2] += 1
    with pytest.raises(FrozenMovedError, match=r"body.layer_2.kernel: rows 0:1, 2:3 moved"):
        freezing.verify()
    unfreeze(model, **KERNEL, rows=[0])
    with pytest.raises(FrozenMovedError, match=r"body.layer_2.kernel: rows 0:1, 2:3 are trainable again"):
        freezing.verify()
    assert freezing.remember(model)._fingerprints.keys() == {"body.layer_2.kernel"}


# Sharing, and what has no rows.


def test_rows_of_a_shared_parameter_are_frozen_at_each_of_its_paths(model: toynet.Layer) -> None:
    model = ToynetKit().tied()
    first, second = dict.fromkeys(p.path for p in _parameters(RowBackend().layers(model)) if p.array is model.embed.table)
    freezing = freeze(model, layers="embed", rows=[0])
    assert dict(freezing.rows) == {first: Rows.of([0])}
    assert "some rows of 1," in repr(freezing)
    assert dict(freeze(model, layers="head", rows=[0]).rows) == {first: Rows.of([0])}
    assert summary(model).totals.frozen == model.embed.table.value[0].size
    assert len(freezing.verify().arrays) == 1
    with pytest.raises(ConflictError, match=rf"{first} and {second} .*same array(?s:.*){first} would be frozen in rows 0:2, {second} frozen in rows 0:1"):
        freeze(model, layers="~head", params="table", rows=[1])
    assert not unfreeze(model, layers="head", rows=[0]).rows
    with pytest.raises(ConflictError, match=rf"{first} would be frozen in rows 0:1, {second} trainable"):
        freeze(model, layers="~head", params="table", rows=[0])


def test_rows_are_checked_for_every_parameter_before_any_changes(model: toynet.Layer) -> None:
    with pytest.raises(SelectorError, match=r"past the end of head.bias"):
        freeze(model, layers=["body.layer_2", "head"], params="bias", rows=slice(0, 6))
    assert not summary(model).totals.frozen


def test_what_has_no_rows_is_refused(model: toynet.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    model.head.bias.value = np.array(0.5)
    with pytest.raises(SelectorError, match="head.bias is a single number"):
        freeze(model, layers="head", params="bias", rows=[0])

    class Quantised(RowBackend):
        def parameter(self, path: str, kind: str, variable: toynet.Variable) -> Parameter:
            seen = super().parameter(path, kind, variable)
            return replace(seen, status="frozen", untrainable="int8 has no gradient") if path == "head.kernel" else seen

    monkeypatch.setattr(unifreeze_toynet, "BACKEND", Quantised())
    with pytest.raises(UntrainableError, match=r"(?s)head.kernel can't be trained.*int8"):
        freeze(model, layers="head", params="kernel", rows=[0])
