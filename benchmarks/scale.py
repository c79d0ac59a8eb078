"""How the cost of ``freeze`` and ``summary`` grows with the number of layers: ``python benchmarks/scale.py``.

Beside it a loop by hand over the parameters, which sets ``requires_grad`` and adds up the counts, and finds no layer, holds no statistics, and proves nothing.
Both take turns in one process, in processor time; the figures are the ratio of the best turns and the median of the ratios, turn by turn: a single lucky turn
of the loop by hand moves the first by a fifth.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable

from torch import nn

from unifreeze import UnifreezeWarning, freeze, summary

LENGTHS = (100, 1_000, 10_000, 100_000)


def by_hand(model: nn.Module) -> int:
    count = 0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        count += parameter.numel()
    return count


def ours(model: nn.Module) -> int:
    return summary(freeze(model)).totals.frozen


def seconds(call: Callable[[nn.Module], int], model: nn.Module) -> float:
    start = time.process_time()
    call(model)
    return time.process_time() - start


def main() -> None:
    warnings.simplefilter("ignore", UnifreezeWarning)
    print("| layers | by hand | freeze + summary | best : best | median ratio |\n|--:|--:|--:|--:|--:|")
    costs = []
    for length in LENGTHS:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(length)))
        assert by_hand(model) == ours(model) == 20 * length
        hand, mine = [], []
        for _ in range(max(3, min(50, 250_000 // length))):
            model.requires_grad_(True)
            hand.append(seconds(by_hand, model))
            model.requires_grad_(True)
            mine.append(seconds(ours, model))
        costs.append(min(mine))
        median = statistics.median(one / other for one, other in zip(mine, hand, strict=True))
        print(f"| {length:,} | {min(hand) * 1e3:.1f} ms | {min(mine) * 1e3:.1f} ms | {min(mine) / min(hand):.1f} | {median:.1f} |", flush=True)
    xs, ys = [math.log(length) for length in LENGTHS], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
    print(f"\ncost grows as layers to the power of {slope:.2f}")


if __name__ == "__main__":
    main()
