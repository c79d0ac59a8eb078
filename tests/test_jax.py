"""JAX: the conformance suite, and what is particular to pytrees, linen and haiku."""

from __future__ import annotations

import functools
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization, struct
from flax.core import freeze as to_frozen_dict
from flax.training.train_state import TrainState

from jax_cost import optimized
from kits.jax import JaxKit
from unifreeze import Freezing, UnifreezeError, freeze, layers, summary, unfreeze
from unifreeze.errors import ConflictError, NothingSelectedError, SelectorError
from unifreeze.select import before, everything, first, kind, last
from unifreeze.testing import Conformance

jax.config.update("jax_num_cpu_devices", 4)

X = jax.random.normal(jax.random.key(7), (8, 5))


class TestConformance(Conformance):
    kit = JaxKit()


def mlp(widths: tuple[int, ...] = (5, 6, 4, 3)) -> dict[str, Any]:
    """A user's own net: a dict in the order of its layers, and not in that of the alphabet."""
    rng = np.random.default_rng(0)
    names = ("stem", "body", "head")
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32), "bias": jnp.asarray(rng.normal(size=shape[1:]), jnp.float32)}
        for name, shape in zip(names, itertools.pairwise(widths), strict=True)
    }


def forward(params: Any, x: Any) -> Any:
    for name in ("stem", "body", "head"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return x


def loss(params: Any, x: Any = X) -> Any:
    return jnp.mean((forward(params, x) - 2.0) ** 2)


def shaken(tree: Any) -> Any:
    return jax.tree.map(lambda x: x, tree)


def equal(one: Any, other: Any) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def moved(one: Any, other: Any) -> float:
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


# What is a model, and what its layers are.


class Affine(NamedTuple):
    w: Any
    b: Any


def test_any_container_is_read() -> None:
    one = functools.partial(jnp.ones, dtype=jnp.float32)
    tree = {
        "z": [Affine(one((2, 2)), one(2)), (), None, 0.5],
        "a": {"kernel": one((3, 3, 2, 2))},
        "n": {"scale": one(2)},
        "e": {"embedding": one((4, 2))},
        "key": jax.random.key(0),
    }
    freezing = freeze(tree, layers=["z", "a"])
    assert freezing.frozen == ("z.0.w", "z.0.b", "a.kernel")
    assert {layer.path: (layer.kind, layer.type) for layer in layers(tree)} == {
        "z.0": ("dense", "Affine"),
        "a": ("conv", "Conv"),
        "n": ("rms_norm", "RmsNorm"),
        "e": ("embedding", "Embedding"),
    }
    halves = freezing.partition(tree)
    assert jax.tree.leaves(halves[0]) == [tree["e"]["embedding"], tree["n"]["scale"]]
    whole = freezing.combine(*halves)
    assert jax.tree.structure(whole) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(tree), strict=True))


NO_MODELS = {"dict": {}, "list": [], "float": {"a": 1.0}, "text": {"a": "text"}, "array": jnp.ones(3), "object": {"a": object()}, "function": lambda x: x}


@pytest.mark.parametrize("model", NO_MODELS.values(), ids=NO_MODELS)
def test_what_holds_no_array_is_no_model(model: object) -> None:
    with pytest.raises(TypeError):
        freeze(model)


def test_a_loaded_checkpoint_of_numpy_arrays_is_a_model() -> None:
    assert freeze(jax.tree.map(np.asarray, mlp()), layers="stem").frozen == ("stem.bias", "stem.kernel")


def test_a_part_is_found_by_identity_also_in_the_variables() -> None:
    variables = Net().init(jax.random.key(0), X, train=False)
    assert freeze(variables, layers=variables["params"]["norm"]).layers == ("norm",)
    with pytest.raises(NothingSelectedError, match="identity"):
        freeze(variables, layers=shaken(variables)["params"]["norm"])


def test_keys_that_are_paths_become_paths() -> None:
    tree = {"encoder/layer_1/kernel": jnp.ones((2, 2)), "encoder/layer_10/kernel": jnp.ones((2, 2)), "decoder.kernel": jnp.ones((2, 2))}
    assert freeze(tree, layers="encoder.layer_1").frozen == ("encoder.layer_1.kernel",)
    with pytest.raises(UnifreezeError, match="same dotted path"):
        freeze({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})


