"""Fingerprints and marks of tensors: what PyTorch folds on a device is what NumPy folds on the host, with and without NumPy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from unifreeze._backends.torch import BACKEND
from unifreeze._backends.torch.folding import folded_there
from unifreeze.plugin import Mark, folded

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn]


def made(dtype: torch.dtype, size: int) -> torch.Tensor:
    octets = np.random.default_rng(0).integers(0, 2 if dtype is torch.bool else 256, size * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(octets).view(dtype)


@pytest.mark.parametrize("size", [20_011, 70_003, 5_000_011])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_device_folds_as_the_host_does(dtype: torch.dtype, size: int) -> None:
    tensor = made(dtype, size)
    octets = tensor.view(torch.uint8).numpy()
    whole = octets.size // 8 * 8
    assert folded_there(tensor).numpy().tobytes() == folded(octets[:whole].view(np.uint64)).tobytes() + octets[whole:].tobytes()


@pytest.mark.parametrize("start", range(9))
def test_a_view_may_begin_anywhere(start: int) -> None:
    octets = made(torch.uint8, 70_003)
    assert torch.equal(folded_there(octets[start:]), folded_there(octets[start:].clone()))


@pytest.mark.parametrize("size", [17, 300, 70_003])
@pytest.mark.parametrize("dtype", TYPES)
def test_no_change_of_a_byte_goes_unseen_by_a_mark(dtype: torch.dtype, size: int) -> None:
    tensor = made(dtype, size)
    before, shown = BACKEND.marks([tensor]), BACKEND.fingerprints([tensor])
    assert isinstance(before[0], Mark) == (tensor.nbytes > 64)
    octets = tensor.view(torch.uint8)
    for place in (0, 1, octets.numel() // 2, octets.numel() - 1):
        octets[place] ^= 1
        assert BACKEND.marks([tensor]) != before
        assert BACKEND.marks([tensor], before) != before
        assert BACKEND.marks([tensor], shown) == BACKEND.fingerprints([tensor]) != shown
        octets[place] ^= 1
    assert BACKEND.marks([tensor], before) == BACKEND.marks([tensor.clone()]) == before


def test_a_mark_is_of_the_values_in_their_order_not_of_how_they_lie() -> None:
    tensor = torch.randn(8, 16, 5, 5)
    other = tensor.to(memory_format=torch.channels_last)
    assert BACKEND.marks([other]) == BACKEND.marks([tensor])
    assert BACKEND.marks([tensor.mT]) != BACKEND.marks([tensor])
    small = torch.arange(12.0).view(4, 3)
    assert BACKEND.marks([small.T]) == BACKEND.marks([small.T.contiguous()])


TURNED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"conjugated": torch.conj, "negated": torch._neg_view}


@pytest.mark.parametrize("size", [1, 100, 70_003])
@pytest.mark.parametrize("way", TURNED)
def test_a_view_that_turns_its_numbers_is_read_as_what_it_means(way: str, size: int) -> None:
    tensor = torch.randn(size, dtype=torch.complex64 if way == "conjugated" else torch.float32)
    turned = TURNED[way](tensor)
    plain = torch.from_numpy(turned.resolve_conj().resolve_neg().numpy().copy())
    for take in (BACKEND.marks, BACKEND.fingerprints):
        assert take([turned]) == take([plain]) != take([tensor])
        assert take([TURNED[way](turned)]) == take([tensor])


class Inside(torch.Tensor):
    """A tensor that keeps another one, and no memory of its own."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*tree_map(lambda one: one.inner if isinstance(one, Inside) else one, args), **(kwargs or {}))
        return Inside(found) if isinstance(found, torch.Tensor) else found


def test_what_has_no_memory_of_its_own_is_not_read_from_there() -> None:
    """At address 0, where reading ends the process."""
    for size in (5, 500, 70_003):
        inner = torch.ones(size)
        for take in (BACKEND.marks, BACKEND.fingerprints):
            before = take([Inside(inner)])
            inner[-1] += 1
            assert take([Inside(inner)]) != before
            inner[-1] -= 1
            assert take([Inside(inner)]) == before != [None]
        given_back = torch.ones(size)
        given_back.untyped_storage().resize_(0)
        assert BACKEND.marks([given_back]) == BACKEND.fingerprints([given_back]) == [None]


@pytest.mark.parametrize("size", [5, 500, 70_003])
def test_values_are_read_where_a_mode_only_pretends_to_compute(size: int) -> None:
    tensors = [torch.randn(size), torch.randn(size, 2).T]
    takes = (BACKEND.marks, BACKEND.fingerprints, lambda arrays: [BACKEND.values(array).tobytes() for array in arrays])
    before = [take(tensors) for take in takes]
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert [take(tensors) for take in takes] == before
        assert BACKEND.marks([torch.ones(size)]) == [None]


def test_what_has_no_plain_bytes_is_not_marked() -> None:
    sparse, rounded = torch.eye(30).to_sparse(), torch.quantize_per_tensor(torch.randn(300), 0.1, 0, torch.qint8)
    odd = [sparse, rounded, torch.empty(300, device="meta"), torch.nn.Parameter(torch.randn(300)), None]
    made, shown = BACKEND.marks(odd), BACKEND.fingerprints(odd)
    assert [type(one) is Mark for one in made] == [False, False, False, True, False]
    assert [one for one in made if type(one) is not Mark] == [one for one, mark in zip(shown, made, strict=True) if type(mark) is not Mark]
    assert BACKEND.marks(odd, shown) == shown


WITHOUT_NUMPY = """
import sys
if {without}: sys.modules["numpy"] = None
import torch
from torch import nn
from unifreeze import freeze, summary
from unifreeze.errors import BackendError, FrozenMovedError
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2))
freezing = freeze(model, layers="0")
print(freezing.digest())
freezing.verify()
print(summary(model))
model[0].weight.data.view(torch.int32)[7, 9] ^= 1
try:
    freezing.verify()
except FrozenMovedError as moved:
    print(moved)
try:
    freezing.remember(exact=True)
    assert not {without}
except BackendError as error:
    assert {without} and "pip install numpy" in str(error)
"""


def test_nothing_of_it_needs_numpy() -> None:
    """PyTorch installs without NumPy; the digest that is told must not depend on it."""
    programs = [WITHOUT_NUMPY.format(without=without) for without in (False, True)]
    told = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False) for program in programs]
    assert [run.returncode for run in told] == [0, 0], told[1].stderr
    assert "0.weight" in told[0].stdout
    assert told[0].stdout == told[1].stdout
