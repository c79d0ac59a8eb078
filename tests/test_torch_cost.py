"""PyTorch: freezing costs what the best loop by hand costs, as far as that can be told without a clock. benchmarks/cost.py holds the clock."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kits.torch_cost import CASES, Run, by_hand, by_unifreeze, peak, state_bytes


def nodes(loss: torch.Tensor) -> Counter[str]:
    """The backward graph, by kind of node."""
    pending, seen = [loss.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(above for above, _ in node.next_functions)
    return Counter(type(node).__name__ for node in seen)


def saved(run: Run) -> int:
    """Bytes that the forward pass keeps for the backward one, each storage once."""
    storages: dict[int, int] = {}

    def pack(array: torch.Tensor) -> torch.Tensor:
        storages[array.untyped_storage().data_ptr()] = array.untyped_storage().nbytes()
        return array

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda array: array):
        loss = run.loss()
    del loss
    return sum(storages.values())


def flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run.step()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "part"), CASES)
def test_nothing_is_computed_or_kept_that_the_best_loop_does_not(name: str, part: str) -> None:
    hand, ours = by_hand(name, part, 2), by_unifreeze(name, part, 2)
    for run in (hand, ours):
        for _ in range(2):
            run.step()
    assert all(parameter.grad is None for module in ours.frozen for parameter in module.parameters())
    assert state_bytes(ours) == state_bytes(hand)
    assert state_bytes(ours)[0] == 0
    assert nodes(ours.loss()) == nodes(hand.loss())
    assert flops(ours) == flops(hand)
    assert saved(ours) == saved(hand)
    ours_peak, hand_peak = peak(ours), peak(hand)
    assert ours_peak == pytest.approx(hand_peak, rel=0.001)


def test_the_measures_see_a_difference() -> None:
    hand, whole = by_hand("ResNet-18", "prefix", 2), by_hand("ResNet-18", "prefix", 2)
    whole.model.requires_grad_(True)
    for run in (hand, whole):
        run.step()
    assert nodes(whole.loss()) != nodes(hand.loss())
    assert flops(whole) > 1.2 * flops(hand)
    assert saved(whole) > 1.1 * saved(hand)
    gradients = sum(parameter.nbytes for module in hand.frozen for parameter in module.parameters())
    # At least: what a convolution needs for scratch on the way differs between processors.
    assert peak(whole) >= peak(hand) + gradients
