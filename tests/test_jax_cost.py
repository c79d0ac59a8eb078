"""What a step costs: no more than by hand, for a net of 50 million parameters of which nothing is allocated."""

from __future__ import annotations

import jax
import optax
import pytest

from jax_cost import CLIP, LARGE, RULE, SMALL, by_hand, nbytes, ours, ours_whole, usual
from unifreeze import freeze


@pytest.mark.parametrize("part", ["prefix", "suffix", "middle"])
def test_a_step_costs_what_it_costs_by_hand(part: str) -> None:
    """With clipping, and with the gradients and their norm returned: what brings the frozen backward pass back when gradients are masked."""
    frozen = LARGE.parts()[part]
    assert sum(leaf.size for leaf in jax.tree.leaves(LARGE.shapes()[0])) > 50_000_000
    hand, mine = by_hand(LARGE, frozen), ours_whole(LARGE, frozen)
    assert mine.over(hand)["flops"] <= 1.02
    assert mine.over(hand)["bytes"] <= 1.02
    assert mine.state == hand.state, "optimizer state for what is frozen"
    assert mine.gradients == hand.gradients, "gradient arrays for what is frozen"


def test_a_parted_tree_costs_the_same() -> None:
    frozen = SMALL.parts()["middle"]
    hand, mine = by_hand(SMALL, frozen), ours(SMALL, frozen)
    assert max(mine.over(hand).values()) <= 1.02
    assert (mine.state, mine.gradients) == (hand.state, hand.gradients)


def test_the_measure_sees_what_the_usual_recipes_waste() -> None:
    """So that the ratios above are more than two equal numbers of nothing."""
    params, _ = SMALL.shapes()
    frozen = SMALL.parts()["prefix"]
    hand = by_hand(SMALL, frozen)
    labels = {name: "off" if name in frozen else "on" for name in params}
    outside = usual(SMALL, frozen, optax.chain(CLIP, optax.partition({"on": RULE, "off": optax.set_to_zero()}, labels)))
    assert outside.over(hand)["flops"] > 1.5
    stopped = usual(SMALL, frozen, optax.chain(CLIP, RULE), stop=True)
    assert stopped.state > 2 * hand.state


def test_an_unmodified_step_costs_no_more_unless_it_looks_at_all_gradients() -> None:
    params, _ = SMALL.shapes()
    frozen = SMALL.parts()["prefix"]
    hand, tx = by_hand(SMALL, frozen), freeze(params, layers=frozen).optimizer(RULE, pre=CLIP)
    assert usual(SMALL, frozen, tx, norm=False).over(hand)["flops"] <= 1.02
    assert usual(SMALL, frozen, tx).over(hand)["flops"] > 1.5


def test_nothing_of_what_is_frozen_leaves_a_jitted_gradient() -> None:
    params, x = SMALL.shapes()
    freezing = freeze(params, layers="block_[0-3]")
    grads = jax.jit(freezing.grad(SMALL.loss)).lower(params, x).out_info
    assert [name for name in grads if jax.tree.leaves(grads[name])] == ["block_4", "block_5"]
    assert nbytes(grads) == nbytes({name: params[name] for name in ("block_4", "block_5")})
