"""Keras and PyTorch at once: weights carried along the correspondence make both models give the same output; wrong twins are refused."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import twins
from unifreeze import correspond, errors, port

L = keras.layers


def net(*, order=("a", "b"), kernel=3, width=8, norm=True, extra=False, classes=5):
    """Two branches in Keras, joined in an order."""
    x = image = keras.Input((9, 9, 3))
    x = L.Conv2D(8, 3, padding="same")(x)
    branches = {"a": L.Conv2D(width, kernel, padding="same")(x), "b": L.SeparableConv2D(width, 3, padding="same")(x)}
    x = L.Concatenate()([branches[name] for name in order])
    x = L.BatchNormalization()(x) if norm else x
    x = L.Conv2D(16, 3, padding="same")(x) if extra else x
    return twins.randomised(keras.Model(image, L.Dense(classes)(L.Flatten()(L.ReLU()(x)))))


class Net(nn.Module):
    """The twin of ``net()``, its layers defined in another order and under names that say nothing."""

    def __init__(self, classes=5):
        super().__init__()
        self.b = nn.Linear(16 * 81, classes)
        self.conv1 = nn.BatchNorm2d(16, eps=1e-3)
        self.dense = nn.Conv2d(8, 8, 1)
        self.fc = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn = nn.Conv2d(8, 8, 3, padding=1)
        self.a = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        x = self.a(x)
        x = self.conv1(torch.cat([self.bn(x), self.dense(self.fc(x))], 1))
        return self.b(torch.relu(x).flatten(1))


X = np.random.default_rng(2).normal(size=(4, 9, 9, 3)).astype("float32")


def test_names_and_order_play_no_part_and_a_separable_convolution_is_two_layers():
    found = correspond(net(), Net())
    assert found.certificate == "exact"
    before = found.verify(X)
    found.transfer()
    assert before > 0.1
    assert found.verify(X) < 1e-5


def test_from_pytorch_to_keras():
    ours, theirs = Net(), net()
    found = correspond(ours, theirs)
    assert found.transfer() is theirs
    assert twins.apart(twins.torch_output(ours.eval(), X), twins.keras_output(theirs, X)) < 1e-5


def test_tracing_changes_nothing():
    model = Net().train()
    model.a.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    correspond(net(), model)
    assert (model.training, model.a.training, model.b.training) == (True, False, True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrong", [{"order": ("b", "a")}, {"kernel": 1}, {"width": 6}, {"norm": False}, {"extra": True}])
def test_a_wrong_twin_is_not_exact_and_the_first_difference_is_named(wrong):
    found = correspond(net(**wrong), Net())
    assert found.certificate == "prefix"
    assert "first without a partner" in found.divergence
    with pytest.raises(errors.CorrespondenceError, match="no partner"):
        port({"steps": [{"freeze": "**"}]}, net(**wrong), Net())


def test_another_number_of_classes_is_another_head():
    found = correspond(net(classes=7), Net())
    assert found.certificate == "exact up to the head"
    assert found.unmatched[1] == ("b",)


def test_nothing_in_common_is_refused():
    with pytest.raises(errors.CorrespondenceError, match="not even the first layers"):
        correspond(net(), nn.Sequential(nn.Conv2d(3, 7, 3)))


def test_an_operation_that_cannot_be_traced_is_named():
    with pytest.raises(errors.BackendError, match="cumsum"):
        correspond(net(), nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Sums()))
    image = keras.Input((9, 9, 3))
    with pytest.raises(errors.BackendError, match="Cumsum"):
        correspond(keras.Model(image, keras.ops.cumsum(L.Conv2D(4, 3)(image), axis=1)), Net())


class Sums(nn.Module):
    def forward(self, x):
        return x.cumsum(2)


def test_a_bias_without_a_place_is_refused_and_nothing_is_written():
    image = keras.Input((9, 9, 3))
    ours = twins.randomised(keras.Model(image, L.Conv2D(4, 3)(L.Conv2D(4, 3)(image))))
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3))
    before = [value.clone() for value in theirs.state_dict().values()]
    with pytest.raises(errors.CorrespondenceError, match="has no place for it"):
        correspond(ours, theirs).transfer()
    assert all(map(torch.equal, before, theirs.state_dict().values()))


def test_a_bias_before_a_norm_is_carried_by_its_mean():
    image = keras.Input((9, 9, 3))
    ours = twins.randomised(keras.Model(image, L.BatchNormalization(epsilon=1e-5)(L.Conv2D(4, 3)(image))))
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    correspond(ours, theirs).transfer()
    got = np.moveaxis(twins.torch_output(theirs.eval(), X), 1, -1)
    assert twins.apart(twins.keras_output(ours, X), got) < 1e-5


def test_a_shared_norm_that_would_need_two_means_is_refused():
    image = keras.Input((9, 9, 3))
    norm, x = L.BatchNormalization(epsilon=1e-5), image
    for _ in range(2):
        x = norm(L.Conv2D(3, 3)(x))
    found = correspond(twins.randomised(keras.Model(image, x)), Shared())
    assert found.certificate == "exact"
    with pytest.raises(errors.CorrespondenceError, match="used twice"):
        found.transfer()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, bias=False), nn.Conv2d(3, 3, 3, bias=False)

    def forward(self, x):
        return self.norm(self.b(self.norm(self.a(x))))


# Freezing what corresponds, checked by weights: a step of SGD on both, then the weights of both compared.


def test_port_freezes_exactly_the_partners():
    ours, theirs = net(), Net()
    done = port({"steps": [{"freeze": "conv2d*"}, {"freeze": "kind:batch_norm"}]}, ours, theirs)
    assert {name for name, p in theirs.named_parameters() if not p.requires_grad} == {
        "a.weight",
        "a.bias",
        "bn.weight",
        "bn.bias",
        "conv1.weight",
        "conv1.bias",
    }
    assert done.frozen == (224 + 584 + 32, 224 + 584 + 32)
    assert all(variable.trainable for layer in ours.layers for variable in layer._trainable_variables)
    theirs.train()
    mean = theirs.conv1.running_mean.clone()
    theirs(torch.randn(4, 3, 9, 9))
    assert torch.equal(theirs.conv1.running_mean, mean)
    done.freezing.undo()
    assert all(p.requires_grad for p in theirs.parameters())


def test_port_reads_what_is_frozen_in_the_source_now():
    ours, theirs = net(), Net()
    ours.layers[1].trainable = False
    port(None, ours, theirs)
    assert [name for name, p in theirs.named_parameters() if not p.requires_grad] == ["a.weight", "a.bias"]


def test_a_freeze_through_interchangeable_layers_is_refused():
    image = keras.Input((4,))
    a, b = L.Dense(4, name="a"), L.Dense(4, name="b")
    ours = keras.Model(image, L.Dense(2)(L.Add()([a(image), b(image)])))
    theirs = Parallel()
    found = correspond(ours, theirs)
    assert (found.certificate, len(found.interchangeable)) == ("exact", 1)
    with pytest.raises(errors.CorrespondenceError, match="no graph can tell apart"):
        port({"steps": [{"freeze": "a"}]}, ours, theirs)
    assert all(p.requires_grad for p in theirs.parameters())
    assert port({"steps": [{"freeze": "a"}, {"freeze": "b"}]}, ours, theirs).frozen == (40, 40)


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b, self.a = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.c(self.a(x) + self.b(x))


# Random branching networks, built in both frameworks from one plan, defined in another order there.


@st.composite
def plans(draw):
    """Each step reads one earlier value, a sum of two, or two side by side: (how, which, kernel, followed by a norm)."""
    steps = draw(st.integers(1, 6))
    return [
        (
            draw(st.sampled_from(["one", "sum", "cat"])),
            (draw(st.integers(0, place)), draw(st.integers(0, place))),
            draw(st.sampled_from([1, 3])),
            draw(st.booleans()),
        )
        for place in range(steps)
    ]


def keras_of(plan):
    image = keras.Input((5, 5, 4))
    values = [image]
    for how, (a, b), kernel, norm in plan:
        several = [values[a], values[b]]
        joined = values[a] if how == "one" else {"sum": L.Add(), "cat": L.Concatenate()}[how](several)
        x = L.Conv2D(4, kernel, padding="same")(joined)
        values.append(L.ReLU()(L.BatchNormalization()(x) if norm else x))
    return twins.randomised(keras.Model(image, L.Dense(3)(L.GlobalAveragePooling2D()(L.Concatenate()(values)))))


class TorchOf(nn.Module):
    def __init__(self, plan, seed):
        super().__init__()
        self.plan = plan
        made = {f"{place}": nn.Conv2d(8 if how == "cat" else 4, 4, kernel, padding=kernel // 2) for place, (how, _, kernel, _) in enumerate(plan)}
        made |= {f"n{place}": nn.BatchNorm2d(4, eps=1e-3) for place, (*_, norm) in enumerate(plan) if norm}
        made["head"] = nn.Linear(4 * (len(plan) + 1), 3)
        order = list(made)
        random.Random(seed).shuffle(order)
        self.names = {name: f"x{number}" for number, name in enumerate(order)}
        for name in order:
            self.add_module(self.names[name], made[name])

    def get(self, name):
        return getattr(self, self.names[name])

    def forward(self, x):
        values = [x]
        for place, (how, (a, b), _, norm) in enumerate(self.plan):
            joined = {
                "one": lambda a=a: values[a],
                "sum": lambda a=a, b=b: values[a] + values[b],
                "cat": lambda a=a, b=b: torch.cat([values[a], values[b]], 1),
            }[how]()
            x = self.get(f"{place}")(joined)
            values.append(torch.relu(self.get(f"n{place}")(x) if norm else x))
        return self.get("head")(torch.cat(values, 1).mean((2, 3)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(plans(), st.integers(0, 99))
def test_random_twins_are_found_and_proved_by_their_outputs(plan, seed):
    ours, theirs = keras_of(plan), TorchOf(plan, seed)
    found = correspond(ours, theirs)
    assert found.certificate == "exact"
    found.transfer()
    x = twins.images((1, 5, 5, 4), seed)
    assert found.verify(x) < 1e-4
    assert twins.apart(twins.keras_output(ours, x), twins.torch_output(theirs.eval(), x)) < 1e-4


@settings(max_examples=15, deadline=None, derandomize=True)
@given(plans(), plans(), st.integers(0, 99))
def test_random_strangers_are_exact_only_if_their_outputs_say_so(plan, other, seed):
    plan, other = twins.undoubled(plan), twins.undoubled(other)
    try:
        found = correspond(keras_of(plan), TorchOf(other, seed))
    except errors.CorrespondenceError:
        return
    if found.certificate == "exact" and not found.interchangeable:
        found.transfer()
        assert found.verify(twins.images((1, 5, 5, 4), seed)) < 1e-4
