"""What correspondence takes of memory: next to nothing, with weights or without; and carrying them no more than both models. Read from the kernel."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn

from unifreeze import correspond

MIB = 2**20
WIDTH, DEPTH = 1024, 16
ONE_MODEL = 4 * WIDTH * WIDTH * DEPTH


class Deep(linen.Module):
    width: int
    depth: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.depth):
            x = linen.relu(linen.Dense(self.width)(x))
        return linen.Dense(3)(x)


def of_torch(width: int, depth: int) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """What the work returns, and how far it raised what the process takes at most."""
    ctypes.CDLL(None).malloc_trim(0)  # what tests before have freed would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident()
    return work(), resident() - before


def resident() -> int:
    """The most that this process has held in memory since that was last set back, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def abstract(width: int, depth: int) -> tuple[Any, Any]:
    module = Deep(width, depth)
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, width))), module.apply


def test_the_eyes_see_what_an_array_takes() -> None:
    array, taken = peak(lambda: np.ones(64 * MIB, "uint8"))
    assert 0.9 * array.nbytes < taken < 1.5 * array.nbytes


def test_models_that_no_machine_holds_correspond_from_their_shapes_alone() -> None:
    width, depth = 65_536, 64  # a terabyte each
    with torch.device("meta"):
        theirs = of_torch(width, depth)
    correspond(of_torch(4, 1), abstract(4, 1)[0], shape=(1, 4), apply=Deep(4, 1).apply)  # what is imported and compiled once
    variables, apply = abstract(width, depth)
    found, taken = peak(lambda: correspond(theirs, variables, shape=(1, width), apply=apply))
    assert (found.certificate, len(found.pairs)) == ("exact", depth + 1)
    assert all(p.is_meta for p in theirs.parameters())
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables))
    assert taken < 100 * MIB


def test_to_correspond_takes_next_to_nothing_and_to_carry_no_more_than_both_models() -> None:
    source, target = of_torch(WIDTH, DEPTH), of_torch(WIDTH, DEPTH)
    correspond(of_torch(4, 1), of_torch(4, 1), shape=(1, 4)).transfer()
    found, taken = peak(partial(correspond, source, target, shape=(1, WIDTH)))
    assert taken < ONE_MODEL / 4
    _, taken = peak(found.transfer)
    assert taken < 2 * ONE_MODEL
    assert all(map(torch.equal, source.state_dict().values(), target.state_dict().values()))
