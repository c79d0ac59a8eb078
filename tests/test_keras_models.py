"""Real models, trained for real: a prefix is frozen, some of it is let go again, and every array is compared byte by byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

from kits.keras_eyes import drawing, look, ready, which_moved
from unifreeze import freeze, unfreeze
from unifreeze.select import before

L = keras.layers


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


def weights_of(layers: Iterable[Any]) -> set[str]:
    return {weight.path for layer in layers for weight in layer.weights}


def need_still(model: Any, still: set[str], given: tuple[Any, Any]) -> None:
    """Fits two epochs of two batches: what is not still moves, statistics included; what is still keeps every byte."""
    assert {v.path for v in model.trainable_variables}.isdisjoint(still)
    start = look(model.weights)
    model.fit(*given, batch_size=4, epochs=2, verbose=0)
    moved = set(which_moved(model.weights, start))
    assert not moved & still
    # The bias of keys adds the same to all scores of a query, so its gradient is zero but for rounding.
    assert not [path for path in sorted(weights_of([model]) - still - moved) if not path.endswith("key/bias")], "did not train"
    assert all(np.isfinite(value).all() for value in look(model.weights))


IMAGES = {  # size and range of the input; what is before the first name is frozen, and from the second one on let go later
    "MobileNetV2": (32, 1, "block_13_expand", "block_11_expand"),
    "VGG16": (32, 1, "block5_conv1", "block4_conv1"),
    "ResNet50": (32, 1, "conv5_block1_1_conv", "conv4_block5_1_conv"),
    "InceptionV3": (75, 1, "mixed8", "mixed7"),
    "EfficientNetB0": (32, 255, "block7a_expand_conv", "block6b_expand_conv"),  # which divides by 255 itself
}
CASES = [name if name == "MobileNetV2" else pytest.param(name, marks=pytest.mark.deep) for name in IMAGES]


@pytest.mark.parametrize("name", CASES)
def test_models_of_images_train_above_a_frozen_prefix_that_shrinks(name: str) -> None:
    size, highest, stop, less = IMAGES[name]
    draw = np.random.default_rng(0)
    given = highest * draw.normal(size=(8, size, size, 3)).astype("float32"), draw.integers(0, 5, 8)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=5)
    # Behind frozen layers with their first statistics a signal fades, and Adam's own epsilon would hide such gradients.
    model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-15), "sparse_categorical_crossentropy")
    places = {layer.name: place for place, layer in enumerate(model.layers)}
    freezing = freeze(model, layers=before(stop))
    ready(model)
    need_still(model, weights_of(model.layers[: places[stop]]), given)
    freezing.verify()
    iterations = int(model.optimizer.iterations)
    unfreeze(model, layers=model.layers[places[less] : places[stop]])
    need_still(model, weights_of(model.layers[: places[less]]), given)
    assert int(model.optimizer.iterations) == iterations + 4, "the optimizer began anew"


class PositionEmbedding(L.Layer):
    """Adds a learnt vector to each place."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.position_embeddings = self.add_weight(name="embeddings", shape=shape[1:], initializer="glorot_uniform")
        self.built = True

    def call(self, inputs: Any) -> Any:
        return inputs + self.position_embeddings


class TransformerDecoder(L.Layer):
    """A block that makes its layers when it is built, keeps them as private attributes, and says ``training`` to some of them only."""

    def __init__(self, heads: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.hidden = heads, hidden

    def build(self, shape: tuple[int | None, ...]) -> None:
        width = int(shape[-1] or 0)
        self._self_attention_layer = L.MultiHeadAttention(self.heads, width // self.heads, dropout=0.1, name="self_attention")
        self._self_attention_layer.build(shape, shape)
        self._self_attention_layer_norm = L.LayerNormalization(name="self_attention_layer_norm")
        self._feedforward_intermediate_dense = L.Dense(self.hidden, activation="gelu", name="feedforward_intermediate_dense")
        self._feedforward_output_dense = L.Dense(width, name="feedforward_output_dense")
        self._feedforward_layer_norm = L.LayerNormalization(name="feedforward_layer_norm")
        self._feedforward_dropout = L.Dropout(0.1, name="feedforward_dropout")
        for norm in (self._self_attention_layer_norm, self._feedforward_layer_norm, self._feedforward_intermediate_dense):
            norm.build(shape)
        self._feedforward_output_dense.build((*shape[:-1], self.hidden))
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        normed = self._self_attention_layer_norm(x)
        x = x + self._self_attention_layer(normed, normed, use_causal_mask=True, training=training)
        normed = self._feedforward_layer_norm(x)
        return x + self._feedforward_dropout(self._feedforward_output_dense(self._feedforward_intermediate_dense(normed)), training=training)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape


class Backbone(keras.Model):
    """A model class over a graph of its own, with its layers as attributes too."""

    def __init__(self, words: int, length: int, width: int, blocks: int, **kwargs: Any) -> None:
        token_embedding = L.ReversibleEmbedding(words, width, tie_weights=True, name="token_embedding")
        position_embedding = PositionEmbedding(name="position_embedding")
        transformer_layers = [TransformerDecoder(2, 2 * width, name=f"transformer_layer_{i}") for i in range(blocks)]
        tokens = keras.Input((length,), dtype="int32", name="token_ids")
        x = position_embedding(token_embedding(tokens))
        for layer in transformer_layers:
            x = layer(x)
        super().__init__(inputs=tokens, outputs=L.LayerNormalization(name="layer_norm")(x), **kwargs)
        self.token_embedding, self.position_embedding, self.transformer_layers = token_embedding, position_embedding, transformer_layers


def test_a_language_model_with_a_tied_head() -> None:
    draw = np.random.default_rng(0)
    given = draw.integers(0, 11, (8, 6)), draw.integers(0, 11, (8, 6))
    backbone = Backbone(11, 6, 8, 2, name="backbone")
    logits = backbone.token_embedding(backbone.output, reverse=True)
    model = keras.Model(backbone.input, logits, name="causal_lm")
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lower = [backbone.token_embedding, backbone.position_embedding, backbone.transformer_layers[0]]

    freezing = freeze(model, layers=before("transformer_layer_1"))
    ready(model)
    need_still(model, weights_of(lower), given)
    freezing.verify()
    unfreeze(model, layers=["token_embedding", "transformer_layer_0.self_attention"])
    attention = weights_of([backbone.transformer_layers[0]._self_attention_layer])
    assert len(attention) == 8
    need_still(model, weights_of(lower[1:]) - attention, given)
    freezing.undo()
    need_still(model, set(), given)


def test_a_backbone_inside_a_task_and_its_adapters() -> None:
    """The backbone as one layer of a classifier, with LoRA in it: its base never trains, whatever is frozen and let go."""
    draw = np.random.default_rng(0)
    given = draw.integers(0, 11, (8, 6)), draw.integers(0, 3, 8)
    backbone = Backbone(11, 6, 8, 2, name="backbone")
    tokens = keras.Input((6,), dtype="int32")
    model = keras.Model(tokens, L.Dense(3, name="logits")(L.GlobalAveragePooling1D()(backbone(tokens))))
    attention = backbone.transformer_layers[1]._self_attention_layer
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    freeze(model, layers=backbone)
    ready(model)
    need_still(model, weights_of([backbone]), given)
    attention.query_dense.enable_lora(2)
    unfreeze(model, layers="backbone.transformer_layer_1.self_attention.query", params="lora*")
    adapters = {v.path for v in attention.query_dense.weights if "lora" in v.path}
    assert len(adapters) == 2
    need_still(model, weights_of([backbone]) - adapters, given)
