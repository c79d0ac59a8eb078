"""What can't be done in JAX is said, with the way out; what has a rule keeps to it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze as to_frozen_dict
from flax.training.train_state import TrainState

from unifreeze import Freezing, UnifreezeError, apply, freeze, layers, summary, unfreeze
from unifreeze.errors import BackendError, UnbuiltModelError

X = jax.random.normal(jax.random.key(7), (8, 5))
DOCS = sorted(Path(__file__).parent.parent.glob("docs/*.md"))


def net() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32), "bias": jnp.asarray(rng.normal(size=shape[1:]), jnp.float32)}
        for name, shape in zip(("stem", "body", "head"), itertools.pairwise((5, 6, 4, 3)), strict=True)
    }


def loss(params: Any, x: Any = X) -> Any:
    for name in ("stem", "body", "head"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean((x - 2.0) ** 2)


def train_state() -> TrainState:
    return TrainState.create(apply_fn=loss, params=net(), tx=optax.adam(0.1))


# What is no model.


@pytest.mark.parametrize("verb", [freeze, summary, layers, lambda state: freeze(net()).verify(state), lambda state: apply(state, {"steps": []})])
def test_a_train_state_is_refused_with_its_params_named(verb: Any) -> None:
    with pytest.raises(TypeError, match=r"(?s)TrainState is a training state.*step.*params.*opt_state.*f = freeze\(state\.params\).*tx=f\.optimizer"):
        verb(train_state())


def test_what_the_refusal_of_a_train_state_says_works() -> None:
    state = train_state()
    f = freeze(state.params, layers="stem")
    state = TrainState.create(apply_fn=loss, params=state.params, tx=f.optimizer(optax.adam(0.1)))
    after = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(loss)(state.params)))(state)
    assert np.asarray(after.params["stem"]["kernel"]).tobytes() == np.asarray(state.params["stem"]["kernel"]).tobytes()
    assert not np.array_equal(after.params["head"]["kernel"], state.params["head"]["kernel"])
    with pytest.raises(UnifreezeError, match=r"unknown: opt_state"):
        f.optimizer(optax.adam(0.1)).init(state)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (lambda: {"params": net(), "opt_state": optax.adam(0.1).init(net())}, r"dict is a training state.*freeze\(state\['params'\]\)"),
        (lambda: optax.adam(0.1).init(net()), "state of an optimizer at 0: ScaleByAdamState"),
        (lambda: {"net": net(), "memory": {"of": optax.sgd(0.1, momentum=0.9).init(net())}}, r"state of an optimizer at memory\.of\.0: TraceState"),
        (lambda: freeze(net(), layers="stem").optimizer(optax.adam(0.1)).init(net()), "state of an optimizer: PlannedState"),
    ],
    ids=["checkpoint", "adam", "inside", "ours"],
)
def test_moments_are_no_parameters(tree: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"(?s){words}"):
        freeze(tree())


@pytest.mark.parametrize(
    "tree",
    [{"a": {"kernel": jnp.arange(3)}}, {"tokens": np.arange(9), "mask": np.ones(3, bool)}, [jax.random.key(0)], {"a": jnp.ones(3, jnp.int8), "b": None}],
    ids=["kernel", "data", "key", "int8"],
)
def test_a_tree_without_floats_is_refused(tree: Any) -> None:
    for verb in (freeze, summary):
        with pytest.raises(TypeError, match=r"(?s)No array of this tree is floating-point.*its arrays: \[.*no model"):
            verb(tree)


@pytest.mark.parametrize("verb", [freeze, summary, layers])
def test_what_makes_parameters_is_told_from_them(verb: Any) -> None:
    with pytest.raises(UnbuiltModelError, match=r"(?s)Dense holds no parameters.*model\.init\(key, x\).*freeze\(variables\)"):
        verb(nn.Dense(3))
    bound = nn.Dense(3).bind(nn.Dense(3).init(jax.random.key(0), X))
    with pytest.raises(UnbuiltModelError, match=r"(?s)bound linen module.*freeze\(model\.variables\)"):
        verb(bound)
    assert freeze(bound.variables).frozen == ("kernel", "bias")
    for transform in (hk.transform, hk.transform_with_state):
        with pytest.raises(UnbuiltModelError, match=r"Transformed\w* holds no parameters"):
            verb(transform(lambda x: hk.nets.MLP([3])(x) + 1))
    with pytest.raises(TypeError, match="give an instance"):
        verb(nn.Dense)


def test_a_flat_dict_of_paths_is_a_tree() -> None:
    flat = {f"encoder.{i}.{name}": jnp.ones((2, 2) if name == "weight" else 2) for i in range(11) for name in ("weight", "bias")}
    assert freeze(flat, layers="encoder.1").frozen == ("encoder.1.weight", "encoder.1.bias")
    with pytest.raises(TypeError, match="no JAX arrays"):
        freeze({"encoder.weight": [1.0, 2.0], "encoder.bias": "text"})


def test_a_tree_can_not_be_unfrozen_only_a_freezing() -> None:
    with pytest.raises(TypeError, match=r"(?s)carries no state.*unfreeze\(freezing"):
        unfreeze(net(), layers="head")


def test_rows_are_refused_and_what_the_refusal_says_works() -> None:
    table = jnp.arange(12.0).reshape(6, 2)
    with pytest.raises(BackendError, match=r"(?s)rows= is not known to the jax backend.*jnp\.concatenate\(\[params\['old'\], params\['new'\]\]\)"):
        freeze({"embed": {"embedding": table}}, layers="embed", rows=slice(0, 4))
    params = {"old": {"embedding": table[:4]}, "new": {"embedding": table[4:]}}
    f = freeze(params, layers="old")
    tx = f.optimizer(optax.adamw(0.1, weight_decay=0.1))

    def loss(params: Any) -> Any:
        return jnp.sum(jnp.concatenate([params["old"]["embedding"], params["new"]["embedding"]])[jnp.array([0, 5])] ** 2)

    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert np.array_equal(after["old"]["embedding"], table[:4])
    assert np.all(after["new"]["embedding"] != table[4:]), "the row without a gradient decays"


# What a verb does not take.


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: f.optimizer(), r"missing 1 required positional argument: 'tx'"),
        (lambda f: f.verify(), r"keeps no values.*freezing\.verify\(params\)"),
        (lambda f: f.verify(f), r"keeps no values"),
    ],
)
def test_a_wrong_argument_is_named_with_the_right_one(call: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"(?s){words}"):
        call(freeze(net(), layers="stem"))


def test_carry_and_updates_name_what_they_were_given() -> None:
    f = freeze(net(), layers="stem")
    state = f.optimizer(optax.adam(0.1)).init(net())
    with pytest.raises(UnifreezeError, match=r"(?s)carry\(\) takes what optimizer\(\) of this freezing returned.*given: GradientTransformation"):
        f.carry(optax.adam(0.1), state, net())
    with pytest.raises(UnifreezeError, match=r"(?s)updates must have the leaves.*missing: body\.bias"):
        f.apply_updates(net(), None)
    with pytest.raises(UnifreezeError, match=r"(?s)two parts must have the leaves.*missing: stem\.bias"):
        f.combine(f.partition(net())[0], None)


# Rules.


def test_nones_and_integers_go_through_every_verb() -> None:
    tree = {**net(), "nothing": None, "steps": jnp.arange(3), "key": jax.random.key(0), "codes": {"kernel": jnp.ones((2, 2), jnp.int8)}}
    f = freeze(tree, layers="stem")
    assert set(f.frozen) == {"stem.kernel", "stem.bias", "codes.kernel"}
    tx = f.optimizer(optax.adamw(0.1), pre=optax.clip_by_global_norm(1.0))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(f.grad(loss)(params), state, params)
        return f.apply_updates(params, updates), state

    after, _ = step(tree, tx.init(tree))
    assert jax.tree.structure(after) == jax.tree.structure(tree)
    assert after["nothing"] is None
    for name in ("steps", "codes", "stem"):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(jax.tree.leaves(after[name]), jax.tree.leaves(tree[name]), strict=True))
    assert f.combine(*f.partition(tree))["codes"]["kernel"] is tree["codes"]["kernel"]


def test_no_parameter_is_wrapped_copied_or_retyped() -> None:
    for tree in (net(), to_frozen_dict(net()), {"half": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}, "numpy": {"kernel": np.ones((2, 2), np.float32)}, **net()}):
        before = jax.tree.leaves(tree)
        f = freeze(tree, layers="stem")
        f.optimizer(optax.adam(0.1)).init(tree)
        assert all(a is b for a, b in zip(jax.tree.leaves(tree), before, strict=True))
        assert all(a is b for a, b in zip(jax.tree.leaves(f.combine(*f.partition(tree))), before, strict=True))
        seen: list[Any] = []
        f.hold(lambda tree, seen=seen: seen.extend(jax.tree.leaves(tree)))(tree)
        assert all(a is b for a, b in zip(seen, before, strict=True))
        zeros = jax.tree.map(jnp.zeros_like, tree)
        after = f.apply_updates(tree, zeros)
        assert after["stem"]["kernel"] is tree["stem"]["kernel"]
        assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in before]


def test_two_leaves_that_are_one_array_are_frozen_as_one_and_stay_one() -> None:
    table = jnp.ones((3, 2))
    tree = {"embed": {"embedding": table}, "mid": {"kernel": jnp.ones((2, 2))}, "head": {"embedding": table}}
    f = freeze(tree, layers="head")
    assert f.labels["embed"]["embedding"] == f.labels["head"]["embedding"] == "frozen"
    tx = f.optimizer(optax.adamw(0.1))
    grads = f.grad(lambda tree: jnp.sum(tree["embed"]["embedding"] @ tree["mid"]["kernel"] @ tree["head"]["embedding"].T))(tree)
    updates, _ = tx.update(grads, tx.init(tree), tree)
    after = f.apply_updates(tree, updates)
    assert after["embed"]["embedding"] is after["head"]["embedding"] is table
    copies = {**tree, "head": {"embedding": jnp.array(table)}}
    assert freeze(copies, layers="head").frozen == ("head.embedding",)


def test_no_mask_without_its_way_in_the_name() -> None:
    f = freeze(net(), layers="stem")
    with pytest.raises(AttributeError, match=r"(?s)no 'mask'.*frozen_mask.*trainable_mask"):
        _ = f.mask
    frozen, trainable = jax.tree.leaves(f.frozen_mask), jax.tree.leaves(f.trainable_mask)
    assert [type(leaf) for leaf in frozen + trainable] == [bool] * 12
    assert all(a is not b for a, b in zip(frozen, trainable, strict=True))
    assert DOCS
    assert not [page.name for page in DOCS if "_mask" in page.read_text()], "a mask given the wrong way round can't be detected, so no page asks for one"


def test_a_summary_touches_no_class_and_no_module() -> None:
    """Flax's tabulate runs the model, fails on shapes, and then leaves classes patched: nothing of ours may call it."""
    for page in Path(freeze.__code__.co_filename).parent.rglob("*.py"):
        assert "tabulate(" not in page.read_text(), page
    classes = (nn.Dense, nn.Module, nnx.Linear, nnx.Module)
    before = [dict(vars(kind)) for kind in classes]
    variables = jax.eval_shape(nn.Dense(3).init, jax.random.key(0), X)
    assert summary(variables).totals.parameters == 18
    model = nnx.eval_shape(lambda: nnx.Linear(5, 3, rngs=nnx.Rngs(0)))
    assert summary(model).totals.parameters == 18
    assert isinstance(freeze(model), Freezing)
    assert [dict(vars(kind)) for kind in classes] == before
    assert nnx.Linear(5, 3, rngs=nnx.Rngs(0))(X).shape == (8, 3)


def test_one_shape_in_two_places_is_two_arrays_and_one_array_is_one() -> None:
    """Shapes written by hand are reused; only a real array in two places is shared."""
    square = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    tree = {"one": {"kernel": square}, "two": {"kernel": square}}
    assert freeze(tree, layers="one").trainable == ("two.kernel",)
    assert unfreeze(freeze(tree), layers="two").frozen == ("one.kernel",)
    assert summary(freeze(tree, layers="one")).totals.parameters == summary(tree).totals.parameters == 18
    table = jnp.ones((3, 3))
    tied = freeze({"one": {"kernel": table}, "two": {"kernel": table}, "three": {"kernel": jnp.ones((3, 3))}}, layers="one")
    assert tied.trainable == ("three.kernel",)
    assert unfreeze(tied, layers="two").frozen == ()
    assert summary(tied).totals.parameters == 18
    assert jax.eval_shape(lambda tree: jax.tree.map(jnp.transpose, tree), tied.model)["one"]["kernel"].shape == (3, 3)
