"""What ``import unifreeze`` costs over a bare interpreter: interleaved runs, medians, and what it loads."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

RUNS = 30
HEAVY = {"torch", "keras", "tensorflow", "jax", "flax", "equinox", "numpy", "rich", "typer", "click"}


def seconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def main() -> None:
    programs = {
        "bare interpreter": "pass",
        "import unifreeze": "import unifreeze",
        "… and freeze": "from unifreeze import freeze",
        "import pluggy": "import pluggy",
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(RUNS):
        for name, program in programs.items():
            times[name].append(seconds(program))
    bare = statistics.median(times["bare interpreter"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:18} {median * 1000:6.1f} ms  {(median - bare) * 1000:+6.1f} ms over a bare interpreter  ({median / bare:.2f}x)")
    program = "import unifreeze, json, sys; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    print(f"heavy modules loaded: {sorted(HEAVY & set(loaded)) or 'none'} (goal: none; goal for the time: at most 50 ms)")


if __name__ == "__main__":
    main()
