"""Keras, on the backend in use: the suite, and the traps that are Keras's own. Every test looks with its own eyes: at arrays, flags and real training steps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from kits.keras import MUON, KerasKit, value_of
from kits.keras_eyes import X, Y, dense, drawing
from unifreeze import UnifreezeWarning, freeze, summary, unfreeze
from unifreeze._backends.keras import BACKEND as OURS
from unifreeze._backends.keras.optimizer import Bank, retarget
from unifreeze.errors import BackendError, FrozenMovedError, NothingSelectedError, UnbuiltModelError, UntrainableError
from unifreeze.select import after, first, kind, upto
from unifreeze.testing import Conformance

BACKEND = keras.backend.backend()


class TestConformance(Conformance):
    kit = KerasKit()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with drawing():
        yield


def now(model: Any) -> dict[str, NDArray[Any]]:
    return {variable.path: value_of(variable) for variable in model.variables}


def moved(before: dict[str, NDArray[Any]], model: Any) -> set[str]:
    """Names of the layers in which any variable changed."""
    return {path.split("/")[-2] for path, value in now(model).items() if value.tobytes() != before[path].tobytes()}


def flags(model: Any) -> list[Any]:
    return [(layer.name, layer._trainable, "call" in vars(layer), [v.trainable for v in layer.variables]) for layer in model._flatten_layers()]


def on_batch(model: Any, times: int = 1) -> None:
    for _ in range(times):
        model.train_on_batch(X, Y)


# Freezing obeys at once, whenever it comes.


@pytest.mark.parametrize("moment", ["before compile", "before the first step", "between steps", "after fit"])
@pytest.mark.parametrize("thaw", [False, True], ids=["freeze", "unfreeze"])
def test_a_change_between_calls_is_obeyed_at_once(moment: str, thaw: bool) -> None:
    model = dense("a", "b", "c")
    if thaw:
        freeze(model, layers="b")
    change = (lambda: unfreeze(model, layers="b")) if thaw else (lambda: freeze(model, layers="b"))
    steps: dict[str, Callable[[], object]] = {"between steps": lambda: on_batch(model), "after fit": lambda: model.fit(X, Y, verbose=0)}
    if moment == "before compile":
        change()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    if moment in steps:
        steps[moment]()
    if moment != "before compile":
        change()
    start = now(model)
    model.fit(X, Y, verbose=0)
    on_batch(model)
    assert moved(start, model) == ({"a", "b", "c"} if thaw else {"a", "c"})


class At(keras.callbacks.Callback):
    """Calls something once, at one event of a fit."""

    def __init__(self, event: str, call: Callable[[], object]) -> None:
        super().__init__()
        self.start: dict[str, NDArray[Any]] = {}

        def once(*_: object, **__: object) -> None:
            if not self.start:
                call()
                self.start = now(self.model)

        setattr(self, event, once)


@pytest.mark.parametrize("event", ["on_train_batch_end", "on_epoch_end"])
def test_undo_and_verify_inside_a_fit(event: str) -> None:
    model = dense("a", "b")
    freezing = freeze(model, layers="a")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    callback = At(event, lambda: (freezing.verify(), freezing.undo()))
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[callback])
    assert moved(callback.start, model) == {"a", "b"}
    with pytest.raises(FrozenMovedError, match=r"a\.kernel"):
        freezing.verify()


def test_swapping_equal_shapes_changes_no_prediction_and_no_loss() -> None:
    """With a learning rate of 0 nothing may change; a function that was compiled for the other set would compute with a and b exchanged (off by 1.5)."""
    model = dense("a", "b")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    freeze(model, layers="a")
    start = now(model)
    expected, loss = model.predict(X, verbose=0), model.evaluate(X, Y, verbose=0)
    model.fit(X, Y, verbose=0)
    unfreeze(model, layers="a")
    freeze(model, layers="b")
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-6)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(loss, rel=1e-6)
    assert model.fit(X, Y, epochs=2, shuffle=False, verbose=0).history["loss"] == pytest.approx([loss] * 2, rel=1e-6)
    unfreeze(model)
    for name in "abab":
        with freeze(model, layers=name):
            np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-6, err_msg=f"in turns, {name}")
            assert model.fit(X, Y, verbose=0).history["loss"] == pytest.approx([loss], rel=1e-6)
    assert not moved(start, model)


def test_a_part_of_a_compiled_model_may_be_unfrozen_when_the_whole_lives() -> None:
    base = dense("a", "b")
    freeze(base, layers="a")
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, keras.layers.Dense(4, name="head")(base(inputs)))
    outer.compile(keras.optimizers.Adam(0.01), "mse")
    on_batch(outer)
    unfreeze(base)
    start = now(outer)
    on_batch(outer)
    assert moved(start, outer) == {"a", "b", "head"}


def test_a_part_of_a_compiled_model_may_be_given_when_the_whole_lives() -> None:
    base = dense("a", "b")
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, keras.layers.Dense(4, name="head")(base(inputs)))
    flat = keras.Model(base.inputs, keras.layers.Dense(4, name="flat_head")(base.outputs[0]))
    for model in (outer, flat):
        model.compile(keras.optimizers.Adam(0.01), "mse")
        on_batch(model)
    callback = At("on_train_batch_end", lambda: freeze(base, layers="a"))
    outer.fit(X, Y, batch_size=4, verbose=0, callbacks=[callback])
    assert moved(callback.start, outer) == {"b", "head"}
    start = now(flat)
    on_batch(flat)
    assert moved(start, flat) == {"b", "flat_head"}
    unfreeze(base, layers="a")
    start = now(outer)
    on_batch(outer)
    assert moved(start, outer) == {"a", "b", "head"}


def test_values_that_another_fit_holds_are_refused() -> None:
    """Only JAX takes values away during a fit; a model of one's own class that only calls the layers is not found by living layers alone."""
    if BACKEND != "jax":
        pytest.skip("only JAX takes values away during a fit")
    model = dense("a", "b")
    before = flags(model)
    kept = [variable._value for variable in model.layers[0].variables]
    for variable in model.layers[0].variables:
        variable._value = None
    with pytest.raises(BackendError, match=r"self\.model"):
        freeze(model, layers="b")
    for variable, value in zip(model.layers[0].variables, kept, strict=True):
        variable._value = value
    assert flags(model) == before


