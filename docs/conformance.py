"""Prints the table backend × check from the reports of the last ``nox -s tests``, and writes it to docs/conformance.md when every backend ran.

Exits with 1 if a backend that was asked for has no report, ran no check, skipped one, or failed one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "conformance.md"
Outcomes = dict[str, dict[str, int | str]]

HEAD = """# Conformance

What the suite found when `nox -s tests` last ran on every backend. The numbers are cases; each is a real model trained with a real
optimizer, and what moved is read from the arrays without unifreeze. A *gap* is declared with its reason, and turns red when it heals.
"""


def cell(outcomes: Outcomes, check: str) -> str:
    """Describes one check on one backend."""
    seen = outcomes.get(check)
    if seen is None:
        return "—"
    wrong = [f"{seen[word]} {word}" for word in ("failed", "skipped") if seen.get(word)]
    return ", ".join(wrong) or (f"gap ({seen['gap']})" if seen.get("gap") else str(seen["passed"]))


def main(asked: list[str]) -> int:
    """Prints the table, and returns the exit status."""
    reports: dict[str, Outcomes] = {}
    for backend in asked:
        path = ROOT / ".conformance" / f"{backend}.json"
        reports[backend] = json.loads(path.read_text()) if path.exists() else {}
    checks = list(dict.fromkeys(check for outcomes in reports.values() for check in outcomes))
    rows = [[check.replace("_", " "), *(cell(outcomes, check) for outcomes in reports.values())] for check in checks]
    table = Table("check", *reports, title="Conformance: backend × check")
    for row in rows:
        table.add_row(*row)
    Console(width=200 if len(asked) > 4 else 120).print(table)
    declared = [(check, backend, seen[check]["reason"]) for backend, seen in reports.items() for check in seen if seen[check].get("gap")]
    gaps = [f"{check.replace('_', ' ')} ({backend}): {reason}" for check, backend, reason in declared]
    for line in gaps:
        print(f"gap: {line}")
    missing = [backend for backend, outcomes in reports.items() if not outcomes or set(outcomes) != set(checks)]
    wrong = [
        f"{row[0]} on {backend}: {value}" for row in rows for backend, value in zip(reports, row[1:], strict=True) if "failed" in value or "skipped" in value
    ]
    for line in [f"{backend} did not run every check" for backend in missing] + wrong:
        print(f"FAILED: {line}")
    if not missing and not wrong and len(asked) == len(_every()):
        lines = ["| check | " + " | ".join(reports) + " |", "|---|" + "--:|" * len(reports), *("| " + " | ".join(row) + " |" for row in rows)]
        PAGE.write_text("\n".join([HEAD, *lines, "", *(f"- Gap: {line}" for line in gaps), ""]))
    return 1 if missing or wrong else 0


def _every() -> list[str]:
    import tomllib

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [group for group in groups if group.startswith("test-")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
