"""The page of ``Summary.to_html`` in a real browser, headless: what its script makes of it. ``nox -s page`` runs this where Chromium is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import toynet as tn
from unifreeze import freeze, summary
from unifreeze_toynet_kit import ToynetKit

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "chromium"
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--window-size=1000,800", *(f"--disable-{what}" for what in QUIET)]
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


def dom(model: Any, folder: Path, search: str = "") -> str:
    file = folder / "page.html"
    summary(model).to_html(file)
    run = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", f"file://{file}{search}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return run.stdout


def blocks(page: str) -> dict[str, tuple[str, float]]:
    """Colour and width of each block of the icicle, by path."""
    found = {}
    for tag in re.findall(r"<button [^>]*>", page):
        name = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        found[name["data-path"]] = name["class"].split()[0], float(re.findall(r"width: ([\d.]+)px", name["style"])[0])
    return found


def test_the_icicle_shows_shares_and_statuses(tmp_path: Path) -> None:
    model = ToynetKit().reference()
    freeze(model, layers="stem")
    page, found = dom(model, tmp_path), summary(model)
    shown, rows = blocks(page), {row.path: row for row in found.rows}
    whole = shown[""][1]
    assert shown[""][0] == "partial"
    assert (shown["stem"][0], shown["head"][0]) == ("frozen", "trainable")
    for path, (_, width) in shown.items():
        assert abs(width / whole - rows[path].parameters / rows[""].parameters) < 0.01
    assert {path for path, row in rows.items() if row.parameters > 2} <= shown.keys()
    assert f"<dd>{found.totals.frozen:,}</dd>" in page
    assert page.count("<details") >= 3


def test_the_search_finds_layers_by_every_word(tmp_path: Path) -> None:
    page = dom(ToynetKit().reference(), tmp_path, "#search=body%20dense")
    tree = page[page.index('id="tree"') : page.index('id="sentences"')]
    assert re.findall(r'data-path="([^"]*)"', tree) == ["body.layer_1", "body.layer_2", "body.layer_10"]
    assert "3 found" in page


def test_a_name_is_shown_and_never_run(tmp_path: Path) -> None:
    page = dom(tn.Chain(**{EVIL.replace(".", ""): tn.Dense(2, 2, np.random.default_rng(0))}), tmp_path)
    assert "<title>Chain (toynet): layers" in page
    assert "<img" not in page
    assert page.count("<script") == 2


def test_many_layers_are_drawn_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    page = dom(tn.Chain(**{f"layer_{i}": tn.Dense(1, 1, rng) for i in range(5000)}), tmp_path)
    assert "10,000" in page
