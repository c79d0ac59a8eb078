"""Matching weighted graphs: a shuffled copy is found again, and what differs is never called exact."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unifreeze._graph import Graph, Unit, Weight, concatenated, merged
from unifreeze._port.match import match

INPUT = frozenset({(-1, 0, ())})


def from_(*places, at=0, tags=()):
    return frozenset((place, at, tags) for place in places)


def chain(*widths):
    units = [Unit(f"l{i}", "dense", pair, from_(i - 1)) for i, pair in enumerate(pairwise(widths))]
    return Graph(tuple(units), (from_(len(units) - 1),))


@st.composite
def graphs(draw):
    """A random network: what each unit reads is one earlier value, a sum, or a concatenation."""
    values = [(INPUT, 4)]
    units = []
    for place in range(draw(st.integers(1, 12))):
        picks = [values[draw(st.integers(0, len(values) - 1))] for _ in range(draw(st.integers(1, 3)))]
        how = draw(st.sampled_from(["one", "sum", "concat"]))
        sources = {"one": lambda p=picks: p[0][0], "sum": lambda p=picks: merged("+", *(v for v, _ in p)), "concat": lambda p=picks: concatenated(p)}[how]()
        kind, width = draw(st.sampled_from(["dense", "conv"])), draw(st.sampled_from([4, 8]))
        units.append(Unit(f"l{place}", kind, (4, width), sources))
        values.append((frozenset({(place, 0, ())}), width))
    return Graph(tuple(units), (merged("+", *(v for v, _ in values[-2:])),))


def shuffled(graph, seed):
    """The graph in another order of definition, still parents first; and where each unit went."""
    rng, left, order = random.Random(seed), set(range(len(graph.units))), []
    while left:
        ready = [p for p in sorted(left) if all(s < 0 or s in order for s, _, _ in graph.units[p].sources)]
        order.append(rng.choice(ready))
        left.remove(order[-1])
    where = {old: new for new, old in enumerate(order)}

    def moved(sources):
        return frozenset((where.get(s, s), at, tags) for s, at, tags in sources)

    units = tuple(replace(graph.units[old], layer=f"n{new}", sources=moved(graph.units[old].sources)) for new, old in enumerate(order))
    return Graph(units, tuple(map(moved, graph.outputs))), where


def is_isomorphism(pairs, source, target):
    pairs = dict(pairs)
    carried = [frozenset((pairs.get(s, s), at, t) for s, at, t in u.sources) for u in source.units]
    return all(carried[a] == target.units[b].sources and source.units[a].shape == target.units[b].shape for a, b in pairs.items())


@pytest.mark.once
@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 1000))
def test_a_shuffled_copy_is_found_again(graph, seed):
    other, where = shuffled(graph, seed)
    found = match(graph, other)
    assert found.certificate == "exact"
    unsure = {place for group in found.groups for place in group}
    assert len(found.pairs) == len(graph.units)
    assert all(where[a] == b for a, b in found.pairs if a not in unsure)
    assert is_isomorphism(found.pairs, graph, other)


@pytest.mark.once
@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 1000), st.data())
def test_a_changed_copy_is_never_exact(graph, seed, data):
    place = data.draw(st.integers(0, len(graph.units) - 1))
    units = list(graph.units)
    units[place] = replace(units[place], shape=(5, 5))
    other, where = shuffled(replace(graph, units=tuple(units)), seed)
    found = match(graph, other)
    assert found.certificate != "exact"
    assert where[place] not in {b for _, b in found.pairs}
    if found.certificate == "prefix":
        assert is_isomorphism(found.pairs, graph, other)
        assert found.divergence != (None, None)


def test_two_orders_of_a_concatenation_differ():
    def net(first, second):
        units = (Unit("a", "conv", (4, 4), INPUT), Unit("b", "conv", (3, 4), INPUT))
        joined = concatenated([(from_(first), 4), (from_(second), 4)])
        return Graph((*units, Unit("c", "dense", (8, 2), joined)), (from_(2),))

    assert match(net(0, 1), net(0, 1)).certificate == "exact"
    assert match(net(0, 1), net(1, 0)).certificate == "prefix"


def test_equal_parallel_branches_are_interchangeable():
    units = (Unit("a", "dense", (4, 4), INPUT), Unit("b", "dense", (4, 4), INPUT), Unit("c", "dense", (4, 2), merged("+", from_(0), from_(1))))
    found = match(Graph(units, (from_(2),)), Graph(units, (from_(2),)))
    assert (found.certificate, found.groups) == ("exact", ((0, 1),))


def test_another_head_is_said():
    found = match(chain(4, 8, 8, 1000), chain(4, 8, 8, 10))
    assert (found.certificate, found.pairs, found.head) == ("exact up to the head", ((0, 0), (1, 1)), ((2,), (2,)))
    assert match(chain(4, 8, 8, 1000), chain(4, 8, 8)).head == ((2,), ())


def test_a_last_layer_that_others_bypass_is_no_head():
    def net(width):
        units = (Unit("a", "dense", (4, 4), INPUT), Unit("b", "dense", (4, width), from_(0)))
        return Graph(units, (merged("+", from_(0), from_(1)),))

    assert match(net(4), net(1)).certificate == "prefix"


def test_a_deeper_model_is_a_prefix():
    found = match(chain(4, 8, 6, 5, 3, 9, 2, 2), chain(4, 8, 6, 7, 3, 9, 2, 2))
    assert (found.certificate, found.pairs, found.divergence) == ("prefix", ((0, 0), (1, 1)), (2, 2))


def test_a_layer_applied_twice_is_not_two_layers():
    def net(*paths):
        units = (Unit(path, "dense", (4, 4), from_(i - 1), {"kernel": Weight(path, (), (), (4, 4))}) for i, path in enumerate(paths))
        return Graph(tuple(units), (from_(len(paths) - 1),))

    assert match(net("a", "b", "a", "b"), net("x", "y", "x", "y")).certificate == "exact"
    assert match(net("a", "b", "a", "b"), net("x", "y", "y", "x")).certificate != "exact"


def test_nothing_in_common_is_said():
    assert match(chain(4, 8), chain(5, 8)).certificate == ""


def test_an_activation_of_a_value_by_itself_is_no_merge():
    assert merged("*", from_(0), from_(0)) == from_(0)
    assert merged("+", merged("+", from_(0), from_(1)), from_(2)) == from_(0, 1, 2, tags=("+",))


@pytest.mark.parametrize(
    ("weight", "shape"),
    [
        (Weight("w", (), (2, 3, 1, 0), (3, 2, 4, 5)), (5, 4, 3, 2)),
        (Weight("w", (), (2, 3, 1, 0), (4, 5)), (5, 4, 1, 1)),
        (Weight("w", (4, 2, 3, 3), (2, 3, 0, 1), (3, 3, 4, 2)), (8, 1, 3, 3)),
        (Weight("w", (5, 4, 3, 2), (2, 3, 1, 0), (24, 5)), (5, 24)),
        (Weight("w", (), (), (7,)), (7,)),
    ],
)
def test_a_layout_there_and_back(weight, shape):
    import numpy as np

    array = np.arange(np.prod(shape)).reshape(shape)
    shared = weight.shared(array)
    assert shared.shape == weight.shape
    assert np.array_equal(weight.own(shared, shape), array)
