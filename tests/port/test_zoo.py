"""Models of keras.applications against those of torchvision and timm that are the same: exact, and the weights carried over prove it."""

from __future__ import annotations

from importlib import import_module

import keras
import numpy as np
import pytest
import torch

import torchvision_cpu  # noqa: F401
from unifreeze import correspond

#: Sizes at which Keras pads as PyTorch does: on both sides where the size is odd.
SIZES = {
    "Xception": 71,
    "MobileNetV3Small": 65,
    "DenseNet121": 65,
    "EfficientNetB0": 65,
    "ConvNeXtTiny": 64,
    "ResNet50": 64,
    "MobileNetV2": 65,
    "VGG16": 224,
    "InceptionV3": 299,
}
UNITS = {
    "Xception": 115,
    "MobileNetV3Small": 88,
    "DenseNet121": 242,
    "EfficientNetB0": 131,
    "ConvNeXtTiny": 100,
    "ResNet50": 107,
    "MobileNetV2": 105,
    "VGG16": 16,
    "InceptionV3": 189,
}
QUICK = [("ConvNeXtTiny", "timm", "convnext_tiny"), ("Xception", "timm", "legacy_xception")]
DEEP = [
    ("MobileNetV3Small", "torchvision", "mobilenet_v3_small"),
    ("DenseNet121", "torchvision", "densenet121"),
    ("DenseNet121", "timm", "densenet121"),
    ("EfficientNetB0", "torchvision", "efficientnet_b0"),
    ("EfficientNetB0", "timm", "tf_efficientnet_b0"),
    ("ConvNeXtTiny", "torchvision", "convnext_tiny"),
    ("MobileNetV3Small", "timm", "tf_mobilenetv3_small_100"),
    ("ResNet50", "timm", "resnet50"),
    ("MobileNetV2", "timm", "mobilenetv2_100"),
    ("VGG16", "timm", "vgg16"),
    ("InceptionV3", "timm", "inception_v3"),
]


def randomised(model, seed=0):
    """Scales and shifts away from one and zero, and statistics near those of the data, so that nothing hides and the input still matters at the end."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name, shape = variable.path.rpartition("/")[2], variable.shape
        if name in {"gamma", "beta", "bias"}:
            variable.assign(rng.uniform(0.8, 1.2, shape) if name == "gamma" else rng.uniform(-0.1, 0.1, shape))
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(rng.normal(size=(4, *model.input_shape[1:])).astype("float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.moving_variance.assign(norm.moving_variance * rng.uniform(0.8, 1.2, norm.moving_variance.shape) + 1e-3)
    return model


def of_keras(name):
    """The model, without what it does to pixels first: the same numbers go into both models."""
    builder, size = getattr(keras.applications, name), SIZES[name]
    more = {"include_preprocessing": False} if name in {"MobileNetV3Small", "ConvNeXtTiny"} else {}
    model = builder(weights=None, input_shape=(size, size, 3), classifier_activation=None, **more)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Rescaling):
            layer.scale, layer.offset = 1.0, 0.0
    return randomised(model)


def of_torch(source, name):
    if source == "timm":
        return import_module("timm").create_model(name, pretrained=False).eval()
    return getattr(import_module("torchvision.models"), name)().eval()


def alike(model, found, monkeypatch):
    """Sets alike what no weight decides: epsilons, where strides lie, and pools that count their padding."""
    modules = dict(model.named_modules())
    for _, theirs, setting, value, _ in found.differences:
        if setting in {"epsilon", "stride"}:
            setattr(modules[theirs], {"epsilon": "eps"}.get(setting, setting), value)
    pool = torch.nn.functional.avg_pool2d

    def apart(x, kernel_size, stride=None, padding=0, ceil_mode=False, *_, **__):
        return pool(x, kernel_size, stride, padding, ceil_mode, count_include_pad=False)

    monkeypatch.setattr(torch.nn.functional, "avg_pool2d", apart)


@pytest.mark.parametrize(("name", "source", "twin"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.deep) for pair in DEEP)])
def test_the_same_model_is_exact_and_gives_the_same_output(name, source, twin, monkeypatch):
    ours, theirs = of_keras(name), of_torch(source, twin)
    found = correspond(ours, theirs)
    assert (found.certificate, len(found.pairs), found.interchangeable) == ("exact", UNITS[name], ())
    found.transfer()
    alike(theirs, found, monkeypatch)
    x = np.random.default_rng(1).normal(size=(2, *ours.input_shape[1:])).astype("float32")
    assert found.verify(x) < 1e-4
    with torch.no_grad():
        got = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    expected = keras.ops.convert_to_numpy(ours(x, training=False))
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() < 1e-4 * scale
    # The input matters.
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * scale
