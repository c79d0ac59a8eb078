"""The nnx backend: the conformance suite, and what is particular to flax.nnx."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kits.nnx import NnxKit, Reference
from unifreeze import freeze, layers, summary, unfreeze
from unifreeze.errors import BackendError, FrozenMovedError, SelectorError
from unifreeze.select import first, last
from unifreeze.testing import Conformance

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


class TestConformance(Conformance):
    kit = NnxKit()


class Net(nnx.Module):
    """A middle layer to try out, between two dense ones."""

    def __init__(self, middle: Callable[[nnx.Rngs], Any]) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.middle = middle(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.middle(self.first(x)))


def _mean(model: nnx.Module, x: Any) -> Any:
    return jnp.mean(model(x) ** 2)


def _train(model: nnx.Module, steps: int = 3, x: Any = X, optimizer: nnx.Optimizer | None = None) -> nnx.Optimizer:
    """A training loop as a user of nnx writes it, without a word of unifreeze."""
    optimizer = optimizer or nnx.Optimizer(model, optax.adamw(0.01, weight_decay=0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: Any) -> Any:
        loss, gradients = nnx.value_and_grad(_mean)(model, x)
        optimizer.update(model, gradients)
        return loss

    for _ in range(steps):
        model.train()
        step(model, optimizer, x)
    return optimizer


def _bytes(module: nnx.Module, *filters: Any) -> dict[Any, bytes]:
    return {path: np.asarray(leaf[...]).tobytes() for path, leaf in nnx.to_flat_state(nnx.state(module, *filters)) if not isinstance(leaf, nnx.RngState)}


# What is frozen, and what nnx then does by itself.


def test_every_filter_for_parameters_passes_frozen_ones_by() -> None:
    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    freezing = freeze(model, layers="first")
    assert set(nnx.state(model, nnx.Param)) == {"middle", "head"}
    assert set(nnx.grad(_mean)(model, X)) == {"middle", "head"}
    assert set(nnx.state(model, freezing.param_filter)) == {"first", "middle", "head"}
    assert len(_bytes(model, freezing.param_filter)) == 6


def test_metadata_and_identity_stay() -> None:
    model = nnx.Linear(4, 4, kernel_init=nnx.with_metadata(nnx.initializers.ones, note="kept"), rngs=nnx.Rngs(0))
    kernel, value = model.kernel, model.kernel.get_raw_value()
    freezing = freeze(model, params="kernel")
    assert model.kernel is kernel
    assert kernel.get_raw_value() is value
    assert kernel.note == "kept"
    freezing.undo()
    assert type(kernel) is nnx.Param
    assert kernel.note == "kept"


class Doubled(nnx.Param):
    """Reads as twice what it stores."""

    def get_value(self, **options: Any) -> Any:
        return 2 * super().get_value(**options)


def test_a_custom_class_of_parameters_keeps_its_code_and_comes_back() -> None:
    model = Net(lambda rngs: nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs))
    model.first.kernel = Doubled(model.first.kernel[...])
    before = model(X)
    freezing = freeze(model, layers=~last(1))
    np.testing.assert_array_equal(before, model(X))
    assert not isinstance(model.first.kernel, nnx.Param)
    assert not isinstance(model.middle.lora.lora_a, nnx.LoRAParam)
    still = _bytes(model.first) | _bytes(model.middle)
    _train(model)
    assert _bytes(model.first) | _bytes(model.middle) == still
    again = pickle.loads(pickle.dumps(model))
    assert type(again.first.kernel) is type(model.first.kernel)
    freezing.undo()
    assert type(model.first.kernel) is Doubled
    assert type(model.middle.lora.lora_a) is nnx.LoRAParam


def test_a_class_with_slots_is_refused_and_nothing_changes() -> None:
    class Slotted(nnx.Param):
        __slots__ = ("extra",)

    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    model.head.kernel = Slotted(model.head.kernel[...])
    with pytest.raises(BackendError, match="set_metadata"):
        freeze(model)
    assert type(model.first.kernel) is nnx.Param


def test_hijax_variables_are_read_and_refused() -> None:
    with nnx.var_defaults(hijax=True):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    assert summary(model).totals.parameters == 8
    with pytest.raises(BackendError, match="hijax"):
        freeze(model)


def test_whole_number_parameters_are_never_trainable() -> None:
    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    model.codes = nnx.Param(jnp.ones((4, 2), jnp.int8))
    assert summary(model).totals.frozen == 8
    freeze(model, layers=None)
    assert nnx.state(model, nnx.Param) == nnx.State({})


def test_jit_traces_anew_when_the_frozen_set_changes_and_only_then() -> None:
    model = Net(lambda rngs: nnx.BatchNorm(4, rngs=rngs))
    traces = []

    @nnx.jit
    def step(model: nnx.Module, x: Any) -> Any:
        traces.append(1)
        return nnx.grad(_mean)(model, x)

    for expected in (1, 2, 2, 2):
        with freeze(model, layers="first"):
            step(model, X)
            step(model, X)
        step(model, X)
        assert len(traces) == expected + (expected == 1)


def test_a_function_cached_before_is_found_out_by_verify() -> None:
    """``nnx.cached_partial`` goes on with the classes it saw; it can't know better."""
    model = Net(lambda rngs: nnx.BatchNorm(4, rngs=rngs))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: Any) -> None:
        optimizer.update(model, nnx.grad(_mean)(model, x))

    cached = nnx.cached_partial(step, model, optimizer)
    cached(X)
    freezing = freeze(model, layers="first")
    cached(X)
    with pytest.raises(FrozenMovedError, match=r"first\.kernel"):
        freezing.verify()
    freezing = freeze(model, layers="first")
    freezing.attach(optimizer)
    nnx.cached_partial(step, model, optimizer)(X)
    assert freezing.verify()


