"""Every kind of layer: frozen means that nothing in it moves, under weight decay; unfreezing lets it train; undo restores what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

from kits.keras import value_of
from kits.keras_eyes import X, Y, dense, drawing, look, moved_layers, which_moved
from unifreeze import UnifreezeWarning, freeze, summary, unfreeze
from unifreeze.errors import FrozenMovedError, UnbuiltModelError

BACKEND = keras.backend.backend()
L = keras.layers


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with drawing():
        yield


class SelfAttending(L.Layer):
    """Attends to its own input."""

    def __init__(self, attention: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention = attention

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.attention.build(input_shape, input_shape)

    def call(self, inputs: Any) -> Any:
        return self.attention(inputs, inputs)


class Collecting(L.Layer):
    """Keeps its layers in a list and in a dictionary, and a weight of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.row = [L.Dense(4), L.Dense(4)]
        self.named = {"last": L.Dense(4), "more": [L.LayerNormalization()]}

    def build(self, input_shape: tuple[int, ...]) -> None:
        for layer in self._all():
            layer.build(input_shape)
        self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")

    def _all(self) -> list[Any]:
        return [*self.row, self.named["last"], *self.named["more"]]

    def call(self, inputs: Any) -> Any:
        for layer in self._all():
            inputs = layer(inputs)
        return inputs * self.gain


