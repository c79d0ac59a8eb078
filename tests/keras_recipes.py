"""The recipes that are taught, each as a Keras user writes it and again through our selectors, with the counts that both must have; random weights.

A script builds a model, freezes by hand, and hands the model over at each phase of its training. The counts are those of ``model.summary()`` on Keras 3.15 with
``weights=None``: tensors that train, elements that train, and elements that do not (statistics among them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import applications, layers, models

from unifreeze import freeze, unfreeze
from unifreeze.select import after, before, first, kind, last

Counts = tuple[int, int, int]


@dataclass(frozen=True)
class Phase:
    """What a recipe does before one phase of training.

    Attributes:
        ours: The same, through our selectors.
        by_hand: What Keras counts after the script.
        meant: What ours comes to, where the script does not do what its author meant.
    """

    ours: Callable[[Any], object]
    by_hand: Counts
    meant: Counts | None = None


@dataclass(frozen=True)
class Recipe:
    """A script, which yields the model at each phase, and the phases."""

    script: Callable[[], Iterator[Any]]
    phases: tuple[Phase, ...]
    large: bool = False


def mobilenet(size: int, **kwargs: Any) -> Any:
    return applications.MobileNetV2(input_shape=(size, size, 3), include_top=False, weights=None, **kwargs)


def transfer_learning_guide() -> Iterator[Any]:
    base = mobilenet(160)
    base.trainable = False
    inputs = keras.Input((160, 160, 3))
    x = layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.2)(x)))
    model.compile(keras.optimizers.Adam(), keras.losses.BinaryCrossentropy(from_logits=True))
    yield model
    base.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), keras.losses.BinaryCrossentropy(from_logits=True))
    yield model


def transfer_learning_tutorial() -> Iterator[Any]:
    base = mobilenet(160)
    base.trainable = False
    inputs = keras.Input((160, 160, 3))
    x = layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Dropout(0.2)(x)))
    model.compile(keras.optimizers.Adam(1e-4), "binary_crossentropy")
    yield model
    base.trainable = True
    for layer in base.layers[:100]:
        layer.trainable = False
    model.compile(keras.optimizers.RMSprop(1e-5), "binary_crossentropy")
    yield model


def applications_page() -> Iterator[Any]:
    base_model = applications.InceptionV3(weights=None, include_top=False)
    x = layers.Dense(1024, activation="relu")(layers.GlobalAveragePooling2D()(base_model.output))
    model = keras.Model(inputs=base_model.input, outputs=layers.Dense(200, activation="softmax")(x))
    for layer in base_model.layers:
        layer.trainable = False
    model.compile("rmsprop", "categorical_crossentropy")
    yield model
    for layer in model.layers[:249]:
        layer.trainable = False
    for layer in model.layers[249:]:
        layer.trainable = True
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), "categorical_crossentropy")
    yield model


def chollet_first_edition() -> Iterator[Any]:
    conv_base = applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
    model = models.Sequential()
    model.add(conv_base)
    model.add(layers.Flatten())
    model.add(layers.Dense(256, activation="relu"))
    model.add(layers.Dense(1, activation="sigmoid"))
    conv_base.trainable = False
    model.compile(keras.optimizers.RMSprop(2e-5), "binary_crossentropy")
    yield model
    conv_base.trainable = True
    set_trainable = False
    for layer in conv_base.layers:
        if layer.name == "block5_conv1":
            set_trainable = True
        layer.trainable = set_trainable
    model.compile(keras.optimizers.RMSprop(1e-5), "binary_crossentropy")
    yield model


def chollet_second_edition() -> Iterator[Any]:
    conv_base = applications.VGG16(weights=None, include_top=False)
    conv_base.trainable = False
    inputs = keras.Input((64, 64, 3))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Flatten()(conv_base(inputs))))
    conv_base.trainable = True
    for layer in conv_base.layers[:-4]:
        layer.trainable = False
    model.compile(keras.optimizers.RMSprop(1e-5), "binary_crossentropy")
    yield model


def efficientnet_example() -> Iterator[Any]:
    inputs = keras.Input((64, 64, 3))
    model = applications.EfficientNetB0(include_top=False, input_tensor=inputs, weights=None)
    model.trainable = False
    x = layers.BatchNormalization()(layers.GlobalAveragePooling2D(name="avg_pool")(model.output))
    x = layers.Dropout(0.2, name="top_dropout")(x)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", name="pred")(x), name="EfficientNet")
    model.compile(keras.optimizers.Adam(1e-2), "categorical_crossentropy")
    yield model
    for layer in model.layers[-20:]:
        if not isinstance(layer, layers.BatchNormalization):
            layer.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), "categorical_crossentropy")
    yield model


def siamese_example() -> Iterator[Any]:
    base_cnn = applications.ResNet50(weights=None, input_shape=(64, 64, 3), include_top=False)
    embedding = keras.Model(base_cnn.input, layers.Dense(256)(layers.Flatten()(base_cnn.output)), name="Embedding")
    trainable = False
    for layer in base_cnn.layers:
        if layer.name == "conv5_block1_out":
            trainable = True
        layer.trainable = trainable
    anchor, positive, negative = (keras.Input((64, 64, 3), name=name) for name in ("anchor", "positive", "negative"))
    near = layers.Subtract()([embedding(anchor), embedding(positive)])
    model = keras.Model([anchor, positive, negative], [near, layers.Subtract()([embedding(anchor), embedding(negative)])])
    model.compile(keras.optimizers.Adam(1e-4), "mse")
    yield model


def word_embeddings_example() -> Iterator[Any]:
    embedding_layer = layers.Embedding(100, 8, trainable=False)
    embedding_layer.build((1,))
    embedding_layer.set_weights([np.random.default_rng(0).normal(size=(100, 8))])
    inputs = keras.Input((20,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling1D()(embedding_layer(inputs))))
    model.compile("rmsprop", "sparse_categorical_crossentropy")
    yield model


def question() -> Iterator[Any]:
    model = models.Sequential()
    model.add(layers.Dense(32, input_dim=100, trainable=False))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile("rmsprop", "categorical_crossentropy")
    yield model


def adversaries() -> tuple[Any, Any]:
    """The discriminator and the generator, before either is in a model with the other."""
    discriminator = models.Sequential([keras.Input((6,)), layers.Dense(12, activation="relu", name="d"), layers.Dense(1, name="e")], name="judge")
    return discriminator, models.Sequential([keras.Input((4,)), layers.Dense(6, name="g")], name="generator")


def dcgan() -> Iterator[Any]:
    discriminator, generator = adversaries()
    discriminator.compile("adam", "mse")
    noise = keras.Input((4,))
    discriminator.trainable = False
    combined = keras.Model(noise, discriminator(generator(noise)))
    combined.compile("adam", "mse")
    yield combined


def geron() -> Iterator[Any]:
    model_a = models.Sequential([keras.Input((28, 28)), layers.Flatten(), *(layers.Dense(100, activation="relu") for _ in range(2)), layers.Dense(8)])
    model_b_on_a = models.Sequential(model_a.layers[:-1])
    model_b_on_a.add(layers.Dense(1, activation="sigmoid"))
    for layer in model_b_on_a.layers[:-1]:
        layer.trainable = False
    model_b_on_a.compile(keras.optimizers.SGD(1e-3), "binary_crossentropy")
    model_b_on_a.build((None, 28, 28))
    yield model_b_on_a
    for layer in model_b_on_a.layers[:-1]:
        layer.trainable = True
    model_b_on_a.compile(keras.optimizers.SGD(1e-3), "binary_crossentropy")
    yield model_b_on_a


def segmentation_models() -> Iterator[Any]:
    model = applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    for layer in model.layers:
        if not isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    model.compile("adam", "mse")
    yield model


def yolo3() -> Iterator[Any]:
    model_body = mobilenet(32)
    for i in range(len(model_body.layers) - 3):
        model_body.layers[i].trainable = False
    model_body.compile(keras.optimizers.Adam(1e-3), "mse")
    yield model_body
    for i in range(len(model_body.layers)):
        model_body.layers[i].trainable = True
    model_body.compile(keras.optimizers.Adam(1e-4), "mse")
    yield model_body


def backbone_with_lora() -> Iterator[Any]:
    backbone = models.Sequential([keras.Input((8,)), layers.Dense(8, name="query"), layers.Dense(8, name="value"), layers.Dense(2, name="out")])
    for layer in backbone._flatten_layers(include_self=False):
        layer.trainable = False
    for layer in backbone._flatten_layers(include_self=False):
        if layer.name in ("query", "value"):
            layer.trainable = True
            layer.enable_lora(4)
    backbone.compile("adam", "mse")
    yield backbone


def supervised_contrastive() -> Iterator[Any]:
    encoder = mobilenet(32, pooling="avg")
    for layer in encoder.layers:
        layer.trainable = False
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(encoder(inputs)))
    model.compile("adam", "sparse_categorical_crossentropy")
    yield model


def outer_flag() -> Iterator[Any]:
    model = mobilenet(32)
    model.trainable = False
    for layer in model.layers[-4:]:
        layer.trainable = True
    model.compile("adam", "mse")
    yield model


def shared_layer() -> Iterator[Any]:
    x = keras.Input((4,))
    layer = layers.Dense(4, name="shared")
    layer.trainable = False
    y = layer(x)
    frozen_model = keras.Model(x, y)
    frozen_model.compile("rmsprop", "mse")
    yield frozen_model
    layer.trainable = True
    trainable_model = keras.Model(x, y)
    trainable_model.compile("rmsprop", "mse")
    yield frozen_model


def sequential_guide() -> Iterator[Any]:
    model = models.Sequential([keras.Input((784,)), *(layers.Dense(32, activation="relu") for _ in range(3)), layers.Dense(10)])
    for layer in model.layers[:-1]:
        layer.trainable = False
    model.compile("adam", "mse")
    yield model


def bitfit() -> Iterator[Any]:
    model = models.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(2)])
    for variable in model.trainable_variables:
        variable.trainable = variable.name == "bias"
    model.compile("adam", "mse")
    yield model


def pretrained_words() -> Iterator[Any]:
    model = models.Sequential([keras.Input((20,), dtype="int32"), layers.Embedding(100, 8), layers.Flatten(), layers.Dense(1, activation="sigmoid")])
    model.layers[0].set_weights([np.random.default_rng(0).normal(size=(100, 8))])
    model.layers[0].trainable = False
    model.compile("rmsprop", "binary_crossentropy")
    yield model


def time_distributed() -> Iterator[Any]:
    td = layers.TimeDistributed(layers.Dense(3))
    model = models.Sequential([keras.Input((5, 4)), td])
    td.layer.trainable = False
    model.compile("adam", "mse")
    yield model


def _base(model: Any) -> Any:
    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


def _lower(layers_of: Any, count: int) -> Callable[[Any], object]:
    """Lets all train, then freezes the first so many in the order of a model."""
    return lambda model: (unfreeze(model), freeze(model, layers=layers_of(model).layers[:count]))


def _itself(model: Any) -> Any:
    return model


RECIPES: dict[str, Recipe] = {
    "1 transfer-learning guide": Recipe(
        transfer_learning_guide,
        (
            Phase(lambda m: freeze(m, layers=_base(m)), (2, 1_281, 2_257_984)),
            Phase(unfreeze, (158, 2_225_153, 34_112)),
        ),
        large=True,
    ),
    "2 transfer-learning tutorial": Recipe(
        transfer_learning_tutorial,
        (
            Phase(lambda m: freeze(m, layers=~last(1)), (2, 1_281, 2_257_984)),
            Phase(_lower(_base, 100), (56, 1_862_721, 396_544)),
        ),
        large=True,
    ),
    "3 applications page": Recipe(
        applications_page,
        (
            Phase(lambda m: freeze(m, layers=~last(2)), (4, 2_303_176, 21_802_784)),
            Phase(_lower(_itself, 249), (40, 13_418_056, 10_687_904)),
        ),
        large=True,
    ),
    "4 Chollet, first edition": Recipe(
        chollet_first_edition,
        (
            Phase(lambda m: freeze(m, layers="vgg16"), (4, 524_801, 14_714_688)),
            Phase(lambda m: unfreeze(m, layers="vgg16.block5_*"), (10, 7_604_225, 7_635_264)),
        ),
        large=True,
    ),
    "5 Chollet, second edition": Recipe(
        chollet_second_edition,
        (Phase(lambda m: freeze(m, layers=before("vgg16.block5_conv1")), (8, 7_081_473, 7_635_264)),),
        large=True,
    ),
    "6 EfficientNet fine-tuning": Recipe(
        efficientnet_example,
        (
            Phase(lambda m: freeze(m, layers=~last(2)), (4, 15_370, 4_052_131)),
            Phase(lambda m: unfreeze(m, layers=~kind("batch_norm") & m.layers[-20:]), (12, 1_136_954, 2_930_547)),
        ),
        large=True,
    ),
    "8 siamese network": Recipe(
        siamese_example,
        (Phase(lambda m: freeze(m, layers=before("Embedding.conv5_block1_out")), (26, 11_028_736, 14_656_384)),),
        large=True,
    ),
    "9 pretrained word embeddings": Recipe(word_embeddings_example, (Phase(lambda m: freeze(m, layers=kind("embedding")), (2, 18, 800)),)),
    "10 the question it all began with": Recipe(question, (Phase(lambda m: freeze(m, layers=first(1)), (2, 330, 3_232)),)),
    "11 DCGAN": Recipe(dcgan, (Phase(lambda m: freeze(m, layers="judge"), (2, 30, 97)),)),
    "12 Géron, chapter 11": Recipe(geron, (Phase(lambda m: freeze(m, layers=~last(1)), (2, 101, 88_600)), Phase(unfreeze, (6, 88_701, 0)))),
    "14 segmentation_models": Recipe(segmentation_models, (Phase(lambda m: freeze(m, layers=~kind("batch_norm")), (106, 53_120, 23_534_592)),), large=True),
    "15 keras-yolo3": Recipe(
        yolo3,
        (Phase(lambda m: freeze(m, layers=before("Conv_1")), (3, 412_160, 1_845_824)), Phase(unfreeze, (156, 2_223_872, 34_112))),
        large=True,
    ),
    "16 KerasHub's LoRA": Recipe(
        backbone_with_lora,
        (Phase(lambda m: (freeze(m), unfreeze(m, layers=["query", "value"], params=["lora*", "bias"])), (6, 144, 146)),),
    ),
    "17 supervised contrastive learning": Recipe(
        supervised_contrastive, (Phase(lambda m: freeze(m, layers=_base(m).layers), (2, 12_810, 2_257_984)),), large=True
    ),
    "18 an outer flag": Recipe(
        outer_flag,
        (Phase(lambda m: (freeze(m), unfreeze(m, layers=after("block_16_project_BN"))), (0, 0, 2_257_984), meant=(3, 412_160, 1_845_824)),),
        large=True,
    ),
    "19 a shared layer": Recipe(shared_layer, (Phase(freeze, (0, 0, 20)), Phase(unfreeze, (2, 20, 0)))),
    "21 Sequential guide": Recipe(sequential_guide, (Phase(lambda m: freeze(m, layers=~last(1)), (2, 330, 27_232)),)),
    "23 BitFit": Recipe(bitfit, (Phase(lambda m: (freeze(m), unfreeze(m, params="bias")), (2, 10, 80)),)),
    "24 Chollet's word vectors": Recipe(pretrained_words, (Phase(lambda m: freeze(m, layers=first(1)), (2, 161, 800)),)),
    "26 inside a TimeDistributed": Recipe(time_distributed, (Phase(lambda m: freeze(m, layers="*.layer"), (0, 0, 15)),)),
}


def thawed(model: Any) -> Any:
    """Sets every flag of layers and variables by itself, as if nothing had been frozen."""
    for layer in model._flatten_layers():
        layer._trainable = True
        for variable in layer._trainable_variables:
            variable.trainable = True
    return model
