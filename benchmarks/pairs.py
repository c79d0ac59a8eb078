"""Which layer is which, pair by pair: certificate, proof by weights, and seconds. Prints the table of docs/porting.md.

A pair is a row of ``PAIRS``: two builders and the shape of the input, channels last. A pair that is refused shows its refusal.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import keras
import numpy as np
import torch
import torchvision_cpu  # noqa: F401 - torchvision needs it beside a CPU-only torch
import twins

from unifreeze import correspond, errors
from unifreeze._manager import backend_of
from unifreeze._port.match import match

Build = Callable[[], Any]


@dataclass(frozen=True)
class Pair:
    """Two models of one architecture.

    Attributes:
        names: What the table calls them.
        build: Makes either.
        size: Height and width of the image that they are given; odd, since Keras pads even ones on one side only.
        shape: The whole shape of the input, where it is no image.
        vocabulary: The number of tokens, where the input is ids.
        apply: For a model of JAX, how it computes.
    """

    names: tuple[str, str]
    build: tuple[Build, Build]
    size: int = 65
    shape: tuple[int, ...] = ()
    vocabulary: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def input(self) -> tuple[int, ...]:
        return self.shape or (1, self.size, self.size, 3)


def keras_zoo(name: str, size: int, **more: Any) -> Any:
    return twins.randomised(getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classifier_activation=None, **more))


def torchvision_zoo(name: str, **more: Any) -> Any:
    return getattr(import_module("torchvision.models"), name)(**more)


def timm_zoo(name: str, **more: Any) -> Any:
    return import_module("timm").create_model(name, pretrained=False, **more)


def image(ours: str, theirs: str, size: int = 65, zoo: Callable[..., Any] = torchvision_zoo, **more: Any) -> Pair:
    """A pair of image classifiers; ``more`` is for the second."""
    where = "torchvision" if zoo is torchvision_zoo else "timm"
    return Pair((f"Keras {ours}", f"{where} {theirs}"), (partial(keras_zoo, ours, size), partial(zoo, theirs, **more)), size)


def same(zoo: Callable[..., Any], ours: str, other: Callable[..., Any], theirs: str, size: int = 65) -> Pair:
    """A pair within PyTorch."""
    words = {torchvision_zoo: "torchvision", timm_zoo: "timm"}
    return Pair((f"{words[zoo]} {ours}", f"{words[other]} {theirs}"), (partial(zoo, ours), partial(other, theirs)), size)


PAIRS = [
    image("VGG16", "vgg16", 224),
    image("ResNet50", "resnet50"),
    image("InceptionV3", "inception_v3", 299, init_weights=False),
    image("MobileNetV2", "mobilenet_v2"),
    image("MobileNetV3Small", "mobilenet_v3_small"),
    image("DenseNet121", "densenet121"),
    image("EfficientNetB0", "efficientnet_b0"),
    image("ConvNeXtTiny", "convnext_tiny"),
    image("ResNet50", "resnet50", zoo=timm_zoo),
    image("InceptionV3", "inception_v3", 299, zoo=timm_zoo),
    image("Xception", "legacy_xception", 71, zoo=timm_zoo),
    image("EfficientNetB0", "tf_efficientnet_b0", zoo=timm_zoo),
    image("MobileNetV3Small", "tf_mobilenetv3_small_100", zoo=timm_zoo),
    image("DenseNet121", "densenet121", zoo=timm_zoo),
    image("ConvNeXtTiny", "convnext_tiny", zoo=timm_zoo),
    same(torchvision_zoo, "resnet50", timm_zoo, "resnet50"),
]


def main(words: list[str]) -> None:
    """Prints the table, or the rows whose names hold one of the words."""
    print(
        "| source | target | certificate | layers | units | largest relative difference of the outputs | trace the source, s | trace the target, s | match, s |"
    )
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for pair in PAIRS:
        if not words or any(word in " ".join(pair.names) for word in words):
            print(f"| {' | '.join((*pair.names, *cells(pair)))} |", flush=True)


def cells(pair: Pair) -> Iterator[str]:
    """What is found of a pair."""
    models = [build() for build in pair.build]
    try:
        found = correspond(*models, shape=pair.input, **pair.more)
    except errors.UnifreezeError as error:
        yield from ("refused: " + " ".join(str(error).split())[:160], *["–"] * 6)
        return
    seconds = timed(pair, models)
    yield from (found.certificate, str(len(found.pairs)), str(len(found._match.pairs)), apart(pair, models, found), *(f"{one:.2f}" for one in seconds))


def timed(pair: Pair, models: list[Any]) -> list[float]:
    """Seconds to trace either model and to match, once all is warm."""
    marks, traced = [time.perf_counter()], []
    for model in models:
        traced.append(backend_of(model).graph(model, pair.input))
        marks.append(time.perf_counter())
    match(traced[0].graph, traced[1].graph)
    marks.append(time.perf_counter())
    return [end - start for start, end in zip(marks, marks[1:], strict=False)]


def apart(pair: Pair, models: list[Any], found: Any) -> str:
    """The proof: weights carried over, what no weight decides set alike, both outputs compared."""
    if found.certificate != "exact":
        return "–"
    try:
        found.transfer()
        with (
            mock.patch.object(torch.nn.functional, "conv2d", torch.nn.functional.conv2d),
            mock.patch.object(torch.nn.functional, "avg_pool2d", torch.nn.functional.avg_pool2d),
        ):
            twins.set_alike(models[1], found, Patch())
            return f"{found.verify(inputs(pair)):.0e}"
    except errors.UnifreezeError as error:
        return "refused: " + " ".join(str(error).split())[:120]


def inputs(pair: Pair) -> Any:
    rng = np.random.default_rng(1)
    if pair.vocabulary:
        return rng.integers(0, pair.vocabulary, (2, *pair.input[1:]))
    return rng.normal(size=(2, *pair.input[1:])).astype("float32")


class Patch:
    """What ``pytest.MonkeyPatch`` is for tests; what it sets is taken back by ``mock`` around it."""

    setattr = staticmethod(setattr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
