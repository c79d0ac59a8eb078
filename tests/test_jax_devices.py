"""Many devices for real: eight of the host, a 4×2 mesh, sharded by the compiler (Auto) and in types (Explicit). Each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("jax_on_eight_devices.py")


@pytest.fixture(scope="module", params=["auto", "explicit"])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    ran = subprocess.run([sys.executable, str(PROGRAM), request.param], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_shardings_are_kept(report: dict[str, Any]) -> None:
    assert report["moments are sharded as their parameters"]
    assert report["shardings kept"]
    assert report["an unmodified step keeps shardings"]


def test_everything_is_donated(report: dict[str, Any]) -> None:
    assert report["donated"]
    assert report["bytes donated"] >= report["bytes of parameters and state"]


def test_only_what_trains_is_added_up_over_the_devices(report: dict[str, Any]) -> None:
    ours, hand, full = (report[name] for name in ("all-reduces", "all-reduces by hand", "all-reduces of full training"))
    assert ours == hand
    assert report["all-reduces of an unmodified step"]["numbers"] <= hand["numbers"]
    assert ours["count"] < full["count"]
    assert ours["numbers"] < 0.4 * full["numbers"]


def test_the_result_is_that_of_one_device(report: dict[str, Any]) -> None:
    assert report["off one device"] <= 2e-5
    assert report["frozen bits kept"]
    assert report["proof"] == 16


def test_what_is_carried_stays_where_it_was(report: dict[str, Any]) -> None:
    assert report["carried moments are the same arrays"]
    assert report["new moments are sharded as their parameters"]
