"""Random and adversarial twins of models of JAX: the true correspondence or a refusal, never a wrong one; and what tracing may not do."""

from __future__ import annotations

import random
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import twins
from unifreeze import correspond, errors, freeze, port

KEY = jax.random.key(0)
X = np.random.default_rng(2).normal(size=(3, 5, 5, 4)).astype("float32")


def drawn(tree, seed=0):
    """Values for shapes: variances and scales near one, all else small enough to keep activations near one."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        near_one = path[-1].key in {"var", "scale"}
        return (rng.uniform(0.5, 1.5, leaf.shape) if near_one else rng.normal(size=leaf.shape) * 0.3).astype("float32")

    return jax.tree_util.tree_map_with_path(one, tree)


# Random branching networks, built from one plan, defined in another order and under other names there.


@st.composite
def plans(draw):
    """Each step reads one earlier value, a sum of two, or two side by side: (how, which, kernel, followed by a norm)."""
    steps = draw(st.integers(1, 6))
    return [
        (
            draw(st.sampled_from(["one", "sum", "cat", "mul"])),
            (draw(st.integers(0, place)), draw(st.integers(0, place))),
            draw(st.sampled_from([1, 3])),
            draw(st.booleans()),
        )
        for place in range(steps)
    ]


class LinenOf(linen.Module):
    plan: tuple

    @linen.compact
    def __call__(self, x):
        values = [x]
        for how, (a, b), kernel, norm in self.plan:
            x = linen.Conv(4, (kernel, kernel), padding="SAME")(joined(how, values[a], values[b], jnp.concatenate, -1))
            x = linen.BatchNorm(use_running_average=True, epsilon=1e-3)(x) if norm else x
            values.append(linen.relu(x))
        return linen.Dense(3)(jnp.concatenate(values, -1).mean((1, 2)))


class NnxOf(nnx.Module):
    """Defined in a shuffled order, under names that say nothing."""

    def __init__(self, plan, seed, rngs):
        self.plan = plan
        makers = {f"{place}": (lambda how=how, k=k: nnx.Conv(8 if how == "cat" else 4, 4, (k, k), rngs=rngs)) for place, (how, _, k, _) in enumerate(plan)}
        makers |= {f"n{place}": (lambda: nnx.BatchNorm(4, epsilon=1e-3, rngs=rngs)) for place, (*_, norm) in enumerate(plan) if norm}
        makers["head"] = lambda: nnx.Linear(4 * (len(plan) + 1), 3, rngs=rngs)
        order = list(makers)
        random.Random(seed).shuffle(order)
        self.names = {name: f"x{number}" for number, name in enumerate(order)}
        for name in order:
            setattr(self, self.names[name], makers[name]())

    def __call__(self, x):
        values = [x]
        for place, (how, (a, b), _, norm) in enumerate(self.plan):
            x = getattr(self, self.names[f"{place}"])(joined(how, values[a], values[b], jnp.concatenate, -1))
            values.append(nnx.relu(getattr(self, self.names[f"n{place}"])(x) if norm else x))
        return getattr(self, self.names["head"])(jnp.concatenate(values, -1).mean((1, 2)))


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
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.data.uniform_(0.5, 1.5)

    def forward(self, x):
        values = [x]
        for place, (how, (a, b), _, norm) in enumerate(self.plan):
            x = getattr(self, self.names[f"{place}"])(joined(how, values[a], values[b], torch.cat, 1))
            values.append(torch.relu(getattr(self, self.names[f"n{place}"])(x) if norm else x))
        return getattr(self, self.names["head"])(torch.cat(values, 1).mean((2, 3)))


def joined(how, a, b, cat, axis):
    return {"one": lambda: a, "sum": lambda: a + b, "cat": lambda: cat([a, b], axis), "mul": lambda: a * b}[how]()


def traced(framework, plan, seed):
    """A model of JAX for a plan, and its apply."""
    if framework == "nnx":
        return NnxOf(plan, seed, nnx.Rngs(seed)), None
    module = LinenOf(tuple(plan))
    return drawn(jax.eval_shape(module.init, KEY, jnp.zeros((1, 5, 5, 4))), seed), module.apply


@pytest.mark.parametrize("framework", ["linen", "nnx"])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(plan=plans(), seed=st.integers(0, 99))
def test_random_twins_are_found_and_proved_by_their_outputs(framework, plan, seed):
    model, apply = traced(framework, plan, seed)
    theirs = TorchOf(plan, seed)
    found = correspond(theirs, model, shape=(1, 5, 5, 4), apply=apply)
    assert found.certificate == "exact"
    new = found.transfer()
    if framework == "nnx":
        new.eval()
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(X).permute(0, 3, 1, 2)).numpy()
    got = np.asarray(apply(new, X) if apply else new(X))
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.deep
@settings(max_examples=60, deadline=None)
@given(plan=plans(), seed=st.integers(0, 9999))
def test_many_random_twins_are_found_and_proved_by_their_outputs(plan, seed):
    model, apply = traced("linen", plan, seed)
    found = correspond(TorchOf(plan, seed), model, shape=(1, 5, 5, 4), apply=apply)
    assert found.certificate == "exact"
    found.transfer()
    assert found.verify(X) < 1e-4


@pytest.mark.deep
@settings(max_examples=200, deadline=None)
@given(plans(), plans(), st.integers(0, 9999))
def test_many_random_strangers_are_exact_only_if_their_outputs_say_so(plan, other, seed):
    only_if_their_outputs_say_so(plan, other, seed)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(plans(), plans(), st.integers(0, 99))
def test_random_strangers_are_exact_only_if_their_outputs_say_so(plan, other, seed):
    only_if_their_outputs_say_so(plan, other, seed)


def only_if_their_outputs_say_so(plan, other, seed):
    plan, other = twins.undoubled(plan), twins.undoubled(other)
    model, apply = traced("linen", plan, seed)
    try:
        found = correspond(TorchOf(other, seed), model, shape=(1, 5, 5, 4), apply=apply)
    except errors.CorrespondenceError:
        return
    if found.certificate == "exact" and not found.interchangeable:
        found.transfer()
        assert found.verify(X) < 1e-4


# Adversarial twins.


class Net(linen.Module):
    order: tuple = ("a", "b")
    kernel: int = 3
    width: int = 8
    norm: bool = True
    extra: bool = False
    classes: int = 5

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Conv(8, (3, 3), name="stem")(x)
        a = linen.Conv(self.width, (self.kernel, self.kernel), name="plain")(x)
        b = linen.Conv(self.width, (1, 1), name="point")(linen.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depth")(x))
        x = jnp.concatenate([{"a": a, "b": b}[name] for name in self.order], -1)
        x = linen.BatchNorm(use_running_average=not train, epsilon=1e-3)(x) if self.norm else x
        x = linen.Conv(16, (3, 3))(x) if self.extra else x
        return linen.Dense(self.classes, name="head")(linen.relu(x).reshape((x.shape[0], -1)))


class Twin(nn.Module):
    """The twin of ``Net()``, its layers defined in another order and under names that say nothing."""

    def __init__(self):
        super().__init__()
        self.b = nn.Linear(16 * 81, 5)
        self.conv1 = nn.BatchNorm2d(16, eps=1e-3)
        self.dense = nn.Conv2d(8, 8, 1)
        self.fc = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn = nn.Conv2d(8, 8, 3, padding=1)
        self.a = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        x = self.a(x)
        x = self.conv1(torch.cat([self.bn(x), self.dense(self.fc(x))], 1))
        return self.b(torch.relu(x).flatten(1))


SHAPE = (1, 9, 9, 3)


def net(**how):
    module = Net(**how)
    return drawn(jax.eval_shape(module.init, KEY, jnp.zeros(SHAPE))), module.apply


def test_the_right_twin_is_exact():
    variables, apply = net()
    found = correspond(variables, Twin(), shape=SHAPE, apply=apply)
    assert (found.certificate, len(found.pairs)) == ("exact", 6)
    before = found.verify(np.ones((2, 9, 9, 3), "float32"))
    found.transfer()
    assert before > 0.1
    assert found.verify(np.ones((2, 9, 9, 3), "float32")) < 1e-5


@pytest.mark.parametrize("wrong", [{"order": ("b", "a")}, {"kernel": 1}, {"width": 6}, {"norm": False}, {"extra": True}])
def test_a_wrong_twin_is_not_exact_and_the_first_difference_is_named(wrong):
    variables, apply = net(**wrong)
    found = correspond(variables, Twin(), shape=SHAPE, apply=apply)
    assert found.certificate == "prefix"
    assert "first without a partner" in found.divergence
    with pytest.raises(errors.CorrespondenceError, match="no partner"):
        port({"steps": [{"freeze": "**"}]}, variables, Twin(), shape=SHAPE, apply=apply)


def test_another_number_of_classes_is_another_head():
    variables, apply = net(classes=7)
    found = correspond(Twin(), variables, shape=SHAPE, apply=apply)
    assert (found.certificate, found.unmatched[1]) == ("exact up to the head", ("head",))


# What can't be traced is named.


def refused(function, match, **leaves):
    tree = {"stem": {"kernel": jnp.ones((3, 3, 3, 8))}} | leaves

    def apply(tree, x):
        stem = jax.lax.conv_general_dilated(x, tree["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return function(tree, stem)

    with pytest.raises(errors.BackendError, match=match) as caught:
        correspond(Twin(), tree, shape=SHAPE, apply=apply)
    return str(caught.value)


def test_operations_that_cannot_be_traced_are_named_with_what_leads_to_them():
    text = refused(lambda _, x: jnp.cumsum(x, 1), "cumsum")
    assert "stem" in text
    refused(lambda _, x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), "chosen at run time")
    refused(lambda _, x: jax.lax.while_loop(lambda y: y.sum() < 0, lambda y: y + 1, x), "a loop")
    refused(lambda _, x: jnp.sort(x, -1), "sort")
    refused(lambda _, x: jax.lax.scan(lambda c, row: (c + row, row), x[:, 0], jnp.moveaxis(x, 1, 0))[0], "recurrence")
    refused(lambda tree, x: x @ (tree["w"] / jnp.linalg.norm(tree["w"])), "w", w=jnp.ones((8, 4)))
    refused(
        lambda tree, x: jax.lax.conv_transpose(x, tree["up"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        "transposed",
        up=jnp.ones((3, 3, 8, 8)),
    )


def test_what_is_missing_or_means_nothing_is_said():
    variables, apply = net()
    with pytest.raises(errors.ArgumentError, match="apply=lambda variables, x"):
        correspond(variables, Twin(), shape=SHAPE)
    with pytest.raises(errors.BackendError, match="shape of its input"):
        correspond(variables, variables, apply=(apply, apply))
    with pytest.raises(errors.ArgumentError, match="give a pair"):
        correspond(variables, variables, shape=SHAPE, apply=apply)
    with pytest.raises(errors.ArgumentError, match="say themselves"):
        correspond(Twin(), Twin(), shape=SHAPE, apply=apply)
    with pytest.raises(errors.ArgumentError, match="no function"):
        correspond(variables, Twin(), shape=SHAPE, apply=3)
    with pytest.raises(errors.BackendError, match="can't be run on an input of shape"):
        correspond(variables, variables, shape=(1, 9, 9, 4), apply=(apply, apply))


def test_training_mode_is_no_batch_normalisation_to_trace():
    variables, _ = net()
    training = lambda v, x: Net().apply(v, x, train=True, mutable=["batch_stats"])[0]  # noqa: E731 - as a user writes it
    assert correspond(Twin(), variables, shape=SHAPE, apply=training).certificate == "prefix"


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, 0, 6)


clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (g * (x > 0),))


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda x, t: (doubled(*x), 2 * t[0]))


@pytest.mark.parametrize("how", [jax.jit, jax.checkpoint, lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.everything_saveable), lambda f: f])
def test_calls_are_followed_into(how):
    tree = {"one": {"w": np.ones((6, 6), "float32"), "b": np.ones(6, "float32")}, "two": {"w": np.ones((6, 2), "float32")}}

    def apply(tree, x):
        one = how(lambda layer, x: clipped(doubled(x @ layer["w"] + layer["b"])))
        per_row = jax.vmap(lambda row: jax.lax.optimization_barrier(row) @ tree["two"]["w"])
        return per_row(one(tree["one"], x))

    theirs = nn.Sequential(nn.Linear(6, 6), nn.ReLU6(), nn.Linear(6, 2, bias=False))
    found = correspond(theirs, tree, shape=(1, 6), apply=apply)
    assert (found.certificate, found.pairs) == ("exact", (("0", "one"), ("2", "two")))


def test_a_table_is_found_by_rows_and_by_one_hot_products():
    tree = {"table": {"embedding": np.zeros((9, 4), "float32")}, "head": {"w": np.zeros((4, 2), "float32")}}
    theirs = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2, bias=False))
    looks = [lambda t, ids: t[ids], lambda t, ids: jnp.take(t, ids, axis=0), lambda t, ids: jax.nn.one_hot(ids, 9) @ t]
    for look in looks:
        found = correspond(theirs, tree, shape=(1, 5), apply=lambda tree, ids, look=look: look(tree["table"]["embedding"], ids) @ tree["head"]["w"])
        assert found.pairs == (("0", "table"), ("1", "head"))
        assert found.certificate == "exact"
        new, ids = found.transfer(), np.array([[1, 0, 8, 3, 3]])
        with torch.no_grad():
            expected = theirs(torch.from_numpy(ids)).numpy()
        assert np.abs(look(new["table"]["embedding"], ids) @ new["head"]["w"] - expected).max() < 1e-6


# Tracing changes nothing; loops over stacks; freezing what corresponds.


class Active(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


@pytest.mark.parametrize("frozen", [False, True])
def test_tracing_and_running_change_nothing(frozen):
    model = Active(nnx.Rngs(0))
    model.train()
    if frozen:
        freeze(model, layers="conv"), freeze(model, layers="norm")
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    kinds = [type(node) for _, node in nnx.iter_graph(model)]
    theirs = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    found = correspond(model, theirs, shape=SHAPE)
    assert (found.certificate, len(found.pairs)) == ("exact", 3)
    found.verify(np.ones((2, 9, 9, 3), "float32"))
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    assert (model.dropout.deterministic, vars(model.norm)["use_running_average"]) == (False, False)
    assert [type(node) for _, node in nnx.iter_graph(model)] == kinds


class Stack(linen.Module):
    """Three equal blocks that one scan runs over."""

    @linen.compact
    def __call__(self, x):
        class Block(linen.Module):
            @linen.compact
            def __call__(self, x, _):
                return x + linen.Dense(6)(linen.relu(linen.Dense(6)(x))), None

        scanned = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return linen.Dense(2)(scanned(name="blocks")(x, None)[0])


class Unstacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for one, two in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + two(torch.relu(one(x)))
        return self.head(x)


def test_layers_that_a_scan_runs_over_are_told_apart():
    variables = drawn(jax.eval_shape(Stack().init, KEY, jnp.zeros((1, 6))))
    theirs = Unstacked()
    found = correspond(theirs, variables, shape=(1, 6), apply=Stack().apply)
    assert (found.certificate, len(found.pairs)) == ("exact", 7)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    assert np.abs(Stack().apply(found.transfer(), x) - expected).max() < 1e-5
    back = correspond(variables, theirs, shape=(1, 6), apply=Stack().apply)
    back.transfer()
    with torch.no_grad():
        assert np.abs(theirs(torch.from_numpy(x)).numpy() - Stack().apply(variables, x)).max() < 1e-4


def test_port_freezes_a_tree_as_keras_is_frozen():
    L = keras.layers
    image = keras.Input(SHAPE[1:])
    x = L.BatchNormalization(name="bn")(L.Conv2D(8, 3, padding="same", name="early")(image))
    ours = keras.Model(image, L.Dense(5, name="late")(L.GlobalAveragePooling2D()(L.ReLU()(x))))
    ours.get_layer("early").trainable = ours.get_layer("bn").trainable = False
    module = Small()
    variables = drawn(jax.eval_shape(module.init, KEY, jnp.zeros(SHAPE)))
    done = port(None, ours, variables, apply=partial(module.apply, train=False))
    assert set(done.freezing.frozen) == {"x.kernel", "x.bias", "y.scale", "y.bias"}
    assert done.frozen == (224 + 16, 224 + 16)

    def loss(variables):
        return (done.freezing.hold(module.apply)(variables, jnp.ones((2, 9, 9, 3)), train=True) ** 2).mean()

    _, grads = done.freezing.value_and_grad(loss)(variables)
    assert {name for name, leaf in flat(grads).items() if leaf is not None and np.abs(leaf).max() > 0} == {"params.z.kernel", "params.z.bias"}


def flat(tree):
    return {".".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class Pair(eqx.Module):
    last: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    first: eqx.nn.Linear

    def __init__(self, key):
        self.first, self.last = eqx.nn.Linear(6, 4, key=key), eqx.nn.Linear(4, 2, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(x)), state


class NnxPair(nnx.Module):
    def __init__(self, rngs):
        self.last, self.norm, self.first = nnx.Linear(4, 2, rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


@pytest.mark.parametrize("library", ["nnx", "equinox"])
def test_port_freezes_modules_as_pytorch_is_frozen(library):
    ours = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    ours[0].requires_grad_(False)
    model = NnxPair(nnx.Rngs(0)) if library == "nnx" else eqx.nn.make_with_state(Pair)(KEY)
    done = port(None, ours, model, shape=(1, 6))
    names = ("kernel", "bias") if library == "nnx" else ("weight", "bias")
    assert set(done.freezing.frozen) == {f"first.{name}" for name in names}
    assert done.frozen == (28, 28)
    if library == "nnx":
        _, grads = nnx.value_and_grad(lambda m: (m(jnp.ones((3, 6))) ** 2).mean())(model)
        assert set(nnx.to_pure_dict(grads)) == {"last", "norm"}


class Small(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(use_running_average=not train, epsilon=1e-3, name="y")(linen.Conv(8, (3, 3), name="x")(x))
        return linen.Dense(5, name="z")(linen.relu(x).mean((1, 2)))
