"""Keras's own words on a PyTorch model: the loops of the tutorials, as they stand."""

from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import twins
from keras_recipes import applications_page
from unifreeze import errors, keras_view

L = keras.layers


def small() -> Any:
    """A Keras model with a nested one, an input layer, activations and a norm."""
    base = keras.Sequential([keras.Input((9, 9, 3)), L.Conv2D(4, 3, name="stem"), L.BatchNormalization(name="norm"), L.ReLU(name="relu")], name="base")
    image = keras.Input((9, 9, 3), name="image")
    x = L.Conv2D(5, 3, name="block")(base(image))
    return keras.Model(image, L.Dense(2, name="head")(L.GlobalAveragePooling2D(name="pool")(x)))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.c(self.b(self.a(x)).relu()).mean((2, 3)))


def frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def moved(model: nn.Module) -> set[str]:
    before = twins.bytes_of(model)
    twins.trained(model, torch.randn(4, 3, 9, 9))
    return {name for name, now in twins.bytes_of(model).items() if before[name] != now and not name.endswith("num_batches_tracked")}


def test_layers_are_those_of_the_twin_in_its_order() -> None:
    twin, model = small(), Small()
    view = keras_view(model, twin=twin)
    assert [layer.name for layer in view.layers] == [layer.name for layer in twin.layers] == ["image", "base", "block", "pool", "head"]
    assert [layer.name for layer in view.get_layer("base").layers] == ["stem", "norm", "relu"]
    assert view.get_layer(index=2).name == "block"
    assert [p.shape for p in view.get_layer("block").weights] == [model.c.weight.shape, model.c.bias.shape]
    assert view.count_params() == sum(int(np.prod(v.shape)) for v in twin.weights)


def test_a_loop_over_indices_freezes_the_same_side_and_a_real_step_moves_the_rest() -> None:
    twin, model = small(), Small()
    view = keras_view(model, twin=twin)
    for layer in view.layers[:2]:
        layer.trainable = False
    assert frozen(model) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert [layer.trainable for layer in view.layers] == [False, False, True, True, True]
    freezing = view.freezing
    assert moved(model) == {"c.weight", "c.bias", "d.weight", "d.bias"}
    assert freezing.held == ("b",)
    freezing.verify()
    assert all(layer.trainable for layer in twins.keras_layers(twin))
    freezing.undo()
    assert not frozen(model)
    assert view.get_layer("base").trainable
    assert {"a.weight", "b.running_mean"} <= moved(model)


def test_all_but_batch_norms_of_the_last_layers_in_the_tutorials_own_words() -> None:
    model = Small()
    view = keras_view(model, twin=small())
    view.trainable = True
    for layer in view.layers:
        layer.trainable = False
    for layer in view.get_layer("base").layers[-3:]:
        if not isinstance(layer, L.BatchNormalization):
            layer.trainable = True
    assert frozen(model) == {"b.weight", "b.bias", "c.weight", "c.bias", "d.weight", "d.bias"}
    assert moved(model) == {"a.weight", "a.bias"}
    base = next(layer for layer in view.layers if isinstance(layer, keras.Model))
    base.trainable = True
    assert "b.running_mean" in moved(model)
    assert len(view.trainable_weights) == 4
    assert len(view.non_trainable_weights) == 6


def test_the_flag_of_the_model_outweighs_those_inside_as_in_keras() -> None:
    twin, model = small(), Small()
    view = keras_view(model, twin=twin)
    for one in (twin, view):
        one.trainable = False
        one.layers[-1].trainable = True
        assert len(one.trainable_weights) == 0
    assert moved(model) == set()
    for one in (twin, view):
        one.trainable = True
        assert len(one.trainable_weights) == 8


def test_a_slip_of_the_keyboard_raises() -> None:
    model = Small()
    view = keras_view(model, twin=small())
    with pytest.raises(AttributeError, match="did you mean 'trainable'"):
        view.layers[1].trianable = False
    with pytest.raises(AttributeError, match="did you mean 'trainable'"):
        view.trainble = False
    with pytest.raises(AttributeError):
        view.layers.trainable = False
    with pytest.raises(ValueError, match="did you mean 'block'"):
        view.get_layer("blok")
    with pytest.raises(AttributeError, match="the model itself"):
        view.fit(None)
    assert not frozen(model)


def test_a_layer_without_a_partner_is_refused_and_nothing_has_changed() -> None:
    image = keras.Input((9, 9, 3))
    x = L.GlobalAveragePooling2D()(L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="stem")(image))))
    twin = keras.Model(image, L.Dense(7, name="other")(x))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    view = keras_view(model, twin=twin)
    before = twins.bytes_of(model)
    with pytest.raises(errors.CorrespondenceError, match="other has no partner"):
        view.trainable = False
    assert (frozen(model), twins.bytes_of(model)) == (set(), before)
    for layer in view.layers[:-1]:
        layer.trainable = False
    view.get_layer("other").trainable = True
    assert frozen(model) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_interchangeable_layers_are_frozen_once_all_are_set() -> None:
    image = keras.Input((4,))
    twin = keras.Model(image, L.Dense(2, name="c")(L.Add()([L.Dense(4, name="a")(image), L.Dense(4, name="b")(image)])))
    model = Parallel()
    view = keras_view(model, twin=twin)
    view.get_layer("a").trainable = False
    assert view.get_layer("a").trainable
    assert not frozen(model)
    with pytest.raises(errors.CorrespondenceError, match="Set all of them or none"):
        _ = view.freezing
    view.get_layer("b").trainable = False
    assert frozen(model) == {"x.weight", "x.bias", "y.weight", "y.bias"}
    assert not view.get_layer("a").trainable
    view.get_layer("b").trainable = True
    assert not frozen(model)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z, self.y, self.x = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.z(self.x(x) + self.y(x))


