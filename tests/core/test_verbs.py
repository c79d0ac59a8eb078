"""The verbs, the Freezing and recipes, where the suite does not reach: what they say, and what they refuse."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import toynet
import unifreeze_toynet
from unifreeze import Recipe, Step, UnifreezeError, UnifreezeWarning, _manager, apply, backends, freeze, layers, summary, unfreeze
from unifreeze.errors import ArgumentError, BackendError, NothingSelectedError, RecipeError, UnknownModelError, UntrainableError
from unifreeze.plugin import Applied, Request
from unifreeze.select import first
from unifreeze_toynet import ToynetBackend
from unifreeze_toynet_kit import ToynetKit


@pytest.fixture
def model() -> toynet.Layer:
    return ToynetKit().reference()


def test_a_freezing_reads_like_a_sentence(model: toynet.Layer) -> None:
    freezing = freeze(model, layers=first(1))
    assert repr(freezing) == "<Freezing of Chain (toynet): 2 of 16 parameters frozen, 2 changed by this call>"
    assert freezing.changed == ("stem.conv.kernel", "stem.conv.bias")
    assert freezing.layers == ("stem.conv",)
    assert freezing.held == ()
    assert str(freezing.verify()).startswith("Chain (toynet): 2 frozen arrays (448 bytes) compared, none moved")


def test_a_freezing_can_not_be_changed(model: toynet.Layer) -> None:
    with pytest.raises(AttributeError):
        freeze(model).frozen = ()  # type: ignore[misc]


def test_a_freezing_names_what_was_meant(model: toynet.Layer) -> None:
    with pytest.raises(AttributeError, match="did you mean 'summary'"):
        freeze(model).sumary()


def test_a_freezing_is_a_key_by_identity(model: toynet.Layer) -> None:
    one, other = freeze(model), freeze(model)
    assert len({one, other, one}) == 2


def test_verify_says_that_a_flag_was_changed_by_hand(model: toynet.Layer) -> None:
    freezing = freeze(model, layers="head")
    model.head.kernel.trainable = True
    with pytest.raises(AssertionError, match=r"1 of the promises .*\n  head.kernel: is trainable again"):
        freezing.verify()


def test_verify_says_that_a_layer_was_replaced(model: toynet.Layer) -> None:
    freezing = freeze(model, layers="stem")
    model.stem.norm = toynet.Relu()
    with pytest.raises(AssertionError, match="stem.norm.mean: is gone"):
        freezing.verify()


def test_verify_says_that_a_layer_is_no_longer_held(model: toynet.Layer) -> None:
    freezing = freeze(model, layers="stem")
    model.stem.norm.pinned = None
    with pytest.raises(AssertionError, match="stem.norm: is no longer held"):
        freezing.verify()


def test_only_what_was_picked_is_undone(model: toynet.Layer) -> None:
    stem = freeze(model, layers="stem")
    freeze(model, layers="head")
    assert set(stem.undo().frozen) == {"head.kernel", "head.bias"}


def test_a_backend_that_fails_half_way_changes_nothing(model: toynet.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(ToynetBackend):
        def apply(self, model: toynet.Layer, request: Request) -> Applied:
            request.tree.children[0].children[1].native.scale = None
            return super().apply(model, request)

    monkeypatch.setattr(unifreeze_toynet, "BACKEND", Breaks())
    tree_read_first = model.stem.conv.kernel
    monkeypatch.setattr(unifreeze_toynet, "_set", _set_and_break)
    with pytest.raises(ZeroDivisionError):
        freeze(model)
    assert tree_read_first.trainable


def _set_and_break(undo: object, thing: object, attribute: str, value: object) -> None:
    _original(undo, thing, attribute, value)
    if getattr(_set_and_break, "calls", 0) == 3:
        raise ZeroDivisionError
    _set_and_break.calls = getattr(_set_and_break, "calls", 0) + 1  # type: ignore[attr-defined]


_original = unifreeze_toynet._set


def test_a_parameter_that_can_not_be_trained_is_skipped_and_said(model: toynet.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unifreeze_toynet, "BACKEND", _Quantised())
    assert "head.kernel" in freeze(model, layers="stem").frozen
    with pytest.warns(UnifreezeWarning, match=r"head.kernel \(int8 has no gradient\)"):
        freezing = unfreeze(model)
    assert freezing.skipped == {"head.kernel": "int8 has no gradient"}
    assert freezing.frozen == ("head.kernel",)
    with pytest.raises(UntrainableError, match="head.kernel: int8"):
        unfreeze(model, params="head.kernel")


class _Quantised(ToynetBackend):
    def parameter(self, path, kind, variable):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        seen = super().parameter(path, kind, variable)
        return replace(seen, status="frozen", untrainable="int8 has no gradient") if path == "head.kernel" else seen


def test_what_no_backend_speaks_for_is_refused_with_the_facts() -> None:
    for thing, word in [
        (object(), "object is no model"),
        ({"a": 1}, "import jax first"),
        ({}, "it is empty"),
        (toynet.Dense, "give an instance, Dense"),
        (None, "NoneType"),
        (np.zeros(3), "ndarray"),
    ]:
        with pytest.raises(UnknownModelError, match=word) as caught:
            freeze(thing)
        assert "toynet" in str(caught.value), "it says what is awake"
        assert isinstance(caught.value, TypeError)


def test_a_plugin_that_answers_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, model: toynet.Layer) -> None:
    monkeypatch.setattr(unifreeze_toynet, "BACKEND", False)
    with pytest.raises(BackendError, match="returns None"):
        freeze(model)


def test_a_backend_that_can_not_be_loaded_stops_no_other(monkeypatch: pytest.MonkeyPatch, model: toynet.Layer) -> None:
    broken = EntryPoint("unifreeze.errors", "nowhere.to.be.found", "unifreeze")
    monkeypatch.setattr(_manager, "_known", lambda: {"unifreeze.errors": broken, **_known})
    assert freeze(model, layers="head").frozen
    with pytest.raises(BackendError, match="(?s)could not be loaded.*nowhere"):
        freeze(object())


_known = _manager._known()


def test_backends_say_what_is_there_and_how_to_get_the_rest() -> None:
    known = {info.name: info for info in backends()}
    assert {"torch", "keras", "jax", "flax.nnx", "equinox", "toynet"} <= known.keys()
    assert known["toynet"].awake
    assert known["toynet"].installed
    assert known["flax.nnx"].install == "install it with pip install 'unifreeze[flax]'"


def test_keywords_are_checked() -> None:
    for verb, wrong, meant in [(freeze, "layer", "layers"), (unfreeze, "parms", "params"), (summary, "dept", "depth"), (layers, "layer", "layers")]:
        with pytest.raises(ArgumentError, match=f"did you mean '{meant}'"):
            verb(object(), **{wrong: 1})


def test_freezing_all_on_request_does_not_warn_and_by_a_selector_does(model: toynet.Layer, recwarn: pytest.WarningsRecorder) -> None:
    freeze(model).undo()
    assert not recwarn
    with pytest.warns(UnifreezeWarning, match="nothing will train"):
        freeze(model, layers=["stem", "body", "head"])


def test_recipes_read_and_write() -> None:
    recipe = Recipe((Step("freeze", "backbone.*", inference="all"), Step("unfreeze", first(2), params="bias")), "mine")
    again = Recipe.read(recipe.to_json())
    assert again.to_dict() == recipe.to_dict()
    assert again.steps[1].layers == "first:2"


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ("{", "no JSON"),
        ({}, "list of steps"),
        ({"steps": []}, "list of steps"),
        ({"steps": [{"freeze": "a"}], "setps": 1}, "setps"),
        ({"steps": [3]}, r"steps\[0\]"),
        ({"steps": [{"freeze": "a"}, {"freez": "a"}]}, r"(?s)steps\[1\].freez: .*'freeze'"),
        ({"steps": [{"freeze": "a", "unfreeze": "b"}]}, r"steps\[0\]: .*either"),
        ({"steps": [{"freeze": 2}]}, r"steps\[0\].freeze"),
        ({"steps": [{"freeze": "frist:2"}]}, r"(?s)steps\[0\].freeze: .*'first'"),
        ({"steps": [{"freeze": "a", "params": 1}]}, r"steps\[0\].params"),
        ({"steps": [{"freeze": "a", "inference": "al"}]}, r"(?s)steps\[0\].inference: .*'all'"),
    ],
)
def test_a_recipe_that_can_not_be_read_names_the_place(wrong: object, place: str, model: toynet.Layer) -> None:
    with pytest.raises(RecipeError, match=place):
        apply(model, wrong)  # type: ignore[arg-type]


def test_a_step_that_picks_nothing_is_named_and_changes_nothing(model: toynet.Layer) -> None:
    with pytest.raises(NothingSelectedError, match=r"^steps\[1\]: "):
        apply(model, {"steps": [{"freeze": "**"}, {"unfreeze": "haed"}]})
    assert summary(model).totals.frozen == 0


def test_every_error_is_ours_and_the_builtin_that_a_reader_expects(model: toynet.Layer) -> None:
    for call, builtin in [
        (lambda: freeze(model, layers="nowhere"), LookupError),
        (lambda: freeze(model, layers=2), ValueError),
        (lambda: freeze(3), TypeError),
    ]:
        with pytest.raises(builtin) as caught:
            call()
        assert isinstance(caught.value, UnifreezeError)


def test_verify_does_not_pass_on_values_that_it_never_knew(model: toynet.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Abstract(ToynetBackend):
        def fingerprint(self, array: toynet.Variable) -> None:
            return None

    monkeypatch.setattr(unifreeze_toynet, "BACKEND", Abstract())
    freezing = freeze(model, layers="head")
    with pytest.raises(BackendError, match=r"2 frozen arrays .*(?s:.*)remember"):
        freezing.verify()
    monkeypatch.undo()
    assert len(freeze(model, layers="head").remember(model).verify().arrays) == 2


def test_where_warnings_are_errors_a_call_that_raises_has_changed_nothing(model: toynet.Layer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnifreezeWarning):
            freeze(model, layers="*")
    assert summary(model).totals.frozen == 0


def test_a_backend_that_fails_after_the_change_takes_it_back(model: toynet.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(ToynetBackend):
        def fingerprint(self, array: toynet.Variable) -> bytes:
            raise TypeError

    monkeypatch.setattr(unifreeze_toynet, "BACKEND", Breaks())
    with pytest.raises(TypeError):
        freeze(model, layers="head")
    assert summary(model).totals.frozen == 0


def test_words_that_python_would_misread_are_refused(model: toynet.Layer) -> None:
    with pytest.raises(UnifreezeError, match="instead of or, and, not"):
        freeze(model, layers=first(2) and first(1))
    with pytest.raises(UnifreezeError, match="without its call"):
        freeze(model, layers=first)


def test_a_container_of_the_models_own_layers_picks_them(model: toynet.Layer) -> None:
    assert freeze(model, layers=model.body.children().values()).layers[0] == "body.layer_1"


def test_a_step_and_a_recipe_made_by_hand_are_checked() -> None:
    for make in (
        lambda: Step("frezee", "a"),  # type: ignore[arg-type]
        lambda: Step("freeze", "a", inference="nrom"),  # type: ignore[arg-type]
        lambda: Step("unfreeze", "a", inference="all"),
        lambda: Recipe(({"freeze": "a"},)),  # type: ignore[arg-type]
    ):
        with pytest.raises(RecipeError):
            make()


def test_apply_warns_when_everything_ends_up_frozen(model: toynet.Layer) -> None:
    with pytest.warns(UnifreezeWarning, match="nothing will train"):
        apply(model, {"steps": [{"freeze": "*"}]})