class TiedWords(L.Layer):
    """Embeds words and projects back onto the same table."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words = L.ReversibleEmbedding(9, 4, tie_weights=True)
        self.mix = L.Dense(4)

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.words.build(input_shape)
        self.mix.build((*input_shape, 4))

    def call(self, inputs: Any) -> Any:
        return self.words(self.mix(self.words(inputs)), reverse=True)


def normalization() -> Any:
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(0).normal(2.0, 3.0, (16, 4)).astype("float32"))
    return layer


def lora() -> Any:
    layer = L.Dense(4)
    layer.build((None, 4))
    layer.enable_lora(2)
    return layer


def twice() -> Any:
    inputs = keras.Input((4,))
    base = keras.Sequential([L.Dense(4, activation="tanh"), L.BatchNormalization()], name="base")
    return keras.Model(inputs, base(base(inputs)), name="twice")


def functional() -> Any:
    inputs = keras.Input((4,))
    return keras.Model(inputs, L.Add()([inputs, L.BatchNormalization()(L.Dense(4)(inputs))]))


ROW, STEPS, IMAGE, VOLUME = (4,), (5, 4), (6, 6, 2), (3, 4, 4, 2)
KINDS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Dense": (lambda: L.Dense(4), ROW),
    "EinsumDense": (lambda: L.EinsumDense("abc,cd->abd", (5, 3), bias_axes="d"), STEPS),
    "Conv1D": (lambda: L.Conv1D(3, 2), STEPS),
    "Conv2D": (lambda: L.Conv2D(3, 2), IMAGE),
    "Conv3D": (lambda: L.Conv3D(3, 2), VOLUME),
    "Conv2DTranspose": (lambda: L.Conv2DTranspose(3, 2), IMAGE),
    "DepthwiseConv2D": (lambda: L.DepthwiseConv2D(2), IMAGE),
    "SeparableConv2D": (lambda: L.SeparableConv2D(3, 2), IMAGE),
    "BatchNormalization": (lambda: L.BatchNormalization(momentum=0.5), ROW),
    "LayerNormalization": (L.LayerNormalization, ROW),
    "GroupNormalization": (lambda: L.GroupNormalization(2), IMAGE),
    "RMSNormalization": (L.RMSNormalization, ROW),
    "UnitNormalization behind a Dense": (lambda: keras.Sequential([L.Dense(4), L.UnitNormalization()]), ROW),
    "SpectralNormalization": (lambda: L.SpectralNormalization(L.Dense(4)), ROW),
    "SpectralNormalization of a convolution": (lambda: L.SpectralNormalization(L.Conv2D(3, 2)), IMAGE),
    "PReLU": (lambda: L.PReLU(alpha_initializer=keras.initializers.Constant(0.3)), ROW),
    "LSTM": (lambda: L.LSTM(3), STEPS),
    "GRU": (lambda: L.GRU(3), STEPS),
    "SimpleRNN": (lambda: L.SimpleRNN(3), STEPS),
    "RNN of a cell": (lambda: L.RNN(L.GRUCell(3)), STEPS),
    "RNN of cells": (lambda: L.RNN([L.LSTMCell(3), L.GRUCell(3)]), STEPS),
    "ConvLSTM1D": (lambda: L.ConvLSTM1D(2, 2), (3, 4, 2)),
    "Bidirectional": (lambda: L.Bidirectional(L.LSTM(3)), STEPS),
    "TimeDistributed": (lambda: L.TimeDistributed(L.Dense(3)), STEPS),
    "TimeDistributed norm": (lambda: L.TimeDistributed(L.BatchNormalization(momentum=0.5)), STEPS),
    "MultiHeadAttention": (lambda: SelfAttending(L.MultiHeadAttention(2, 3)), STEPS),
    "GroupQueryAttention": (lambda: SelfAttending(L.GroupQueryAttention(2, 4, 2)), STEPS),
    "AdditiveAttention": (lambda: Pairing(L.AdditiveAttention()), STEPS),
    "lists and dicts": (Collecting, ROW),
    "Sequential": (lambda: keras.Sequential([L.Dense(4), L.BatchNormalization(momentum=0.5), L.Dropout(0.5)]), ROW),
    "Functional": (functional, ROW),
    "a base used twice": (twice, ROW),
    "LoRA": (lora, ROW),
    "float16 compute": (lambda: L.Dense(4, dtype="mixed_bfloat16"), ROW),
}


class Pairing(L.Layer):
    """Additive attention over its own input."""

    def __init__(self, attention: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention = attention

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.attention.build([input_shape, input_shape])

    def call(self, inputs: Any) -> Any:
        return self.attention([inputs, inputs])


def around(part: Any, shape: tuple[int, ...]) -> Any:
    inputs = keras.Input(shape)
    return keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(part(inputs))))


def data(shape: tuple[int, ...], seed: int = 0) -> tuple[Any, Any]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(4, *shape)).astype("float32"), draw.normal(size=(4, 2)).astype("float32")


def flags(model: Any) -> list[Any]:
    return [(layer._trainable, vars(layer).get("call"), [variable.trainable for variable in layer.variables]) for layer in model._flatten_layers()]


def compiled(model: Any) -> Any:
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), "mse", run_eagerly=BACKEND != "jax")
    return model


@pytest.mark.parametrize("name", KINDS)
def test_frozen_nothing_moves_and_unfrozen_it_trains_again(name: str) -> None:
    make, shape = KINDS[name]
    part = make()
    model = compiled(around(part, shape))
    trainable = {variable.path for variable in part.trainable_variables}
    before = flags(model)
    freezing = freeze(model, layers=part)
    assert not part.trainable_variables
    weights, head = look(part.weights), look(model.layers[-1].weights)
    for seed in range(2):
        model.train_on_batch(*data(shape, seed))
    assert not which_moved(part.weights, weights)
    assert len(which_moved(model.layers[-1].weights, head)) == 2
    freezing.verify()
    freezing.undo()
    assert flags(model) == before
    assert {variable.path for variable in part.trainable_variables} == trainable
    need_training(model, part, shape)
    if name == "LoRA":
        return  # unfreezing it lets its base train as well; a test of its own tells of it
    freeze(model, layers=part)
    unfreeze(model, layers=part)
    assert {variable.path for variable in part.trainable_variables} == trainable
    need_training(model, part, shape)


def need_training(model: Any, part: Any, shape: tuple[int, ...]) -> None:
    """One step moves everything in the part that may train, and its statistics."""
    weights = look(part.weights)
    model.train_on_batch(*data(shape, 2))
    due = {variable.path for variable in part.weights if variable.trainable or variable.name.startswith("moving_")}
    # The bias of keys adds the same to all scores of a query, so its gradient is zero, and so is the bias of an untrained layer decayed.
    assert all("key" in path and path.endswith("bias") for path in due - set(which_moved(part.weights, weights)))


@pytest.mark.parametrize("name", [name for name in KINDS if name != "LoRA"])
def test_unfreeze_lets_everything_train_that_a_new_layer_would(name: str) -> None:
    make, shape = KINDS[name]
    part = make()
    model = around(part, shape)
    expected = {variable.path for variable in model.trainable_variables}
    freeze(model)
    unfreeze(model, layers=part)
    unfreeze(model, layers="head")
    assert {variable.path for variable in model.trainable_variables} == expected


def test_the_base_of_lora_stays_frozen_after_undo_and_is_said_by_the_counts() -> None:
    part = lora()
    model = compiled(around(part, ROW))
    with freeze(model, layers=part):
        pass
    names = {variable.name for variable in part.trainable_variables}
    assert names == {"bias", "lora_kernel_a", "lora_kernel_b"}
    weights = look(part.weights)
    for seed in range(2):
        model.train_on_batch(*data(ROW, seed))
    assert {path.rpartition("/")[2] for path in which_moved(part.weights, weights)} == names
    freeze(model, layers=part)
    freezing = unfreeze(model, layers=part, params=["lora*"])
    assert [path.rpartition(".")[2] for path in freezing.trainable if not path.startswith("head")] == ["lora_kernel_a", "lora_kernel_b"]


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantised(mode: str) -> None:
    """What integers can't do is said; float8 keeps scales that move with training, and stand still when frozen."""
    part = L.Dense(4, name="part")
    model = around(part, ROW)
    part.quantize(mode)
    model.compile("sgd", "mse")
    before = flags(model)
    freezing = freeze(model, layers=part)
    weights = look(part.weights)
    model.train_on_batch(*data(ROW))
    assert not which_moved(part.weights, weights)
    freezing.undo()
    assert flags(model) == before
    if mode.startswith("int"):
        with pytest.warns(UnifreezeWarning, match="has no gradient"):
            unfreeze(model, layers=part)
        model.train_on_batch(*data(ROW))
        assert [path.rpartition("/")[2] for path in which_moved(part.weights, weights)] == ["bias"]
    else:
        unfreeze(model, layers=part)
        model.train_on_batch(*data(ROW))
        assert {"kernel", "bias"} < {path.rpartition("/")[2] for path in which_moved(part.weights, weights)}


