"""The summary: data, totals and renderings."""

from __future__ import annotations

import json

import numpy as np

import toynet as tn
from unifreeze import freeze, summary
from unifreeze.select import first
from unifreeze_toynet_kit import ToynetKit

RNG = np.random.default_rng(0)


def test_it_prints_a_table_and_the_true_totals() -> None:
    model = ToynetKit().question()
    freeze(model, layers=first(1))
    lines = str(summary(model)).splitlines()
    assert [line.split() for line in lines if line.strip().startswith(("hidden", "out", "relu"))] == [
        ["hidden", "Dense", "3,232", "frozen"],
        ["out", "Dense", "330", "trainable"],
        ["relu", "Relu", "0"],
    ]
    assert "Parameters: 3,562 (13.91 KB)" in str(summary(model))
    assert "trainable: 330 (1.29 KB)" in str(summary(model))
    assert "frozen: 3,232 (12.62 KB)" in str(summary(model))


def test_nothing_is_cut_off_in_a_narrow_terminal(monkeypatch: object) -> None:
    long = "a_very_long_layer_name_" * 6
    shown = str(summary(tn.Chain(**{long: tn.Dense(1, 1, RNG)})))
    assert "".join("".join(line.split()[:1]) for line in shown.splitlines() if "a_very" in line or "layer_name" in line or "name_" in line).startswith("a_very")
    assert "…" not in shown


def test_markdown_and_html_escape_what_would_break_them() -> None:
    model = tn.Chain(**{"<b>|x": tn.Dense(1, 1, RNG)})
    assert "&lt;b&gt;\\|x" in summary(model).to_markdown()
    assert "&lt;b&gt;|x" in summary(model)._repr_html_()


def test_json_holds_what_the_table_shows() -> None:
    model = ToynetKit().reference()
    freeze(model, layers="stem")
    data = json.loads(summary(model).to_json())
    assert data["model"] == "Chain (toynet)"
    assert [row["status"] for row in data["layers"] if row["path"] in {"stem", "body", "relu", ""}] == ["partial", "frozen", "", "trainable"]
    assert data["totals"]["bytes_by_dtype"] == {"float32": data["totals"]["bytes"]}


def test_depth_hides_rows_and_no_totals() -> None:
    model = ToynetKit().reference()
    shallow = summary(model, depth=1)
    assert [row.path for row in shallow.rows] == ["", "stem", "relu", "pool", "body", "head"]
    assert shallow.totals == summary(model).totals


def test_a_shared_layer_is_marked() -> None:
    shown = summary(ToynetKit().tied())
    assert {row.path: row.shared_with for row in shown.rows}["head"] == "embed"
    assert "shared with embed" in str(shown)


def test_a_layer_with_statistics_alone_is_held_when_frozen() -> None:
    model = tn.Chain(norm=tn.BatchNorm(2, RNG), out=tn.Dense(2, 1, RNG))
    del model.norm.scale, model.norm.bias
    freeze(model, layers="norm")
    assert [row.status for row in summary(model).rows] == ["trainable", "held", "trainable"]
