"""The command line as a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def run(*words: str, cwd: Path | None = None, first: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Runs ``unifreeze words…``; ``first`` is what the process imports before, of the tests."""
    program = f"import sys\nsys.path.append({str(TESTS)!r})\n{first}\nfrom unifreeze.cli import main\nmain()"
    plain = {key: value for key, value in os.environ.items() if key not in {"COLUMNS", "FORCE_COLOR"}}
    return subprocess.run([sys.executable, "-c", program, *words], check=False, capture_output=True, text=True, cwd=cwd, env=plain | env)