@pytest.mark.parametrize("table", ["Embedding", "tied ReversibleEmbedding"])
def test_tables_of_words(table: str) -> None:
    part = L.Embedding(9, 4, name="part") if table == "Embedding" else TiedWords(name="part")
    inputs = keras.Input((5,), dtype="int32")
    model = compiled(keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(part(inputs)))))
    words = np.random.default_rng(0).integers(0, 9, (4, 5))
    freeze(model, layers=part)
    assert moved_layers(model, lambda: model.train_on_batch(words, np.ones((4, 2)))) == {"head"}
    unfreeze(model, layers="part.words" if table != "Embedding" else part)
    weights = look(part.weights)
    model.train_on_batch(words, np.ones((4, 2)))
    assert [path.rpartition("/")[2] for path in which_moved(part.weights, weights)] == ["embeddings"]
    assert summary(model).totals.parameters == sum(int(np.prod(variable.shape)) for variable in model.weights)


def test_an_adapted_normalisation_has_buffers_only_and_stands_still() -> None:
    model = keras.Sequential([keras.Input((4,)), normalization(), L.Dense(4, name="b")])
    totals = summary(model).totals
    assert (totals.parameters, totals.buffers) == (20, 9), "mean, variance and count"
    freeze(model, layers=model.layers[0])
    compiled(model)
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"b"}
    unfreeze(model)
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"b"}


