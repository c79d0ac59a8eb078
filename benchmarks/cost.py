"""What a training step costs when unifreeze has frozen a part, against the best loop by hand: ``python benchmarks/cost.py [rounds of ten pairs]``.

The two take turns in one process, in alternating order, and each pair gives a ratio of processor times (one thread); the table shows the median of the ratios
and the range of their middle half. Every ten pairs both are made anew, since where their arrays happen to lie can cost more than what is measured. Peak memory
is what torch's profiler saw allocated at once in a step, above what the step began with. The last row of each network is the loop by hand against itself: what
is noise.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler talks on standard output

import torch

from kits.torch_cost import PARTS, Run, by_hand, by_unifreeze, peak, state_bytes

SIZE, PAIRS = 8, 10
Make = Callable[[str, str, int], Run]


def seconds(run: Run) -> float:
    start = time.process_time()
    run.step()
    return time.process_time() - start


def ratios(make: Make, name: str, part: str, rounds: int) -> list[float]:
    found = []
    for turn in range(rounds):
        ours_first = turn % 2 == 1
        first, second = (call(name, part, SIZE) for call in ((make, by_hand) if ours_first else (by_hand, make)))
        for run in (first, second) * 2:
            run.step()
        for _ in range(PAIRS):
            one, other = seconds(first), seconds(second)
            found.append(one / other if ours_first else other / one)
            first, second, ours_first = second, first, not ours_first
    return found


def row(name: str, part: str, make: Make, rounds: int, note: str = "") -> str:
    found = ratios(make, name, part, rounds)
    low, _, high = quantiles(found, n=4)
    ours, hand = make(name, part, SIZE), by_hand(name, part, SIZE)
    for run in (ours, hand):
        run.step()
    cells = f"{median(found):.3f} | {low:.3f}–{high:.3f} | {peak(ours) / peak(hand):.3f} | {state_bytes(ours)[0]} | {state_bytes(ours)[1]:,}"
    return f"| {name} | {part}{note} | {cells} |"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, AdamW, {rounds * PAIRS} pairs of steps: unifreeze / by hand\n")
    print("| network | frozen | time | middle half | peak memory | bytes of optimizer state, frozen | trainable |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name, parts in PARTS.items():
        for part in parts:
            print(row(name, part, by_unifreeze, rounds), flush=True)
        print(row(name, "middle", by_hand, rounds, note=", by hand against itself"), flush=True)


if __name__ == "__main__":
    main()
