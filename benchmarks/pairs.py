"""Which layer is which, pair by pair: certificate, proof by weights, and seconds. Prints the table of docs/porting.md.

A pair is a row of ``PAIRS``: two builders and the shape of the input, channels last. A pair that is refused shows its refusal.
"""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path += [str(TESTS), str(TESTS / "port")]

import equinox as eqx
import jax
import keras
import numpy as np
import pytest
import torch
import transformers_in_keras
from flax import nnx

import torchvision_cpu  # noqa: F401 - torchvision needs it beside a CPU-only torch
import twins
import zoo_attention
import zoo_equinox
import zoo_linen
import zoo_nnx
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
        shape: The whole shape of the input, where it is no such image, or the shapes of several by their names.
        vocabulary: The number of tokens of each input, where they are ids.
        apply: For a model of JAX that does not say it, how it computes.
    """

    names: tuple[str, str]
    build: tuple[Build, Build]
    size: int = 65
    shape: tuple[int, ...] | dict[str, tuple[int, ...]] = ()
    vocabulary: tuple[int, ...] = ()
    apply: Callable[..., Any] | None = None

    @property
    def input(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        return self.shape or (1, self.size, self.size, 3)


def keras_zoo(name: str, size: int, **more: Any) -> Any:
    """The model, without what it does to pixels first: the same numbers go into both models."""
    builder = getattr(keras.applications, name)
    if "include_preprocessing" in inspect.signature(builder).parameters:
        more["include_preprocessing"] = False
    model = builder(weights=None, input_shape=(size, size, 3), classifier_activation=None, **more)
    return twins.calibrated(twins.randomised(model), (1, size, size, 3))


def torchvision_zoo(name: str, **more: Any) -> Any:
    return getattr(import_module("torchvision.models"), name)(**more)


def timm_zoo(name: str, **more: Any) -> Any:
    return import_module("timm").create_model(name, pretrained=False, **more)


def image(ours: str, theirs: str, size: int = 65, zoo: Callable[..., Any] = torchvision_zoo, **more: Any) -> Pair:
    """A pair of image classifiers; ``more`` is for the second."""
    where = "torchvision" if zoo is torchvision_zoo else "timm"
    return Pair((f"Keras {ours}", f"{where} {theirs}"), (partial(keras_zoo, ours, size), partial(zoo, theirs, **more)), size)


def drawn(build: Build, size: int) -> Any:
    """A PyTorch model to carry weights from."""
    return twins.torch_calibrated(twins.torch_randomised(build()), (1, size, size, 3))


def back(theirs: str, ours: str, size: int = 65, zoo: Callable[..., Any] = torchvision_zoo) -> Pair:
    """A pair of image classifiers, from PyTorch to Keras."""
    where = "torchvision" if zoo is torchvision_zoo else "timm"
    return Pair((f"{where} {theirs}", f"Keras {ours}"), (partial(drawn, partial(zoo, theirs), size), partial(keras_zoo, ours, size)), size)


def same(zoo: Callable[..., Any], ours: str, other: Callable[..., Any], theirs: str, size: int = 65) -> Pair:
    """A pair within PyTorch."""
    words = {torchvision_zoo: "torchvision", timm_zoo: "timm"}
    return Pair((f"{words[zoo]} {ours}", f"{words[other]} {theirs}"), (partial(drawn, partial(zoo, ours), size), partial(other, theirs)), size)


def blank(tree: Any) -> Any:
    """Zeros in place of shapes."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, tree)


def linen(module: Any, shape: tuple[int, ...], kind: Any = "float32") -> Any:
    return blank(jax.eval_shape(partial(module.init, train=False), jax.random.key(0), jax.ShapeDtypeStruct(shape, kind)))


def nnx_resnet() -> Any:
    model = nnx.eval_shape(lambda: zoo_nnx.ResNet50(rngs=nnx.Rngs(0)))
    nnx.update(model, blank(nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))))
    return model


def equinox_resnet() -> Any:
    return blank(eqx.filter_eval_shape(eqx.nn.make_with_state(partial(zoo_equinox.ResNet18, "batch")), key=jax.random.key(0)))


def to_linen(names: tuple[str, str], source: Build, module: Any, shape: tuple[int, ...], vocabulary: tuple[int, ...] = ()) -> Pair:
    """A pair with a linen module, whose variables know nothing of their computation."""
    kind = "int32" if vocabulary else "float32"
    return Pair(names, (source, partial(linen, module, shape, kind)), shape=shape, vocabulary=vocabulary, apply=partial(module.apply, train=False))


def torch_zoo(name: str, size: int = 64, **more: Any) -> Any:
    return drawn(partial(torchvision_zoo, name, **more), size)


def transformer(name: str, config: str, **more: Any) -> Any:
    """A small model of transformers."""
    library = import_module("transformers")
    made = getattr(library, name)(getattr(library, config)(**more))
    made.config.use_cache = False
    return twins.torch_randomised(made.eval())


BERT = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 16}
GPT2 = {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 10}
#: The sizes of the linen models.
WIDER = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 24}
TOKENS = {"input_ids": (1, 16), "token_type_ids": (1, 16)}
BERTS = (transformers_in_keras.bert, partial(transformer, "BertModel", "BertConfig", **BERT))
GPTS = (transformers_in_keras.gpt, partial(transformer, "GPT2LMHeadModel", "GPT2Config", **GPT2))

