"""The language of tracing: what a tensor of numbers undergoes, its value undergoes too; the numbers say whether the value tells the truth."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unifreeze import errors
from unifreeze._flow import constant, dropped, fresh, joined, parameter, read, reshaped, sliced, transposed
from unifreeze._gathering import gathered
from unifreeze._graph import Weight
from unifreeze._port.match import match
from unifreeze._tracing import Tracing

WIDTH = 12


def divisors(size):
    return [n for n in range(1, size + 1) if size % n == 0]


@st.composite
def histories(draw):
    """What happens to the twelve channels of a unit: they are regrouped, turned, cut and joined again."""
    return [
        (draw(st.sampled_from(["split", "turn", "cut", "merge"])), draw(st.integers(0, 5)), draw(st.integers(0, 5))) for _ in range(draw(st.integers(1, 6)))
    ]


def undergo(history):
    """The value and, beside it, an array that holds the number of the channel that stands at each place."""
    value, array = fresh(0, (1, WIDTH)), np.arange(WIDTH).reshape(1, WIDTH)
    for what, a, b in history:
        rank = array.ndim
        if what == "split":
            axis = a % rank
            size = array.shape[axis]
            outer = divisors(size)[b % len(divisors(size))]
            shape = (*array.shape[:axis], outer, size // outer, *array.shape[axis + 1 :])
            value, array = reshaped(value, shape), array.reshape(shape)
        elif what == "turn":
            order = list(np.random.default_rng(7 * a + b).permutation(rank))
            value, array = transposed(value, [int(axis) for axis in order]), array.transpose(order)
        elif what == "cut":
            axis = a % rank
            count = max(array.shape[axis] // 2, 1)
            start = b % (array.shape[axis] - count + 1)
            value, array = sliced(value, axis, start, 1, count), np.take(array, range(start, start + count), axis)
        else:
            value, array = reshaped(value, (1, array.size)), array.reshape(1, array.size)
    return reshaped(value, (1, array.size)), array.reshape(-1)


@pytest.mark.once
@settings(max_examples=300, deadline=None)
@given(histories())
def test_a_value_knows_which_channel_stands_where(history):
    try:
        value, array = undergo(history)
    except errors.BackendError:
        return
    flows, order = read(value, [1])
    (flow,) = flows
    part = np.asarray(flow.part or range(WIDTH))
    # The unit that reads is told in which order its rows are to be taken: that of the channels.
    where = {key: place for place, (key, _) in enumerate(value.axes[1])}
    rows = array.reshape([size for _, size in value.axes[1]]).transpose([where[key] for key in order]).reshape(-1)
    seen = part[list(flow.index)] if flow.index else part
    assert np.array_equal(rows, seen)


def test_a_concatenation_and_its_slices():
    a, b = fresh(0, (1, 3)), fresh(1, (1, 5))
    both = joined([a, b], 1)
    (left,) = sliced(both, 1, 0, 1, 3).flows
    assert (left.unit, left.part, left.index) == (0, (0, 1, 2), ())
    middle = {(flow.unit, flow.part) for flow in sliced(both, 1, 2, 1, 2).flows}
    assert middle == {(0, (2,)), (1, (0,))}


@pytest.mark.parametrize("shape", [(1, 8, 3), (1, 24), (1, 4, 6)])
def test_a_flattened_image_is_read_in_the_same_order_by_all(shape):
    last, first = fresh(0, (1, 2, 4, 3)), fresh(0, (1, 3, 2, 4), channel=1)
    kernel = {"a": (24, 5), "b": (5, 24)}
    graphs = []
    for value, path in ((last, "a"), (first, "b")):
        tracing = Tracing({path: path, "conv": "conv"})
        tracing.unit("conv", frozenset(), (1,), {"kernel": Weight("conv", (), (), (1,))})
        flat = reshaped(value, (1, 24))
        weight = parameter(path, kernel[path])
        out = tracing.linear(flat, weight if path == "a" else transposed(weight, (1, 0)))
        graphs.append(tracing.finish([out]))
    one, other = (graph.units[1].weights["kernel"] for graph in graphs)
    image = np.arange(24 * 5).reshape(2, 4, 3, 5)
    assert np.array_equal(one.shared(image.reshape(24, 5)), other.shared(image.transpose(2, 0, 1, 3).reshape(24, 5).T))
    assert match(*graphs).certificate == "exact"


PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def patches(order, kept=slice(None)):
    """The graph of a dense layer on patches of two by two; ``order`` are the slices that are put side by side, or the axes (rows, columns) of a reshape."""
    tracing = Tracing({"conv": "conv", "k": "k"})
    tracing.unit("conv", frozenset(), (1,), {"kernel": Weight("conv", (), (), (1,))})
    image = fresh(0, (1, 4, 6, 3))
    if len(order) == 2:
        grid = reshaped(image, (1, 2, 2, 3, 2, 3))
        moved = transposed(grid, (0, 1, 3, *((2, 4) if order == "hw" else (4, 2)), 5))
        whole = reshaped(moved, (1, 2, 3, 12))
    else:
        whole = tracing.joined([sliced(sliced(image, 1, h, 2, 2), 2, w, 2, 3) for h, w in order], 3)
    start, stop, _ = kept.indices(12)
    return tracing.finish([tracing.linear(sliced(whole, 3, start, 1, stop - start), parameter("k", (stop - start, 5)))])


@pytest.mark.parametrize("order", list(permutations(PLACES)))
def test_slices_side_by_side_are_the_reshape_that_moves_positions_into_channels(order):
    kernel = np.arange(2 * 2 * 3 * 5).reshape(2, 2, 3, 5)  # by row, column and channel
    laid = np.stack([kernel[place] for place in order]).reshape(12, 5)
    regular = [order[i][axis] for axis in (0, 1) for i in range(4)] in ([0, 0, 1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 0, 1, 1])
    for axes, seen in (("hw", kernel), ("wh", kernel.transpose(1, 0, 2, 3))):
        one, other = patches(order), patches(axes)
        assert (match(one, other).certificate == "exact") == regular
        if regular:
            assert np.array_equal(one.units[1].weights["kernel"].shared(laid), other.units[1].weights["kernel"].shared(seen.reshape(12, 5)))
    assert match(patches(order), patches(order)).certificate == "exact"


def test_slices_that_a_reshape_does_not_lay_out_so_stay_slices():
    twice = [(0, 0), (1, 1), (0, 0), (1, 1)]  # half of the grid, two times
    assert all(match(patches(twice), patches(axes)).certificate != "exact" for axes in ("hw", "wh"))
    image = fresh(0, (1, 4, 6, 5))
    for places, regular in (([(p // 3, p % 3) for p in range(6)], True), ([(p % 2, p % 3) for p in range(6)], False)):
        whole = joined([sliced(sliced(image, 1, h, 2, 2), 2, w, 3, 2) for h, w in places], 3)
        assert (gathered(whole, 3) is not whole) == regular
    for cut in ((0, 1, 3), (1, 1, 3)):  # a part of the rows only, once from the first and once from the second on
        parts = [sliced(sliced(image, 1, *cut), 2, w, 2, 3) for w in (0, 1)]
        assert gathered(whole := joined(parts, 3), 3) is whole
    beyond = [sliced(sliced(fresh(0, (1, 8, 8, 5)), 1, h, 2, 2), 2, w, 2, 2) for h, w in [(0, 0), (0, 1), (1, 0), (0, 3)]]
    assert gathered(whole := joined(beyond, 3), 3) is whole


@pytest.mark.parametrize("start", [0, 3, 6, 9])
def test_channels_of_merged_patches_are_taken_apart_again(start):
    """A slice of the channels is the patch that lay there, wherever the other ones do."""
    part = slice(start, start + 3)
    for way in (PLACES, "hw", "wh"):
        assert match(patches(way, part), patches(way, part)).certificate == "exact"
        assert match(patches(way, part), patches(way, slice((start + 3) % 12, (start + 3) % 12 + 3))).certificate != "exact"
    assert match(patches(PLACES, part), patches("hw", part)).certificate == "exact"
    if start in {3, 6}:  # where the other order has the other patch
        assert match(patches("wh", part), patches("hw", part)).certificate != "exact"
    assert match(patches(PLACES, slice(0, 6)), patches("hw", slice(0, 6))).certificate == "exact"
    with pytest.raises(errors.BackendError, match="several axes of before"):
        patches("hw", slice(start, start + 4) if start < 9 else slice(2, 8))


def test_a_regrouping_that_mixes_axes_is_refused():
    with pytest.raises(errors.BackendError, match="mixes axes"):
        reshaped(transposed(fresh(0, (1, 4, 3)), (0, 2, 1)), (1, 2, 6))


def test_a_bias_belongs_to_what_it_is_added_to_only_if_nothing_else_reads_that():
    for shared in (False, True):
        tracing = Tracing({"k": "k", "b": "b", "o": "o"})
        product = tracing.linear(tracing.input((1, 4)), parameter("k", (4, 4)))
        biased = tracing.elementwise("+", product, parameter("b", (4,)))
        graph = tracing.finish([tracing.linear(biased, parameter("o", (4, 4)))] + [product] * shared)
        assert [sorted(unit.weights) for unit in graph.units] == ([["kernel"], ["bias"], ["kernel"]] if shared else [["bias", "kernel"], ["kernel"]])


def test_a_projection_of_which_some_is_never_read_stays_whole():
    def graph(*parts):
        tracing = Tracing({"k": "k", "o": "o"})
        product = tracing.linear(tracing.input((1, 4)), parameter("k", (4, 6)))
        return tracing.finish([sliced(product, 1, start, 1, 2) for start in parts])

    assert [unit.shape for unit in graph(0, 2, 4).units] == [(4, 2)] * 3
    assert [unit.shape for unit in graph(0, 2).units] == [(4, 6)]
    assert match(graph(0, 2), graph(2, 0)).certificate == "exact"
    assert match(graph(0, 2), graph(0, 4)).certificate != "exact"


def test_part_of_a_weight_there_and_back():
    tracing = Tracing({"w": "w"})
    tracing.linear(tracing.input((1, 4)), transposed(sliced(parameter("w", (6, 4)), 0, 2, 1, 2), (1, 0)))
    weight = tracing.units[0].weights["kernel"]
    array = np.arange(24.0).reshape(6, 4)
    assert np.array_equal(weight.shared(array), array[2:4].T)
    new = weight.into(array, np.zeros((4, 2)))
    assert np.array_equal(new[2:4], np.zeros((2, 4)))
    assert np.array_equal(new[[0, 1, 4, 5]], array[[0, 1, 4, 5]])


def test_a_class_token_is_a_unit_and_a_constant_is_none():
    tracing = Tracing({"t": "t"})
    x = tracing.input((1, 6, 4))
    out = tracing.joined([tracing.broadcast(parameter("t", (1, 1, 4)), (1, 1, 4)), tracing.elementwise("+", x, constant((6, 4)))], 1)
    graph = tracing.finish([dropped(sliced(out, 1, 0, 1, 1), 1)])
    assert [(unit.kind, unit.shape, unit.sources) for unit in graph.units] == [("embedding", (4,), frozenset())]


def test_what_nothing_comes_of_is_no_part_of_the_graph():
    tracing = Tracing({"dead": "dead", "k": "k"})
    x = tracing.input((1, 4))
    tracing.linear(x, parameter("dead", (4, 4)))
    assert [unit.layer for unit in tracing.finish([tracing.linear(x, parameter("k", (4, 2)))]).units] == ["k"]
