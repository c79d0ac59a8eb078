"""Transformers: attention of several heads in linen, nnx and equinox beside PyTorch's, fused projections on either side; and who may not pass for its twin."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import torchvision_cpu  # noqa: F401 - transformers, too, looks for torchvision
import zoo_attention
from unifreeze import correspond

IDS = np.random.default_rng(0).integers(0, 50, (3, 16))
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


def vit():
    return import_module("torchvision.models").VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=24)
    return BertModel(config)


def gpt2():
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(vocab_size=50, n_positions=24, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))


PAIRS = {
    "ViT": (vit, zoo_attention.ViT(), (1, 32, 32, 3), IMAGES, 21),
    "BERT": (bert, zoo_attention.Bert(), (1, 16), IDS, 21),
    "GPT-2": (gpt2, zoo_attention.GPT2(), (1, 16), IDS, 19),
}


def shaken(model):
    """No weight stays zero or one, where a wrong pair would not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def zeros(module, shape, dtype):
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(module.init, rngs, jnp.zeros(shape, dtype)))


def outputs(model, x):
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(np.moveaxis(x, -1, 1) if x.ndim > 3 else x))
    return [out.numpy()] if isinstance(out, torch.Tensor) else [one.numpy() for one in out.values() if isinstance(one, torch.Tensor)]


@pytest.mark.parametrize("name", PAIRS)
def test_from_pytorch_to_linen(name):
    make, module, shape, x, units = PAIRS[name]
    theirs, apply = shaken(make()), partial(module.apply, train=False)
    found = correspond(theirs, zeros(module, shape, x.dtype), shape=shape, apply=apply)
    assert (found.certificate, len(found.pairs), found.interchangeable, found.unmatched, found.differences) == ("exact", units, (), ((), ()), ())
    new = found.transfer()
    for got, expected in zip(jax.tree.leaves(jax.jit(apply)(new, x)), outputs(theirs, x), strict=True):
        assert np.abs(got - expected).max() < 3e-6 * np.abs(expected).max()


def test_from_linen_to_a_fused_projection():
    _, module, shape, x, _ = PAIRS["GPT-2"]
    source, target = shaken(gpt2()), shaken(gpt2())
    apply = partial(module.apply, train=False)
    variables = correspond(source, zeros(module, shape, x.dtype), shape=shape, apply=apply).transfer()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    assert correspond(variables, target, shape=shape, apply=apply).transfer() is target
    assert all(map(torch.equal, source.state_dict().values(), target.state_dict().values()))


# One encoder in three libraries, and its wrong twins.


class Encoder(nn.Module):
    def __init__(self, heads=4):
        super().__init__()
        self.second, self.first = nn.Linear(32, 16), nn.Linear(16, 32)
        self.after, self.before = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, heads, batch_first=True)

    def forward(self, x):
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.second(torch.relu(self.first(self.after(x))))


class LinenEncoder(linen.Module):
    heads: int = 4
    order: str = "qkv"
    reads_itself: bool = True

    @linen.compact
    def __call__(self, x):
        y = linen.LayerNorm(epsilon=1e-5)(x)
        proj = partial(linen.DenseGeneral, (self.heads, 16 // self.heads))
        projected = [proj(name=name)(y if self.reads_itself or name != "v" else x) for name in "qkv"]
        q, k, v = (projected["qkv".index(name)] for name in self.order)
        x = x + linen.DenseGeneral(16, axis=(-2, -1))(linen.dot_product_attention(q, k, v))
        return x + linen.Dense(16)(linen.relu(linen.Dense(32)(linen.LayerNorm(epsilon=1e-5)(x))))


class NnxEncoder(nnx.Module):
    def __init__(self, rngs):
        self.mlp = nnx.List([nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp[1](nnx.relu(self.mlp[0](self.norms[1](x))))


class EquinoxEncoder(eqx.Module):
    two: eqx.nn.Linear
    one: eqx.nn.Linear
    norms: tuple
    attention: eqx.nn.MultiheadAttention

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.two, self.one = eqx.nn.Linear(32, 16, key=a), eqx.nn.Linear(16, 32, key=b)
        self.norms = (eqx.nn.LayerNorm(16), eqx.nn.LayerNorm(16))
        bias = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.attention = eqx.nn.MultiheadAttention(4, 16, key=c, **bias)

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.two)(jax.nn.relu(jax.vmap(self.one)(jax.vmap(self.norms[1])(x))))


def linen_encoder(**how):
    module = LinenEncoder(**how)
    return zeros(module, (1, 6, 16), "float32"), module.apply


def encoders():
    key = jax.random.key(0)
    return {"linen": linen_encoder(), "nnx": (NnxEncoder(nnx.Rngs(0)), None), "equinox": (EquinoxEncoder(key), None)}


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_one_encoder_in_every_library(library):
    theirs, (model, apply) = shaken(Encoder()), encoders()[library]
    found = correspond(theirs, model, shape=(1, 6, 16), apply=apply)
    assert (found.certificate, found.interchangeable, found.unmatched) == ("exact", (), ((), ()))
    new, x = found.transfer(), np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32")
    got = apply(new, x) if apply else jax.vmap(new)(x) if library == "equinox" else new(x)
    assert np.abs(np.asarray(got) - outputs(theirs, x)[0]).max() < 1e-5


@pytest.mark.parametrize("wrong", [{"heads": 2}, {"order": "vkq"}, {"reads_itself": False}])
def test_a_wrong_encoder_is_not_exact_or_proves_itself(wrong):
    model, apply = linen_encoder(**wrong)
    theirs = shaken(Encoder())
    found = correspond(theirs, model, shape=(1, 6, 16), apply=apply)
    if "order" not in wrong:
        assert found.certificate == "prefix"
        return
    # The projections have other names, and the right ones are found all the same.
    assert (found.certificate, next(pair for pair in found.pairs if pair[0] == "attention")) == ("exact", ("attention", "v"))
    new, x = found.transfer(), np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32")
    assert np.abs(np.asarray(apply(new, x)) - outputs(theirs, x)[0]).max() < 1e-5