PAIRS = [
    image("VGG16", "vgg16", 224),
    image("ResNet50", "resnet50"),
    image("InceptionV3", "inception_v3", 299, init_weights=False),
    image("MobileNetV2", "mobilenet_v2"),
    image("MobileNetV3Small", "mobilenet_v3_small"),
    image("DenseNet121", "densenet121"),
    image("EfficientNetB0", "efficientnet_b0"),
    image("ConvNeXtTiny", "convnext_tiny", 64),
    image("VGG16", "vgg16", 224, zoo=timm_zoo),
    image("ResNet50", "resnet50", zoo=timm_zoo),
    image("InceptionV3", "inception_v3", 299, zoo=timm_zoo),
    image("Xception", "legacy_xception", 71, zoo=timm_zoo),
    image("MobileNetV2", "mobilenetv2_100", zoo=timm_zoo),
    image("MobileNetV3Small", "tf_mobilenetv3_small_100", zoo=timm_zoo),
    image("DenseNet121", "densenet121", zoo=timm_zoo),
    image("EfficientNetB0", "tf_efficientnet_b0", zoo=timm_zoo),
    image("ConvNeXtTiny", "convnext_tiny", 64, zoo=timm_zoo),
    back("resnet50", "ResNet50"),
    back("mobilenet_v2", "MobileNetV2"),
    back("convnext_tiny", "ConvNeXtTiny", 64, zoo=timm_zoo),
    same(torchvision_zoo, "resnet50", timm_zoo, "resnet50"),
    Pair(("Keras BERT, small", "transformers BertModel"), BERTS, shape=TOKENS, vocabulary=(50, 2)),
    Pair(("Keras GPT-2, small", "transformers GPT2LMHeadModel"), GPTS, shape=(1, 16), vocabulary=(50,)),
    Pair(("transformers BertModel, small", "Keras BERT"), BERTS[::-1], shape=TOKENS, vocabulary=(50, 2)),
    Pair(("transformers GPT2LMHeadModel, small", "Keras GPT-2"), GPTS[::-1], shape=(1, 16), vocabulary=(50,)),
    to_linen(("torchvision resnet50", "linen ResNet50"), partial(torch_zoo, "resnet50"), zoo_linen.ResNet50(), (1, 64, 64, 3)),
    to_linen(("Keras ResNet50", "linen ResNet50"), partial(keras_zoo, "ResNet50", 64), zoo_linen.ResNet50OfKeras(), (1, 64, 64, 3)),
    Pair(("torchvision resnet50", "nnx ResNet50"), (partial(torch_zoo, "resnet50"), nnx_resnet), 64),
    Pair(("torchvision resnet18", "equinox ResNet18"), (partial(torch_zoo, "resnet18"), equinox_resnet), 64),
    to_linen(("torchvision VisionTransformer, small", "linen ViT"), partial(torch_zoo, "VisionTransformer", 32, **VIT), zoo_attention.ViT(), (1, 32, 32, 3)),
    to_linen(
        ("transformers BertModel, small", "linen BERT"), partial(transformer, "BertModel", "BertConfig", **BERT | WIDER), zoo_attention.Bert(), (1, 8), (50,)
    ),
    to_linen(
        ("transformers GPT2Model, small", "linen GPT-2"),
        partial(transformer, "GPT2Model", "GPT2Config", **GPT2 | {"n_embd": 32, "n_positions": 24}),
        zoo_attention.GPT2(),
        (1, 8),
        (50,),
    ),
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
        found = correspond(*models, shape=pair.input, apply=pair.apply)
    except errors.UnifreezeError as error:
        yield from ("refused: " + " ".join(str(error).split())[:160], *["–"] * 6)
        return
    seconds = timed(pair, models)
    yield from (found.certificate, str(len(found.pairs)), str(len(found._match.pairs)), apart(pair, models, found), *(f"{one:.2f}" for one in seconds))


def timed(pair: Pair, models: list[Any]) -> list[float]:
    """Seconds to trace either model and to match, once all is warm."""
    marks, traced = [time.perf_counter()], []
    for model in models:
        traced.append(backend_of(model).graph(model, pair.input, pair.apply))
        marks.append(time.perf_counter())
    match(traced[0].graph, traced[1].graph)
    marks.append(time.perf_counter())
    return [end - start for start, end in pairwise(marks)]


def apart(pair: Pair, models: list[Any], found: Any) -> str:
    """The proof: weights carried over, what no weight decides set alike, both outputs compared."""
    if found.certificate != "exact":
        return "–"
    try:
        found.transfer()
        with pytest.MonkeyPatch.context() as patched:
            kinds = ["Keras" if isinstance(model, keras.Model) else "PyTorch" if isinstance(model, torch.nn.Module) else "JAX" for model in models]
            if kinds[1] != "JAX":
                twins.set_alike(models[kinds[1] == "PyTorch"], found, patched, int(kinds[1] == "PyTorch"))
            arrays = inputs(pair)
            # A figure says something only where the output depends on the input.
            expected = found._traced[0].run(arrays)[0]
            blind = np.abs(expected[0] - expected[1]).max() < 1e-2 * np.abs(expected).max()
            return "the output hardly depends on the input" if blind else f"{found.verify(arrays):.0e}"
    except errors.UnifreezeError as error:
        return "refused: " + " ".join(str(error).split())[:120]


def inputs(pair: Pair) -> list[Any]:
    shapes = list(pair.input.values()) if isinstance(pair.input, dict) else [pair.input]
    if not pair.vocabulary:
        return [twins.images(shape) for shape in shapes]
    rng = np.random.default_rng(1)
    return [rng.integers(0, number, (8, *shape[1:])) for number, shape in zip(pair.vocabulary, shapes, strict=True)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
