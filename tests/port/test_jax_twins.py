"""Models of JAX beside PyTorch's and Keras's: weights carried along the correspondence make both give the same output, in every direction."""

from __future__ import annotations

import time
from functools import partial
from importlib import import_module

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import twins
import zoo_equinox
import zoo_linen
import zoo_nnx
from unifreeze import correspond, errors
from unifreeze._port.match import match

KEY = jax.random.key(0)


def drawn(name, shape, rng):
    """Values away from zero and one, so that nothing hides, and of a size that keeps activations near one."""
    if name in {"var", "running_var", "moving_variance", "scale", "gamma"}:
        return rng.uniform(0.8, 1.2, shape)
    if name in {"mean", "running_mean", "moving_mean", "bias", "beta", "offset"}:
        return rng.uniform(-0.1, 0.1, shape)
    return rng.normal(size=shape) * np.sqrt(2 / max(1, np.prod(shape[:-1])))


def tree_drawn(tree, seed=0):
    """Linen variables or haiku parameters with such values, made of shapes alone."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: drawn(path[-1].key, leaf.shape, rng).astype(leaf.dtype), tree)


def torchvision(name):
    return twins.torch_calibrated(twins.torch_randomised(twins.twin(name)), (1, 64, 64, 3))


def images(size):
    return twins.images((1, size, size, 3))


def abstract(module, shape):
    return jax.eval_shape(partial(module.init, train=False), KEY, jnp.zeros(shape))


# PyTorch to linen.

LINEN = {
    "resnet18": (zoo_linen.ResNet18(), 64, 41),
    "resnet50": (zoo_linen.ResNet50(), 64, 107),
    "resnet50 with remat": (zoo_linen.ResNet50(remat=True), 64, 107),
    "mobilenet_v2": (zoo_linen.MobileNetV2(), 64, 105),
}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", *(pytest.param(name, marks=pytest.mark.deep) for name in LINEN if "50" in name)])
def test_torchvision_to_linen(name):
    module, size, units = LINEN[name]
    theirs = torchvision(name.split()[0])
    variables = tree_drawn(abstract(module, (1, size, size, 3)), seed=7)
    found = correspond(theirs, variables, shape=(1, size, size, 3), apply=partial(module.apply, train=False))
    assert (found.certificate, len(found.pairs), found.interchangeable, found.unmatched) == ("exact", units, (), ((), ()))
    assert found.differences == ()
    x = images(size)
    new = found.transfer()
    assert found.verify(x) < 1e-4
    assert twins.apart(twins.torch_output(theirs, x), jax.jit(partial(module.apply, train=False))(new, x)) < 1e-4
    assert jax.tree.structure(new) == jax.tree.structure(variables)


# nnx and equinox, which need no apply. Made from shapes alone, which is much faster than initialising them.


def nnx_drawn(make, seed=3):
    """An nnx module with drawn values, and with keys and counters to draw from."""
    model = nnx.eval_shape(make)
    state = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    nnx.update(model, jax.tree.map(jnp.asarray, tree_drawn(state, seed)))
    nnx.update(model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nnx.state(model, nnx.RngCount)))
    nnx.update(model, jax.tree.map(lambda _: KEY, nnx.state(model, nnx.RngKey)))
    return model


def equinox_drawn(model, seed=3):
    """An equinox module, or the pair of one and its State, with values in place of shapes."""
    rng = np.random.default_rng(seed)
    shapes = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731 - it is a filter
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.01, 0.1, leaf.shape).astype(leaf.dtype)) if shapes(leaf) else leaf, model)


def test_torchvision_to_nnx():
    theirs, module = torchvision("resnet50"), nnx_drawn(lambda: zoo_nnx.ResNet50(rngs=nnx.Rngs(0)))
    found = correspond(theirs, module, shape=(1, 64, 64, 3))
    assert (found.certificate, len(found.pairs), found.unmatched, found.differences) == ("exact", 107, ((), ()), ())
    assert found.transfer() is module
    x = images(64)
    assert found.verify(x) < 1e-4
    module.eval()
    assert twins.apart(twins.torch_output(theirs, x), nnx.jit(lambda m, x: m(x))(module, x)) < 1e-4


@pytest.mark.parametrize("mode", ["batch", pytest.param("ema", marks=pytest.mark.deep)])
def test_torchvision_to_equinox(mode):
    theirs = torchvision("resnet18")
    model = equinox_drawn(eqx.filter_eval_shape(eqx.nn.make_with_state(partial(zoo_equinox.ResNet18, mode)), key=KEY))
    found = correspond(theirs, model, shape=(1, 64, 64, 3))
    assert (found.certificate, len(found.pairs), found.unmatched, found.differences) == ("exact", 41, ((), ()), ())
    module, state = found.transfer()
    x = images(64)
    assert found.verify(x) < 1e-4
    run = jax.jit(jax.vmap(lambda x: eqx.nn.inference_mode(module)(x, state)[0], axis_name="batch"))
    assert twins.apart(twins.torch_output(theirs, x), run(jnp.moveaxis(x, -1, 1))) < 1e-4


# Haiku.


@pytest.mark.deep
def test_a_haiku_resnet_of_the_library_itself():
    # At an odd size haiku's padding is torchvision's.
    net = hk.without_apply_rng(hk.transform_with_state(lambda x: hk.nets.ResNet50(1000, resnet_v2=False)(x, is_training=False)))
    params, state = (tree_drawn(tree) for tree in haiku_shapes(net, (1, 65, 65, 3)))
    theirs = torchvision("resnet50")
    found = correspond(theirs, {"params": params, "state": state}, shape=(1, 65, 65, 3), apply=lambda v, x: net.apply(v["params"], v["state"], x)[0])
    assert (found.certificate, len(found.pairs)) == ("exact", 107)
    new, x = found.transfer(), images(65)
    got = jax.jit(net.apply)(new["params"], new["state"], x)[0]
    assert found.verify(x) < 1e-4
    assert twins.apart(twins.torch_output(theirs.eval(), x), got) < 1e-4


def haiku_shapes(net, shape):
    training = hk.without_apply_rng(hk.transform_with_state(lambda x: hk.nets.ResNet50(1000, resnet_v2=False)(x, is_training=True)))
    return jax.eval_shape(training.init, KEY, jnp.zeros(shape))


class Mlp(nn.Module):
    """The twin of the MLPs, defined backwards."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 5)
        sizes = (20, 32, 32, 16)
        self.dense = nn.ModuleList(nn.Linear(sizes[place], sizes[place + 1]) for place in (2, 1, 0))
        self.norm = nn.ModuleList(nn.LayerNorm(sizes[place + 1]) for place in (2, 1, 0))

    def forward(self, x):
        for place in (2, 1, 0):
            x = self.norm[place](nn.functional.gelu(self.dense[place](x), approximate="tanh"))
        return self.last(x)


