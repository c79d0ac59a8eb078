"""Selectors: the text form, its errors, and the algebra, on trees and models of the toy."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unifreeze import layers
from unifreeze._resolve import resolve
from unifreeze._tree import Layer, Parameter, natural
from unifreeze.errors import NothingSelectedError, SelectorError
from unifreeze.select import (
    Selector,
    after,
    before,
    between,
    everything,
    first,
    kind,
    last,
    name,
    nth,
    parse,
    regex,
    selector,
    type,
    upto,
    where,
)
from unifreeze_toynet_kit import ToynetKit

PATHS = ["a", "a.b", "a.b.0", "a.b.1", "a.b.10", "c d", "e|f", "g"]


def _layer(path: str, *children: Layer, weighted: bool = True) -> Layer:
    array = object()
    owned = (Parameter(f"{path}.kernel", (2,), "float32", 8, "trainable", "kernel", array),) if weighted else ()
    return Layer(path, "dense" if weighted else "container", "Dense" if weighted else "Chain", parameters=owned, children=children, native=array)


TREE = _layer(
    "",
    _layer("a", _layer("a.b", _layer("a.b.0"), _layer("a.b.1"), _layer("a.b.10"), weighted=False), weighted=False),
    _layer("c d"),
    _layer("relu", weighted=False),
    _layer("e|f"),
    _layer("g", _layer("g.inner")),
    weighted=False,
)
WEIGHTED = ["a.b.0", "a.b.1", "a.b.10", "c d", "e|f", "g", "g.inner"]


def _picked(chosen: object) -> list[str]:
    found = resolve(chosen, TREE, "Model (toy)").layers
    return [layer.path for layer in TREE.walk() if layer.weighted and layer.path in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**", WEIGHTED),
        ("a", WEIGHTED[:3]),
        ("a.*", WEIGHTED[:3]),
        ("a.b.1", ["a.b.1"]),
        ("a.b.1*", ["a.b.1", "a.b.10"]),
        ("**.1?", ["a.b.10"]),
        ("a.**.0", ["a.b.0"]),
        ('"c d"', ["c d"]),
        ('"e|f" | g.inner', ["e|f", "g.inner"]),
        ("nth:0,2", ["a.b.0", "a.b.10"]),
        ("nth:-1", ["g.inner"]),
        ("name:g", ["g", "g.inner"]),
        ("re:a\\.b\\.(1|10)", ["a.b.1", "a.b.10"]),
        ('re:"c d|g"', ["c d", "g", "g.inner"]),
        ("(re:a\\.b\\.(0)) | g", ["a.b.0", "g", "g.inner"]),
        ("~a & ~g", ["c d", "e|f"]),
        ("~a - g", ["c d", "e|f"]),
        ("first:2 | last:1", ["a.b.0", "a.b.1", "g.inner"]),
        ("before:g - a.b.0", ["a.b.1", "a.b.10", "c d", "e|f"]),
        ("before:(g | a.b.10)", ["a.b.0", "a.b.1"]),
        ("between:a.b.0,g.inner", ["a.b.1", "a.b.10", "c d", "e|f", "g"]),
        ("upto:a", WEIGHTED[:3]),
        ("after:a", WEIGHTED[3:]),
        ("kind:dense & type:Dense", WEIGHTED),
        ("name:a | kind:d*", WEIGHTED),
    ],
)
def test_text(text: str, expected: list[str]) -> None:
    assert _picked(text) == expected
    assert _picked(parse(text).text) == expected


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (first(2), "first:2"),
        (last(1) | "stem.*", "last:1 | stem.*"),
        ("stem.*" | last(1), "stem.* | last:1"),
        (nth(0, -1), "nth:0,-1"),
        (before("x") & ~kind("conv"), "before:x & ~kind:conv"),
        (after(first(1) | "y"), "after:(first:1 | y)"),
        (between("a", upto("b")), "between:a,(upto:b)"),
        ((kind("conv") | "a") & "b", "(kind:conv | a) & b"),
        (kind("conv") - (regex("a b") - "c"), 'kind:conv - (re:"a b" - c)'),
        (~(name("x y") | "z"), '~(name:"x y" | z)'),
        (everything - type("Dense"), "** - type:Dense"),
        (selector(["a", kind("conv")]), "a | kind:conv"),
    ],
)
def test_selectors_in_code_have_the_text_that_python_would_have(made: Selector, text: str) -> None:
    assert made.text == text
    assert parse(text).text == text


_atoms = st.one_of(
    st.builds(first, st.integers(1, 9)),
    st.builds(last, st.integers(1, 9)),
    st.builds(nth, st.integers(-9, 9)),
    st.builds(kind, st.sampled_from(["conv", "dense", "*_norm"])),
    st.builds(name, st.text(min_size=1, max_size=8)),
    st.builds(parse, st.sampled_from(["a.*", "**.x", "[ab]?", "mlp.~.linear_0", "**"])),
    st.builds(regex, st.sampled_from([r"a\.(b|c)", "x y", "[)]", r"\d+"])),
)
_selectors = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(before, inner),
        st.builds(between, inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(_selectors)
def test_text_reads_back_as_the_same_selector(made: Selector) -> None:
    assert parse(made.text).text == made.text
    assert repr(parse(made.text)) == repr(made)


@given(st.text(max_size=30))
@example('"\x1f"')
@example(r'"\q"')
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    try:
        parse(text)
    except SelectorError as error:
        assert "^" in str(error) or "regular expression" in str(error) or "counts nothing" in str(error) or "nth()" in str(error)


@given(_selectors, _selectors)
def test_the_algebra_is_that_of_sets(a: Selector, b: Selector) -> None:
    def pick(made: Selector) -> set[str] | None:
        try:
            return {path for path in resolve(made, TREE, "Model").layers}
        except (NothingSelectedError, SelectorError):
            return None

    left, right = pick(a), pick(b)
    if left is None or right is None:
        assert pick(a | b) is None, "a part that picks nothing must be an error"
        return
    assert pick(a | b) == left | right
    assert pick(a & b) == (left & right or None)
    assert pick(a - b) == (left - right or None)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("", "is empty"),
        ("a |", "ends too early"),
        ("(a", "closing"),
        ("a b", "does not expect 'b'"),
        ("frist:2", "'first'"),
        ("first:two", "whole number"),
        ("first:0", "counts nothing"),
        ("between:a", "two marks"),
        ("re:[", "no regular expression"),
    ],
)
def test_a_text_that_can_not_be_read_says_where(wrong: str, word: str) -> None:
    with pytest.raises(SelectorError, match=word):
        parse(wrong)


@pytest.mark.parametrize(("wrong", "hint"), [("a.c.0", "a.b.0"), ("a.b.1x", "a.b.1"), ("inner", "**.inner"), ("G", "g"), ("g.kernel", "params=")])
def test_near_misses_are_named(wrong: str, hint: str) -> None:
    with pytest.raises(NothingSelectedError) as caught:
        _picked(wrong)
    assert hint in str(caught.value)
    assert "its layers" in str(caught.value)


def test_a_lost_order_is_refused_for_counting_and_not_for_names() -> None:
    tree = Layer("", "container", "dict", children=(_layer("b"), _layer("h")), lost_order="JAX sorts the keys of a dict.")
    assert resolve("b", tree, "dict").layers == {"b"}
    for counting in (first(1), last(1), nth(0), before("h"), after("b"), upto("b"), between("b", "h"), ~first(1)):
        with pytest.raises(SelectorError, match="JAX sorts"):
            resolve(counting, tree, "dict")


def test_a_shared_layer_is_counted_once() -> None:
    one = _layer("a")
    tree = _layer("", one, Layer("b", "dense", "Dense", parameters=one.parameters, native=one.native), _layer("c"), weighted=False)
    assert resolve(first(2), tree, "Model").layers >= {"a", "b", "c"}
    assert resolve(last(1), tree, "Model").layers == {"c"}
    assert resolve(~first(1), tree, "Model").layers >= {"c"}
    assert not resolve(~first(1), tree, "Model").layers & {"a", "b"}


def test_functions_and_classes_pick_layers() -> None:
    model = ToynetKit().reference()
    assert [layer.path for layer in layers(model, lambda layer: layer.name == "head")] == ["head"]
    assert [layer.path for layer in layers(model, where(lambda layer: layer.kind == "conv") | "head")] == ["stem.conv", "head"]


def test_numbers_sort_as_numbers() -> None:
    assert sorted(["x_10", "x_9", "a", "x"], key=natural) == ["a", "x", "x_9", "x_10"]