# Held modules.


def test_batch_norm_keeps_its_statistics_whoever_asks_otherwise() -> None:
    model = Net(lambda rngs: nnx.BatchNorm(4, rngs=rngs))
    freezing = freeze(model, layers="middle")
    model.train()
    model.middle.use_running_average = False
    expected = nnx.BatchNorm.__call__(nnx.merge(*nnx.split(model.middle)), X, use_running_average=True)
    for asked in ({}, {"use_running_average": False}):
        np.testing.assert_array_equal(model.middle(X, **asked), expected)
    np.testing.assert_array_equal(model.middle(X, False), expected)
    assert model.middle.use_running_average is True
    assert freezing.verify()
    freezing.undo()
    assert model.middle.use_running_average is False
    model.middle(X)
    assert float(jnp.abs(model.middle.mean[...]).max()) > 0


def test_a_held_module_looks_like_its_class() -> None:
    model = Net(lambda rngs: nnx.BatchNorm(4, rngs=rngs))
    freeze(model, layers="middle")
    assert isinstance(model.middle, nnx.BatchNorm)
    assert type(model.middle).__qualname__ == "BatchNorm"
    assert type(model.middle).__module__ == nnx.BatchNorm.__module__
    assert type(copy.deepcopy(model).middle) is type(model.middle)


@pytest.mark.parametrize("inference", ["norm", "all", "none"])
def test_spectral_norm_rewrites_no_frozen_kernel(inference: Any) -> None:
    """In nnx it writes the normalised kernel over the kernel, at every call."""
    model = Net(lambda rngs: nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs))
    twin = nnx.clone(model)
    twin.eval()
    expected = twin.middle(X)
    freezing = freeze(model, layers="middle", inference=inference)
    kernel, statistics = _bytes(model.middle, freezing.param_filter), _bytes(model.middle, nnx.BatchStat)
    if inference != "none":
        np.testing.assert_allclose(model.middle(X), expected, rtol=1e-6)
    _train(model)
    assert _bytes(model.middle, freezing.param_filter) == kernel
    assert (_bytes(model.middle, nnx.BatchStat) == statistics) == (inference != "none")
    freezing.undo()
    assert type(model.middle) is nnx.SpectralNorm
    _train(model)
    assert _bytes(model.middle, nnx.Param) != kernel