# The optimizer keeps what it knows.


def optimizers() -> dict[str, Callable[[], Any]]:
    o = keras.optimizers
    cosine = lambda: o.schedules.CosineDecay(0.01, 100)  # noqa: E731
    named = {
        "SGD": lambda: o.SGD(0.01),
        "momentum": lambda: o.SGD(0.01, momentum=0.9, nesterov=True),
        "RMSprop centered": lambda: o.RMSprop(0.01, momentum=0.9, centered=True),
        "Adam": lambda: o.Adam(0.01),
        "Adam amsgrad": lambda: o.Adam(0.01, amsgrad=True),
        "AdamW": lambda: o.AdamW(0.01, weight_decay=0.1),
        "Adadelta": lambda: o.Adadelta(0.01),
        "Adagrad": lambda: o.Adagrad(0.01),
        "Adamax": lambda: o.Adamax(0.01),
        "Adafactor": lambda: o.Adafactor(0.01),
        "Nadam": lambda: o.Nadam(0.01),
        "Ftrl": lambda: o.Ftrl(0.01),
        "Lion": lambda: o.Lion(0.01),
        "Lamb": lambda: o.Lamb(0.01),
        "accumulation": lambda: o.Adam(0.01, gradient_accumulation_steps=2),
        "clipnorm": lambda: o.Adam(0.01, clipnorm=0.1),
        "schedule": lambda: o.Adam(cosine()),
    }
    if BACKEND != "jax":  # there Keras can neither scale the loss eagerly nor train on with an average
        named |= {"loss scale": lambda: o.LossScaleOptimizer(o.Adam(0.01)), "ema": lambda: o.Adam(0.01, use_ema=True)}
    if MUON:
        named["Muon"] = lambda: o.Muon(0.01)
    if hasattr(o, "ScheduleFreeAdamW"):
        named["ScheduleFreeAdamW"] = lambda: o.ScheduleFreeAdamW(0.01)
    if hasattr(o, "MultiOptimizer"):
        named["MultiOptimizer"] = by_role
    return named


