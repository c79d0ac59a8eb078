"""Random networks with attention, gates, norms and joins, built in Keras and in PyTorch: fused, reordered and renamed there."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unifreeze import correspond, errors

L, ops = keras.layers, keras.ops
WIDTH, LENGTH = 8, 3


@st.composite
def plans(draw):
    """Steps: (what, from which earlier value, heads, whether it is added to what it reads)."""
    return [
        (
            draw(st.sampled_from(["attention", "attention", "gate", "norm", "join", "table"])),
            draw(st.integers(0, place)),
            draw(st.sampled_from([1, 2, 4])),
            draw(st.booleans()),
        )
        for place in range(draw(st.integers(1, 4)))
    ]


class Table(L.Layer):
    def build(self, shape):
        self.table = self.add_weight(name="table", shape=(LENGTH, WIDTH))

    def call(self, x):
        return x + self.table


def keras_of(plan):
    words = keras.Input((LENGTH, WIDTH))
    values = [words]

    def attention(x, heads):
        q, k, v = (L.EinsumDense("abc,cde->abde", (LENGTH, heads, WIDTH // heads), bias_axes="de")(x) for _ in range(3))
        scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k), -1)
        return L.EinsumDense("abde,dec->abc", (LENGTH, WIDTH), bias_axes="c")(ops.einsum("bhqk,bkhd->bqhd", scores, v))

    for what, source, heads, residual in plan:
        x = values[source]
        y = {
            "attention": lambda x=x, heads=heads: attention(x, heads),
            "gate": lambda x=x: L.Dense(WIDTH)(L.Multiply()([L.Dense(2 * WIDTH)(x), L.Dense(2 * WIDTH)(x)])),
            "norm": lambda x=x: L.LayerNormalization(epsilon=1e-5)(x),
            "join": lambda x=x: L.Dense(WIDTH)(L.Concatenate()([values[-1], x])),
            "table": lambda x=x: L.Dense(WIDTH)(Table()(x)),
        }[what]()
        values.append(L.Add()([x, y]) if residual else y)
    model = keras.Model(words, L.Dense(3)(values[-1][:, 0]))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    return model


class TorchOf(nn.Module):
    def __init__(self, plan, seed):
        super().__init__()
        rng = random.Random(seed)
        self.plan, made = plan, {"head": nn.Linear(WIDTH, 3)}
        self.order, self.how = {}, {}
        for place, (what, *_) in enumerate(plan):
            self.order[place], self.how[place] = rng.sample(range(3), 3), rng.choice(["apart", "thirds", "interleaved"])
            made[f"out{place}"] = nn.LayerNorm(WIDTH) if what == "norm" else nn.Linear({"gate": 2, "join": 2}.get(what, 1) * WIDTH, WIDTH)
            if what == "attention":
                apart = self.how[place] == "apart"
                made |= {f"{role}{place}": nn.Linear(WIDTH, WIDTH) for role in "012"} if apart else {f"all{place}": nn.Linear(WIDTH, 3 * WIDTH)}
            if what == "gate":
                made[f"all{place}"] = nn.Linear(WIDTH, 4 * WIDTH)
        names = rng.sample(list(made), len(made))
        self.names = {name: f"x{number}" for number, name in enumerate(names)}
        for name in names:
            self.add_module(self.names[name], made[name])
        for place, (what, *_) in enumerate(plan):
            if what == "table":
                self.register_parameter(f"p{place}", nn.Parameter(torch.zeros(1, LENGTH, WIDTH)))

    def of(self, name):
        return getattr(self, self.names[name])

    def attention(self, place, x, heads):
        size = WIDTH // heads
        if self.how[place] == "apart":
            three = [self.of(f"{role}{place}")(x).unflatten(-1, (heads, size)) for role in "012"]
        elif self.how[place] == "thirds":
            three = self.of(f"all{place}")(x).unflatten(-1, (3, heads, size)).unbind(2)
        else:
            three = self.of(f"all{place}")(x).unflatten(-1, (heads, 3, size)).unbind(3)
        q, k, v = (three[number].transpose(1, 2) for number in self.order[place])
        return (q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2)

    def forward(self, x):
        values = [x]
        for place, (what, source, heads, residual) in enumerate(self.plan):
            x = values[source]
            y = {
                "attention": lambda x=x, heads=heads, place=place: self.attention(place, x, heads),
                "gate": lambda x=x, place=place: torch.mul(*self.of(f"all{place}")(x).chunk(2, -1)),
                "norm": lambda x=x: x,
                "join": lambda x=x: torch.cat([values[-1], x], -1),
                "table": lambda x=x, place=place: x + getattr(self, f"p{place}"),
            }[what]()
            y = self.of(f"out{place}")(y)
            values.append(x + y if residual else y)
        return self.of("head")(values[-1][:, 0])


def words(seed):
    return np.random.default_rng(seed).normal(size=(3, LENGTH, WIDTH)).astype("float32")


def twins(plan, seed):
    found = correspond(keras_of(plan), TorchOf(plan, seed))
    assert found.certificate == "exact"
    found.transfer()
    assert found.verify(words(seed)) < 1e-4


def strangers(plan, other, seed):
    try:
        found = correspond(keras_of(plan), TorchOf(other, seed))
    except errors.CorrespondenceError:
        return
    if found.certificate == "exact" and not found.interchangeable:
        found.transfer()
        assert found.verify(words(seed)) < 1e-4


test_random_twins_are_found = settings(max_examples=6, deadline=None, derandomize=True)(given(plans(), st.integers(0, 99))(twins))
test_random_strangers_are_exact_only_if_their_outputs_say_so = settings(max_examples=6, deadline=None, derandomize=True)(
    given(plans(), plans(), st.integers(0, 99))(strangers)
)
test_many_twins = pytest.mark.deep(settings(max_examples=60, deadline=None)(given(plans(), st.integers(0, 99))(twins)))
test_many_strangers = pytest.mark.deep(settings(max_examples=60, deadline=None)(given(plans(), plans(), st.integers(0, 99))(strangers)))
