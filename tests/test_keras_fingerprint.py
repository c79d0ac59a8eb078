"""Fingerprints and marks of Keras variables: the fold on a device is the fold on the host, on every engine, and no change goes unseen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable

import keras
import numpy as np
import pytest

from unifreeze import freeze, guard, summary
from unifreeze._backends.keras import fingerprint as whole
from unifreeze._backends.keras import folding
from unifreeze.errors import FrozenMovedError
from unifreeze.plugin import Mark

room = sys.modules[whole.__module__]


def made(dtype: str, size: int) -> keras.Variable:
    draw = np.random.default_rng(0).normal(size=size) * 100
    return keras.Variable(keras.ops.cast(draw > 0 if dtype == "bool" else draw, dtype), trainable=False, dtype=dtype)


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


def marked(variable: keras.Variable) -> Hashable:
    return room.marks([variable], ())[0]


@pytest.mark.parametrize("take", [whole, marked])
@pytest.mark.parametrize("far", [False, True])
def test_no_change_of_a_byte_goes_unseen(far: bool, take: Callable[[keras.Variable], Hashable], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_far", lambda value: far)
    variable = made("float32", 70_003)
    array = np.array(keras.ops.convert_to_numpy(variable))
    found = {take(variable)}
    signs, swapped = array.copy(), array.copy()
    signs[[5, 20_000]] *= -1
    swapped[[3, 40_000]] = array[[40_000, 3]]
    for other in (signs, swapped, *(flipped(array, place) for place in (0, 1, array.nbytes // 2, array.nbytes - 1))):
        variable.assign(other)
        found.add(take(variable))
    assert len(found) == 7
    variable.assign(array)
    assert take(variable) in found


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool"])
def test_what_the_host_reads_is_marked_by_its_bytes(dtype: str) -> None:
    variables = [made(dtype, size) for size in (0, 1, 3, 70_003)]
    marks = room.marks(variables, ())
    assert {type(mark) for mark in marks} == {Mark}
    assert len(set(marks)) == 4
    square = made(dtype, 250_000)
    turned = keras.Variable(keras.ops.transpose(keras.ops.reshape(square, (500, 500))), trainable=False, dtype=dtype)
    copied = keras.Variable(np.ascontiguousarray(keras.ops.convert_to_numpy(turned)), trainable=False, dtype=dtype)
    assert marked(turned) == marked(copied) != marked(square)
    assert room.marks([*variables, turned], [*map(whole, variables), whole(turned)]) == room.fingerprints([*variables, turned])


def test_what_is_compared_is_read_as_it_was_wherever_it_lies_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300, name="base"), keras.layers.Dense(2, name="head")])
    place, folded = {"far": False}, []
    monkeypatch.setattr(room, "is_far", lambda value: place["far"])
    monkeypatch.setattr(room, "folded_there", lambda value: folded.append(value) or folding.folded_there(value))
    here = freeze(model, layers="base")
    place["far"] = True
    there = freeze(model, layers="base")
    assert folded, "what lies far is folded where it lies"
    assert here.digest() == there.digest()
    kernel = model.get_layer("base").kernel
    before = np.array(keras.ops.convert_to_numpy(kernel))
    with guard(model) as g:
        for far in (True, False, True):
            place["far"] = far
            for promise in (here.verify, there.verify, g.check):
                promise()
            kernel.assign(flipped(before, 7))
            for promise in (here.verify, there.verify, g.check):
                with pytest.raises(FrozenMovedError, match=r"base\.kernel"):
                    promise()
            kernel.assign(before)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other engines have no strings")
def test_strings_are_read_as_what_they_say() -> None:
    layer = keras.layers.Layer(name="words")
    layer.words = keras.Variable(np.array(["frozen", "trained"] * 2_000, object), dtype="string", trainable=False, name="words")
    layer.built = True
    freezing = freeze(layer, inference="all").remember(exact=True)
    shown = freezing.digest()
    layer.words.assign(["frozen", "trained"] * 2_000)  # the same, in other places of memory
    freezing.verify()
    assert freezing.digest() == shown
    layer.words.assign(["frozen", "trained"] * 1_999 + ["frozen", "thawed!"])
    with pytest.raises(FrozenMovedError, match="words"):
        freezing.verify()
    assert freezing.digest() != shown


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="tensors of PyTorch")
def test_tensors_that_numpy_can_not_show_are_read_by_the_backend_of_pytorch() -> None:
    import torch

    module = torch.nn.Linear(3, 3)
    buffers = {"sparse": torch.eye(300).to_sparse(), "eight": torch.ones(300).to(torch.float8_e4m3fn), "turned": torch.ones(300, dtype=torch.complex64).conj()}
    for name, tensor in buffers.items():
        module.register_buffer(name, tensor)
    layer = keras.layers.TorchModuleWrapper(module, name="base")
    freezing = freeze(layer, inference="all").remember(exact=True)
    freezing.verify()
    assert freezing.digest() == freeze(layer, inference="all").digest()
    assert summary(layer).to_dict()["totals"]["bytes_buffers"] == 300 * (8 + 8 + 4) + 300 + 300 * 8
    for name, moved in {"sparse": module.sparse._values(), "eight": module.eight.view(torch.uint8), "turned": module.turned.conj()}.items():
        before = moved.clone()
        moved[7] += 1
        with pytest.raises(FrozenMovedError, match=name):
            freezing.verify()
        moved.copy_(before)
    freezing.verify()
