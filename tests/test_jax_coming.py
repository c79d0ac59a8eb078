"""Coming from optax: what the page says one writes moves the same parameters, and no others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kits.coming import rows, run

PARTS = ("stem", "body", "head")


def masked(word: object, other: object) -> dict[str, object]:
    return {part: {"kernel": other if part == "head" else word} for part in PARTS}


@pytest.mark.parametrize(("wrote", "write"), rows("optax"))
def test_both_sides_move_the_same(wrote: str, write: str) -> None:
    params = {part: {"kernel": jnp.full((3, 3), 0.5)} for part in PARTS}
    grads = jax.tree.map(jnp.ones_like, params)
    ends = []
    for code in (wrote, write):
        tx = run(code, params=params, optax=optax, labels=masked("freeze", "train"), frozen=masked(True, False), trainable=masked(False, True))["tx"]
        updates, _ = tx.update(grads, tx.init(params), params)
        ends.append(optax.apply_updates(params, updates))
    moved = [{part for part in PARTS if not np.array_equal(params[part]["kernel"], end[part]["kernel"])} for end in ends]
    assert moved == [{"head"}, {"head"}]