def test_partitioned_parameters_are_no_layers() -> None:
    class Sharded(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(2, kernel_init=nn.with_partitioning(nn.initializers.ones, ("a", "b")), name="dense")(x)

    variables = Sharded().init(jax.random.key(0), X)
    assert layers(variables)[0].kind == "dense"
    assert freeze(variables).frozen == ("dense.kernel", "dense.bias")


def test_integer_weights_cannot_train_and_counts_are_buffers() -> None:
    tree = {"a": {"kernel": jnp.ones((2, 2), jnp.int8), "bias": jnp.ones(2)}, "steps": jnp.arange(3)}
    seen = {layer.path: layer for layer in layers(tree)}
    assert seen["a"].parameters[0].untrainable == "int8 has no gradient"
    assert [buffer.path for buffer in seen[""].buffers] == ["steps"]
    freezing = freeze(tree)
    assert (freezing.frozen, freezing.changed) == (("a.kernel", "a.bias"), ("a.bias",))
    assert unfreeze(freezing, params="bias").trainable == ("a.bias",)


def test_tied_leaves_have_one_status() -> None:
    table = jnp.ones((3, 2))
    tree = {"embed": {"embedding": table}, "head": {"embedding": table}, "mid": {"kernel": jnp.ones((2, 2))}}
    freezing = freeze(tree, layers="embed")
    assert freezing.frozen == ("embed.embedding",)
    assert freezing.trainable_mask["head"]["embedding"] is False
    with pytest.raises(ConflictError):
        freeze(tree, layers=everything - "head")


def test_a_scanned_stack_is_one_layer() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return nn.Dense(5)(x), None

    stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
    variables = stack().init(jax.random.key(0), X, None)
    (layer,) = layers(variables)
    assert (layer.path, layer.kind) == ("Dense_0", "dense")
    assert {parameter.role: parameter.shape for parameter in layer.parameters} == {"kernel": (4, 5, 5), "bias": (4, 5)}
    with pytest.raises(NothingSelectedError):
        freeze(variables, layers="Dense_0.3")


# Order.


def test_a_tree_that_was_never_mapped_has_the_models_order() -> None:
    assert [layer.path for layer in layers(mlp(), first(2))] == ["stem", "body"]


@pytest.mark.parametrize("spoil", [shaken, jax.jit(shaken), lambda tree: to_frozen_dict(shaken(tree)), lambda tree: {**shaken(tree), "zoo": mlp()["head"]}])
def test_a_lost_order_is_said(spoil: Callable[[Any], Any]) -> None:
    tree = spoil(mlp())
    for counting in (first(2), before("head"), last(1)):
        with pytest.raises(SelectorError, match="order"):
            layers(tree, counting)
    assert len(layers(tree, kind("dense"))) >= 3
    assert freeze(tree, layers="stem").layers == ("stem",)


@pytest.mark.parametrize("names", [[f"Dense_{i}" for i in range(12)], ["linear", *(f"linear_{i}" for i in range(1, 12))], [str(i) for i in range(12)]])
def test_numbered_siblings_keep_their_order(names: list[str]) -> None:
    tree = shaken({name: {"kernel": jnp.ones((1, 1))} for name in names})
    assert [layer.path for layer in layers(tree, first(11))] == names[:11]


def test_lists_and_single_children_keep_their_order() -> None:
    tree = shaken({"net": [{"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)} for _ in range(12)]})
    assert [layer.path for layer in layers(tree, last(2))] == ["net.10", "net.11"]


def test_new_trees_of_mapped_parts_have_their_own_order() -> None:
    tree = {"stem": shaken(mlp()["stem"]), "body": shaken(mlp()["body"])}
    assert [layer.path for layer in layers(tree, first(1))] == ["stem"]


def test_statistics_without_parameters_have_no_place() -> None:
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False, name="norm")(nn.Dense(3, name="one")(x))
            return nn.Dense(3, name="two")(x)

    variables = Bare().init(jax.random.key(0), X)
    with pytest.raises(SelectorError, match="norm: only statistics"):
        freeze(variables, layers=first(2))
    assert freeze(variables, layers="norm").held == ("norm",)


# Nothing moves, and the rest trains as by hand.

RULES = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.2),
    "lion": optax.lion(0.1, weight_decay=0.2),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
    "average": optax.chain(optax.adamw(0.1), optax.ema(0.9)),
}


def by_hand(rule: str, steps: int) -> Any:
    """Clips, differentiates and updates the trainable sub-tree alone."""
    rest, trainable = {"stem": mlp()["stem"]}, {name: mlp()[name] for name in ("body", "head")}
    tx = optax.chain(optax.clip_by_global_norm(0.05), RULES[rule])
    state = tx.init(trainable)
    for _ in range(steps):
        grads = jax.grad(lambda trainable: loss({**rest, **trainable}))(trainable)
        updates, state = tx.update(grads, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    return {**rest, **trainable}


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw", "lion"])
def test_an_unmodified_step_obeys(rule: str) -> None:
    expected, start = by_hand(rule, 6), mlp()
    tx = freeze(start, layers="stem").optimizer(RULES[rule], pre=optax.clip_by_global_norm(0.05))

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    train = TrainState.create(apply_fn=forward, params=start, tx=tx)
    for run in (step, jax.jit(step)):
        params, state = start, tx.init(start)
        for _ in range(6):
            params, state = run(params, state)
        assert equal(params["stem"], start["stem"])
        assert moved(params, expected) <= 1e-6
    for _ in range(6):
        train = train.apply_gradients(grads=jax.grad(loss)(train.params))
    assert moved(train.params, expected) <= 1e-6


def awkward() -> dict[str, Any]:
    """Bits that arithmetic likes to change: -0.0, denormals, a NaN with a payload, half precision, integers."""
    odd = np.array([-0.0, 0.0, 1e-42, -1e-45, 3.0], np.float32)
    odd = np.concatenate([odd, np.array([0x7FC12345, 0xFF800000], np.uint32).view(np.float32)])
    return {"odd": jnp.asarray(odd), "half": jnp.asarray([-0.0, 1e-40, 0.1], jnp.bfloat16), "small": jnp.asarray([-0.0, 6e-8], jnp.float16)}


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("eager", [True, False])
def test_no_bit_of_what_is_frozen_changes(rule: str, eager: bool) -> None:
    start = {"odd": awkward(), "codes": {"kernel": jnp.arange(-4, 4, dtype=jnp.int8)}, **mlp()}
    freezing = freeze(start, layers=["odd", "stem"])
    tx = freezing.optimizer(RULES[rule])

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(freezing.grad(loss)(params), state, params)
        return freezing.apply_updates(params, updates), state

    params, state, step = start, tx.init(start), step if eager else jax.jit(step)
    for _ in range(3):
        params, state = step(params, state)
    for name in ("odd", "codes", "stem"):
        assert equal(params[name], start[name])
        assert not eager or all(a is b for a, b in zip(jax.tree.leaves(params[name]), jax.tree.leaves(start[name]), strict=True))
    assert moved(params["head"], start["head"]) > 0
    assert len(freezing.verify(params).arrays) == 6


def test_negative_zero_survives_an_eager_unmodified_step() -> None:
    start = {"odd": {"kernel": jnp.asarray([[-0.0, 0.0]])}, **mlp()}
    tx = freeze(start, layers="odd").optimizer(optax.adamw(0.1))
    updates, _ = tx.update(jax.grad(loss)(start), tx.init(start), start)
    assert equal(optax.apply_updates(start, updates)["odd"], start["odd"])


def test_a_nan_in_a_frozen_gradient_reaches_nothing() -> None:
    @jax.custom_vjp
    def poison(x: Any) -> Any:
        return x

    poison.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.nan,))
    start = mlp()
    freezing = freeze(start, layers="stem")
    tx = freezing.optimizer(optax.adam(0.1), pre=optax.clip_by_global_norm(0.1))
    grads = jax.grad(lambda params: loss({**params, "stem": jax.tree.map(poison, params["stem"])}))(start)
    assert np.isnan(grads["stem"]["kernel"]).all()
    updates, _ = tx.update(grads, tx.init(start), start)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_everything_or_nothing_may_be_frozen() -> None:
    start = mlp()
    still = freeze(start)
    tx = still.optimizer(optax.adamw(0.1), pre=optax.clip_by_global_norm(0.1))
    value, grads = still.value_and_grad(loss)(start)
    updates, state = tx.update(grads, tx.init(start), start)
    assert value == loss(start)
    assert jax.tree.leaves(grads) == []
    assert equal(optax.apply_updates(start, updates), start)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 1
    loose = unfreeze(still)
    assert moved(loose.grad(loss)(start), jax.grad(loss)(start)) == 0


def test_lbfgs_searches_along_what_is_trainable() -> None:
    params = mlp()
    freezing = freeze(params, layers="stem")
    tx = freezing.optimizer(optax.lbfgs())
    state, start = tx.init(params), params

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads = freezing.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return freezing.apply_updates(params, updates), state

    for _ in range(4):
        params, state = step(params, state)
    assert equal(params["stem"], start["stem"])
    assert loss(params) < 0.9 * loss(start)


# What it costs.


def test_state_and_gradients_of_the_trainable_part_only() -> None:
    start = mlp()
    freezing = freeze(start, layers="stem")
    state = freezing.optimizer(optax.adam(0.1)).init(start)
    hand = optax.adam(0.1).init({name: start[name] for name in ("body", "head")})
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == sum(leaf.nbytes for leaf in jax.tree.leaves(hand))
    shapes = jax.eval_shape(freezing.grad(loss), start)
    assert shapes["stem"] == {"kernel": None, "bias": None}
    assert len(jax.tree.leaves(shapes)) == 4


def test_no_more_operations_than_by_hand() -> None:
    """Clipping and a reported norm would bring the frozen backward pass back, if gradients were masked instead of not computed."""
    start, x = mlp((64, 512, 512, 8)), jnp.ones((32, 64))
    freezing = freeze(start, layers=["stem", "body"])
    planned = freezing.optimizer(optax.adamw(0.1), pre=optax.clip_by_global_norm(1.0))
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))

    def ours(params: Any, state: Any) -> Any:
        value, grads = freezing.value_and_grad(loss)(params, x)
        updates, state = planned.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, optax.global_norm(grads)

    def theirs(head: Any, rest: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(lambda head: loss({**rest, "head": head}, x))(head)
        updates, state = plain.update(grads, state, head)
        return {**rest, "head": optax.apply_updates(head, updates)}, state, value, optax.global_norm(grads)

    def masked(params: Any, state: Any) -> Any:
        grads = jax.grad(loss)(params, x)
        updates, state = optax.partition({"on": plain, "off": optax.set_to_zero()}, {"stem": "off", "body": "off", "head": "on"}).update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.global_norm(grads)

    def flops(step: Any, *args: Any) -> float:
        with optimized():
            return jax.jit(step).lower(*args).compile().cost_analysis()["flops"]

    rest = {name: start[name] for name in ("stem", "body")}
    hand = flops(theirs, start["head"], rest, plain.init(start["head"]))
    assert flops(ours, start, planned.init(start)) <= 1.02 * hand
    state = optax.partition({"on": plain, "off": optax.set_to_zero()}, {"stem": "off", "body": "off", "head": "on"}).init(start)
    assert flops(masked, start, state) > 1.5 * hand


# A Freezing beside the parameters.


def test_a_freezing_is_static_and_traces_once_for_each_content() -> None:
    start, traces = mlp(), []

    def step(freezing: Freezing, params: Any) -> Any:
        traces.append(1)
        return freezing.grad(loss)(params)

    one, two = (lambda: freeze(start, layers="stem")), (lambda: freeze(start, layers="body"))
    for run in (jax.jit(step, static_argnums=0), jax.jit(step)):
        traces.clear()
        grads = [run(make(), start) for make in (one, two, one, two)]
        assert len(traces) == 2
        assert [grad["stem"]["bias"] is None for grad in grads] == [True, False, True, False]
    assert jax.tree.leaves(one()) == []


def test_a_freezing_rides_in_a_train_state() -> None:
    class State(struct.PyTreeNode):
        params: Any
        freezing: Any

    traces = []

    @jax.jit
    def step(state: State) -> State:
        traces.append(1)
        grads = state.freezing.grad(loss)(state.params)
        return state.replace(params=state.freezing.apply_updates(state.params, jax.tree.map(lambda g: -0.1 * g, grads)))

    one, two = freeze(mlp(), layers="stem"), freeze(mlp(), layers="body")
    state = State(mlp(), one)
    for freezing in (one, two, freeze(mlp(), layers="stem"), two):
        state = step(state.replace(freezing=freezing))
    assert len(traces) == 2


def test_equal_plans_are_one() -> None:
    one, two = freeze(mlp(), layers="stem"), freeze(freeze(mlp(), layers="stem"), layers="stem.**")
    assert one == two
    assert one._tools is two._tools
    assert one != freeze(mlp(), layers="body")
    assert one != freeze(to_frozen_dict(mlp()), layers="stem")
    assert freeze(one, layers="body").undo() == one
    assert freeze(jax.jit(shaken)(mlp()), layers="stem")._tools is one._tools, "a step sorts the keys of a dict, and changes no plan"
    assert pickle.loads(pickle.dumps(one._tools)) == one._tools


def test_masks_say_which_way_they_mean() -> None:
    freezing = freeze(mlp(), layers="stem")
    assert freezing.labels["stem"] == {"kernel": "frozen", "bias": "frozen"}
    assert freezing.trainable_mask["stem"]["kernel"] is False
    assert freezing.frozen_mask["stem"]["kernel"] is True
    assert not hasattr(freezing, "mask")
    start = mlp()
    tx = optax.chain(optax.adamw(0.1), optax.freeze(freezing.frozen_mask))
    updates, _ = tx.update(jax.grad(loss)(start), tx.init(start), start)
    assert equal(optax.apply_updates(start, updates)["stem"], start["stem"])


def test_another_tree_is_refused_by_name() -> None:
    start = mlp()
    freezing = freeze(start, layers="stem")
    lacking = {name: start[name] for name in ("stem", "body")}
    for verb in (freezing.partition, freezing.grad(loss), freezing.optimizer(optax.sgd(0.1)).init):
        with pytest.raises(ValueError, match=r"missing: head.bias, head.kernel"):
            verb(lacking)
        with pytest.raises(ValueError, match=r"unknown: extra"):
            verb({**start, "extra": jnp.ones(1)})
    tx = freezing.optimizer(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"(?s)gradients.*head.bias"):
        tx.update({**jax.grad(loss)(start), "head": None}, tx.init(start), start)


def test_dicts_and_frozen_dicts_are_the_same_tree() -> None:
    start = mlp()
    freezing = freeze(to_frozen_dict(start), layers="stem")
    tx = freezing.optimizer(optax.adamw(0.1))
    updates, _ = tx.update(freezing.grad(loss)(start), tx.init(start), start)
    assert equal(freezing.apply_updates(start, updates)["stem"], start["stem"])
    trainable, rest = freezing.partition(start)
    assert equal(freezing.combine(to_frozen_dict(trainable), rest), start)


def test_argnums_and_auxiliary_values() -> None:
    start = mlp()
    freezing = freeze(start, layers="stem")

    def pair(x: Any, params: Any, *, scale: float) -> Any:
        return scale * loss(params, x), x.shape

    (value, shape), grads = freezing.value_and_grad(pair, has_aux=True, argnums=1)(X, start, scale=2.0)
    assert (value, shape) == (2 * loss(start), X.shape)
    again, shape = freezing.grad(pair, has_aux=True, argnums=1)(X, start, scale=2.0)
    assert shape == X.shape
    assert equal(again, grads)


def test_shardings_and_donation_are_kept() -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = {name: {"kernel": jax.device_put(jnp.ones((8, 8)), rows)} for name in ("stem", "body", "head")}
    freezing = freeze(tree, layers="stem")
    tx = freezing.optimizer(optax.adam(0.1))
    state = tx.init(tree)
    assert state.groups[0].inner[0].mu["head"]["kernel"].sharding == rows
    trainable, rest = freezing.partition(tree)

    @functools.partial(jax.jit, donate_argnums=(0, 2))
    def step(trainable: Any, rest: Any, state: Any) -> Any:
        params = freezing.combine(trainable, rest)
        grads = freezing.grad(lambda tree: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))(params)
        updates, state = tx.update(grads, state, params)
        return freezing.partition(freezing.apply_updates(params, updates))[0], state

    new, state = step(trainable, rest, state)
    assert new["head"]["kernel"].sharding.is_equivalent_to(rows, 2)
    assert tree["head"]["kernel"].is_deleted()
    assert not tree["stem"]["kernel"].is_deleted()
    assert freezing.verify(freezing.combine(new, rest)).arrays == ("stem.kernel",)
    with pytest.raises(UnifreezeError, match="remember"):
        freeze(tree, layers="head").verify(tree)


