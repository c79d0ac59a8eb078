"""Models that nobody here could hold: they are frozen and summarised from their shapes, and nothing is allocated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from unifreeze import freeze, summary


def large(depth: int = 126, width: int = 16384, inner: int = 53248, words: int = 128256, keys: int = 1024) -> Any:
    """The arrays of a decoder of 405 billion parameters, as a function that would make them."""

    def ones(*shape: int) -> Any:
        return jnp.ones(shape, jnp.bfloat16)

    def block() -> Any:
        attention = {"q": ones(width, width), "k": ones(width, keys), "v": ones(width, keys), "o": ones(width, width)}
        mlp = {"gate": ones(width, inner), "up": ones(width, inner), "down": ones(inner, width)}
        return {"norm": ones(width), "attn": attention, "norm_2": ones(width), "mlp": mlp}

    return {"embed": ones(words, width), "layers": {str(i): block() for i in range(depth)}, "norm": ones(width), "head": ones(width, words)}


def fastest(call: Callable[[], Any]) -> float:
    taken = []
    for _ in range(3):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def test_four_hundred_billion_parameters_take_less_than_a_second_and_no_memory() -> None:
    shapes, held = jax.eval_shape(large), len(jax.live_arrays())
    totals = summary(freeze(shapes, layers="layers.1??.**")).totals
    block = 2 * 16384 + 2 * 16384 * 16384 + 2 * 16384 * 1024 + 3 * 16384 * 53248
    assert totals.parameters == 126 * block + 2 * 128256 * 16384 + 16384 > 405_000_000_000
    assert totals.frozen == 26 * block
    assert totals.bytes_by_dtype == {"bfloat16": 2 * totals.parameters}
    assert len(jax.live_arrays()) == held
    assert fastest(lambda: summary(freeze(shapes, layers="layers.1??.**"))) < 1


@pytest.mark.deep
def test_a_hundred_thousand_arrays_take_less_than_two_seconds() -> None:
    def shape(*axes: int) -> Any:
        return jax.ShapeDtypeStruct(axes, jnp.float32)

    tree = {f"layer_{i}": {"kernel": shape(4, 4), "bias": shape(4)} for i in range(50_000)}
    totals = summary(freeze(tree, layers="layer_1*")).totals
    assert (totals.parameters, totals.frozen) == (50_000 * 20, 11_111 * 20)
    assert fastest(lambda: summary(freeze(tree, layers="layer_1*"))) < 2


def test_a_shape_that_stands_for_several_arrays_is_one_of_each() -> None:
    same = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    totals = summary(freeze({"a": {"kernel": same}, "b": [{"kernel": same}]}, layers="a")).totals
    assert (totals.parameters, totals.frozen) == (32, 16)


def test_a_part_left_out_is_not_taken_for_a_leaf_of_a_known_tree() -> None:
    tree = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": {"kernel": jnp.ones((2, 2))}}
    f = freeze(tree, layers="a")
    trainable, rest = f.partition(tree)
    assert trainable == {"a": {"kernel": None, "bias": None}, "b": {"kernel": tree["b"]["kernel"]}}
    assert rest["b"] == {"kernel": None}
    again = f.combine(trainable, rest)
    assert all(again[layer][name] is array for layer, arrays in tree.items() for name, array in arrays.items())


def test_keys_of_all_kinds_name_the_arrays_in_the_order_of_the_tree() -> None:
    numbered, listed = {"z": {2: jnp.ones(3), 1: jnp.ones(3)}}, [jnp.ones(1), {"kernel": jnp.ones((1, 1))}]
    tree = {"x/y": {"kernel": jnp.ones((2, 2))}, "x": numbered, "l": listed, "top": jnp.ones(5)}
    assert freeze(tree).frozen == ("top", "x.y.kernel", "x.z.2", "x.z.1", "l.0", "l.1.kernel")
