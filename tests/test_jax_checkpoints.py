"""Checkpoints: a state comes back under the plan it was saved under, or not at all, and training goes on as if it had never stopped."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.core import freeze as to_frozen_dict

from unifreeze import Freezing, apply, freeze, unfreeze

NAMES = ("stem", "body", "head")
RECIPE = {"name": "top", "steps": [{"freeze": "**"}, {"unfreeze": "head"}, {"unfreeze": "**", "params": "bias"}]}
CLIP = optax.clip_by_global_norm(0.5)


def rule() -> Any:
    return optax.adamw(optax.linear_schedule(0.01, 0.02, 20), weight_decay=0.1)


def net() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32), "bias": jnp.asarray(rng.normal(size=shape[1:]), jnp.float32)}
        for name, shape in zip(NAMES, itertools.pairwise((5, 6, 4, 3)), strict=True)
    }


def loss(params: Any, x: Any) -> Any:
    for name in NAMES:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean((x - 2.0) ** 2)


def train(freezing: Freezing, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    tx = freezing.optimizer(rule(), pre=CLIP)

    @jax.jit
    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = tx.update(freezing.grad(loss)(params, x), state, params)
        return freezing.apply_updates(params, updates), state

    for i in steps:
        params, state = step(params, state, np.random.default_rng(i).normal(size=(8, 5)).astype(np.float32))
    return params, state


def start(freezing: Freezing, params: Any) -> Any:
    return freezing.optimizer(rule(), pre=CLIP).init(params)


def same_bits(one: Any, other: Any) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def save(folder: Path, freezing: Freezing, params: Any, state: Any) -> None:
    with ocp.CheckpointManager(folder) as manager:
        record = {"recipe": RECIPE, "plan": freezing.record(state)}
        args = ocp.args.Composite(params=ocp.args.StandardSave(params), state=ocp.args.StandardSave(state), freezing=ocp.args.JsonSave(record))
        manager.save(0, args=args)
        manager.wait_until_finished()


def saved_freezing(folder: Path) -> dict[str, Any]:
    with ocp.CheckpointManager(folder) as manager:
        return manager.restore(0, args=ocp.args.Composite(freezing=ocp.args.JsonRestore()))["freezing"]


def restore(folder: Path, params: Any, state: Any) -> tuple[Any, Any]:
    with ocp.CheckpointManager(folder) as manager:
        found = manager.restore(0, args=ocp.args.Composite(params=ocp.args.StandardRestore(params), state=ocp.args.StandardRestore(state)))
    return found["params"], found["state"]


@pytest.mark.parametrize("abstract", [False, True], ids=["arrays", "shapes"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path, abstract: bool) -> None:
    freezing = apply(net(), RECIPE)
    params, state = train(freezing, net(), start(freezing, net()), range(6))
    save(tmp_path, freezing, params, state)
    params, state = train(freezing, params, state, range(6, 12))

    blank = jax.eval_shape(net) if abstract else net()
    found = saved_freezing(tmp_path)
    again = apply(blank, found["recipe"])
    assert again == freezing
    target = again.state_like(found["plan"], again.optimizer(rule(), pre=CLIP), blank)
    resumed = train(again, *restore(tmp_path, blank, target), range(6, 12))
    assert same_bits(resumed, (params, state))


def test_a_run_that_grew_is_resumed_with_its_clocks(tmp_path: Path) -> None:
    """A fresh init has one group; a state that was carried has one for each stage, and only the record knows."""
    early = apply(net(), RECIPE)
    params, state = train(early, net(), start(early, net()), range(4))
    late = unfreeze(early, layers="body")
    state = late.carry(late.optimizer(rule(), pre=CLIP), state, params)
    params, state = train(late, params, state, range(4, 8))
    save(tmp_path, late, params, state)
    expected = train(late, params, state, range(8, 12))

    again = unfreeze(apply(net(), saved_freezing(tmp_path)["recipe"]), layers="body")
    target = again.state_like(saved_freezing(tmp_path)["plan"], again.optimizer(rule(), pre=CLIP), net())
    assert [sorted(group.members) for group in target.groups] == [sorted(group.members) for group in state.groups]
    assert same_bits(train(again, *restore(tmp_path, net(), target), range(8, 12)), expected)


def test_another_plan_is_refused_with_both_named(tmp_path: Path) -> None:
    one = freeze(net(), layers="stem")
    save(tmp_path, one, net(), start(one, net()))
    record = saved_freezing(tmp_path)["plan"]
    for other in (freeze(net(), layers="body"), unfreeze(one), freeze(one, layers="body"), freeze(net(), layers="stem", params="kernel")):
        tx = other.optimizer(rule(), pre=CLIP)
        with pytest.raises(ValueError, match=r"(?s)saved: +plan \w{16}, 2 of 6.*stem\.bias.*here: +plan \w{16}, \d of 6.*only") as caught:
            other.state_like(record, tx, net())
        assert one.fingerprint in str(caught.value)
        assert other.fingerprint in str(caught.value)
        with pytest.raises(ValueError, match="structures do not match"):  # without the record, orbax sees other members
            restore(tmp_path, net(), tx.init(net()))


def test_what_orbax_restores_in_part_does_not_train(tmp_path: Path) -> None:
    """``partial_restore`` leaves the moments of a grown plan out, and says nothing."""
    early = freeze(net(), layers="stem")
    params, state = train(early, net(), start(early, net()), range(2))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        late = unfreeze(early)
        target = start(late, params)
        found = checkpointer.restore(tmp_path / "state", args=ocp.args.PyTreeRestore(target, partial_restore=True))
    assert found.groups[0].inner[0].mu["stem"]["kernel"] is not target.groups[0].inner[0].mu["stem"]["kernel"]
    with pytest.raises(ValueError, match="not one of this freezing"):
        train(late, params, found, range(1))


def test_how_layers_are_held_belongs_to_the_plan() -> None:
    variables = {"params": {"norm": {"scale": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}, "batch_stats": {"norm": {"mean": jnp.ones(3)}}}
    norm, none = freeze(variables, layers="norm"), freeze(variables, layers="norm", inference="none")
    record = norm.record(start(norm, variables))
    with pytest.raises(ValueError, match="held otherwise at inference: norm"):
        none.state_like(record, none.optimizer(rule()), variables)


def test_a_record_is_plain_data_and_the_same_everywhere() -> None:
    freezing = freeze(net(), layers="stem")
    record = freezing.record(start(freezing, net()))
    assert json.loads(json.dumps(record)) == record == pickle.loads(pickle.dumps(record))
    assert record["frozen"] == ["stem.bias", "stem.kernel"]
    assert record["groups"] == [record["trainable"]]
    mapped = freeze(to_frozen_dict(jax.tree.map(lambda leaf: leaf, net())), layers="stem")
    assert mapped.fingerprint == freezing.fingerprint == freeze(jax.eval_shape(net), layers="stem").fingerprint
    assert record["plan"] == freezing.fingerprint
    tree = {name: {"kernel": np.ones((2, 2)).tolist(), "bias": [1.0, 1.0]} for name in NAMES}
    made = f"jax.tree.map(jax.numpy.asarray, {tree!r}, is_leaf=lambda leaf: isinstance(leaf, list))"
    program = f"import jax, unifreeze; print(unifreeze.freeze({made}, layers='stem').fingerprint)"
    told = subprocess.check_output([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": "1"}, text=True)
    assert told.strip() == freezing.fingerprint, "a checkpoint outlives the process"


def test_only_the_states_and_records_of_a_plan_are_taken() -> None:
    freezing, other = freeze(net(), layers="stem"), freeze(net(), layers="body")
    tx = freezing.optimizer(rule(), pre=CLIP)
    with pytest.raises(ValueError, match=r"(?s)not one of this freezing.*body\.bias"):
        freezing.record(start(other, net()))
    with pytest.raises(ValueError, match=r"(?s)not one of this freezing.*tuple"):
        freezing.record(rule().init(net()))
    for wrong in (None, {}, {"recipe": RECIPE}, start(freezing, net())):
        with pytest.raises(ValueError, match="no record of a plan"):
            freezing.state_like(wrong, tx, net())
    with pytest.raises(ValueError, match=r"(?s)state_like.*another freezing"):
        freezing.state_like(freezing.record(start(freezing, net())), other.optimizer(rule()), net())


def test_flax_restores_into_the_same_target() -> None:
    early = freeze(net(), layers="stem")
    params, state = train(early, net(), start(early, net()), range(2))
    late = unfreeze(early)
    state = late.carry(late.optimizer(rule(), pre=CLIP), state, params)
    blob, record = serialization.to_bytes(state), late.record(state)
    target = late.state_like(record, late.optimizer(rule(), pre=CLIP), net())
    assert same_bits(serialization.from_bytes(target, blob), state)


def test_shapes_of_a_state_have_the_shardings_of_their_parameters() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), net())
    freezing = freeze(shapes, layers="stem")
    target = freezing.state_like(freezing.record(start(freezing, net())), freezing.optimizer(rule(), pre=CLIP), shapes)
    moments = target.groups[0].inner[0]
    assert isinstance(moments.mu["head"]["kernel"], jax.ShapeDtypeStruct)
    assert moments.mu["head"]["kernel"].sharding == moments.nu["body"]["bias"].sharding == rows
    assert moments.count.sharding is None