# Abstract arrays, tracers, proof.


def test_shapes_are_enough() -> None:
    shapes = jax.eval_shape(mlp)
    freezing = freeze(shapes, layers="stem")
    assert freezing.labels == freeze(mlp(), layers="stem").labels
    assert summary(freezing).totals.parameters == summary(mlp()).totals.parameters
    start = mlp()
    with pytest.raises(UnifreezeError, match="remember"):
        freezing.verify(start)
    assert len(freezing.remember(start).verify(start).arrays) == 2


def test_freezing_inside_jit() -> None:
    @jax.jit
    def step(params: Any) -> Any:
        return freeze(params, layers="stem").grad(loss)(params)

    assert step(mlp())["stem"] == {"kernel": None, "bias": None}


def test_the_model_of_a_freezing_holds_no_values_and_keeps_order() -> None:
    freezing = freeze(mlp(), layers="stem")
    assert list(freezing.model) == ["stem", "body", "head"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(freezing.model))
    assert unfreeze(freezing, layers=last(1) | "stem").trainable == freeze(mlp()).frozen
    assert freeze(freezing, layers=freezing.model["body"]).layers == ("body",)
    assert freeze(pickle.loads(pickle.dumps(freezing)), layers="body").frozen == freeze(freezing, layers="body").frozen
    values = mlp()
    freezing, array = freeze(values, layers="stem"), weakref.ref(values["stem"]["kernel"])
    assert freezing.verify(values)
    assert summary(freezing).totals.frozen == 36
    del values
    gc.collect()
    assert array() is None, "a Freezing keeps an array alive"


