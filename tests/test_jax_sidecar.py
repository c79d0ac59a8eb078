"""What outlives the process in JAX: a record beside saved arrays, in another process; and the digest, also over several devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from unifreeze import apply, freeze, record
from unifreeze.errors import FrozenMovedError, RecipeError

RESTORED = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from unifreeze import apply, freeze
from unifreeze.errors import FrozenMovedError

flat = np.load(sys.argv[1])
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), P("x"))
assert len(jax.devices()) == 4
params = {}
for name in flat.files:
    part, leaf = name.split(".")
    params.setdefault(part, {})[leaf] = jax.device_put(flat[name], sharding)
other = jax.tree.map(lambda a: a + 1, params)
try:
    apply(other, Path(sys.argv[2]))
except FrozenMovedError as error:
    assert "body.kernel" in str(error), error
else:
    raise SystemExit("other weights were taken")
freezing = apply(params, Path(sys.argv[2]))
print(freezing.digest(), *sorted(freezing.frozen))
"""


def params() -> Any:
    draw = np.random.default_rng(0)
    return {part: {"kernel": jnp.asarray(draw.normal(size=(64, 256)), jnp.float32), "bias": jnp.ones(64)} for part in ("body", "head")}


def test_a_record_is_applied_and_checked_in_another_process_on_other_devices(tmp_path: Path) -> None:
    tree = params()
    freezing = freeze(tree, layers="body")
    np.savez(tmp_path / "arrays.npz", **{f"{part}.{leaf}": np.array(array) for part, leaves in tree.items() for leaf, array in leaves.items()})
    record(freezing, values=True).save(tmp_path / "model.json")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    call = [sys.executable, "-c", RESTORED, str(tmp_path / "arrays.npz"), str(tmp_path / "model.json")]
    found = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == " ".join([str(freezing.digest()), *sorted(freezing.frozen)])


def test_the_digest_of_values_now_and_of_those_at_the_freeze() -> None:
    tree = params()
    freezing = freeze(tree, layers="body")
    assert freezing.digest() == freezing.digest(tree)
    moved = {**tree, "body": {**tree["body"], "bias": tree["body"]["bias"].at[0].set(3)}}
    assert freezing.digest(moved).values != freezing.digest().values
    assert freezing.digest({**tree, "head": moved["body"]}) == freezing.digest()
    mapped = jax.jit(lambda t: t)({"head": tree["head"], "body": tree["body"]})
    assert freeze(mapped, layers="body").digest() == freezing.digest(), "sorted by jit"
    assert freeze(jax.eval_shape(params), layers="body").digest().plan == freezing.digest().plan
    assert not freeze(jax.eval_shape(params), layers="body").digest().values


@pytest.mark.parametrize("how", ["msgpack", "orbax"])
def test_variables_of_linen_from_the_formats_that_people_save_them_in(how: str, tmp_path: Path) -> None:
    network = nn.Sequential([nn.Dense(6), nn.BatchNorm(use_running_average=False), nn.Dense(2)])
    one, other = (network.init(jax.random.key(seed), jnp.ones((2, 4))) for seed in (0, 1))
    freezing = freeze(one, layers="first:2")
    record(freezing, values=True).save(tmp_path / "model.json")
    with pytest.raises(FrozenMovedError, match=r"(?s)one array of .* differs .*layers_0\.kernel"):
        apply(other, tmp_path / "model.json")
    if how == "msgpack":
        read = serialization.from_bytes(other, serialization.to_bytes(one))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "weights", one)
        with ocp.StandardCheckpointer() as checkpointer:
            read = checkpointer.restore(tmp_path / "weights", jax.eval_shape(lambda: other))
    again = apply(read, tmp_path / "model.json")
    assert (again, again.digest()) == (freezing, freezing.digest())


def test_what_does_not_fit_is_refused() -> None:
    tree = params()
    kept = record(freeze(tree, layers="body"), values=True)
    with pytest.raises(RecipeError, match=r"\(64, 256\)"):
        apply({**tree, "body": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(64)}}, kept)
    with pytest.raises(FrozenMovedError, match="not the weights"):
        apply(jax.eval_shape(params), kept)
    assert apply(jax.eval_shape(params), kept, values=False).frozen