def by_role() -> Any:
    """Adam for kernels, momentum for biases."""
    parts = (keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01, momentum=0.9))
    return keras.optimizers.MultiOptimizer(lambda variable: parts["bias" in variable.name])


def apply(optimizer: Any, weights: list[Any], seed: int) -> None:
    """One eager update with made gradients, the same for every variable at every call with this seed."""
    gradients = [keras.ops.convert_to_tensor(np.random.default_rng([seed, int(w.name[1])]).normal(size=tuple(w.shape)).astype("float32")) for w in weights]
    scale = keras.ops.convert_to_numpy(optimizer.dynamic_scale) if hasattr(optimizer, "dynamic_scale") else 1.0
    optimizer.apply([gradient * scale for gradient in gradients], weights)


# MultiOptimizer takes no part of its variables. Others with nothing between: test_keras_optimizers.py, in a compiled model.
WAYS = [(name, 0 if name == "MultiOptimizer" else 3) for name in optimizers()] + [(name, 0) for name in optimizers() if name in {"ema", "ScheduleFreeAdamW"}]


@pytest.mark.parametrize(("name", "between"), WAYS)
def test_an_optimizer_that_is_pointed_elsewhere_and_back_is_bit_equal(name: str, between: int) -> None:
    """With nothing between, in all of its arrays; with steps for some of the variables between, in what stayed."""

    def trained(*, toggled: bool) -> tuple[list[Any], Any]:
        shapes = {"v0_kernel": (4, 3), "v1_bias": (3,), "v2_kernel": (3, 2)}
        weights = [keras.Variable(np.full(shape, 0.5, "float32"), name=name) for name, shape in shapes.items()]
        optimizer, bank = optimizers()[name](), Bank()
        optimizer.build(weights)
        for step in range(3):
            apply(optimizer, weights, step)
        layout = list(map(id, optimizer.variables))
        if toggled:
            assert retarget(optimizer, weights[::2], bank)
            assert not retarget(optimizer, weights[::2], bank), "it is there already"
        for step in range(between):
            apply(optimizer, weights[::2], 10 + step)
        if toggled:
            assert retarget(optimizer, weights, bank)
            assert list(map(id, optimizer.variables)) == layout, "another order than a fresh build has"
        for step in range(2):
            apply(optimizer, weights, 20 + step)
        return weights, optimizer

    (ours, optimizer), (theirs, plain) = trained(toggled=True), trained(toggled=False)
    compared = zip(ours[::2], theirs[::2], strict=True) if between else zip((*ours, *optimizer.variables), (*theirs, *plain.variables), strict=True)
    for mine, other in compared:
        assert value_of(mine).tobytes() == value_of(other).tobytes(), mine.path


def test_what_stays_keeps_its_moments_and_what_leaves_has_none() -> None:
    model = dense("a", "b")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    on_batch(model, 2)
    optimizer, kept = model.optimizer, model.optimizer._velocities[2]
    value = value_of(kept)
    freeze(model, layers="a")
    assert model.optimizer is optimizer
    assert optimizer._velocities[0] is kept
    assert value_of(kept).tobytes() == value.tobytes()
    assert len(optimizer.variables) == 2 + 2 * 2
    assert int(optimizer.iterations) == 2


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "Adafactor", "Lamb", "accumulation", "clipnorm"])
def test_what_is_unfrozen_late_begins_as_in_a_fresh_optimizer(name: str) -> None:
    """Keras counts iterations for all variables together, and would take a first step of Adam up to 3 times too large."""

    def steps(late: int) -> NDArray[Any]:
        old, new = (keras.Variable(np.full((2, 3), 0.5, "float32"), name=name) for name in ("v0", "v1"))
        optimizer = optimizers()[name]()
        optimizer.build([old] if late else [old, new])
        for step in range(late):
            apply(optimizer, [old], step)
        retarget(optimizer, [old, new], Bank())
        for step in range(4):
            apply(optimizer, [old, new], 100 + step)
        return value_of(new)

    np.testing.assert_allclose(steps(40), steps(0), rtol=1e-6)