def test_a_part_that_stands_in_two_places_is_one_in_the_copy_too() -> None:
    part = {"kernel": jnp.ones((2, 2))}
    freezing = freeze({"one": part, "two": part, **mlp()}, layers="head")
    assert freezing.model["one"] is freezing.model["two"]
    assert freeze(freezing, layers=freezing.model["one"]).layers == ("one", "two")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int8, jnp.complex64])
def test_every_bit_counts_in_a_fingerprint(dtype: Any) -> None:
    clean = np.asarray(jnp.asarray([0.0, 1.0, 2.0], dtype))
    other = clean.copy()
    other.view(np.uint8)[-1] ^= 0x80
    beside = {"bias": jnp.ones(3)}  # a tree of integers alone is no model
    proof = freeze({"a": {"kernel": jnp.asarray(clean), **beside}}, inference="all")
    assert proof.verify({"a": {"kernel": jnp.asarray(clean), **beside}}).arrays == ("a.kernel", "a.bias")
    with pytest.raises(AssertionError, match="a.kernel"):
        proof.verify({"a": {"kernel": jnp.asarray(other), **beside}})


# What an optimizer knows goes on.


def trained(freezing: Freezing, tx: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    for _ in range(steps):
        updates, state = tx.update(freezing.grad(loss)(params), state, params)
        params = freezing.apply_updates(params, updates)
    return params, state


def test_unfreezing_late_starts_as_if_fresh_and_keeps_the_rest() -> None:
    schedule, start = optax.linear_schedule(0.01, 0.02, 100), mlp()
    rule = optax.adamw(schedule, weight_decay=0.0)
    early = freeze(start, layers="stem")
    params, state = trained(early, early.optimizer(rule), start, early.optimizer(rule).init(start), 20)
    late = unfreeze(early, layers="stem")
    tx = late.optimizer(rule)
    carried = late.carry(tx, state, params)
    old, new = carried.groups
    assert old.inner[0].mu["head"]["kernel"] is state.groups[0].inner[0].mu["head"]["kernel"]
    assert (int(old.inner[0].count), int(new.inner[0].count)) == (20, 0)
    assert (int(old.inner[2].count), int(new.inner[2].count)) == (20, 20)
    after, carried = trained(late, tx, params, carried, 1)
    step = np.abs(np.asarray(after["stem"]["kernel"] - params["stem"]["kernel"]))
    np.testing.assert_allclose(step.max(), schedule(20), rtol=1e-3)
    # The naive way: one count for all, and moments of zero.
    rule = optax.adam(0.01)
    naive = rule.init(params)
    updates, _ = rule.update(jax.grad(loss)(params), (naive[0]._replace(count=jnp.asarray(1000)), *naive[1:]), params)
    assert np.abs(updates["stem"]["kernel"]).max() > 2 * 0.01


def test_groups_train_as_two_optimizers_by_hand_and_share_one_clip() -> None:
    start, clip = mlp(), optax.clip_by_global_norm(0.05)
    early = freeze(start, layers="stem")
    tx = early.optimizer(optax.adam(0.01), pre=clip)
    params, state = trained(early, tx, start, tx.init(start), 5)
    late = unfreeze(early, layers="stem")
    tx = late.optimizer(optax.adam(0.01), pre=clip)
    ours, _ = trained(late, tx, params, late.carry(tx, state, params), 5)

    hand, adam = optax.chain(clip), optax.adam(0.01)
    known = {name: start[name] for name in ("body", "head")}
    states = [adam.init(known), adam.init({"stem": start["stem"]})]
    theirs = start
    for i in range(10):
        grads = jax.grad(loss)(theirs)
        grads = grads if i >= 5 else {name: grads[name] for name in known}
        grads, _ = hand.update(grads, hand.init(grads))
        updates, states[0] = adam.update({name: grads[name] for name in known}, states[0])
        theirs = {**theirs, **optax.apply_updates({name: theirs[name] for name in known}, updates)}
        if i >= 5:
            updates, states[1] = adam.update({"stem": grads["stem"]}, states[1])
            theirs = {**theirs, **optax.apply_updates({"stem": theirs["stem"]}, updates)}
    assert moved(ours, theirs) <= 1e-6


def test_a_plain_optimizers_state_is_taken_over() -> None:
    start, rule, clip = mlp(), optax.adam(0.01), optax.clip_by_global_norm(1.0)
    for plain, pre in ((rule, None), (optax.chain(clip, rule), clip)):
        state = plain.init(start)
        _, state = plain.update(jax.grad(loss)(start), state, start)
        freezing = freeze(start, layers="stem")
        carried = freezing.carry(freezing.optimizer(rule, pre=pre), state, start)
        (group,) = carried.groups
        assert set(group.members) == set(freezing.trainable)
        assert int(group.inner[0].count) == 1


def test_settings_of_a_running_optimizer_are_taken_over() -> None:
    start = mlp()
    early, rule = freeze(start, layers="stem"), optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    state = early.optimizer(rule).init(start)
    state.groups[0].inner.hyperparams["learning_rate"] = jnp.asarray(0.025)
    late = unfreeze(early)
    carried = late.carry(late.optimizer(rule), state, start)
    assert [float(group.inner.hyperparams["learning_rate"]) for group in carried.groups] == pytest.approx([0.025, 0.025])


def test_refreezing_drops_what_is_no_longer_needed() -> None:
    start, rule = mlp(), optax.adam(0.01)
    loose = unfreeze(freeze(start))
    params, state = trained(loose, loose.optimizer(rule), start, loose.optimizer(rule).init(start), 2)
    early = freeze(loose, layers="stem")
    carried = early.carry(early.optimizer(rule), state, params)
    assert len(jax.tree.leaves(carried)) == 1 + 2 * 4
    assert jax.tree.structure(carried) == jax.tree.structure(early.optimizer(rule).init(params))
    again = loose.carry(loose.optimizer(rule), carried, params)
    assert [len(group.members) for group in again.groups] == [4, 2]


def test_a_foreign_state_is_refused() -> None:
    start, rule = mlp(), optax.adam(0.01)
    early, late = freeze(start, layers="stem"), freeze(start, layers="body")
    state = early.optimizer(rule).init(start)
    with pytest.raises(ValueError, match=r"(?s)body.bias is not trainable any more.*carry"):
        late.optimizer(rule).update(late.grad(loss)(start), state, start)
    with pytest.raises(ValueError, match=r"mu.*head"):
        incomplete = jax.tree.map(lambda x: x, state)
        incomplete.groups[0].inner[0].mu["head"]["bias"] = None
        jax.jit(early.optimizer(rule).update)(early.grad(loss)(start), incomplete, start)
    for foreign in (optax.adam(0.01).init({"x": jnp.ones(3)}), optax.sgd(0.1, momentum=0.9).init(start)):
        with pytest.raises(ValueError, match="not one of this freezing"):
            early.carry(early.optimizer(rule), foreign, start)
    with pytest.raises(ValueError, match="another freezing"):
        late.carry(early.optimizer(rule), state, start)


def test_a_checkpoint_of_another_plan_does_not_slip_in() -> None:
    start, rule = mlp(), optax.adam(0.01)
    early = freeze(start, layers="stem")
    params, state = trained(early, early.optimizer(rule), start, early.optimizer(rule).init(start), 2)
    late = unfreeze(early)
    saved = serialization.to_bytes(state)
    assert equal(serialization.from_bytes(early.optimizer(rule).init(params), saved), state)
    with pytest.raises((ValueError, KeyError)):
        serialization.from_bytes(late.optimizer(rule).init(params), saved)


def test_optax_finds_parameters_in_the_state() -> None:
    start = mlp()
    tx = freeze(start, layers="stem").optimizer(optax.adam(0.1))
    marked = optax.tree_utils.tree_map_params(tx, lambda _: "here", tx.init(start))
    assert jax.tree.leaves(marked).count("here") == 8


# linen and haiku: held layers run as at inference.


class Net(nn.Module):
    """Every way of telling a BatchNorm and a Dropout what to do."""

    style: str = "constructor"

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.Dense(4, name="stem")(x)
        if self.style == "constructor":
            x = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x))
        else:
            x = nn.Dropout(0.5)(nn.BatchNorm(momentum=0.5, name="norm")(x, not train), deterministic=not train)
        return nn.Dense(2, name="head")(x)


