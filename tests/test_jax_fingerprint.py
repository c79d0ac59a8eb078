"""Fingerprints of JAX arrays: the fold on a device is the fold on the host, and no change goes unseen."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from unifreeze._backends.jax import fingerprint as whole
from unifreeze._backends.jax.fingerprint import _octets, folded_there

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
