"""What a training step costs when unifreeze has frozen a part, against the best loop by hand: ``python benchmarks/cost.py [pairs]``.

The two take turns in one process, in alternating order, and each pair gives a ratio of processor times (one thread); the table shows the median of the ratios
and the range of their middle half. Peak memory is what torch's profiler saw allocated at once in a step, above what the step began with. The last row of each
network is the same loop by hand against itself: what is noise.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median, quantiles

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import torch

from kits.torch_cost import PARTS, Run, by_hand, by_unifreeze, peak, state_bytes

SIZE = {"ResNet-18": 8, "transformer": 8}


def seconds(run: Run) -> float:
    start = time.process_time()
    run.step()
    return time.process_time() - start


def ratios(ours: Run, hand: Run, pairs: int) -> list[float]:
    for run in (ours, hand) * 2:
        run.step()
    found = []
    for turn in range(pairs):
        if turn % 2:
            mine, theirs = seconds(ours), seconds(hand)
        else:
            theirs, mine = seconds(hand), seconds(ours)
        found.append(mine / theirs)
    return found


def row(name: str, part: str, ours: Run, hand: Run, pairs: int) -> str:
    found = ratios(ours, hand, pairs)
    low, _, high = quantiles(found, n=4)
    cells = f"{median(found):.3f} | {low:.3f}–{high:.3f} | {peak(ours) / peak(hand):.3f} | {state_bytes(ours)[0]} | {state_bytes(ours)[1]:,}"
    return f"| {name} | {part} | {cells} |"


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, AdamW, {pairs} pairs of steps: unifreeze / by hand\n")
    print("| network | frozen | time | middle half | peak memory | bytes of optimizer state, frozen | trainable |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name, parts in PARTS.items():
        for part in parts:
            print(row(name, part, by_unifreeze(name, part, SIZE[name]), by_hand(name, part, SIZE[name]), pairs), flush=True)
        print(row(name, "middle, by hand against itself", by_hand(name, "middle", SIZE[name]), by_hand(name, "middle", SIZE[name]), pairs), flush=True)


if __name__ == "__main__":
    main()