class SetUp(nn.Module):
    """The same in linen's other style, with the mode in an attribute."""

    train: bool = True

    def setup(self) -> None:
        self.stem, self.head = nn.Dense(4), nn.Dense(2)
        self.norm = nn.BatchNorm(use_running_average=not self.train, momentum=0.5)
        self.drop = nn.Dropout(0.5, deterministic=not self.train)

    def __call__(self, x: Any) -> Any:
        return self.head(self.drop(self.norm(self.stem(x))))


class Lifted(nn.Module):
    """The same inside one of linen's lifted transformations."""

    lift: str

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.lift == "scan":
            body = nn.scan(Scanned, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True, "dropout": True}, length=3)
            return body(name="inner")(x, None)[0]
        return {"remat": nn.remat, "jit": nn.jit}[self.lift](Net)(name="inner")(x)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        x = nn.BatchNorm(use_running_average=False, momentum=0.5, name="norm")(nn.Dense(5, name="stem")(x))
        return nn.Dropout(0.5, deterministic=False)(x), None


MODELS = {"constructor": Net(), "call": Net("call"), "setup": SetUp(), "remat": Lifted("remat"), "jit": Lifted("jit"), "scan": Lifted("scan")}


@functools.cache
def variables_of(model: nn.Module) -> Any:
    return jax.jit(model.init)({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)


def training(model: nn.Module) -> Callable[..., Any]:
    def run(variables: Any, key: int) -> Any:
        return model.apply(variables, X + 3, mutable=["batch_stats"], rngs={"dropout": jax.random.key(key)})

    return run


@pytest.mark.parametrize("name", list(MODELS))
def test_statistics_stand_still_in_every_style_of_linen(name: str) -> None:
    variables, run = variables_of(MODELS[name]), training(MODELS[name])
    run = run if name == "constructor" else jax.jit(run)  # most of the time of a run without jit is the compiling of single operations
    statistics = variables["batch_stats"]
    held = freeze(variables).hold(run)
    assert moved(run(variables, 0)[1]["batch_stats"], statistics) > 0.1
    assert equal(held(variables, 0)[1]["batch_stats"], statistics)
    assert moved(held(variables, 0)[0], held(variables, 1)[0]) > 0, "dropout is off"
    fully = freeze(variables, inference="all").hold(run)
    assert equal(fully(variables, 0), fully(variables, 1))
    assert moved(run(variables, 0)[1]["batch_stats"], statistics) > 0.1, "it did not let go"
    loosely = freeze(variables, inference="none").hold(run)
    assert moved(loosely(variables, 0)[1]["batch_stats"], statistics) > 0.1


def test_a_function_that_was_compiled_before_is_held_too() -> None:
    variables, run = variables_of(Net()), jax.jit(training(Net()))
    freezing = freeze(variables)
    free = run(variables, 0)[1]
    assert equal(freezing.hold(run)(variables, 0)[1]["batch_stats"], variables["batch_stats"])
    assert equal(run(variables, 0)[1], free)
    assert equal(freeze(variables).hold(run)(variables, 0)[1]["batch_stats"], variables["batch_stats"])
    assert run._cache_size() == 2


def test_a_trainable_norm_beside_a_frozen_one_goes_on() -> None:
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.BatchNorm(use_running_average=False, momentum=0.5, name="norm_1")(x)
            return nn.BatchNorm(use_running_average=False, momentum=0.5, name="norm_10")(x * 2)

    variables = variables_of(Two())
    news = freeze(variables, layers="norm_1").hold(training(Two()))(variables, 0)[1]["batch_stats"]
    assert equal(news["norm_1"], variables["batch_stats"]["norm_1"])
    assert moved(news["norm_10"], variables["batch_stats"]["norm_10"]) > 0.1


@pytest.mark.parametrize("whole", [True, False], ids=["variables", "params"])
def test_a_step_with_statistics_takes_variables_or_params_alone(whole: bool) -> None:
    """An optimizer is made over the params, whether these or the whole variables were frozen."""
    variables = variables_of(Net())
    freezing = freeze(variables if whole else variables["params"], layers=["stem", "norm"])
    tx = freezing.optimizer(optax.adamw(0.1))

    @jax.jit
    def step(params: Any, statistics: Any, state: Any) -> Any:
        def run(params: Any) -> Any:
            outputs, news = training(Net())({"params": params, "batch_stats": statistics}, 0)
            return jnp.mean(outputs**2), news

        (_, news), grads = freezing.value_and_grad(run, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), news["batch_stats"], state

    params, statistics, state = variables["params"], variables["batch_stats"], tx.init(variables["params"])
    for _ in range(3):
        params, statistics, state = step(params, statistics, state)
    assert equal(statistics, variables["batch_stats"])
    assert moved(params["head"], variables["params"]["head"]) > 0.1
    freezing.verify({"params": params, "batch_stats": statistics} if whole else params)


def test_any_other_state_of_a_linen_layer_stands_still() -> None:
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            seen = self.variable("counts", "seen", jnp.zeros, ())
            seen.value += 1.0
            self.sow("intermediates", "mean", x.mean())
            return nn.SpectralNorm(nn.Dense(3, name="dense"), name="spectral")(x, update_stats=True)

    model = Counting()
    variables = model.init(jax.random.key(0), X)
    variables = {name: variables[name] for name in ("params", "counts", "batch_stats")}

    def run(variables: Any) -> Any:
        return model.apply(variables, X, mutable=["counts", "batch_stats", "intermediates"])[1]

    held = freeze(variables).hold(jax.jit(run))(variables)
    assert moved(run(variables)["counts"], variables["counts"]) == 1
    for shelf in ("counts", "batch_stats"):
        assert equal(held[shelf], variables[shelf])
    assert len(held["intermediates"]["mean"]) == 1


def test_a_model_is_found_in_a_tree_of_several() -> None:
    small, large = variables_of(Net()), variables_of(Lifted("scan"))
    statistics = {"small": small["batch_stats"], "large": large["batch_stats"]}
    tree = {"small": small["params"], "large": large["params"]}
    freezing = freeze(tree, layers="small")

    def run(model: nn.Module, name: str) -> Any:
        return jax.jit(training(model))({"params": tree[name], "batch_stats": statistics[name]}, 0)[1]["batch_stats"]

    assert equal(freezing.hold(run)(Net(), "small"), statistics["small"])
    assert moved(freezing.hold(run)(Lifted("scan"), "large"), statistics["large"]) > 0.1
    twins = freeze({"student": small["params"], "teacher": jax.tree.map(jnp.copy, small["params"])}, layers="teacher")
    tree, statistics = {"student": small["params"]}, {"student": small["batch_stats"]}
    with pytest.raises(UnifreezeError, match=r"(?s)student.*teacher.*under="):
        twins.hold(run)(Net(), "student")
    assert equal(twins.hold(run, under="teacher")(Net(), "student"), statistics["student"])
    assert moved(twins.hold(run, under="student")(Net(), "student"), statistics["student"]) > 0.1


def haiku_net(x: Any, is_training: bool) -> Any:
    x = hk.nets.MLP([5, 4], name="mlp")(x)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.5, name="norm")(x, is_training)
    hk.set_state("seen", hk.get_state("seen", [], init=jnp.zeros) + 1)
    return hk.Linear(2, name="head")(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)


