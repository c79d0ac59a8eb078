"""Fingerprints of Keras variables: the fold on a device is the fold on the host, on every engine, and no change goes unseen."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

from unifreeze._backends.keras import fingerprint as whole
from unifreeze._backends.keras import folding

room = sys.modules[whole.__module__]


def made(dtype: str, size: int) -> keras.Variable:
    draw = np.random.default_rng(0).normal(size=size) * 100
    return keras.Variable(keras.ops.cast(draw, dtype), trainable=False, dtype=dtype)


@pytest.mark.parametrize("size", [70_003, 262_144])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool"])
def test_the_device_folds_as_the_host_does(dtype: str, size: int) -> None:
    value = made(dtype, size)._value
    assert folding.nbytes(value) == np.asarray(keras.ops.convert_to_numpy(value)).nbytes
    assert not folding.is_far(value)
    assert np.array_equal(folding.folded_there(value), room._octets(value))


def test_what_lies_far_is_folded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    variable, seen = made("float32", 70_003), []
    before = whole(variable)
    monkeypatch.setattr(room, "is_far", lambda value: True)
    monkeypatch.setattr(room, "folded_there", lambda value: seen.append(value) or folding.folded_there(value))
    assert whole(variable) == before
    assert len(seen) == 1
    monkeypatch.setattr(room, "folded_there", lambda value: 1 / 0)
    assert whole(variable) == before, "what can't be folded there is read on the host"


@pytest.mark.parametrize("far", [False, True])
def test_no_change_of_a_byte_goes_unseen(far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_far", lambda value: far)
    variable = made("float32", 70_003)
    array = np.array(keras.ops.convert_to_numpy(variable))
    found = {whole(variable)}
    signs, swapped = array.copy(), array.copy()
    signs[[5, 20_000]] *= -1
    swapped[[3, 40_000]] = array[[40_000, 3]]
    for other in (signs, swapped, *(flipped(array, place) for place in (0, 1, array.nbytes // 2, array.nbytes - 1))):
        variable.assign(other)
        found.add(whole(variable))
    assert len(found) == 7
    variable.assign(array)
    assert whole(variable) in found


def flipped(array: np.ndarray, place: int) -> np.ndarray:
    other = array.copy()
    other.view(np.uint8)[place] ^= 1
    return other


def test_many_are_read_as_each_by_itself() -> None:
    variables = [made(dtype, size) for dtype in ("float32", "bfloat16", "int8", "bool") for size in (3, 70_003)]
    tensor = variables[0]._value + 1
    arrays = [*variables, tensor, variables[0]]
    assert room.fingerprints(arrays) == [whole(array) for array in arrays]
    assert len(set(room.fingerprints(arrays))) == len(variables) + 1
