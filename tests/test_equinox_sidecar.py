"""What outlives the process in equinox: a record beside serialised leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import pytest

from unifreeze import apply, freeze, record
from unifreeze.errors import FrozenMovedError, RecipeError


class Network(eqx.Module):
    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, seed: int, out: int = 2) -> None:
        one, other = jax.random.split(jax.random.key(seed))
        self.body, self.head = eqx.nn.Linear(4, 6, key=one), eqx.nn.Linear(6, out, key=other)
        self.norm = eqx.nn.BatchNorm(6, "batch", mode="ema")


def build(*args: int) -> Any:
    return eqx.nn.make_with_state(Network)(*args)


def test_a_record_is_applied_and_checked_after_the_leaves_were_read(tmp_path: Path) -> None:
    pair, file = build(0), tmp_path / "model.json"
    freezing = freeze(pair, layers=["body", "norm"])
    record(freezing, values=True).save(file)
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", pair)
    other = build(1)
    with pytest.raises(FrozenMovedError, match=r"(?s)2 arrays of Network .* differ .*body\.weight, body\.bias"):
        apply(other, file)
    read = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", other)
    again = apply(read, file)
    assert (again.frozen, again.held, again.digest()) == (freezing.frozen, ("norm",), freezing.digest())
    assert again == freezing, "and a jitted step takes it as the same plan"
    with pytest.raises(FrozenMovedError, match=r"norm\.mean"):
        apply(read[0], file)  # a module without its state has not the statistics


def test_a_foreign_module_is_refused() -> None:
    kept = record(freeze(build(0), layers="body"))
    with pytest.raises(RecipeError, match=r"(?s)the record has head \(Linear\) with \(2, 6\).*the model has head \(Linear\) with \(3, 6\)"):
        apply(build(0, 3), kept)