def test_an_average_of_weights_begins_at_the_weight_or_is_refused() -> None:
    model = dense("a", "b")
    freeze(model, layers="a")
    model.compile(keras.optimizers.SGD(0.0, use_ema=True), "mse")
    on_batch(model, 2)
    start, before = now(model), flags(model)
    if BACKEND == "jax":
        with pytest.raises(BackendError, match="use_ema"):
            unfreeze(model, layers="a")
        assert flags(model) == before
        assert not moved(start, model)
        return
    unfreeze(model, layers="a")
    freeze(model, layers="b")
    model.fit(X, Y, epochs=2, verbose=0)
    assert all(np.allclose(value, start[path], atol=1e-6) for path, value in now(model).items()), "an average landed in another layer, or began at zero"


def test_a_saved_optimizer_is_read_back_after_a_change(tmp_path: Path) -> None:
    model = dense("a", "b", "c")
    model.compile(keras.optimizers.Adam(0.01, amsgrad=True), "mse")
    on_batch(model, 2)
    freeze(model, layers="b")
    on_batch(model, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 4
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert value_of(ours).tobytes() == value_of(theirs).tobytes(), ours.path
    start = now(loaded)
    on_batch(loaded)
    assert moved(start, loaded) == {"a", "c"}


def test_an_optimizer_of_ones_own_loop_can_be_attached() -> None:
    model = dense("a", "b")
    optimizer = keras.optimizers.Adam(0.01)
    freeze(model, layers="a")
    optimizer.build(model.trainable_variables)
    freezing = unfreeze(model, layers="a")
    freezing.attach(optimizer)
    start = now(model)
    optimizer.apply([keras.ops.ones(tuple(v.shape)) for v in model.trainable_variables], model.trainable_variables)
    assert moved(start, model) == {"a", "b"}


def test_mixed_precision_goes_on() -> None:
    model = dense("a", "b", dtype="mixed_float16")
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)), "mse")
    on_batch(model, 2)
    scale = float(model.optimizer.dynamic_scale.numpy())
    freeze(model, layers="a")
    start = now(model)
    on_batch(model, 2)
    assert moved(start, model) == {"b"}
    assert float(model.optimizer.dynamic_scale.numpy()) == scale


def test_going_back_and_forth_obeys_each_time() -> None:
    """Compiled functions are kept for the states they were made in, and for no other."""

    def rounds() -> list[set[str]]:
        seen = []
        for _ in range(3):
            start = now(model)
            with freeze(model, layers="a"):
                on_batch(model)
            seen.append(moved(start, model))
            start = now(model)
            on_batch(model)
            seen.append(moved(start, model))
        return seen

    model = dense("a", "b", "c")
    model.compile(keras.optimizers.SGD(0.01), "mse")
    assert rounds() == [{"b", "c"}, {"a", "b", "c"}] * 3
    model.layers[1].trainable = False
    assert rounds() == [{"c"}, {"a", "c"}] * 3, "a flag set by hand in between is overlooked"
    model.compile(model.optimizer, "mae")
    assert rounds() == [{"c"}, {"a", "c"}] * 3
    expected = float(np.abs(model.predict(X, verbose=0) - Y).mean())
    assert model.fit(X, Y, verbose=0).history["loss"] == pytest.approx([expected], rel=1e-5), "a function with the old loss"