def test_without_a_twin_the_layers_are_the_models_own_and_indices_are_refused() -> None:
    model = Small()
    view = keras_view(model)
    assert [layer.name for layer in view.layers] == ["a", "b", "c", "d"]
    for bad in (0, -1, slice(2)):
        with pytest.raises(errors.SelectorError, match="twin=keras_model"):
            _ = view.layers[bad]
    for layer in view.layers:
        if isinstance(layer, nn.BatchNorm2d) or layer.name == "a":
            layer.trainable = False
    assert frozen(model) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert moved(model) == {"c.weight", "c.bias", "d.weight", "d.bias"}
    with pytest.raises(errors.ArgumentError, match="no Keras model"):
        keras_view(model, twin=Small())


def test_a_keras_model_is_its_own_twin() -> None:
    model = small()
    view = keras_view(model)
    for layer in view.layers[:2]:
        layer.trainable = False
    assert [v.path for v in model.trainable_variables] == ["block/kernel", "block/bias", "head/kernel", "head/bias"]
    assert len(view.trainable_weights) == 4


def test_the_flags_start_where_the_model_stands() -> None:
    model = Small()
    model.a.requires_grad_(False)
    view = keras_view(model, twin=small())
    assert not view.get_layer("base").get_layer("stem").trainable
    view.get_layer("base").trainable = True
    assert not frozen(model)


@pytest.mark.deep
def test_the_applications_page_freezes_the_side_that_it_freezes_in_keras() -> None:
    *_, theirs = applications_page()
    twin = twins.thawed(next(applications_page()))
    model = twins.twin("inception_v3", init_weights=False, num_classes=200)
    view = keras_view(model, twin=twin, shape=(1, 75, 75, 3))
    for layer in view.layers[:249]:
        layer.trainable = False
    for layer in view.layers[249:]:
        layer.trainable = True
    still = sum(int(np.prod(v.shape)) for v in theirs.non_trainable_weights)
    assert still == 10_687_904
    # Keras's figure has the statistics of all layers and no scales.
    scales = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bn.weight") and not p.requires_grad)
    statistics = sum(b.numel() for name, b in model.named_buffers() if "running" in name and "Aux" not in name)
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) - scales + statistics == still
    before = twins.bytes_of(model)
    twins.trained(model, torch.randn(2, 3, 299, 299))
    after = twins.bytes_of(model)
    assert all(p.requires_grad or before[name] == after[name] for name, p in model.named_parameters())
    held = {name for name in before if "running_mean" in name and before[name] == after[name] and "Aux" not in name}
    assert len(held) == sum(isinstance(layer, L.BatchNormalization) and not layer.trainable for layer in theirs.layers)
    view.freezing.undo()
    assert all(p.requires_grad for p in model.parameters())


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = linen.relu(linen.BatchNorm(use_running_average=not train, name="b")(linen.Conv(4, (3, 3), padding="VALID", name="a")(x)))
        return linen.Dense(2, name="d")(linen.Conv(5, (3, 3), padding="VALID", name="c")(x).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.c, self.d = nnx.Conv(4, 5, (3, 3), padding="VALID", rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.d(self.c(nnx.relu(self.b(self.a(x)))).mean((1, 2)))


IMAGES = np.random.default_rng(0).normal(size=(4, 9, 9, 3)).astype("float32")


def looped(view: Any) -> Any:
    for layer in view.layers[:2]:
        layer.trainable = False
    return view.freezing


def test_a_loop_on_an_nnx_model() -> None:
    model = Nnx()
    freezing = looped(keras_view(model, twin=small()))
    arrays = lambda: {".".join(map(str, path)): np.asarray(leaf.get_value()).tobytes() for path, leaf in nnx.to_flat_state(nnx.state(model))}  # noqa: E731
    before = arrays()
    optimizer = nnx.Optimizer(model, optax.adamw(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: (m(IMAGES) ** 2).mean())(model))
    after = arrays()
    assert {path for path in before if before[path] != after[path]} == {"c.kernel", "c.bias", "d.kernel", "d.bias"}
    freezing.verify()


def test_a_loop_on_the_variables_of_a_linen_module() -> None:
    module = Linen()
    variables = module.init(jax.random.key(0), IMAGES)
    view = keras_view(variables, twin=small(), apply=lambda v, x: module.apply(v, x, train=False))
    f = looped(view)
    assert [layer.trainable for layer in view.layers] == [False, False, True, True, True]
    tx = f.optimizer(optax.adamw(0.1))
    _, grads = f.value_and_grad(lambda v: (module.apply(v, IMAGES, train=False) ** 2).mean())(variables)
    updates, _ = tx.update(grads, tx.init(variables), variables)
    new = f.apply_updates(variables, updates)
    moved = {jax.tree_util.keystr(path) for (path, a), b in zip(jax.tree.leaves_with_path(variables), jax.tree.leaves(new), strict=True) if (a != b).any()}
    assert moved == {f"['params']['{layer}']['{what}']" for layer in "cd" for what in ("kernel", "bias")}
    f.verify(new)
    # From a Freezing it goes on where that stands.
    again = keras_view(f, twin=small(), apply=lambda v, x: module.apply(v, x, train=False))
    again.get_layer("base").get_layer("norm").trainable = True
    assert {path.split(".")[0] for path in again.freezing.frozen} == {"a"}
