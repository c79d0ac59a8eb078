"""Models of JAX beside PyTorch's and Keras's: weights carried along the correspondence make both give the same output, in every direction."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
import zoo_equinox
import zoo_linen
import zoo_nnx
from flax import nnx
from torch import nn

from unifreeze import correspond

KEY = jax.random.key(0)


def drawn(name, shape, rng):
    """Values away from zero and one, so that nothing hides, and of a size that keeps activations near one."""
    if name in {"var", "running_var", "moving_variance", "scale", "gamma"}:
        return rng.uniform(0.8, 1.2, shape)
    if name in {"mean", "running_mean", "moving_mean", "bias", "beta", "offset"}:
        return rng.uniform(-0.1, 0.1, shape)
    return rng.normal(size=shape) * np.sqrt(2 / max(1, np.prod(shape[:-1])))


def torch_drawn(model, seed=0):
    """A PyTorch model with such values; its kernels keep what they were initialised with."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            last = name.rpartition(".")[2]
            if tensor.ndim == 1:
                tensor.copy_(torch.from_numpy(drawn("scale" if last == "weight" else last, tensor.shape, rng)))
    return model


def tree_drawn(tree, seed=0):
    """Linen variables or haiku parameters with such values, made of shapes alone."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: drawn(path[-1].key, leaf.shape, rng).astype(leaf.dtype), tree)


def keras_drawn(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(drawn(variable.path.rpartition("/")[2], variable.shape, rng))
    return model


def torchvision(name, **more):
    import torchvision_cpu  # noqa: F401
    from torchvision import models

    return torch_drawn(getattr(models, name)(**more))


def torch_output(model, x):
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(np.moveaxis(x, -1, 1) if x.ndim > 3 else x))
    return out.numpy()


def images(size):
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype("float32")


def abstract(module, shape):
    return jax.eval_shape(partial(module.init, train=False), KEY, jnp.zeros(shape))


def apart(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


# PyTorch to linen.

LINEN = {
    "resnet18": (zoo_linen.ResNet18(), 64, 41),
    "resnet50": (zoo_linen.ResNet50(), 64, 107),
    "resnet50 with remat": (zoo_linen.ResNet50(remat=True), 64, 107),
    "mobilenet_v2": (zoo_linen.MobileNetV2(), 64, 105),
}


@pytest.mark.parametrize("name", LINEN)
def test_torchvision_to_linen(name):
    module, size, units = LINEN[name]
    theirs = torchvision(name.split()[0])
    variables = tree_drawn(abstract(module, (1, size, size, 3)), seed=7)
    found = correspond(theirs, variables, shape=(1, size, size, 3), apply=partial(module.apply, train=False))
    assert (found.certificate, len(found.pairs), found.interchangeable, found.unmatched) == ("exact", units, (), ((), ()))
    assert found.differences == ()
    x = images(size)
    assert found.verify(x) > 0.1
    new = found.transfer()
    assert found.verify(x) < 5e-6
    assert apart(module.apply(new, x, train=False), torch_output(theirs, x)) < 5e-6
    assert jax.tree.structure(new) == jax.tree.structure(variables)


# nnx and equinox, which need no apply.


def test_torchvision_to_nnx():
    theirs, module = torchvision("resnet50"), zoo_nnx.ResNet50(rngs=nnx.Rngs(0))
    found = correspond(theirs, module, shape=(1, 64, 64, 3))
    assert (found.certificate, len(found.pairs), found.unmatched, found.differences) == ("exact", 107, ((), ()), ())
    assert found.transfer() is module
    x = images(64)
    assert found.verify(x) < 5e-6
    module.eval()
    assert apart(nnx.jit(lambda m, x: m(x))(module, x), torch_output(theirs, x)) < 5e-6


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_torchvision_to_equinox(mode):
    theirs, model = torchvision("resnet18"), eqx.nn.make_with_state(zoo_equinox.ResNet18)(mode, key=KEY)
    found = correspond(theirs, model, shape=(1, 64, 64, 3))
    assert (found.certificate, len(found.pairs), found.unmatched, found.differences) == ("exact", 41, ((), ()), ())
    module, state = found.transfer()
    x = images(64)
    assert found.verify(x) < 5e-6
    run = eqx.filter_jit(jax.vmap(eqx.nn.inference_mode(module), axis_name="batch", in_axes=(0, None), out_axes=(0, None)))
    assert apart(run(jnp.moveaxis(x, -1, 1), state)[0], torch_output(theirs, x)) < 5e-6
