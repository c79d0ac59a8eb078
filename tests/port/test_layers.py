"""Layers one by one: a Keras layer between two others, and its twin in PyTorch; the weights carried over make the same output."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from torch import nn

from unifreeze import correspond

L = keras.layers


class RMS(nn.Module):
    """A root mean square norm by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.LayerNorm(8, bias=False).weight

    def forward(self, x):
        x = x.movedim(1, -1)
        return (x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weight).movedim(-1, 1)


class Moved(nn.Module):
    """A layer norm over channels that come second."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8, eps=1e-3)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Again(nn.Module):
    """One layer, applied twice."""

    def __init__(self):
        super().__init__()
        self.it = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.it(self.it(x).relu())


class Cut(nn.Module):
    """Half of the channels go on."""

    def __init__(self):
        super().__init__()
        self.on = nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x):
        return self.on(x[:, 4:]) + nn.functional.pad(x[:, :4], (0, 0, 0, 0, 2, 2))


def again(x):
    layer = L.Conv2D(8, 1)
    return layer(keras.ops.relu(layer(x)))


def cut(x):
    return L.Conv2D(8, 3, padding="same")(x[..., 4:]) + keras.ops.pad(x[..., :4], ((0, 0), (0, 0), (0, 0), (2, 2)))


TWINS = {
    "transposed": (L.Conv2DTranspose(8, 3, 2, padding="valid"), lambda: nn.ConvTranspose2d(8, 8, 3, 2)),
    "grouped": (L.Conv2D(8, 3, groups=2), lambda: nn.Conv2d(8, 8, 3, groups=2)),
    "patches": (L.Conv2D(8, 3, 3), lambda: nn.Conv2d(8, 8, 3, 3)),
    "group norm": (L.GroupNormalization(2, epsilon=1e-5), lambda: nn.GroupNorm(2, 8)),
    "rms norm": (L.RMSNormalization(epsilon=1e-6), RMS),
    "layer norm": (L.LayerNormalization(), Moved),
    "slopes": (L.PReLU(shared_axes=[1, 2]), lambda: nn.PReLU(8)),
    "twice": (again, Again),
    "cut": (cut, Cut),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_layer_and_its_twin(name):
    ours, theirs = TWINS[name]
    image = keras.Input((9, 9, 3))
    model = keras.Model(image, L.Conv2D(4, 3)(ours(L.Conv2D(8, 3, padding="same")(image))))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.uniform(0.2, 0.8, variable.shape) * rng.choice([-1, 1], variable.shape))
    found = correspond(model, nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), theirs(), nn.Conv2d(8, 4, 3)))
    assert (found.certificate, found.interchangeable) == ("exact", ())
    x = rng.normal(size=(2, 9, 9, 3)).astype("float32")
    before = found.verify(x)
    found.transfer()
    assert before > 0.1
    assert found.verify(x) < 1e-5
