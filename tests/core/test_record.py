"""Records on the toy backend: what is written, read, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unifreeze import Record, apply, freeze, record, unfreeze
from unifreeze.errors import RecipeError
from unifreeze_toynet_kit import ToynetKit


def test_a_record_is_read_back_from_data_text_and_file(tmp_path: Path) -> None:
    model = ToynetKit().reference()
    freeze(model, layers="stem")
    unfreeze(model, params="bias")
    kept = record(model)
    file = tmp_path / "model.json"
    file.write_text(kept.to_json())
    assert Record.read(file) == Record.read(kept.to_json()) == Record.read(json.loads(kept.to_json())) == kept
    for source in (kept, kept.to_dict(), kept.to_json(), file):
        other = ToynetKit().reference()
        freezing = apply(other, source)
        assert record(other).to_dict() == kept.to_dict()
        assert freezing.frozen == ("stem.conv.kernel", "stem.norm.scale")
        freezing.undo()
        assert not [entry for entry in record(other).layers if entry.frozen]


@pytest.mark.parametrize(
    "source",
    [
        {"layers": 3},
        {"layers": [{"at": "0"}]},
        {"layers": [{"at": "0", "path": "a", "type": "Dense", "shapes": [[2]], "frozen": [1]}]},
        {"layers": [{"at": "0", "path": "a", "type": "Dense", "shapes": 2}]},
        {"layers": [{"at": "0", "path": "a", "type": "Dense", "shapes": [], "held": "sometimes"}]},
        {"layers": [], "unknown": 1},
    ],
)
def test_what_is_no_record_is_refused(source: dict[str, object]) -> None:
    model = ToynetKit().reference()
    with pytest.raises(RecipeError, match=r"record|layers\[0\]"):
        apply(model, source)


def test_a_record_of_another_model_is_refused() -> None:
    kit = ToynetKit()
    with pytest.raises(RecipeError, match="does not fit"):
        apply(kit.reference(), record(kit.question()))
