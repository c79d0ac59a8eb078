"""The recipes that Keras users write, as their authors wrote them; random weights. Each builds the model anew and freezes by hand."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def _top(base: Any, *units: int) -> Any:
    x = layers.GlobalAveragePooling2D()(base.output)
    for number in units:
        x = layers.Dense(number)(x)
    return keras.Model(base.input, x)


def guide(*, do: bool = True) -> Any:
    base = keras.applications.MobileNetV2(input_shape=(96, 96, 3), include_top=False, weights=None)
    inputs = keras.Input((96, 96, 3))
    model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(base(inputs, training=False)))))
    if do:
        base.trainable = False
    return model


def tutorial(*, do: bool = True) -> Any:
    model = guide(do=False)
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    if do:
        base.trainable = True
        for layer in base.layers[:100]:
            layer.trainable = False
    return model


def inception(*, do: bool = True) -> Any:
    model = _top(keras.applications.InceptionV3(include_top=False, weights=None), 1024, 200)
    if do:
        for layer in model.layers[:249]:
            layer.trainable = False
        for layer in model.layers[249:]:
            layer.trainable = True
    return model


def vgg_by_name(*, do: bool = True) -> Any:
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    model = keras.Sequential([base, layers.Flatten(), layers.Dense(8), layers.Dense(1)])
    if do:
        flag = False
        for layer in base.layers:
            flag = flag or layer.name == "block5_conv1"
            layer.trainable = flag
    return model


def vgg_by_index(*, do: bool = True) -> Any:
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    model = keras.Sequential([base, layers.Flatten(), layers.Dense(8), layers.Dense(1)])
    if do:
        for layer in base.layers[:-4]:
            layer.trainable = False
    return model


def efficientnet(*, do: bool = True) -> Any:
    model = _top(keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3)), 10)
    if do:
        for layer in model.layers:
            layer.trainable = False
        for layer in model.layers[-20:]:
            if not isinstance(layer, layers.BatchNormalization):
                layer.trainable = True
    return model


def siamese(*, do: bool = True) -> Any:
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    encoder = _top(base, 256)
    one, two = keras.Input((32, 32, 3)), keras.Input((32, 32, 3))
    if do:
        flag = False
        for layer in base.layers:
            flag = flag or layer.name == "conv5_block1_out"
            layer.trainable = flag
    return keras.Model([one, two], layers.Subtract()([encoder(one), encoder(two)]))


def segmentation(*, do: bool = True) -> Any:
    model = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    if do:
        for layer in model.layers:
            if not isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
    return model


def embedding(*, do: bool = True) -> Any:
    return keras.Sequential([keras.Input((4,)), layers.Embedding(100, 8, trainable=not do), layers.GlobalAveragePooling1D(), layers.Dense(2)])


def question(*, do: bool = True) -> Any:
    return keras.Sequential([keras.Input((100,)), layers.Dense(32, trainable=not do), layers.Dense(10, activation="softmax")])


def gan(*, do: bool = True) -> Any:
    discriminator = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(1)], name="discriminator")
    if do:
        discriminator.trainable = False
    return keras.Sequential([keras.Input((4,)), layers.Dense(6), discriminator])


def all_but_last(*, do: bool = True) -> Any:
    model = keras.Sequential([keras.Input((20,)), *(layers.Dense(30, activation="selu") for _ in range(4)), layers.Dense(1)])
    if do:
        for layer in model.layers[:-1]:
            layer.trainable = False
    return model


def first_by_index(*, do: bool = True) -> Any:
    model = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    if do:
        for i in range(len(model.layers) - 3):
            model.layers[i].trainable = False
    return model


def lora(*, do: bool = True) -> Any:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(6), layers.Dense(6), layers.Dense(2)])
    model.layers[1].enable_lora(2)
    if do:
        model.layers[0].trainable = model.layers[2].trainable = False
    else:
        for variable in model.layers[1].variables:
            variable.trainable = True
    return model


def bitfit(*, do: bool = True) -> Any:
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(2)])
    if do:
        for layer in model.layers:
            layer.kernel.trainable = False
    return model


def inside_a_wrapper(*, do: bool = True) -> Any:
    wrapper = layers.TimeDistributed(layers.Dense(3))
    model = keras.Sequential([keras.Input((5, 4)), wrapper, layers.Dense(2)])
    if do:
        wrapper.layer.trainable = False
    return model


def outer(*, do: bool = True) -> Any:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2)])
    if do:
        model.trainable = False
        model.layers[-1].trainable = True
        model.trainable = False
    return model


LARGE = (guide, tutorial, inception, vgg_by_name, efficientnet, siamese, segmentation, first_by_index)
SMALL = (vgg_by_index, embedding, question, gan, all_but_last, lora, bitfit, inside_a_wrapper, outer)
