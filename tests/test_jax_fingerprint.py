"""Fingerprints of JAX arrays: the fold on a device is the fold on the host, and no change goes unseen."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifreeze._backends.jax import fingerprint as whole
from unifreeze._backends.jax.fingerprint import _octets, fingerprints, folded_there

TYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint32, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn]


def made(dtype: Any, size: int) -> Any:
    draw = np.random.default_rng(0).integers(0, 2 if dtype is jnp.bool_ else 256, size * jnp.dtype(dtype).itemsize, dtype=np.uint8)
    return jnp.asarray(draw.view(jnp.dtype(dtype)).reshape(-1))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_device_folds_as_the_host_does(dtype: Any) -> None:
    array = made(dtype, 70_003)
    assert np.array_equal(folded_there(array), _octets(array))


@pytest.mark.parametrize("dtype", TYPES)
def test_no_change_of_a_byte_goes_unseen(dtype: Any) -> None:
    array = np.array(made(dtype, 70_003))
    before = whole(jnp.asarray(array))
    octets = array.view(np.uint8)
    for place in (0, 1, octets.size // 2, octets.size - 1):
        octets[place] ^= 1
        assert whole(jnp.asarray(array)) != before
        octets[place] ^= 1
    assert whole(jnp.asarray(array)) == before


def test_what_plain_sums_would_miss() -> None:
    array = np.array(made(jnp.float32, 70_003))
    before = whole(jnp.asarray(array))
    swapped = array.copy()
    swapped[[3, 40_000]] = array[[40_000, 3]]
    signs = array.copy()
    signs[[5, 20_000]] *= -1
    assert len({before, whole(jnp.asarray(swapped)), whole(jnp.asarray(signs)), whole(jnp.asarray(array).reshape(1, -1))}) == 4


def test_many_are_read_as_each_by_itself() -> None:
    arrays = [made(dtype, size) for dtype in TYPES for size in (3, 70_003)]
    arrays += [np.asarray(arrays[0]), jax.ShapeDtypeStruct((3,), jnp.float32), jax.random.key(0), arrays[1], jnp.zeros((0, 4))]
    assert fingerprints(arrays) == [whole(array) for array in arrays]
    assert len({*fingerprints(arrays)}) == len(arrays) - 2  # one is there twice, and one as NumPy's


def test_what_is_folded_on_a_device_has_the_fingerprint_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [made(jnp.float32, size) for size in (3, 70_003, 300_001)]
    here = fingerprints(arrays)
    monkeypatch.setattr(sys.modules[whole.__module__], "is_far", lambda array: True)
    assert fingerprints(arrays) == here
