"""The audit on the toy backend: the rules that hold everywhere, the report, the hook, and that every code has its section in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toynet
import unifreeze_toynet
from unifreeze import Finding, Report, audit, freeze, unfreeze
from unifreeze._finding import CODES, SEVERITIES
from unifreeze._manager import _manager
from unifreeze.errors import ArgumentError, BackendError
from unifreeze.plugin import hookimpl
from unifreeze_toynet_kit import ToynetKit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model() -> toynet.Layer:
    return ToynetKit().reference()


def paths(report: Report) -> dict[str, tuple[str, ...]]:
    return {one.code: one.paths for one in report}


def every(model: toynet.Layer) -> list[toynet.Variable]:
    return [variable for layer in model.walk() for name, variable in layer.variables().items() if name not in {"mean", "variance"}]


def by_hand(part: toynet.Layer) -> None:
    for variable in every(part):
        variable.trainable = False


def test_every_code_has_its_section_and_its_example_and_the_other_way_round() -> None:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (UF\d+) .*? \{ #(uf\d+) \}$", page, re.MULTILINE))
    assert sections == {code: code.lower() for code in CODES}
    for code in CODES:
        section = page.partition(f"{{ #{code.lower()} }}")[2].partition("\n### ")[0]
        assert "```python\n" in section, f"{code} has no example"
    assert set(CODES.values()) == set(SEVERITIES)


def test_every_code_is_given_by_some_rule_and_tested() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py") if file.name != "_finding.py")
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*audit.py"))
    for code in CODES:
        assert f'"{code}"' in source
        assert f'"{code}"' in tests


def test_what_is_left_on_frozen_parameters(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer(every(model), 0.1, momentum=0.9, decay=0.1)
    assert paths(audit(model, optimizer)) == {}
    by_hand(model.head)
    model.head.kernel.gradient = np.ones((6, 3), np.float32)
    model.head.bias.gradient = np.zeros(3, np.float32)
    optimizer.slots[id(model.head.bias)] = [np.ones(3, np.float32)]
    assert paths(audit(model, optimizer)) == {"UF101": ("head.kernel",), "UF102": ("head.bias",), "UF103": ("head.bias",)}
    model.head.kernel.gradient = model.head.bias.gradient = None
    report = audit(model, optimizer)
    assert (paths(report), report.ok) == ({"UF104": ("head.kernel", "head.bias")}, True)


def test_what_optimizers_leave_out_and_hold_twice(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer([v for v in every(model) if v is not model.head.kernel], 0.1)
    assert paths(audit(model, optimizer)) == {"UF110": ("head.kernel",)}
    again = toynet.Optimizer(every(model.head), 0.1)
    assert paths(audit(model, [optimizer, again])) == {"UF111": ("head.bias",)}
    by_hand(model.head)
    assert "UF110" not in paths(audit(model, toynet.Optimizer([v for v in every(model) if v.trainable], 0.1)))


def test_statistics_and_dropout_of_frozen_parts(model: toynet.Layer) -> None:
    by_hand(model.stem)
    assert paths(audit(model)) == {"UF201": ("stem.norm",)}
    model.stem.norm.training = False
    assert paths(audit(model)) == {}
    model.train(False)
    assert paths(audit(model)) == {"UF202": ("stem.norm",)}
    model.train()
    freeze(model, layers="stem")
    by_hand(model.body)
    assert paths(audit(model)) == {"UF201": ("body.bn",), "UF203": ("body.drop",)}
    freeze(model, layers="body", inference="all")
    assert paths(audit(model)) == {}


def test_a_clean_bill_for_what_unifreeze_froze(model: toynet.Layer) -> None:
    freezing = freeze(model, layers=["stem", "head"])
    optimizer = toynet.Optimizer([v for v in every(model) if v.trainable], 0.1, decay=0.1)
    for subject in (model, freezing):
        assert audit(subject, optimizer, trainable=freezing).findings == ()
    unfreeze(model)
    assert paths(audit(model, trainable=freezing))["UF606"] == freezing.frozen


def test_a_tied_array_with_two_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Torn(unifreeze_toynet.ToynetBackend):
        def parameter(self, path: str, kind: str, variable: toynet.Variable) -> Any:
            seen = super().parameter(path, kind, variable)
            seen.status = "frozen" if path == "embed.table" else seen.status
            return seen

    monkeypatch.setattr(unifreeze_toynet, "BACKEND", Torn())
    report = audit(ToynetKit().tied())
    assert paths(report)["UF301"] == ("embed.table", "head.table")


def test_the_report_as_data_and_to_read(model: toynet.Layer) -> None:
    by_hand(model.body)
    report = audit(model)
    plain = json.loads(report.to_json())
    assert plain == report.to_dict()
    assert plain["ok"] is report.ok is False
    assert report.worst == "error"
    assert plain["findings"][0]["page"] == "audit.md#uf201"
    assert [one["severity"] for one in plain["findings"]] == ["error", "note"], "the worst first"
    text = str(report)
    assert text.startswith("Chain (toynet): 1 error, 1 note (the model)\nUF201 error  body.bn\n    Its parameters are frozen")
    assert "\x1b" not in text
    assert bool(audit(ToynetKit().question()))
    assert str(audit(ToynetKit().question())) == "Chain (toynet): nothing found (the model)"


def test_a_rule_of_a_plugin_is_asked(model: toynet.Layer) -> None:
    model.stem.norm.mean.trainable = True
    assert paths(audit(model)) == {"TOY1": ("stem.norm.mean",)}
    assert audit(model, ignore=["TOY1"]).findings == ()

    class Mine:
        @hookimpl
        def unifreeze_audit(self, model: object, optimizers: tuple[object, ...]) -> Any:
            return [Finding("MINE1", "note", (), f"{len(optimizers)} optimizers", "nothing")] if isinstance(model, toynet.Chain) else [3]

    plugin = Mine()
    _manager().register(plugin)
    try:
        assert "1 optimizers" in str(audit(model, object()))
        with pytest.raises(BackendError, match="is no Finding"):
            audit(model.head)
    finally:
        _manager().unregister(plugin)


def test_it_changes_nothing(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer(every(model), 0.1, momentum=0.9)
    by_hand(model.stem)
    kit = ToynetKit()
    before, values = kit.flags(model), {path: value.copy() for path, value in kit.values(model).items()}
    audit(model, optimizer)
    assert kit.flags(model) == before
    assert all(np.array_equal(value, values[path]) for path, value in kit.values(model).items())
    assert not optimizer.slots


def test_what_it_does_not_know_is_refused(model: toynet.Layer) -> None:
    with pytest.raises(ArgumentError, match="takes codes"):
        audit(model, ignore=["dropout"])
    with pytest.raises(ArgumentError, match="severity='bad'"):
        Finding("MINE1", "bad", (), "", "")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="is a Freezing or a selector"):
        audit(model, trainable={"stem": True})


def test_sentences_begin_with_a_capital_and_code_stays_as_it_is(model: toynet.Layer) -> None:
    optimizer = toynet.Optimizer([v for v in every(model) if v is not model.head.kernel], 0.1)
    by_hand(model.stem)
    text = str(audit(model, optimizer))
    assert "    It is trainable and in no optimizer" in text
    assert "    freezing.attach(optimizer) adds it" in text
    assert "    Freeze it with unifreeze" in text
    words = Finding.of("UF201", ("stem",), "DistributedDataParallel holds it", "leave it")
    assert "    DistributedDataParallel holds it." in str(Report("a model", (words,), ()))