def test_a_frozen_model_can_be_forgotten() -> None:
    model = dense("a", "b")
    model.compile("adam", "mse")
    on_batch(model)
    with freeze(model, layers="a"):
        on_batch(model)
    on_batch(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


# Flags: composites, masks, TensorFlow's no-op, LoRA, quantised layers, hand-set ones.


def composites() -> dict[str, tuple[Callable[..., Any], tuple[int, ...]]]:
    layers = keras.layers
    return {
        "Bidirectional": (lambda **k: layers.Bidirectional(layers.LSTM(3), **k), (5, 4)),
        "TimeDistributed": (lambda **k: layers.TimeDistributed(layers.Dense(3), **k), (5, 4)),
        "RNN": (lambda **k: layers.RNN([layers.LSTMCell(3), layers.GRUCell(3)], **k), (5, 4)),
        "MultiHeadAttention": (Attending, (5, 4)),
        "Sequential": (lambda **k: keras.Sequential([layers.Dense(3), layers.BatchNormalization()], **k), (4,)),
        "nested in lists": (Listed, (4,)),
    }


class Attending(keras.layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, 3)

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.attention.build(input_shape, input_shape)

    def call(self, inputs: Any) -> Any:
        return self.attention(inputs, inputs)


class Listed(keras.layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.row = [keras.layers.Dense(4, name="fc"), keras.layers.Dense(4, name="fc")]
        self.named = {"last": keras.layers.Dense(4, name="fc")}

    def build(self, input_shape: tuple[int, ...]) -> None:
        for layer in (*self.row, self.named["last"]):
            layer.build(input_shape)
        self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")

    def call(self, inputs: Any) -> Any:
        for layer in (*self.row, self.named["last"]):
            inputs = layer(inputs)
        return inputs * self.gain


@pytest.mark.parametrize("name", composites())
def test_a_composite_frozen_by_its_constructor_is_seen_as_it_is_and_can_be_frozen(name: str) -> None:
    make, shape = composites()[name]
    inputs = keras.Input(shape)
    part = make(trainable=False)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(part(inputs))))
    truth = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert summary(model).totals.trainable == truth
    freeze(model, layers=part)
    model.compile("sgd", "mse")
    start = now(model)
    model.train_on_batch(np.ones((2, *shape), "float32"), np.zeros((2, 2), "float32"))
    assert moved(start, model) == {"head"}
    unfreeze(model, layers=part)
    start = now(model)
    model.train_on_batch(np.random.default_rng(0).normal(size=(2, *shape)).astype("float32"), np.zeros((2, 2), "float32"))
    assert len(model.trainable_variables) == len([v for v in model.variables if v.trainable])
    assert {v.path for v in part.trainable_variables} <= {path for path, value in now(model).items() if value.tobytes() != start[path].tobytes()} | {
        v.path for v in part.trainable_variables if "key" in v.path
    }


def test_names_that_repeat_and_weights_of_a_composite_itself() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Listed(name="listed")(inputs))
    freezing = freeze(model, layers="listed.fc_1")
    assert freezing.frozen == ("listed.fc_1.kernel", "listed.fc_1.bias")
    assert {path for path in freezing.trainable if path.count(".") == 1} == {"listed.gain"}
    assert [v.trainable for layer in model.layers[1].row for v in layer.variables] == [True, True, False, False]


def test_unfreezing_reaches_layers_that_were_frozen_one_by_one() -> None:
    """``base.trainable = True`` would do nothing on TensorFlow, since the flag of ``base`` never went down."""
    base = dense("a", "b")
    for layer in base.layers:
        layer.trainable = False
    unfreeze(base)
    assert len(base.trainable_variables) == 4
    freeze(base)
    base.trainable = True
    assert len(base.trainable_variables) == 4, "after a freeze, Keras's own switch must still work"


def test_a_model_whose_own_flag_hides_trainable_layers() -> None:
    model = dense("a", "b", "c")
    model.trainable = False
    model.layers[1].trainable = True
    before = flags(model)
    assert summary(model).totals.trainable == 0, "Keras trains none of them"
    freezing = unfreeze(model, layers="c")
    assert freezing.trainable == ("c.kernel", "c.bias")
    assert [v.path.split("/")[-2] for v in model.trainable_variables] == ["c", "c"]
    freezing.undo()
    assert flags(model) == before


def test_a_container_that_hides_nothing_in_keras_is_woken_with_its_layers() -> None:
    base = dense("a", "b")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(4)(base(inputs)))
    freeze(model, layers=base)
    assert not base.trainable
    unfreeze(model, layers=base.get_layer("b"))
    assert base.trainable
    assert not base.get_layer("a").trainable
    assert len(base.trainable_variables) == 2


