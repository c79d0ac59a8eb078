"""The equinox backend: the conformance suite, and what is particular to equinox."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kits.equinox import EquinoxKit
from unifreeze import freeze, layers, summary
from unifreeze.errors import BackendError, ConflictError
from unifreeze.select import everything, first, kind
from unifreeze.testing import Conformance


class TestConformance(Conformance):
    kit = EquinoxKit()


X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


class Net(eqx.Module):
    """A middle layer to try out, between two dense ones."""

    first: eqx.nn.Linear
    middle: Any
    head: eqx.nn.Linear

    def __init__(self, middle: Any) -> None:
        keys = jax.random.split(jax.random.key(0))
        self.first, self.middle, self.head = eqx.nn.Linear(4, 4, key=keys[0]), middle, eqx.nn.Linear(4, 2, key=keys[1])

    def __call__(self, x: Any) -> Any:
        return self.head(self.middle(self.first(x)))


def _mean(model: Any, x: Any) -> Any:
    return jnp.mean(jax.vmap(model)(x) ** 2)


def _train(model: Any, freezing: Any, tx: Any, steps: int = 3) -> Any:
    """The lines that a user writes."""
    tx = freezing.optimizer(tx)
    state = tx.init(model)

    @eqx.filter_jit
    def step(model: Any, state: Any, x: Any) -> Any:
        _, grads = freezing.value_and_grad(_mean)(model, x)
        updates, state = tx.update(grads, state, model)
        return freezing.apply_updates(model, updates), state

    for _ in range(steps):
        model, state = step(model, state, X)
    return model


def _mlp() -> eqx.nn.MLP:
    return eqx.nn.MLP(4, 4, 5, 2, key=jax.random.key(3))


def test_training_equals_a_run_with_equinox_partition_by_hand() -> None:
    model, tx = Net(_mlp()), optax.adamw(0.01, weight_decay=0.1)
    freezing = freeze(model, layers=["first", "middle.layers.0"])
    ours = _train(model, freezing, tx)
    mask = jax.tree.map(eqx.is_inexact_array, model)
    where = lambda tree: (tree.first.weight, tree.first.bias, tree.middle.layers[0].weight, tree.middle.layers[0].bias)  # noqa: E731
    theirs, still = eqx.partition(model, eqx.tree_at(where, mask, (False,) * 4))
    state = tx.init(theirs)
    for _ in range(3):
        grads = eqx.filter_grad(lambda part: _mean(eqx.combine(part, still), X))(theirs)
        updates, state = tx.update(grads, state, theirs)
        theirs = eqx.apply_updates(theirs, updates)
    for mine, his in zip(jax.tree.leaves(ours), jax.tree.leaves(eqx.combine(theirs, still)), strict=True):
        if eqx.is_array(mine):
            np.testing.assert_allclose(mine, his, rtol=1e-6, atol=1e-7)
    assert ours.first.weight is not None
    assert freezing.verify(ours)
    np.testing.assert_array_equal(ours.middle.layers[0].weight, model.middle.layers[0].weight)


def test_masks_are_python_bools_and_fit_equinox() -> None:
    model = Net(_mlp())
    freezing = freeze(model, layers="first")
    assert {type(leaf) for leaf in jax.tree.leaves(freezing.trainable_mask)} == {bool}
    trainable, rest = eqx.partition(model, freezing.trainable_mask)
    assert trainable.first.weight is None
    assert rest.first.weight is model.first.weight
    ours, theirs = freezing.partition(model)
    assert freezing.combine(ours, theirs).first.weight is model.first.weight
    assert jax.tree.structure(ours) == jax.tree.structure(trainable)


def test_the_tree_of_an_mlp() -> None:
    model = Net(_mlp())
    assert [layer.path for layer in layers(model)] == ["first", "middle.layers.0", "middle.layers.1", "middle.layers.2", "head"]
    assert freeze(model, layers=first(2)).layers == ("first", "middle.layers.0")
    assert freeze(model, layers=model.middle).frozen == tuple(f"middle.layers.{i}.{name}" for i in range(3) for name in ("weight", "bias"))
    assert summary(model).totals.parameters == 4 * 5 + 5 + 30 + 24 + 20 + 10


def test_inference_mode_lets_no_held_layer_go() -> None:
    model, state = EquinoxKit().reference()
    freezing = freeze((model, state), layers="stem")
    loose = eqx.nn.inference_mode(model, value=False)
    seen = []
    freezing.grad(lambda tree: seen.append((tree.stem.norm.inference, tree.body.bn.inference)) or jnp.sum(tree.head.weight))(loose)
    assert seen == [(True, False)]
    assert freezing.combine(*freezing.partition(loose)).stem.norm.inference
    assert not loose.stem.norm.inference, "the user's own module has changed"


def test_a_module_without_its_state_is_held_all_the_same() -> None:
    model, _ = EquinoxKit().reference()
    freezing = freeze(model, layers=kind("batch_norm"))
    assert freezing.held == ("stem.norm", "body.bn")


def test_a_stale_state_is_named() -> None:
    model, state = EquinoxKit().reference()
    norm = model.stem.norm
    state.set(norm.ema_first_time_index, jnp.array(True))
    with pytest.raises(BackendError, match="newest State"):
        freeze((model, state))


def test_spectral_norm_and_its_vectors() -> None:
    def build() -> Any:
        return Net(eqx.nn.SpectralNorm(eqx.nn.Linear(4, 4, key=jax.random.key(1)), "weight", key=jax.random.key(2)))

    model, state = eqx.nn.make_with_state(build)()
    freezing = freeze((model, state), layers="middle")
    assert [b.path for b in layers((model, state), "middle")[0].buffers] == ["middle.u", "middle.v"]

    def loss(model: Any, x: Any, state: Any) -> Any:
        hidden, state = model.middle(model.first(x), state)
        return jnp.sum(model.head(hidden)), state

    (_, after), grads = freezing.value_and_grad(loss, has_aux=True)(model, X[0], state)
    assert freezing.verify((model, after))
    assert grads.middle.layer.weight is None


def test_arrays_that_no_gradient_reaches_are_buffers() -> None:
    model = Net(eqx.nn.Lambda(jax.nn.relu))
    model = eqx.tree_at(lambda tree: tree.middle.fn, model, {"codes": jnp.arange(3), "key": jax.random.key(0)}["codes"])
    assert summary(model).totals.buffers == 3
    assert summary(model).totals.parameters == 20 + 10


def test_shared_layers_are_one() -> None:
    """``eqx.nn.Shared`` leaves one copy in the tree, which is what there is to freeze."""

    class Twice(eqx.Module):
        shared: eqx.nn.Shared

        def __init__(self) -> None:
            embed, head = eqx.nn.Embedding(5, 3, key=jax.random.key(0)), eqx.nn.Linear(3, 5, use_bias=False, key=jax.random.key(1))
            self.shared = eqx.nn.Shared((embed, head), lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    assert freeze(Twice()).frozen == ("shared.pytree.0.weight",)
    assert summary(Twice()).totals.parameters == 15


def test_kinds() -> None:
    key = jax.random.key(0)
    nn = eqx.nn
    expected = {
        "dense": nn.Linear(2, 2, key=key),
        "conv": nn.Conv2d(2, 2, 3, key=key),
        "depthwise_conv": nn.Conv1d(4, 4, 3, groups=4, key=key),
        "conv_transpose": nn.ConvTranspose2d(2, 2, 3, key=key),
        "embedding": nn.Embedding(2, 2, key=key),
        "group_norm": nn.GroupNorm(2, 4),
        "rms_norm": nn.RMSNorm(4),
        "attention": nn.MultiheadAttention(2, 4, key=key),
        "recurrent": nn.GRUCell(2, 2, key=key),
        "activation": nn.PReLU(),
        "container": _mlp(),
        "pooling": nn.MaxPool2d(2),
        "dropout": nn.Dropout(),
    }
    backend = freeze(nn.Linear(2, 2, key=key))._backend
    assert {word: backend.layers(module).kind for word, module in expected.items()} == {word: word for word in expected}
    cell = layers(nn.LSTMCell(2, 2, key=key))[0]
    assert {p.role for p in cell.parameters} == {"kernel", "recurrent_kernel", "bias"}


def test_all_makes_dropout_deterministic_whatever_the_mode() -> None:
    model = Net(eqx.nn.Sequential([_mlp(), eqx.nn.Dropout(0.5)]))
    x = jnp.asarray(X[0])

    def run(tree: Any, key: Any) -> Any:
        return tree.middle(x, key=key)

    keys = jax.random.split(jax.random.key(1), 2)
    held = freeze(model, layers="middle", inference="all").hold(run)
    one, other = (held(eqx.nn.inference_mode(model, value=False), key) for key in keys)
    np.testing.assert_array_equal(one, other)
    mild = freeze(model, layers="middle").hold(run)
    assert np.any(np.asarray(mild(model, keys[0])) != np.asarray(mild(model, keys[1])))


def test_a_switch_below_a_key_that_is_a_path_is_found() -> None:
    model = Net({"a/b": eqx.nn.Dropout(0.5)})
    freezing = freeze(model, layers="middle.a.b", inference="all")
    assert freezing.hold(lambda tree: tree.middle["a/b"].inference)(model) is True


def test_a_module_at_two_paths_is_frozen_at_both() -> None:
    shared = eqx.nn.Linear(4, 4, key=jax.random.key(5))
    model = Net([shared, shared])
    freezing = freeze(model, layers=[shared])
    assert {layer.path for layer in layers(model, [shared])} == {"middle.0", "middle.1"}
    assert summary(freezing).totals.frozen == 20
    trainable, _ = freezing.partition(model)
    assert trainable.middle[0].weight is None
    assert trainable.middle[1].weight is None
    assert freeze(model, layers=everything - "middle.0").frozen == ("first.weight", "first.bias", "head.weight", "head.bias"), "it is one layer"


def test_two_statuses_for_one_array_are_refused_and_change_nothing() -> None:
    model = Net(_mlp())
    model = eqx.tree_at(lambda tree: tree.middle.layers[1].bias, model, model.middle.layers[0].bias)
    before = jax.tree.leaves(model)
    with pytest.raises(ConflictError):
        freeze(model, layers=everything - "middle.layers.0")
    assert all(old is new for old, new in zip(before, jax.tree.leaves(model), strict=True))


def test_a_model_without_values_is_frozen_like_one_with() -> None:
    real = EquinoxKit().reference()
    pair = eqx.filter_eval_shape(lambda: real)
    freezing = freeze(pair, layers="stem")
    assert freezing.frozen == freeze(real, layers="stem").frozen
    assert freezing.partition(real[0])[0].stem.conv.weight is None
    assert isinstance(freezing.model[0].stem.conv.weight, jax.ShapeDtypeStruct)


def test_statistics_of_a_subclass_in_batch_mode_are_named() -> None:
    class Own(eqx.nn.BatchNorm):
        """A user's own."""

    pair = eqx.nn.make_with_state(lambda: Net(Own(4, axis_name="batch", mode="batch")))()
    norm = layers(pair, "middle")[0]
    assert norm.kind == "batch_norm"
    assert {buffer.path: buffer.role for buffer in norm.buffers} == {"middle.batch_counter": "count", "middle.mean": "mean", "middle.var": "variance"}
    assert freeze(pair, layers="middle").held == ("middle",)


def test_rows_are_refused() -> None:
    with pytest.raises(BackendError, match=r"(?s)rows= is not known to the equinox backend.*Keep two arrays"):
        freeze(Net(_mlp()), layers="first", params="weight", rows=[0])