@pytest.mark.parametrize("wrapper", [nnx.SpectralNorm, nnx.WeightNorm])
def test_what_a_norm_wraps_can_be_frozen_alone(wrapper: Any) -> None:
    model = Net(lambda rngs: wrapper(nnx.Linear(4, 4, rngs=rngs), rngs=rngs))
    twin = nnx.clone(model)
    freezing = freeze(model, layers="middle.layer_instance")
    np.testing.assert_allclose(model.middle(X), twin.middle(X), rtol=1e-6)
    _train(model)
    assert freezing.verify()
    assert type(unfreeze(model) and model.middle) is wrapper


class Counting(nnx.Module):
    """State of every kind: a variable of its own class, one in a list, a bare array, and methods beside ``__call__`` that write them."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.ones(4))
        self.calls = nnx.Variable(jnp.zeros(()))
        self.seen = nnx.List([nnx.BatchStat(jnp.zeros(4))])
        self.bare = jnp.zeros(())
        self.rngs = rngs.noise.fork()

    def __call__(self, x: Any) -> Any:
        self.bare = self.bare + 1
        return self.noted(x) * self.scale + 0 * jax.random.normal(self.rngs())

    def noted(self, x: Any) -> Any:
        self.calls[...] += 1
        self.seen[0][...] = x.mean(0)
        return x


def test_any_state_of_a_held_module_stays() -> None:
    model = Net(Counting)
    assert [b.path for b in layers(model, "middle")[0].buffers if b.role != "rng"] == ["middle.calls", "middle.bare", "middle.seen.0"]
    freezing = freeze(model, layers="middle")
    model(X)
    model.middle.noted(X)
    _train(model)
    assert freezing.verify()
    assert float(model.middle.calls[...]) == 0
    assert int(model.middle.rngs.count[...]) > 0, "random numbers stand still under 'norm'"
    freezing.undo()
    model(X)
    assert float(model.middle.calls[...]) == 1
    assert float(model.middle.bare) == 1
    freezing = freeze(model, layers="middle", inference="all")
    count = int(model.middle.rngs.count[...])
    model(X)
    assert int(model.middle.rngs.count[...]) == count
    assert freezing.verify()


class OwnNorm(nnx.Module):
    """A normalisation with a switch of its own, given at the call."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.ones(4))
        self.mean = nnx.BatchStat(jnp.zeros(4))

    @functools.partial(nnx.jit, static_argnames="train")
    def __call__(self, x: Any, train: bool = True) -> Any:
        mean = x.mean(0) if train else self.mean[...]
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
        return (x - mean) * self.scale


def test_a_switch_given_at_the_call_is_overruled() -> None:
    model = Net(OwnNorm)
    freeze(model, layers="middle")
    np.testing.assert_allclose(model.middle(X, train=True), X, rtol=1e-6)
    np.testing.assert_allclose(model.middle(X), X, rtol=1e-6)
    assert not np.any(model.middle.mean[...])


def test_attention_drops_nothing_under_all_and_still_decodes() -> None:
    model = nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, decode=False, rngs=nnx.Rngs(0))
    freezing = freeze(model, inference="all")
    model.train()
    x = jnp.ones((2, 5, 4))
    np.testing.assert_array_equal(model(x), model(x))
    model.init_cache((2, 5, 4))
    model.decode = True
    model(x[:, :1])
    model(x[:, :1])
    assert int(model.cache_index[...]) == 2, "a cache is no state of the model"
    assert summary(model).totals.buffers == 2, "the random key and its count"
    assert freezing.verify()


def test_recurrent_cells() -> None:
    model = Net(lambda rngs: nnx.RNN(nnx.LSTMCell(4, 4, rngs=rngs), rngs=rngs))
    assert {layer.kind for layer in layers(model, "middle.**")} == {"dense"}
    assert [layer.kind for layer in (layers(model, last(1)))] == ["dense"]
    freezing = freeze(model, layers="middle", inference="all")
    _train(model, x=X.reshape(2, 4, 4))
    assert freezing.verify()