def test_undo_restores_lora() -> None:
    model = dense("a", "b")
    model.layers[0].enable_lora(2)
    before, count = flags(model), len(model.trainable_variables)
    with freeze(model):
        assert not model.trainable_variables
    assert flags(model) == before
    with unfreeze(model):
        assert len(model.trainable_variables) == count + 1
    assert flags(model) == before
    assert not model.layers[0]._kernel.trainable


def test_integers_of_a_quantised_layer_are_parameters_that_cannot_train() -> None:
    model = dense("a", "b")
    model.layers[0].quantize("int8")
    layer = summary(model)
    assert layer.totals.bytes_by_dtype["int8"] == 16
    freezing = freeze(model, layers="a")
    assert set(freezing.frozen) == {"a.kernel", "a.bias"}
    with pytest.warns(UnifreezeWarning, match="int8 has no gradient"):
        freezing = unfreeze(model, layers="a")
    assert freezing.skipped == {"a.kernel": "int8 has no gradient"}
    assert "a.bias" in freezing.trainable
    with pytest.raises(UntrainableError):
        unfreeze(model, layers="a", params="kernel")


def test_undo_restores_flags_set_by_hand() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(4, name="b")])
    model.layers[0].bias.trainable = False
    model.layers[1].trainable = False
    model.layers[1].gamma.trainable = True
    before = flags(model)
    for freezing in (freeze(model), unfreeze(model), freeze(model, inference="all"), freeze(model, layers="bn", params="scale")):
        freezing.undo()
    assert flags(model) == before, "the first undo takes back the later calls on the same layers too"
    with freeze(model, inference="all"), unfreeze(model, params="bias"):
        assert flags(model) != before


def test_a_sequential_that_is_not_built_is_refused() -> None:
    model = keras.Sequential([keras.layers.Dense(3, name="first"), keras.layers.Dense(2, name="second")])
    with pytest.raises(UnbuiltModelError, match=r"(?s)first \(Dense\), second \(Dense\).*model\.build"):
        freeze(model, layers=first(1))
    model.build((None, 4))
    assert freeze(model, layers=first(1)).frozen == ("first.kernel", "first.bias")


def test_a_model_of_ones_own_class() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [keras.layers.Dense(4, name="fc") for _ in range(2)]
            self.drop = keras.layers.Dropout(0.5)
            self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

        def call(self, inputs: Any) -> Any:
            for block in self.blocks:
                inputs = block(inputs)
            return self.drop(inputs) * self.scale

    model = Own()
    with pytest.raises(UnbuiltModelError, match="fc"):
        summary(model)
    model(X)
    freezing = freeze(model, layers="fc")
    assert freezing.trainable == ("scale", "fc_1.kernel", "fc_1.bias")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    inspected = (*model.blocks[0].variables, *model.blocks[1].variables, model.scale)
    start = [value_of(v) for v in inspected]
    on_batch(model)
    assert [value_of(v).tobytes() != old.tobytes() for v, old in zip(inspected, start, strict=True)] == [False] * 2 + [True] * 3


# What layers keep beside parameters.


def norm_model(**kwargs: Any) -> Any:
    middle = keras.layers.BatchNormalization(name="bn", momentum=0.5, **kwargs)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), middle, keras.layers.Dense(4, name="b")])


def test_batch_norm_keeps_its_statistics_in_every_way_of_freezing_it() -> None:
    for kwargs in ({}, {"scale": False, "center": False}):
        model = norm_model(**kwargs)
        freezing = freeze(model, layers=upto("bn"))
        model.compile("sgd", "mse")
        start = now(model)
        on_batch(model, 2)
        assert moved(start, model) == {"b"}
        assert "bn" in freezing.held
        unfreeze(model, layers="bn")
        on_batch(model, 1)
        assert moved(start, model) == {"b", "bn"}


def test_a_batch_norm_that_trains_in_part_keeps_its_statistics() -> None:
    model = norm_model()
    freeze(model, layers="bn")
    freezing = unfreeze(model, layers="bn", params="bias")
    assert freezing.held == ("bn",)
    assert model.layers[1].trainable
    model.compile("sgd", "mse")
    start = {v.name: value_of(v) for v in model.layers[1].variables}
    on_batch(model, 2)
    assert {v.name for v in model.layers[1].variables if value_of(v).tobytes() != start[v.name].tobytes()} == {"beta"}
    freezing.undo()
    assert "call" not in vars(model.layers[1])
    assert not model.layers[1].trainable


