"""Writes what the conformance suite found, for the table that closes ``nox -s tests``."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", help="write the outcome of each conformance check to this file")


# A file for one of Keras's backends alone. In the sessions of the others it is no part of the tests, and the header says so.
_NEEDS_JAX = "test_keras_distribution.py"


def _left_out() -> bool:
    return os.environ.get("KERAS_BACKEND") != "jax"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    away = [item for item in items if item.path.name == _NEEDS_JAX and _left_out()]
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if item not in away]


def pytest_report_header() -> list[str]:
    return [f"deselected: {_NEEDS_JAX}, which is for KERAS_BACKEND=jax alone"] if "KERAS_BACKEND" in os.environ and _left_out() else []


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--conformance")
    # A worker sees its own tests alone; the controller sees all.
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(Path(path)), "conformance-report")


class Report:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checks: dict[str, Counter[str]] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "::TestConformance::" not in report.nodeid or (report.when != "call" and report.passed):
            return
        check = report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_")
        expected = hasattr(report, "wasxfail")
        self.checks.setdefault(check, Counter())["gap" if expected and report.skipped else report.outcome] += 1
        if expected:
            self.reasons[check] = report.wasxfail

    def pytest_sessionfinish(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({check: {**counts, "reason": self.reasons.get(check, "")} for check, counts in self.checks.items()}, indent=1))
