"""JAX on an accelerator: the conformance suite of its three backends, and fingerprints taken on the device."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kits.equinox import EquinoxKit
from kits.jax import JaxKit
from kits.nnx import NnxKit
from unifreeze import freeze
from unifreeze._backends.jax.fingerprint import _fold, fingerprint, is_far
from unifreeze.errors import FrozenMovedError
from unifreeze.testing import Conformance

TYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint32, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn]
HOST = jax.devices("cpu")[0]


class TestConformance(Conformance):
    kit = JaxKit()


class TestNnx(Conformance):
    kit = NnxKit()


class TestEquinox(Conformance):
    kit = EquinoxKit()


def made(dtype: Any, size: int) -> Any:
    draw = np.random.default_rng(0).integers(0, 2 if dtype is jnp.bool_ else 256, size * jnp.dtype(dtype).itemsize, dtype=np.uint8)
    return draw.view(jnp.dtype(dtype)).reshape(-1)


@pytest.mark.parametrize("size", [3, 70_003, 5_000_011])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_device_tells_what_the_host_tells(dtype: Any, size: int) -> None:
    array = made(dtype, size)
    here, there = jax.device_put(array, HOST), jax.device_put(array, jax.devices()[0])
    assert is_far(there)
    assert not is_far(here)
    assert fingerprint(there) == fingerprint(here)
    octets = array.copy().view(np.uint8)
    octets[size // 2] ^= 1
    assert fingerprint(jax.device_put(octets.view(array.dtype), jax.devices()[0])) != fingerprint(here)


def test_narrow_integers_are_read_on_the_host() -> None:
    array = jnp.arange(100_000).astype(jnp.int4)
    assert fingerprint(array) == fingerprint(jax.device_put(array, HOST))


def test_folding_takes_little_memory() -> None:
    array = jnp.ones(64 << 20, jnp.float32)
    with jax.enable_x64(True):
        needed = _fold.lower(array).compile().memory_analysis()
    assert needed.temp_size_in_bytes < array.nbytes / 16


def test_a_fingerprint_is_cheaper_than_a_copy_to_the_host() -> None:
    array = jax.block_until_ready(jax.random.normal(jax.random.key(0), (64 << 20,)))
    fingerprint(array)
    ours, copied = [], []
    for _ in range(10):
        start = time.perf_counter()
        fingerprint(array)
        ours.append(time.perf_counter() - start)
        fresh = jax.block_until_ready(array + 0)  # an array keeps the copy that was made of it
        start = time.perf_counter()
        np.asarray(fresh)
        copied.append(time.perf_counter() - start)
    assert sorted(ours)[5] < sorted(copied)[5]


def test_a_digest_and_a_proof_survive_the_way_to_the_host() -> None:
    params = {"a": {"kernel": jax.random.normal(jax.random.key(0), (600, 600))}, "b": {"kernel": jnp.ones((600, 2))}}
    freezing = freeze(params, layers="a")
    home = jax.device_put(params, HOST)
    freezing.verify(home)
    assert str(freezing.digest(home)) == str(freezing.digest(params))
    with pytest.raises(FrozenMovedError, match=r"a\.kernel"):
        freezing.verify({**params, "a": {"kernel": params["a"]["kernel"].at[5, 7].add(1e-3)}})


def test_a_donating_step_under_mixed_precision() -> None:
    params = {"a": {"kernel": jax.random.normal(jax.random.key(0), (256, 256))}, "b": {"kernel": jnp.ones((256, 2))}}
    freezing = freeze(params, layers="a")
    before = np.asarray(params["a"]["kernel"]).tobytes()
    tx = freezing.optimizer(optax.adamw(1e-2, weight_decay=0.1), pre=optax.clip_by_global_norm(1.0))

    def loss(params: Any, x: Any) -> Any:
        low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        return ((x @ low["a"]["kernel"] @ low["b"]["kernel"]).astype(jnp.float32) ** 2).mean()

    def step(params: Any, state: Any, x: Any) -> Any:
        _, grads = freezing.value_and_grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return freezing.apply_updates(params, updates), state

    run, state = jax.jit(step, donate_argnums=(0, 1)), tx.init(params)
    for seed in range(5):
        params, state = run(params, state, jax.random.normal(jax.random.key(seed), (32, 256), jnp.bfloat16))
    assert np.asarray(params["a"]["kernel"]).tobytes() == before
    assert not np.array_equal(np.asarray(params["b"]["kernel"]), np.ones((256, 2)))
    freezing.verify(params)
