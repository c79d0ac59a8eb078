"""Models of keras.applications against those of torchvision and timm that are the same: exact, and the weights carried over prove it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any

import keras
import numpy as np
import pytest

import torchvision_cpu  # noqa: F401
import twins
from unifreeze import correspond, port

#: Of each model its layers, and a size at which Keras pads as PyTorch does: on both sides where the size is odd.
ZOO = {
    "Xception": (115, 71),
    "MobileNetV3Small": (88, 65),
    "DenseNet121": (242, 65),
    "EfficientNetB0": (131, 65),
    "ConvNeXtTiny": (100, 64),
    "ResNet50": (107, 65),
    "MobileNetV2": (105, 65),
    "VGG16": (16, 224),
    "InceptionV3": (189, 139),
}
QUICK = [
    ("InceptionV3", "torchvision", "inception_v3"),
    ("MobileNetV3Small", "torchvision", "mobilenet_v3_small"),
    ("ConvNeXtTiny", "timm", "convnext_tiny"),
    ("Xception", "timm", "legacy_xception"),
]
DEEP = [
    ("VGG16", "torchvision", "vgg16"),
    ("ResNet50", "torchvision", "resnet50"),
    ("MobileNetV2", "torchvision", "mobilenet_v2"),
    ("DenseNet121", "torchvision", "densenet121"),
    ("EfficientNetB0", "torchvision", "efficientnet_b0"),
    ("ConvNeXtTiny", "torchvision", "convnext_tiny"),
    ("VGG16", "timm", "vgg16"),
    ("ResNet50", "timm", "resnet50"),
    ("InceptionV3", "timm", "inception_v3"),
    ("MobileNetV2", "timm", "mobilenetv2_100"),
    ("MobileNetV3Small", "timm", "tf_mobilenetv3_small_100"),
    ("DenseNet121", "timm", "densenet121"),
    ("EfficientNetB0", "timm", "tf_efficientnet_b0"),
]
#: Of the largest output. Statistics of few pixels magnify what float32 rounds away; a test in float64 shows that it is nothing else.
LIMIT = 3e-4


def of_keras(name: str) -> Any:
    """The model, without what it does to pixels first: the same numbers go into both models."""
    builder, size = getattr(keras.applications, name), ZOO[name][1]
    more = {"include_preprocessing": False} if name in {"MobileNetV3Small", "ConvNeXtTiny"} else {}
    model = builder(weights=None, input_shape=(size, size, 3), classifier_activation=None, **more)
    return twins.calibrated(twins.randomised(model), (1, size, size, 3))


def of_torch(source: str, name: str) -> Any:
    if source == "timm":
        return import_module("timm").create_model(name, pretrained=False).eval()
    return twins.twin(name, **({"init_weights": False} if name == "inception_v3" else {})).eval()


@lru_cache(maxsize=1)
def pair(name: str, source: str, twin: str) -> tuple[Any, Any, Any]:
    """Both models, and their correspondence with the weights carried over."""
    ours, theirs = of_keras(name), of_torch(source, twin)
    found = correspond(ours, theirs)
    found.transfer()
    return ours, theirs, found


@pytest.mark.parametrize(("name", "source", "twin"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.deep) for one in DEEP)])
def test_the_same_model_is_exact_and_gives_the_same_output(name: str, source: str, twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, found = pair(name, source, twin)
    assert (found.certificate, len(found.pairs), found.interchangeable) == ("exact", ZOO[name][0], ())
    # EfficientNet's first layer, which centres pixels, and begins with doing nothing.
    assert [path.partition("_")[0] for path in found.unmatched[0]] == (["normalization"] if name == "EfficientNetB0" else [])
    assert all("Aux" in path for path in found.unmatched[1])
    twins.set_alike(theirs, found, monkeypatch)
    x = twins.images(ours.input_shape)
    assert found.verify(x) < LIMIT
    # The same with our own eyes, which see that an input that is scaled on one side is another input.
    expected = twins.keras_output(ours, x)
    assert twins.apart(expected, twins.torch_output(theirs, x)) < LIMIT
    assert twins.apart(expected, twins.torch_output(theirs, 1.5 * x)) > 30 * LIMIT


@pytest.mark.parametrize(("name", "source", "twin"), [QUICK[1], *(pytest.param(*one, marks=pytest.mark.deep) for one in (*QUICK, *DEEP) if one != QUICK[1])])
def test_the_outputs_tell_of_every_single_array_whether_it_came_in_the_right_order(name: str, source: str, twin: str) -> None:
    ours, theirs, _ = pair(name, source, twin)
    x = twins.images(ours.input_shape)[:2]
    assert [path for path in twins.unseen(theirs, x, LIMIT) if "Aux" not in path] == []


@pytest.fixture
def twice_as_precise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keras in float64, also where it computes statistics and means in float32 whatever it is told."""
    from keras.src import backend

    rule = backend.result_type

    def widest(*dtypes: Any) -> str:
        return "float64" if any("float64" in str(dtype) for dtype in dtypes) else rule(*dtypes)

    for module in (backend, backend.common.dtypes):
        monkeypatch.setattr(module, "result_type", widest)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # TensorFlow's own divides by a root of two that it has rounded to float32, whatever it is given, and is off by 5e-9.
        monkeypatch.setattr(tf.nn, "gelu", lambda x, approximate: x / 2 * (1 + tf.math.erf(x / tf.constant(2**0.5, x.dtype))))
    pair.cache_clear()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    pair.cache_clear()


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64 unless all of the process has")
@pytest.mark.usefixtures("twice_as_precise")
@pytest.mark.parametrize(("name", "source", "twin"), [QUICK[1], *(pytest.param(*one, marks=pytest.mark.deep) for one in (*QUICK, *DEEP) if one != QUICK[1])])
def test_what_is_left_between_the_outputs_is_rounding_alone(name: str, source: str, twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # In float32 deep networks agree to 6e-5 only; a setting that differs a little, an epsilon, say, could hide in that.
    ours, theirs = of_keras(name), of_torch(source, twin).double()
    found = correspond(ours, theirs)
    found.transfer()
    twins.set_alike(theirs, found, monkeypatch)
    x = twins.images(ours.input_shape).astype("float64")
    assert twins.apart(twins.keras_output(ours, x), twins.torch_output(theirs, x)) < 1e-11


def test_the_recipe_of_the_applications_page_lands_on_torchvision() -> None:
    ours, theirs, _ = pair(*QUICK[0])
    for layer in ours.layers[:249]:
        layer.trainable = False
    done = port(None, ours, theirs)
    frozen = {id(v) for layer in ours.layers[:249] for v in layer.weights}
    # Marked by value, which the weights carry over.
    for variable in ours.variables:
        variable.assign(np.full(variable.shape, 1.0 if id(variable) in frozen else 2.0))
    done.correspondence.transfer()
    for name, p in theirs.named_parameters():
        if "Aux" not in name and not (name.endswith("bn.weight")):
            assert bool((p == 1.0).all()) == (not p.requires_grad), name
    assert done.frozen[1] - done.frozen[0] == sum(p.numel() for n, p in theirs.named_parameters() if n.endswith("bn.weight") and not p.requires_grad)
    pair.cache_clear()