def test_training_false_of_the_call_is_not_needed_and_does_no_harm() -> None:
    base = norm_model()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(base(inputs, training=False)))
    freeze(model, layers=base)
    model.compile("sgd", "mse")
    start = now(model)
    model.fit(X, Y, verbose=0)
    assert moved(start, model) == {"head"}


def test_spectral_normalisation_leaves_a_frozen_kernel_alone() -> None:
    for picked in ("sn", "sn.inner"):
        normed = keras.layers.SpectralNormalization(keras.layers.Dense(4, name="inner"), name="sn")
        model = keras.Sequential([keras.Input((4,)), normed, keras.layers.Dense(4, name="b")])
        assert [row.parameters for row in summary(model).rows if row.path.startswith("sn")] == [20, 20]
        freeze(model, layers=picked)
        model.compile("sgd", "mse")
        start = now(model)
        on_batch(model, 2)
        assert moved(start, model) == {"b"}
        unfreeze(model, layers=picked)
        on_batch(model)
        assert moved(start, model) >= {"inner", "b"}
        assert "call" not in vars(model.layers[0])


class Counting(keras.layers.Layer):
    """Keeps count whatever ``training`` says, as a layer of one's own may."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")
        self.total = self.add_weight(shape=(), initializer="zeros", trainable=False, name="total")

    def call(self, inputs: Any) -> Any:
        self.total.assign(self.total + 1.0)
        return inputs * self.gain + self.total * 0


def test_a_layer_that_always_updates_its_state_is_still_and_can_be_loaded() -> None:
    model = keras.Sequential([keras.Input((4,)), Counting(name="count"), keras.layers.Dense(4, name="b")])
    freezing = freeze(model, layers="count")
    model.compile("sgd", "mse")
    start = now(model)
    on_batch(model, 2)
    model.predict(X, verbose=0)
    assert moved(start, model) == {"b"}
    model.layers[0].set_weights([np.full(4, 2.0), np.float32(7.0)])
    assert float(value_of(model.layers[0].total)) == 7.0
    freezing.undo()
    on_batch(model)
    assert float(value_of(model.layers[0].total)) == 8.0


def test_a_stateful_recurrent_layer_goes_on_remembering() -> None:
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), keras.layers.LSTM(3, stateful=True, name="lstm"), keras.layers.Dense(4, name="b")])
    assert not [b for layer in OURS.layers(model).walk() for b in layer.buffers if b.role != "rng"]
    freeze(model, layers="lstm")
    model.compile("sgd", "mse")
    weights = [value_of(v) for v in model.layers[0].trainable_variables]
    state = value_of(model.layers[0].states[0])
    model.train_on_batch(np.ones((2, 3, 4), "float32"), np.zeros((2, 4), "float32"))
    assert BACKEND == "jax" or (value_of(model.layers[0].states[0]) != state).any(), "Keras on JAX forgets by itself"
    assert all((value_of(v) == w).all() for v, w in zip(model.layers[0].trainable_variables, weights, strict=True))


class Outer(keras.Model):
    """Calls its parts without saying ``training``, so that whatever a part leaves behind reaches the next."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.drop, self.head = base, keras.layers.Dropout(0.5), keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        out = self.drop(self.base(inputs))
        self.head(out)
        return out


def test_a_silenced_part_does_not_silence_what_comes_after_it() -> None:
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64), keras.layers.Dropout(0.5, name="inner")])
    model = Outer(base)
    model(X)
    freezing = freeze(model, layers=base, inference="all")
    seeds = value_of(base.layers[1].seed_generator.state)
    out = np.array(keras.ops.convert_to_numpy(model(X, training=True)))
    assert 0.3 < float((out == 0).mean()) < 0.7, "the dropout behind the frozen part is off"
    np.testing.assert_array_equal(*(np.array(keras.ops.convert_to_numpy(base(X, training=True))) for _ in range(2)))
    assert (value_of(base.layers[1].seed_generator.state) == seeds).all()
    freezing.undo()
    assert float((np.array(keras.ops.convert_to_numpy(base(X, training=True))) == 0).mean()) > 0.3


