"""The first wrong thing that somebody types: each its own error with the repair in it, and nothing changed."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import ref

import pytest

import toynet
import unifreeze
from unifreeze import Recipe, UnifreezeError, _manager, apply, freeze, layers, summary, unfreeze
from unifreeze.errors import ArgumentError, BackendError, NothingSelectedError, RecipeError, SelectorError, UnknownModelError
from unifreeze.plugin import hookimpl
from unifreeze.select import kind, name, regex, type, where
from unifreeze_toynet_kit import ToynetKit

KIT = ToynetKit()


@pytest.fixture
def model() -> toynet.Chain:
    return KIT.reference()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: kind(3), "such as kind\\('conv'\\)"),
        (lambda: kind(toynet.Dense), "type\\(Dense\\)"),
        (lambda: name(None), "such as name\\('head'\\)"),
        (lambda: name(""), "takes a text"),
        (lambda: regex(5), "takes a text"),
        (lambda: regex(re.compile("a.*")), "Give regex\\('a\\.\\*'\\)"),
        (lambda: type(toynet.Relu()), "give it as layers="),
        (lambda: where("dense"), "takes a function"),
    ],
)
def test_a_selector_word_says_what_it_takes(call: Any, says: str) -> None:
    with pytest.raises(SelectorError, match=says):
        call()


@pytest.mark.parametrize(
    ("chosen", "repair"),
    [
        ("Dense", "layers='type:Dense' picks"),
        ("dEnSe", "layers='type:Dense' picks"),
        ("conv", "layers='kind:conv' picks"),
        ("re:nothing", r"layers\(model\) lists them"),
    ],
)
def test_what_picks_nothing_says_what_to_write(model: toynet.Chain, chosen: str, repair: str) -> None:
    before = KIT.flags(model)
    with pytest.raises(NothingSelectedError, match=repair):
        freeze(model, layers=chosen)
    assert KIT.flags(model) == before


def test_a_star_import_hides_nothing_of_python() -> None:
    names: dict[str, Any] = {}
    exec("from unifreeze.select import *", names)
    assert "first" in names
    assert "type" not in names


def test_the_name_of_a_class_picks_its_subclasses_as_the_class_does() -> None:
    class Special(toynet.Dense):
        pass

    model = KIT.reference()
    model.head.__class__ = Special
    chosen = [layer.path for layer in layers(model, type(toynet.Dense))]
    assert "head" in chosen
    assert [layer.path for layer in layers(model, type(toynet.Dense).text)] == chosen
    assert [layer.path for layer in layers(model, "type:Special")] == ["head"]


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        ([], SelectorError, "empty"),
        (iter(()), SelectorError, "empty"),
        ({"bias": True}, SelectorError, "does not pick parameters"),
        (range(2), SelectorError, "does not pick parameters"),
        ([None], SelectorError, "does not pick parameters"),
        ("mean", NothingSelectedError, "stem.norm.mean is a buffer"),
        ("biass", NothingSelectedError, "did you mean 'bias'"),
        (toynet.Variable([1.0]), NothingSelectedError, "found by identity"),
    ],
)
def test_params_says_what_it_takes(model: toynet.Chain, params: Any, error: Any, says: str) -> None:
    before = KIT.flags(model)
    with pytest.raises(error, match=says):
        freeze(model, params=params)
    assert KIT.flags(model) == before


def test_params_takes_what_hands_out_parameters(model: toynet.Chain) -> None:
    wanted = {"head.kernel": model.head.kernel, "head.bias": model.head.bias}
    for params in (iter(wanted.values()), wanted.values(), (value for value in wanted.values()), tuple(wanted), wanted.keys()):
        with freeze(model, params=params) as freezing:
            assert set(freezing.frozen) == set(wanted)


def test_a_buffer_is_no_parameter_also_when_given_itself(model: toynet.Chain) -> None:
    with pytest.raises(NothingSelectedError, match="stem.norm.mean is a buffer"):
        freeze(model, params=model.stem.norm.mean)


@pytest.mark.parametrize("depth", ["1", -1, 1.5, True])
def test_depth_is_a_whole_number(model: toynet.Chain, depth: Any) -> None:
    with pytest.raises(ArgumentError, match="whole number from 0"):
        summary(model, depth=depth)


def test_a_model_without_anything_to_freeze_is_said() -> None:
    with pytest.raises(NothingSelectedError, match="Chain .toynet. has no parameters and no buffers"):
        freeze(toynet.Chain(relu=toynet.Relu()))


def test_a_block_can_not_run_under_a_freezing_that_was_undone(model: toynet.Chain) -> None:
    freezing = freeze(model, layers="stem")
    freezing.undo()
    with pytest.raises(ArgumentError, match="has been undone"), freezing:
        pytest.fail("the block ran")
    first, later = freeze(model, layers="stem"), freeze(model, layers="stem.conv")
    first.undo()
    with pytest.raises(ArgumentError, match="has been undone"), later:
        pytest.fail("the block ran")


def test_a_freezing_does_not_keep_a_model_alive(model: toynet.Chain) -> None:
    model = KIT.reference()
    kept = ref(model)
    freezings = freeze(model, layers="stem"), freeze(model, layers="stem.conv")
    del model, freezings
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_model_that_keeps_its_freezing_is_copied_with_it(model: toynet.Chain, copied: Any) -> None:
    model.freezing = freeze(model, layers="stem")
    other = copied(model)
    assert other.freezing.model is other
    assert other.freezing.frozen == model.freezing.frozen
    other.freezing.verify()
    changed = KIT.disturb(other, "stem.conv.kernel")
    with pytest.raises(AssertionError, match="stem.conv.kernel: moved"):
        changed.freezing.verify()
    with pytest.raises(ArgumentError, match="only the original can be undone"):
        other.freezing.undo()
    model.freezing.verify()
    model.freezing.undo()
    assert copy.copy(model.freezing) is model.freezing


def test_what_is_no_model_is_told_what_was_meant(model: toynet.Chain) -> None:
    for wrong, says in [
        (toynet.Chain, r"The class toynet.Chain .*(?s:.*)give an instance, Chain"),
        ("resnet50", "a name or a path"),
        (Path("model.keras"), "a name or a path"),
        ([model.stem, model.head], "chosen by layers="),
        ({}, "it is empty"),
        (iter([model.head.kernel]), r"(?s)one by one.*params="),
    ]:
        with pytest.raises(UnknownModelError, match=says):
            freeze(wrong)


def test_a_misspelt_verb_is_named() -> None:
    with pytest.raises(AttributeError, match="did you mean 'freeze'"):
        unifreeze.freez  # noqa: B018
    assert not hasattr(unifreeze, "_private")


def test_a_recipe_is_read_from_a_path(model: toynet.Chain, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    recipe = Recipe.read({"name": "mine", "steps": [{"freeze": "stem"}]})
    file.write_text(recipe.to_json())
    assert Recipe.read(file) == recipe
    assert set(apply(model, file).frozen) == {"stem.conv.kernel", "stem.conv.bias", "stem.norm.scale", "stem.norm.bias"}
    with pytest.raises(RecipeError, match=r"Path\('recipe.json'\)"):
        apply(model, "recipe.json")
    with pytest.raises(RecipeError, match="absent.json can't be read"):
        apply(model, tmp_path / "absent.json")
    file.write_bytes(b" " * (1 << 21))
    with pytest.raises(RecipeError, match="larger than a recipe may be"):
        apply(model, file)


@pytest.mark.parametrize("fault", ["misspelt", "raises"])
def test_a_strangers_broken_backend_stops_nobody_else(model: toynet.Chain, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    stranger, framework = ModuleType("strangers_backend"), ModuleType("strange")

    @hookimpl
    def unifreeze_backnd(model: object) -> None:
        return None

    stranger.unifreeze_backnd = unifreeze_backnd
    monkeypatch.setitem(sys.modules, "strange", framework)
    monkeypatch.setitem(sys.modules, "strangers_backend", stranger)
    point = EntryPoint("strange", "strangers_backend" if fault == "misspelt" else "strangers_backend:absent", "unifreeze")
    monkeypatch.setattr(_manager, "_known", lambda: {**KNOWN, "strange": point})
    assert freeze(model, layers="stem").frozen
    with pytest.raises(BackendError, match=r"(?s)some could not be loaded.*strange: its plugin strangers_backend"):
        freeze(object())
    assert not _manager._manager().has_plugin("strange")


KNOWN = dict(_manager._known())


def test_every_error_is_ours(model: toynet.Chain) -> None:
    with pytest.raises(UnifreezeError):
        unfreeze(model, layers=object())
