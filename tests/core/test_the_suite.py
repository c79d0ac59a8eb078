"""The suite has a suite of its own: backends that are wrong on purpose, each caught by the check that should."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import toynet
import unifreeze_toynet
from unifreeze import _api, _resolve, _scene
from unifreeze._tree import with_state
from unifreeze.plugin import Applied, Layer, Parameter, Request
from unifreeze.testing import Conformance
from unifreeze_toynet import ToynetBackend
from unifreeze_toynet_kit import ToynetKit

pytestmark = pytest.mark.once


class Suite(Conformance):
    kit = ToynetKit()


def _failures() -> set[str]:
    """The names of the checks that a backend does not pass."""
    failed = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, check in Suite.checks():
            try:
                check()
            except (Exception, pytest.fail.Exception):
                failed.add(name)
    return failed


class SaysFrozenAndDoesNothing(ToynetBackend):
    def __init__(self) -> None:
        self.claims: dict[int, Request] = {}

    def layers(self, model: toynet.Layer, path: str = "") -> Layer:
        tree, claim = super().layers(model, path), self.claims.get(id(model))
        return with_state(tree, claim.state) if claim and not path else tree

    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        self.claims[id(model)] = request
        return Applied(model, undo=lambda: self.claims.pop(id(model), None) and None)


class FreezesTooMuch(ToynetBackend):
    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        wider = frozenset(path for layer in request.tree.walk() for path in (p.path for p in layer.parameters) if path.startswith("body."))
        if not wider & request.state.frozen:
            return super().apply(model, request)
        state = replace(request.state, frozen=request.state.frozen | wider)
        return super().apply(model, replace(request, state=state, parameters=request.parameters | wider))


class ForgetsBuffers(ToynetBackend):
    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        return super().apply(model, replace(request, layers=frozenset()))


class ForgetsUndo(ToynetBackend):
    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        return replace(super().apply(model, request), undo=lambda: None)


class UndoesTooMuch(ToynetBackend):
    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        def undo() -> None:
            for layer in model.walk():
                layer.pinned = None
                for name, variable in layer.variables().items():
                    variable.trainable = name not in {"mean", "variance"}

        return replace(super().apply(model, request), undo=undo)


class TellsHowThingsStoodBefore(ToynetBackend):
    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        return replace(super().apply(model, request), tree=request.tree)


class CountsTwice(ToynetBackend):
    def parameter(self, path: str, kind: str, variable: toynet.Variable) -> Parameter:
        return replace(super().parameter(path, kind, variable), array=object())


class ChangesModesWhileCounting(ToynetBackend):
    def layers(self, model: toynet.Layer, path: str = "") -> Layer:
        model.train(False)
        return super().layers(model, path)


class SortsItsLayersByName(ToynetBackend):
    def layers(self, model: toynet.Layer, path: str = "") -> Layer:
        tree = super().layers(model, path)
        return replace(tree, children=tuple(sorted(tree.children, key=lambda child: child.path)))


class TurnsDropoutOff(ToynetBackend):
    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        drops = {layer.path: "norm" for layer in request.tree.walk() if layer.kind == "dropout"}
        state = replace(request.state, inference={**request.state.inference, **drops})
        return super().apply(model, replace(request, state=state, layers=request.layers | drops.keys()))


class ForgetsWhenCopied(ToynetBackend):
    """Keeps its pins beside the model, by identity, and puts them on while a layer runs."""

    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        applied = super().apply(model, request)
        for layer in model.walk():
            vars(layer)["pinned"] = _Fleeting(layer.pinned) if layer.pinned else None
        return applied


class _Fleeting(str):
    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


class SeesNothingMove(ToynetBackend):
    def fingerprint(self, array: toynet.Variable) -> bytes:
        return b"still"


class LosesMoments(ToynetBackend):
    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        for layer in model.walk():
            for name, variable in layer.variables().items():
                vars(layer)[name] = _renewed(variable)
        return super().apply(model, replace(request, tree=self.layers(model)))


def _renewed(variable: toynet.Variable) -> toynet.Variable:
    return toynet.Variable(variable.value, trainable=variable.trainable)


class HidesFrozenBiases(ToynetBackend):
    def parameter(self, path: str, kind: str, variable: toynet.Variable) -> Parameter:
        seen = super().parameter(path, kind, variable)
        return replace(seen, status="trainable") if seen.role == "bias" else seen


class MissesALayer(ToynetBackend):
    def layers(self, model: toynet.Layer, path: str = "") -> Layer:
        tree = super().layers(model, path)
        return replace(tree, children=tuple(child for child in tree.children if child.name != "layer_10"))


LIARS: dict[type[ToynetBackend], str] = {
    SaysFrozenAndDoesNothing: "nothing_frozen_moves",
    FreezesTooMuch: "the_rest_trains_as_by_hand",
    ForgetsBuffers: "nothing_frozen_moves",
    ForgetsUndo: "undo_restores_everything",
    UndoesTooMuch: "undo_restores_what_was_frozen_by_hand",
    TellsHowThingsStoodBefore: "a_freezing_tells_what_a_fresh_reading_tells",
    CountsTwice: "a_shared_parameter_counts_once",
    ChangesModesWhileCounting: "counting_changes_nothing",
    SortsItsLayersByName: "a_selector_picks_the_same_layers_in_every_framework",
    TurnsDropoutOff: "norm_keeps_statistics_and_leaves_dropout_on",
    ForgetsWhenCopied: "it_lasts",
    SeesNothingMove: "verify_passes_what_is_still_and_names_what_moved",
    LosesMoments: "nothing_moves_that_is_frozen_in_mid_training",
    HidesFrozenBiases: "what_was_recorded_brings_about_the_same",
    MissesALayer: "the_tree_is_the_reference_model",
}


def test_an_honest_backend_passes() -> None:
    assert _failures() == set()


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.__name__)
def test_a_wrong_backend_is_caught_by_the_check_that_should(liar: type[ToynetBackend], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unifreeze_toynet, "BACKEND", liar())
    failed = _failures()
    assert LIARS[liar] in failed, sorted(failed)


def test_a_selector_that_silently_picks_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(*args: Any) -> _scene.Selection:
        try:
            return _resolve.resolve(*args)
        except LookupError:
            return _scene.Selection(frozenset())

    monkeypatch.setattr(_api, "resolve", lenient)
    assert "a_wrong_selector_is_refused_and_changes_nothing" in _failures()


def test_a_check_that_was_overridden_is_refused() -> None:
    with pytest.raises(TypeError, match="can't be muted"):
        type("Muted", (Conformance,), {"kit": ToynetKit(), "test_counts_are_true": lambda self: None})


def test_a_gap_that_names_no_check_is_refused() -> None:
    kit = ToynetKit()
    kit.gaps = {"nothing_moves_ever": "a typo"}
    with pytest.raises(TypeError, match="nothing_moves_ever"):
        type("Gappy", (Conformance,), {"kit": kit})


def test_a_gap_is_a_strict_expected_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from unifreeze.testing import Conformance
        from unifreeze_toynet_kit import ToynetKit

        class Healed(ToynetKit):
            gaps = {"counts_are_true": "it does hold"}

        class TestHealed(Conformance):
            kit = Healed()
        """
    )
    result = pytester.runpytest("-k", "counts_are_true")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*it does hold*"])


def test_the_runner_without_pytest_runs_what_pytest_runs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from unifreeze.testing import Conformance\nfrom unifreeze_toynet_kit import ToynetKit\nclass TestToy(Conformance):\n    kit = ToynetKit()\n"
    )
    collected = pytester.runpytest("--collect-only", "-q")
    number = sum("::" in line for line in collected.outlines)
    calls: list[tuple[str, Callable[[], None]]] = list(Suite.checks())
    assert number == len(calls) > 100


def test_a_check_that_a_mixin_mutes_is_refused() -> None:
    mixin = type("Mute", (), {"test_counts_are_true": lambda self: None})
    with pytest.raises(TypeError, match="can't be muted"):
        type("Muted", (mixin, Conformance), {"kit": ToynetKit()})


def test_a_suite_without_a_kit_is_refused() -> None:
    for kit in ({}, {"kit": ToynetKit}):
        with pytest.raises(TypeError, match="needs a kit"):
            type("Bare", (Conformance,), kit)