def test_stacked_blocks_under_scan() -> None:
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linear = nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.norm(self.linear(x))

    class Stack(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block))(rngs)

        def __call__(self, x: Any) -> Any:
            return nnx.scan(Block.__call__, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)

    model = Net(Stack)
    freezing = freeze(model, layers="middle")
    head = _bytes(model.head)
    _train(model)
    assert len(freezing.verify().arrays) == 8
    assert _bytes(model.head) != head


def test_remat_jit_and_tree_mode() -> None:
    class Inner(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        @nnx.remat
        def __call__(self, x: Any) -> Any:
            return self.norm(x)

    model = Net(Inner)
    freezing = freeze(model, layers=~last(1))
    _train(model)
    tree_mode = {"graph": False} if "graph" in inspect.signature(nnx.Optimizer.__init__).parameters else {}  # newer than flax 0.12.6
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param, **tree_mode)

    @nnx.jit(**tree_mode)
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: Any) -> None:
        optimizer.update(model, nnx.grad(_mean, **tree_mode)(model, x))

    head = _bytes(model.head)
    step(model, optimizer, X)
    assert _bytes(model.head) != head
    assert freezing.verify()


def test_a_linen_module_inside() -> None:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))

    class Bridged(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linen = nnx.bridge.ToNNX(Linen(), rngs=rngs)
            self.linen.lazy_init(X)

        def __call__(self, x: Any) -> Any:
            return self.linen(x, mutable=["batch_stats"])

    model = Net(Bridged)
    freezing = freeze(model, layers="middle")
    _train(model)
    assert {path.rpartition(".")[2] for path in freezing.verify().arrays} == {"kernel", "bias", "scale", "mean", "var"}
    freezing.undo()
    _train(model)
    with pytest.raises(FrozenMovedError):
        freezing.verify()


# The tree.


class Backwards(nnx.Module):
    """Its layers stand in another order than their names."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.z = nnx.Linear(2, 2, rngs=rngs)
        self.m = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])
        self.by_name = nnx.Dict({"y": nnx.Linear(2, 2, rngs=rngs), "b": nnx.Linear(2, 2, rngs=rngs)})
        self.a = nnx.Linear(2, 2, rngs=rngs)


ORDER = ["z", *(f"m.{i}" for i in range(11)), "by_name.y", "by_name.b", "a"]


@pytest.mark.parametrize(
    "made",
    [
        lambda: Backwards(nnx.Rngs(0)),
        lambda: nnx.clone(Backwards(nnx.Rngs(0))),
        lambda: copy.deepcopy(Backwards(nnx.Rngs(0))),
        nnx.jit(lambda: Backwards(nnx.Rngs(0))),
        lambda: nnx.eval_shape(lambda: Backwards(nnx.Rngs(0))),
        lambda: jax.tree.map(lambda leaf: leaf, Backwards(nnx.Rngs(0))),
    ],
    ids=["made", "clone", "deepcopy", "jit", "eval_shape", "tree.map"],
)
def test_the_order_is_that_of_the_definition_also_after_nnx_sorted_it(made: Callable[[], nnx.Module]) -> None:
    model = made()
    assert [layer.path for layer in layers(model)] == ORDER
    assert freeze(model, layers=first(2)).layers == ("z", "m.0")


def test_counting_is_refused_where_the_order_is_lost() -> None:
    class NoPytree(nnx.Module, pytree=False):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.z = nnx.Linear(2, 2, rngs=rngs)
            self.a = nnx.Linear(2, 2, rngs=rngs)

    model = NoPytree(nnx.Rngs(0))
    assert freeze(model, layers=first(1)).layers == ("z",)
    with pytest.raises(SelectorError, match="split and merge"):
        freeze(nnx.clone(model), layers=first(1))


def test_lists_and_dicts_of_modules_are_layers_and_of_arrays_are_none() -> None:
    model = Backwards(nnx.Rngs(0))
    model.more = nnx.data([nnx.Linear(2, 2, rngs=nnx.Rngs(0))])
    model.gains = nnx.data({"x": nnx.Param(jnp.ones(3)), "y": [nnx.Param(jnp.ones(2))]})
    assert freeze(model, layers=model.more).frozen == ("more.0.kernel", "more.0.bias")
    own = layers(model, "**")[0]
    assert [p.path for p in own.parameters] == ["gains.x", "gains.y.0"]


def test_cycles_and_shared_modules() -> None:
    model = Backwards(nnx.Rngs(0))
    model.back = model
    model.again = model.z
    freezing = freeze(model, layers="again")
    assert summary(model).totals.parameters == 15 * 6
    assert freezing.frozen == ("z.kernel", "z.bias")


def test_kinds() -> None:
    rngs = nnx.Rngs(0)
    expected = {
        "dense": [nnx.Linear(2, 2, rngs=rngs), nnx.LinearGeneral(2, 2, rngs=rngs), nnx.Einsum("ab,bc->ac", (2, 2), rngs=rngs), nnx.LoRA(2, 1, 2, rngs=rngs)],
        "conv": [nnx.Conv(2, 2, 3, rngs=rngs), nnx.Conv(4, 4, 3, feature_group_count=2, rngs=rngs)],
        "depthwise_conv": [nnx.Conv(4, 4, 3, feature_group_count=4, rngs=rngs)],
        "conv_transpose": [nnx.ConvTranspose(2, 2, 3, rngs=rngs)],
        "embedding": [nnx.Embed(2, 2, rngs=rngs)],
        "group_norm": [nnx.GroupNorm(4, 2, rngs=rngs)],
        "instance_norm": [nnx.InstanceNorm(4, rngs=rngs)],
        "rms_norm": [nnx.RMSNorm(4, rngs=rngs)],
        "attention": [nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)],
        "recurrent": [nnx.GRUCell(2, 2, rngs=rngs), nnx.OptimizedLSTMCell(2, 2, rngs=rngs), nnx.SimpleCell(2, 2, rngs=rngs)],
        "activation": [nnx.PReLU()],
        "container": [Backwards(rngs)],
        "other": [Counting(rngs)],
    }
    backend = freeze(nnx.Linear(2, 2, rngs=rngs))._backend
    assert {kind: [backend.layers(module).kind for module in modules] for kind, modules in expected.items()} == {
        kind: [kind] * len(modules) for kind, modules in expected.items()
    }


def test_an_abstract_model_is_counted_and_frozen_without_values() -> None:
    model = nnx.eval_shape(lambda: Reference(nnx.Rngs(0)))
    freezing = freeze(model, layers="stem")
    assert summary(model).totals.frozen == 3 * 3 * 3 * 4 + 4 + 8
    assert freezing.held == ("stem.norm",)
    graphdef, abstract = nnx.split(model)
    values = jax.tree.leaves(nnx.state(Reference(nnx.Rngs(0))))
    real = nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(abstract), values))
    assert set(nnx.state(real, nnx.Param)) == {"body", "head"}
    assert "stem" not in nnx.grad(lambda m: jnp.sum(m(jnp.ones((2, 8, 8, 3)))))(real)


def test_ten_thousand_layers() -> None:
    model = nnx.Sequential(*(nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)) for _ in range(3_000)))
    model.deep = model
    for _ in range(3_000):
        model = nnx.Sequential(model)
    assert summary(freeze(model, params="bias")).totals.frozen == 3_000


# The optimizer.


def _moments(optimizer: nnx.Optimizer) -> list[Any]:
    return jax.tree.leaves(optimizer.opt_state, is_leaf=lambda part: isinstance(part, nnx.State | nnx.Variable))


def test_a_live_optimizer_without_attach_raises() -> None:
    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    optimizer = _train(model)
    freeze(model, layers="first")
    with pytest.raises(ValueError, match="symmetric difference"):
        _train(model, optimizer=optimizer)


def test_attach_keeps_the_very_moments_and_forgets_the_frozen() -> None:
    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    optimizer = _train(model)
    tx, moment = optimizer.tx, optimizer.opt_state[0].mu["head"]["kernel"]
    freezing = freeze(model, layers="first")
    assert freezing.attach(optimizer) is optimizer
    assert optimizer.tx is tx, "nothing is new, so nothing needs grouping"
    assert optimizer.opt_state[0].mu["head"]["kernel"] is moment
    assert "first" not in optimizer.opt_state[0].mu
    _train(model, optimizer=optimizer)
    assert freezing.verify()
    assert int(optimizer.step[...]) == 6


def test_what_is_unfrozen_starts_afresh_while_the_schedule_goes_on() -> None:
    rates = []

    def schedule(count: Any) -> Any:
        return 0.01 * 0.9**count

    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    freeze(model, layers=["first", "middle"])
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    _train(model, 5, optimizer=optimizer)
    head = nnx.state(model.head)
    unfreeze(model, layers="middle").attach(optimizer)
    before = np.asarray(model.middle.kernel[...])
    _train(model, 1, optimizer=optimizer)
    rates.append(np.abs(np.asarray(model.middle.kernel[...]) - before).max())
    np.testing.assert_allclose(rates, [0.01 * 0.9**5], rtol=1e-3)
    counts = [int(part[...]) for part in _moments(optimizer) if isinstance(part, nnx.Variable)]
    assert counts == [6, 6, 1, 6]
    unfreeze(model).attach(optimizer)
    _train(model, 2, optimizer=optimizer)
    assert len(optimizer.opt_state.groups) == 3
    freeze(model, layers="middle").attach(optimizer)
    _train(model, 2, optimizer=optimizer)
    assert len(optimizer.opt_state.groups) == 2
    assert head


def test_pre_sees_all_groups_at_once() -> None:
    def run(*, late: bool) -> dict[Any, bytes]:
        model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
        freezing = freeze(model, layers="first")
        optimizer = freezing.optimizer(optax.sgd(0.1), pre=optax.clip_by_global_norm(0.01))
        if late:
            freezing.undo().attach(optimizer)
        else:
            optimizer = freezing.undo().optimizer(optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.1)))
        _train(model, optimizer=optimizer)
        return _bytes(model)

    assert run(late=True) == run(late=False)


def test_attach_finds_the_optimizer_of_another_model() -> None:
    optimizer = _train(Net(lambda rngs: nnx.BatchNorm(4, rngs=rngs)))
    other = Backwards(nnx.Rngs(0))
    with pytest.raises(BackendError, match="another model"):
        freeze(other, layers="z").attach(optimizer)


def test_attach_guards_a_filter_that_goes_by_path_alone() -> None:
    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    wrt = nnx.Any(nnx.PathContains("kernel"), nnx.PathContains("bias"))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=wrt)
    freezing = freeze(model, layers="first")
    freezing.attach(optimizer)
    for _ in range(2):
        optimizer.update(model, nnx.grad(_mean, argnums=nnx.DiffState(0, wrt))(model, X))
    assert freezing.verify()


def test_optimizers_without_moments_and_models_with_nothing_to_train() -> None:
    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    optimizer = _train(model, optimizer=nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))
    freezing = freeze(model)
    freezing.attach(optimizer)
    _train(model, optimizer=optimizer)
    assert freezing.verify()
    freezing.undo().attach(optimizer)
    still = _bytes(model)
    _train(model, optimizer=optimizer)
    assert not set(still.values()) & set(_bytes(model).values())


def test_value_and_grad_reads_as_with_any_jax_model() -> None:
    model = Net(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    freezing = freeze(model, layers="first")
    optimizer = freezing.optimizer(optax.adam(0.01))
    _, gradients = freezing.value_and_grad(_mean)(model, X)
    optimizer.update(model, gradients)
    assert set(gradients) == {"middle", "head"}
    assert freezing.verify()