def haiku_mlp(x):
    for width in (32, 32, 16):
        x = hk.LayerNorm(-1, True, True)(jax.nn.gelu(hk.Linear(width)(x)))
    return hk.Linear(5)(x)


def mlps():
    linen, haiku = zoo_linen.MLP(), hk.without_apply_rng(hk.transform(haiku_mlp))
    x = jnp.zeros((1, 20))
    return {
        "linen": (tree_drawn(jax.eval_shape(linen.init, KEY, x)), linen.apply),
        "haiku": (tree_drawn(jax.eval_shape(haiku.init, KEY, x)), haiku.apply),
        "nnx": (zoo_nnx.MLP(rngs=nnx.Rngs(0)), None),
        "equinox": (zoo_equinox.MLP(key=KEY), None),
    }


@pytest.mark.parametrize("library", ["linen", "haiku", "nnx", "equinox"])
def test_mlps_of_every_library(library):
    model, apply = mlps()[library]
    theirs = twins.torch_randomised(Mlp())
    found = correspond(theirs, model, shape=(1, 20), apply=apply)
    assert (found.certificate, len(found.pairs), found.unmatched) == ("exact", 7, ((), ()))
    new, x = found.transfer(), twins.images((1, 20))
    got = apply(new, x) if apply else jax.vmap(eqx.nn.inference_mode(new))(x) if library == "equinox" else new(x)
    assert twins.apart(twins.torch_output(theirs.eval(), x), got) < 2e-6


def test_two_models_of_jax():
    pairs = mlps()
    (linen, apply), (module, _) = pairs["linen"], pairs["equinox"]
    found = correspond(linen, module, shape=(1, 20), apply=(apply, None))
    assert found.certificate == "exact"
    x = twins.images((1, 20))
    assert twins.apart(apply(linen, x), jax.vmap(eqx.nn.inference_mode(found.transfer()))(x)) < 2e-6