@pytest.mark.skipif(BACKEND != "torch", reason="only the torch backend wraps torch modules")
def test_a_wrapped_torch_module_keeps_its_statistics_and_reads_like_one() -> None:
    import torch
    from keras.layers import TorchModuleWrapper

    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    model = keras.Sequential([keras.Input((4,)), TorchModuleWrapper(module, name="net", output_shape=(None, 4)), keras.layers.Dense(4, name="b")])
    node = list(OURS.layers(model).walk())[1]
    assert [p.path for p in node.parameters] == ["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"]
    assert [b.role for b in node.buffers] == ["mean", "variance", "count"]
    freezing = freeze(model, layers="net")
    model.compile("sgd", "mse")
    on_batch(model, 2)
    freezing.verify()
    unfreeze(model, layers="net")
    on_batch(model)
    with pytest.raises(FrozenMovedError, match="running_mean"):
        freezing.verify()


@pytest.mark.skipif(BACKEND != "torch", reason="only torch tensors carry requires_grad and grad")
def test_torch_flags_and_stale_gradients() -> None:
    model = dense("a", "b")
    kernel = model.layers[0].kernel
    kernel.value.requires_grad_(False)
    assert "a.kernel" not in unfreeze(model, params="bias").trainable, "Keras says it trains, torch gives it no gradient"
    assert "a.kernel" in unfreeze(model).trainable
    assert kernel.value.requires_grad
    (model(X) ** 2).sum().backward()
    gradient = kernel.value.grad
    with freeze(model, layers="a"):
        assert kernel.value.grad is None
    assert kernel.value.grad is gradient


# Sharing.


def test_a_layer_used_in_two_places_is_one_layer() -> None:
    shared = keras.layers.Dense(4, name="shared")
    left, right = (keras.Sequential([keras.Input((4,)), shared], name=name) for name in ("left", "right"))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(left(inputs) + right(inputs)))
    freezing = freeze(model, layers="left")
    totals = summary(model).totals
    assert (totals.frozen, totals.parameters) == (20, 40)
    assert freezing.frozen == ("left.shared.kernel", "left.shared.bias")
    model.compile("sgd", "mse")
    start = now(model)
    on_batch(model)
    assert moved(start, model) == {"head"}
    unfreeze(model, layers="right.shared")
    on_batch(model)
    assert moved(start, model) == {"head", "shared"}


def test_bytes_count() -> None:
    model = dense("a", dtype="bfloat16")
    kernel = model.layers[0].kernel
    kernel.assign(np.zeros((4, 4)))
    freezing = freeze(model, layers=kind("dense"), params="kernel")
    freezing.verify()
    kernel.assign(np.full((4, 4), -0.0))
    with pytest.raises(FrozenMovedError, match=r"a\.kernel"):
        freezing.verify()
    assert summary(model).totals.bytes_by_dtype == {"bfloat16": 40}


# Selectors. Recipes and real models have files of their own.


def test_mobilenet_by_count_and_by_its_own_layers() -> None:
    model = keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=5)
    assert freeze(model, layers=first(2)).layers == ("Conv1", "bn_Conv1")
    assert set(freeze(model, layers=model.layers[:10]).layers) == {layer.name for layer in model.layers[:10] if layer.weights}
    totals = summary(model).totals
    assert totals.parameters + totals.buffers == sum(int(np.prod(v.shape)) for v in model.weights)
    assert totals.trainable == sum(int(np.prod(v.shape)) for v in model.trainable_weights)
    shapes = {row.path: row.output_shape for row in summary(model).rows}
    assert shapes["Conv1"] == (None, 16, 16, 32)


def test_after_and_near_misses() -> None:
    model = dense("a", "b", "c")
    assert freeze(model, layers=after("b")).layers == ("c",)
    with pytest.raises(NothingSelectedError, match="did you mean"):
        freeze(model, layers="aa")
