"""A stack of layers in one array is frozen as a whole, and never by a word that means some of them."""

from __future__ import annotations

import pytest

from unifreeze._resolve import resolve
from unifreeze._tree import Layer, Parameter
from unifreeze.errors import NothingSelectedError, SelectorError
from unifreeze.select import after, before, between, everything, first, last, name, nth, regex, upto


def _layer(path: str, *children: Layer, weighted: bool = True, stack: int = 0) -> Layer:
    owned = (Parameter(f"{path}.kernel", (2,), "float32", 8, "trainable", "kernel", object()),) if weighted else ()
    return Layer(path, "dense" if weighted else "container", "Dense" if weighted else "dict", parameters=owned, children=children, stack=stack)


BLOCKS = _layer("blocks", _layer("blocks.attn", stack=24), _layer("blocks.mlp", stack=24), weighted=False, stack=24)
TREE = _layer("", _layer("embed"), BLOCKS, _layer("norm"), _layer("head"), weighted=False)


@pytest.mark.parametrize("part", ["blocks.3", "blocks.[0-3].*", "blocks_3", name("blocks.3"), regex(r"blocks\.\d+\..*"), first(40)])
def test_one_of_a_stack_has_no_name(part: object) -> None:
    with pytest.raises(NothingSelectedError, match=r"(?s)blocks is a stack of 24 layers.*layers='blocks' freezes all 24.*two stacks"):
        resolve(part, TREE, "dict")


@pytest.mark.parametrize(
    "part", [first(2), last(3), nth(1), nth(3), nth(-4), upto("blocks.attn"), after("blocks.attn"), between("embed", "blocks.mlp"), ~first(3)]
)
def test_no_word_of_order_parts_or_counts_a_stack(part: object) -> None:
    with pytest.raises(SelectorError, match="blocks is a stack of 24 layers"):
        resolve(part, TREE, "dict")


def test_a_stack_may_be_picked_as_a_whole_or_left_alone() -> None:
    stack = {"blocks", "blocks.attn", "blocks.mlp"}
    for whole in ("blocks", before("norm"), between("embed", "norm"), everything, ~last(2)):
        assert resolve(whole, TREE, "dict").layers >= stack
    for beside in (first(1), last(2), nth(0, -1), after("norm"), before("blocks"), "embed"):
        assert not resolve(beside, TREE, "dict").layers & stack
    assert resolve("blocks.attn", TREE, "dict").layers == {"blocks.attn"}


def test_a_typo_without_a_number_says_nothing_of_stacks() -> None:
    with pytest.raises(NothingSelectedError) as caught:
        resolve("hed", TREE, "dict")
    assert "stack" not in str(caught.value)