@pytest.mark.parametrize("whole", [True, False], ids=["params and state", "params"])
def test_haiku(whole: bool) -> None:
    net = hk.transform_with_state(haiku_net)
    params, state = net.init(jax.random.key(0), X, is_training=True)
    freezing = freeze({"params": params, "state": state} if whole else params, layers=["mlp.**", "norm"])
    assert [layer.path for layer in layers(params)] == ["mlp.~.linear_0", "mlp.~.linear_1", "norm", "head"]
    assert not whole or [b.role for b in layers({"params": params, "state": state}, "norm")[0].buffers if b.role in {"mean", "variance"}] == [
        "mean",
        "variance",
    ]
    tx = freezing.optimizer(optax.adamw(0.1))

    def run(params: Any, state: Any) -> Any:
        outputs, state = net.apply(params, state, jax.random.key(0), X + 3, is_training=True)
        return jnp.mean(outputs**2), state

    (_, news), grads = jax.jit(freezing.value_and_grad(run, has_aux=True))(params, state)
    statistics = {name: state[name] for name in state if name.startswith("norm")}
    assert equal({name: news[name] for name in statistics}, statistics)
    assert moved({name: run(params, state)[1][name] for name in statistics}, statistics) > 0.1
    assert news["~"]["seen"] == state["~"]["seen"] + 1
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert [name for name in params if not equal(after[name], params[name])] == ["head"]
