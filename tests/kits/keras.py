"""The kit for Keras, on whichever of its backends is in use."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from unifreeze import Freezing
from unifreeze.testing import RATE, Arrays, Kit, Trainer


def _muon_keeps_lists() -> bool:
    """Early versions of Muon keep their moments by name in dictionaries, which is refused."""
    muon = keras.optimizers.Muon()
    muon.build([])
    return hasattr(muon, "momentums")


MUON = _muon_keeps_lists()


@keras.saving.register_keras_serializable("unifreeze_tests")
class Unembed(keras.layers.Layer):
    """Projects onto the vectors of an embedding, whose variable it shares."""

    def __init__(self, variable: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel = variable
        self.built = True

    def call(self, inputs: Any) -> Any:
        return keras.ops.matmul(inputs, keras.ops.transpose(self.kernel))

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*input_shape[:-1], self.kernel.shape[0])


class KerasTrainer(Trainer):
    """``train_on_batch`` of a model that is compiled once."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.model = model
        self._count = 0
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        # Left to the first step, TensorFlow makes the optimizer's arrays inside it, and traces it twice.
        optimizer.build(model.trainable_variables)

    def step(self) -> None:
        draw = np.random.default_rng(100 + self._count)
        self._count += 1
        if self.model.name == "tied":
            inputs = draw.integers(0, 11, (4, 5))
            self.model.train_on_batch(inputs, (inputs + 1) % 11)
        else:
            self.model.train_on_batch(draw.normal(size=(8, 8, 8, 3)).astype("float32"), draw.integers(0, 3, 8))

    def slots(self) -> Collection[str]:
        optimizer = self.model.optimizer
        known = {id(variable): path for path, variable in variables(self.model)}
        listed = [known[id(variable)] for variable in optimizer._trainable_variables]
        kept = sum(int(np.prod(variable.shape)) for variable in optimizer.variables[2:])
        assert kept == 2 * sum(int(np.prod(variable.shape)) for variable in optimizer._trainable_variables), "slots of Adam"
        return listed

    def gradients(self) -> Collection[str] | None:
        if keras.backend.backend() != "torch":
            return None
        return [path for path, variable in variables(self.model) if variable.value.grad is not None]


class KerasKit(Kit):
    name = "keras"
    optimizers = ("sgd", "momentum", "adam", "adamw", "rmsprop", "lion", "clipped adam", "accumulating adam", *(["muon"] if MUON else []))
    types: Mapping[str, type] = {"dense": keras.layers.Dense, "conv": keras.layers.Conv2D, "batch_norm": keras.layers.BatchNormalization}

    def reference(self) -> Any:
        layers = keras.layers
        inputs = keras.Input((8, 8, 3), name="image")
        stem = keras.Sequential([layers.Conv2D(4, 3, padding="same", name="conv"), layers.BatchNormalization(name="norm")], name="stem")
        body = keras.Sequential(
            [
                layers.Dense(6, name="layer_1"),
                layers.LayerNormalization(name="norm"),
                layers.Dropout(0.5, seed=7, name="drop"),
                layers.Dense(6, name="layer_2"),
                layers.Dense(6, name="layer_10"),
                layers.BatchNormalization(name="bn"),
            ],
            name="body",
        )
        pooled = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(stem(inputs)))
        return drawn(keras.Model(inputs, layers.Dense(3, name="head")(body(pooled)), name="reference"))

    def question(self) -> Any:
        return keras.Sequential([keras.Input((100,)), keras.layers.Dense(32), keras.layers.Dense(10), keras.layers.Softmax()])

    def tied(self) -> Any:
        tokens = keras.Input((5,), dtype="int32", name="tokens")
        embed = keras.layers.Embedding(11, 6, name="embed")
        hidden = keras.layers.Dense(6, name="mid")(embed(tokens))
        return drawn(keras.Model(tokens, Unembed(embed.embeddings, name="head")(hidden), name="tied"))

    def chain(self, length: int) -> Any:
        return keras.Sequential([keras.Input((1,)), *(keras.layers.Dense(1, name=f"dense_{i}") for i in range(length))])

    def part(self, model: Any, path: str) -> Any:
        for name in path.split("."):
            model = model.get_layer(name)
        return model

    def trainer(self, model: Any, optimizer: str, freezing: Freezing | None = None, frozen: Collection[str] = (), held: Collection[str] = ()) -> Trainer:
        del freezing
        for path, variable in variables(model):
            if path in frozen:
                variable.trainable = False
        for path in held:
            self.part(model, path).trainable = False
        return KerasTrainer(model, optimizer_of(optimizer))

    def values(self, model: Any) -> Arrays:
        return {path: value_of(variable) for path, variable in variables(model)}

    def disturb(self, model: Any, path: str) -> Any:
        variable = dict(variables(model))[path]
        variable.assign(variable + 1)
        return model

    def forward(self, model: Any, seed: int, *, training: bool, freezing: Freezing | None = None) -> NDArray[np.float32]:
        del freezing
        images = np.random.default_rng(seed).normal(size=(8, 8, 8, 3)).astype("float32")
        return np.array(keras.ops.convert_to_numpy(model(images, training=training)))

    def flags(self, model: Any) -> Hashable:
        return tuple(
            (layer.name, layer._trainable, layer.__dict__.get("call"), tuple((v.trainable, getattr(v.value, "requires_grad", None)) for v in layer.variables))
            for layer in model._flatten_layers()
        )

    def freeze_by_hand(self, model: Any, path: str) -> None:
        dict(variables(model))[path].trainable = False

    def lasting(self, model: Any) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.keras"
            model.save(file)
            loaded = keras.models.load_model(file)
        model.compile("sgd", "mse")
        return {
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.load(io.BytesIO(pickle.dumps(model))),
            "save and load": loaded,
            "clone_model": keras.models.clone_model(model),
            "compile again": model,
        }


def optimizer_of(name: str) -> Any:
    optimizers = keras.optimizers
    return {
        "sgd": lambda: optimizers.SGD(RATE),
        "momentum": lambda: optimizers.SGD(RATE, momentum=0.9),
        "adam": lambda: optimizers.Adam(RATE),
        "adamw": lambda: optimizers.AdamW(RATE, weight_decay=0.1),
        "rmsprop": lambda: optimizers.RMSprop(RATE),
        "lion": lambda: optimizers.Lion(RATE),
        "muon": lambda: optimizers.Muon(RATE),
        "clipped adam": lambda: optimizers.Adam(RATE, global_clipnorm=0.1),
        "accumulating adam": lambda: optimizers.Adam(RATE, gradient_accumulation_steps=2),
    }[name]()


def variables(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every variable of nested Sequential and Functional models by dotted path, without random states."""
    if isinstance(layer, keras.Model):
        for inner in layer.layers:
            yield from variables(inner, f"{path}.{inner.name}".lstrip("."))
    else:
        yield from ((f"{path}.{variable.name}", variable) for variable in layer.weights)


def value_of(variable: Any) -> NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(variable.value))


def drawn(model: Any) -> Any:
    """Gives a model the same random values at every call: no weight zero, variances positive."""
    draw = np.random.default_rng(3)
    for path, variable in variables(model):
        value = draw.normal(size=tuple(variable.shape)) * 0.3
        variable.assign(np.abs(value) + 0.7 if path.endswith(("gamma", "variance")) else value + np.sign(value) * 0.05)
    return model
