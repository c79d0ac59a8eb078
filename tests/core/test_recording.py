"""Recording: whatever is frozen in a random tree, the recipe brings about exactly that on a fresh build, and is short where a short selector made it."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toynet as tn
from unifreeze import Recipe, UnifreezeError, UnifreezeWarning, apply, freeze, summary, unfreeze
from unifreeze.errors import RecipeError
from unifreeze_toynet_kit import ToynetKit

LAYERS = {
    "dense": lambda rng: tn.Dense(1, 1, rng),
    "conv": lambda rng: tn.Conv(1, 1, rng),
    "bn": lambda rng: tn.BatchNorm(1, rng),
    "ln": lambda rng: tn.LayerNorm(1, rng),
    "relu": lambda rng: tn.Relu(),
    "drop": lambda rng: tn.Dropout(0.5),
}
Shape = list[tuple[str, "str | Shape"]]
NAMES = st.sampled_from(["block1_conv1", "block1_conv2", "block2_conv1", "layer1", "layer2", "layer10", "norm", "head", "a", "b"])
SHAPES: Any = st.recursive(
    st.sampled_from(sorted(LAYERS)),
    lambda inner: st.lists(st.tuples(NAMES, inner), min_size=1, max_size=6, unique_by=lambda pair: pair[0]),
    max_leaves=25,
)
SHORT = ["first:2", "last:1", "~last:1", "kind:batch_norm", "~kind:batch_norm", "layer1", "**.norm", "before:head", "after:layer1", "block1_*", "name:a"]
SHORT += ["before:head | kind:batch_norm", "before:layer2 - kind:dense", "upto:layer2", "between:a,b", "~(layer1 | head)", "~first:3", "kind:dense & ~last:1"]


def build(shape: Any) -> tn.Layer:
    rng = np.random.default_rng(0)
    return LAYERS[shape](rng) if isinstance(shape, str) else tn.Chain(**{name: build(inner) for name, inner in shape})


def state(model: tn.Layer, path: str = "") -> dict[str, object]:
    """Read from the layers themselves."""
    own: dict[str, object] = {f"{path}.{name}": variable.trainable for name, variable in model.variables().items()} | {path: model.pinned}
    for name, child in model.children().items():
        own |= state(child, f"{path}.{name}")
    return own


def quietly(call: Any, *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnifreezeWarning)
        call(*args, **kwargs)


def travel(model: tn.Layer, shape: Any) -> Recipe:
    """Records, writes, reads, applies to a fresh build, and compares flags and modes."""
    recipe = Recipe.record(model)
    fresh = build(shape)
    quietly(apply, fresh, Recipe.read(recipe.to_json()))
    assert state(fresh) == state(model)
    return recipe


TREES = SHAPES.filter(lambda shape: not isinstance(shape, str))
DONE = st.tuples(st.sampled_from([freeze, freeze, unfreeze]), st.sets(st.integers(0, 60), min_size=1), st.sampled_from([None, None, "bias", "kernel", "scale"]))


@pytest.mark.once
@settings(max_examples=150, deadline=None)
@given(TREES, st.lists(DONE, min_size=1, max_size=3), st.sampled_from(["norm", "norm", "all", "none"]))
def test_any_state_travels(shape: Any, calls: list[Any], inference: str) -> None:
    model = build(shape)
    for call, numbers, params in calls:
        nodes = list(model.walk())
        chosen = [nodes[n % len(nodes)] for n in numbers]
        try:
            quietly(call, model, chosen, params=params, **({"inference": inference} if call is freeze else {}))
        except UnifreezeError:
            continue
    if state(model) == state(build(shape)):
        with pytest.raises(RecipeError, match="Nothing is frozen"):
            Recipe.record(model)
        return
    travel(model, shape)


@pytest.mark.once
@settings(max_examples=150, deadline=None)
@given(TREES, st.sampled_from(SHORT))
def test_what_a_short_selector_froze_is_said_no_longer_than_by_a_list(shape: Any, short: str) -> None:
    model = build(shape)
    try:
        quietly(freeze, model, short)
    except UnifreezeError:
        return
    recipe = travel(model, shape)
    paths = [layer.path for layer in summary(model).rows if layer.status == "frozen" and layer.parameters]
    if len(paths) > 4:
        assert len(recipe.steps) == 1
        assert len(str(recipe.steps[0].layers)) < len(" | ".join(paths))


@pytest.mark.parametrize(
    ("chosen", "params", "expected"),
    [
        ("stem", None, ("stem", None)),
        (None, "bias", ("**", "bias")),
        ("kind:batch_norm", None, ("kind:batch_norm", None)),
        (["stem", "body.layer_1", "body.norm", "body.layer_2"], None, ("~last:3", None)),
        ("~head", None, ("~head", None)),
        ("body", "kernel", ("body", "kernel")),
    ],
)
def test_the_shortest_words_are_found(chosen: Any, params: str | None, expected: tuple[str, str | None]) -> None:
    model = ToynetKit().reference()
    freeze(model, chosen, params=params)
    (step,) = Recipe.record(model).steps
    assert (step.layers, step.params) == expected


def test_bitfit_is_two_steps() -> None:
    model = ToynetKit().reference()
    quietly(freeze, model)
    unfreeze(model, params="bias")
    assert [step.to_dict() for step in Recipe.record(model).steps] == [{"freeze": "**"}, {"unfreeze": "**", "params": "bias"}]


def test_a_list_is_written_only_where_no_rule_fits_and_it_says_so() -> None:
    shape = [(f"x{chr(97 + i)}", "dense") for i in range(26)]
    model = build(shape)
    freeze(model, [list(model.children().values())[i] for i in (0, 2, 3, 7, 8, 12, 15, 19, 20, 24)])
    recipe = travel(model, shape)
    assert "no shorter selector" in recipe.notes[0]
    assert not Recipe.record(freeze(build(shape), "first:9")).notes


@pytest.mark.once
def test_recording_is_quick_for_ten_thousand_layers() -> None:
    shape = [(f"layer_{i}", "bn" if i % 3 == 2 else "dense") for i in range(10_000)]
    model = build(shape)
    freeze(model, "before:layer_7000 - kind:batch_norm")
    begun = time.perf_counter()
    recipe = Recipe.record(model)
    assert time.perf_counter() - begun < 60
    assert len(str(recipe.steps[0].layers)) < 60