# Flattening, branches, what is abstract.


class Branches(nn.Module):
    """The twin of the linen Inception, its layers defined in another order."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(
            zoo_linen.Inception.widths[1][0] + zoo_linen.Inception.widths[1][2] + zoo_linen.Inception.widths[1][4] + zoo_linen.Inception.widths[1][5], 10
        )
        ins = 32
        self.parts = nn.ModuleList()
        for a, b, c, d, e, f in zoo_linen.Inception.widths:
            shapes = [(ins, f, 1), (d, e, 5), (ins, d, 1), (b, c, 3), (ins, b, 1), (ins, a, 1)]
            self.parts.append(nn.ModuleList(self.unit(*shape) for shape in shapes))
            ins = a + c + e + f
        self.stem = self.unit(3, 32, 3, 2)

    @staticmethod
    def unit(ins, outs, kernel, stride=1):
        return nn.Sequential(nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outs, eps=1e-3), nn.ReLU())

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem(x), 3, 2, 1)
        for pooled, five, before_five, three, before_three, one in self.parts:
            x = torch.cat([one(x), three(before_three(x)), five(before_five(x)), pooled(nn.functional.max_pool2d(x, 3, 1, 1))], 1)
        return self.head(x.mean((2, 3)))


def test_branches_joined_and_named_otherwise():
    module, theirs, x = zoo_linen.Inception(), twins.torch_calibrated(twins.torch_randomised(Branches()), (1, 32, 32, 3)), images(32)
    variables = tree_drawn(abstract(module, (1, 32, 32, 3)))
    found = correspond(theirs, variables, shape=(1, 32, 32, 3), apply=partial(module.apply, train=False))
    assert (found.certificate, found.interchangeable) == ("exact", ())
    new = found.transfer()
    assert twins.apart(twins.torch_output(theirs, x), jax.jit(partial(module.apply, train=False))(new, x)) < 1e-4


class Flattened(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(8, (3, 3), padding=1)(x))
        return linen.Dense(5)(linen.relu(linen.Dense(16)(x.reshape((x.shape[0], -1)))))


def test_what_is_flattened_lies_in_another_order_there():
    theirs = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 16), nn.ReLU(), nn.Linear(16, 5))
    variables = tree_drawn(jax.eval_shape(Flattened().init, KEY, jnp.zeros((1, 7, 7, 3))))
    new = correspond(theirs, variables, shape=(1, 7, 7, 3), apply=Flattened().apply).transfer()
    assert twins.apart(twins.torch_output(theirs, images(7)), Flattened().apply(new, images(7))) < 2e-6


def test_abstract_models_correspond_and_have_no_values_to_carry():
    import torchvision_cpu  # noqa: F401

    with torch.device("meta"):
        theirs = import_module("torchvision.models").vgg16()
    module = zoo_linen.VGG16()
    variables = abstract(module, (1, 224, 224, 3))
    other = nnx.eval_shape(lambda: zoo_nnx.ResNet50(rngs=nnx.Rngs(0)))
    pair = eqx.filter_eval_shape(eqx.nn.make_with_state(partial(zoo_equinox.ResNet18, "batch")), key=KEY)
    found = correspond(theirs, variables, shape=(1, 224, 224, 3), apply=partial(module.apply, train=False))
    assert (found.certificate, len(found.pairs)) == ("exact", 16)
    again = correspond(variables, variables, shape=(1, 224, 224, 3), apply=(partial(module.apply, train=False),) * 2)
    with pytest.raises(errors.BackendError, match="no values yet"):
        again.transfer()
    assert correspond(other, other, shape=(1, 64, 64, 3)).certificate == "exact"
    assert correspond(pair, pair, shape=(1, 64, 64, 3)).certificate == "exact"
    assert all(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((variables, nnx.state(other), eqx.filter(pair, lambda x: hasattr(x, "dtype"))))
    )


def test_matching_takes_hundredths_of_a_second():
    module = zoo_linen.ResNet50()
    variables = abstract(module, (1, 64, 64, 3))
    found = correspond(variables, variables, shape=(1, 64, 64, 3), apply=(partial(module.apply, train=False),) * 2)
    graphs = [traced.graph for traced in found._traced]
    start = time.perf_counter()
    match(*graphs)
    assert time.perf_counter() - start < 1