class Residual(keras.Model):
    """A model of one's own: attributes, lists, dictionaries and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([L.Dense(4), L.Dense(4, name="mine")])
        self.blocks = [L.Dense(4, activation="tanh") for _ in range(2)]
        self.heads = {"left": L.Dense(4), "right": L.Dense(4)}
        self._plain = L.LayerNormalization()
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

    def call(self, inputs: Any) -> Any:
        out = self._plain(self.encoder(inputs))
        for block in self.blocks:
            out = out + block(out)
        return (self.heads["left"](out) + self.heads["right"](out)) * self.scale


def test_layers_of_a_model_of_ones_own_have_the_names_of_its_attributes() -> None:
    """Keras's names depend on what was made before: here the second model of the process would have none of the first one's."""
    for _ in range(2):
        model = Residual()
        model(X)
        paths = [row.path for row in summary(model).rows]
        assert {"encoder", "encoder.mine", "blocks_0", "blocks_1", "heads_left", "heads_right", "plain"} < set(paths)
        assert set(freeze(model, layers=["blocks_*", "heads_left"]).layers) == {"blocks_0", "blocks_1", "heads_left"}
        still = [*model.blocks[0].weights, *model.blocks[1].weights, *model.heads["left"].weights]
        compiled(model)
        before, others = look(still), look([model.scale, *model.heads["right"].weights, *model.encoder.weights])
        model.train_on_batch(X, Y)
        assert not which_moved(still, before)
        assert len(which_moved([model.scale, *model.heads["right"].weights, *model.encoder.weights], others)) == 7


class Linear(L.Layer):
    """As Keras's guide to layers of one's own writes it: no weight has a name. Keras calls them ``variable_7``, after what was made before."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.w = self.add_weight(shape=(shape[-1], 4), initializer="random_normal")
        self._bias = self.add_weight(shape=(4,), initializer="zeros")
        self.scales = [self.add_weight(shape=(4,), initializer="ones") for _ in range(2)]
        self.shifts = {"left": self.add_weight(shape=(4,), initializer="zeros")}
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.named = self.add_weight(shape=(4,), name="offset")
        self.add_weight(shape=(4,), initializer="ones")
        self.add_weight(shape=(4,), initializer="ones")

    def call(self, inputs: Any) -> Any:
        out = keras.ops.matmul(inputs, self.w) * self.scales[0] * self.scales[1]
        for one in (self._bias, self.shifts["left"], self.named, *self.trainable_variables[-2:]):
            out = out + one
        return out


def test_weights_without_a_name_have_the_names_of_their_attributes() -> None:
    digests = set()
    for _ in range(2):
        model = compiled(keras.Sequential([keras.Input((4,)), Linear(name="linear"), L.Dense(4, name="head")]))
        layer = model.get_layer("linear")
        freezing = freeze(model, layers="linear")
        digests.add(freezing.digest().plan)
        own = ("w", "bias", "scales_0", "scales_1", "shifts_left", "offset", "variable", "variable_1")
        assert freezing.frozen == tuple(f"linear.{name}" for name in own)
        unfreeze(model)
        assert freeze(model, params=["w", "scales_*"]).frozen == ("linear.w", "linear.scales_0", "linear.scales_1")
        still, others = [layer.w, *layer.scales], [layer._bias, layer.shifts["left"], layer.named, *layer.trainable_variables[-2:]]
        before, rest = look(still), look(others)
        model.train_on_batch(X, Y)
        assert not which_moved(still, before)
        assert len(which_moved(others, rest)) == 5
    assert len(digests) == 1, "the second build of the same architecture has the digest of the first"


def test_a_weight_of_the_model_itself() -> None:
    model = compiled(Residual())
    model(X)
    freezing = freeze(model, layers="", params="scale") if not model.built else freeze(model, params=[model.scale])
    assert freezing.frozen == ("scale",)
    before = value_of(model.scale)
    model.train_on_batch(X, Y)
    assert value_of(model.scale).tobytes() == before.tobytes()
    freezing.undo()
    model.train_on_batch(X, Y)
    assert value_of(model.scale).tobytes() != before.tobytes()


def test_one_layer_in_two_models() -> None:
    """The layer is frozen in both; each model that was compiled obeys, also the one that the call does not name."""
    shared = L.Dense(4, name="shared")
    one, other = (keras.Sequential([keras.Input((4,)), shared, L.Dense(4, name=name)]) for name in ("one", "other"))
    for model in (one, other):
        model.compile(keras.optimizers.AdamW(0.01), "mse")
        model.train_on_batch(X, Y)
    freezing = freeze(one, layers="shared")
    assert moved_layers(one, lambda: one.train_on_batch(X, Y)) == {"one"}
    assert moved_layers(other, lambda: other.train_on_batch(X, Y)) == {"other"}
    freezing.undo()
    assert moved_layers(one, lambda: one.train_on_batch(X, Y)) == {"one", "shared"}
    assert moved_layers(other, lambda: other.train_on_batch(X, Y)) == {"other", "shared"}


def test_layers_added_after_freezing_train() -> None:
    model = dense("a", "b")
    freezing = freeze(model)
    model.add(L.Dense(4, name="late"))
    model.add(L.BatchNormalization(name="norm"))
    compiled(model)
    later = unfreeze(model, layers=["late", "norm"])
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"late", "norm"}
    later.verify()
    with pytest.raises(FrozenMovedError, match=r"(?s)late\.kernel: was added to a frozen part.*norm\.beta"):
        freezing.verify()


def test_a_head_on_a_frozen_model_trains() -> None:
    base = dense("a", "b")
    freeze(base)
    model = compiled(keras.Model(base.inputs, L.Dense(4, name="head")(base.outputs[0])))
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"head"}
    unfreeze(model, layers="b")
    assert moved_layers(model, lambda: model.train_on_batch(X, Y)) == {"b", "head"}


def test_an_unbuilt_part_is_refused_and_nothing_changes() -> None:
    """Building it later would make new variables that no flag of now reaches: the constructor's own leak."""
    base = keras.Sequential([L.Dense(4, name="a"), keras.Sequential([L.Dense(4, name="inner")], name="nested")])
    with pytest.raises(UnbuiltModelError, match=r"(?s)a \(Dense\).*build"):
        freeze(base)
    base.build((None, 4))
    freeze(base, layers="nested.inner")
    assert moved_layers(compiled(base), lambda: base.train_on_batch(X, Y)) == {"a"}


@pytest.mark.skipif(BACKEND != "jax", reason="only where JAX computes can a function of JAX be a layer without TensorFlow")
def test_a_function_of_jax_as_a_layer() -> None:
    import jax.numpy as jnp

    def call(params: Any, state: Any, inputs: Any, training: bool) -> Any:
        out = inputs @ params["w"] + params["b"]
        return out - state["mean"], {"mean": 0.9 * state["mean"] + 0.1 * out.mean(0)} if training else state

    params, state = {"w": jnp.eye(4), "b": jnp.zeros(4)}, {"mean": jnp.zeros(4)}
    model = compiled(keras.Sequential([keras.Input((4,)), L.JaxLayer(call, params=params, state=state, name="net"), L.Dense(4, name="b")]))
    model.train_on_batch(X, Y)
    variables = model.get_layer("net").weights
    freezing = freeze(model, layers="net")
    assert freezing.frozen == ("net.params_b", "net.params_w")
    before = look(variables)
    model.train_on_batch(X, Y)
    assert not which_moved(variables, before), "neither what is trained nor the state moves"
    freezing.verify()
    freezing.undo()
    model.train_on_batch(X, Y)
    assert len(which_moved(variables, before)) == 3


@pytest.mark.skipif(BACKEND != "torch", reason="only the torch backend wraps torch modules")
def test_a_wrapped_torch_module_in_every_mode() -> None:
    import torch
    from keras.layers import TorchModuleWrapper

    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    model = compiled(keras.Sequential([keras.Input((4,)), TorchModuleWrapper(module, name="net", output_shape=(None, 4)), L.Dense(4, name="b")]))
    state = lambda: {name: value.detach().clone().numpy().tobytes() for name, value in module.state_dict().items()}  # noqa: E731
    before = state()
    freezing = freeze(model, layers="net")
    model.fit(X, Y, verbose=0)
    assert state() == before
    freezing.undo()
    model.fit(X, Y, verbose=0)
    assert all(value != before[name] for name, value in state().items())
    freeze(model, layers="net", params=["net.0.*"])
    before = state()
    model.fit(X, Y, verbose=0)
    assert {name for name, value in state().items() if value == before[name]} == {"0.weight", "0.bias"}
