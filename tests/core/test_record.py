"""Records on the toy backend: what is written, read, and refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unifreeze import Record, apply, freeze, record, unfreeze
from unifreeze.errors import FrozenMovedError, RecipeError
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


def moved(model: Any, path: str) -> Any:
    ToynetKit().disturb(model, path)
    return model


def test_values_tell_whether_these_are_the_weights_that_were_frozen(tmp_path: Path) -> None:
    model = ToynetKit().reference()
    freeze(model, layers=["stem", "head"])
    record(model, values=True).save(tmp_path / "model.json")
    kept = Record.load(tmp_path / "model.json")
    assert kept == record(model, values=True) == Record.read(kept.to_json()) == Record.read(kept.to_dict())
    assert set(apply(ToynetKit().reference(), tmp_path / "model.json").frozen) >= {"stem.conv.kernel", "head.bias"}
    for path in ("head.kernel", "stem.norm.mean"):
        other = moved(ToynetKit().reference(), path)
        with pytest.raises(FrozenMovedError, match=rf"(?s)not the weights that were frozen: one array .*{path}.*values=False"):
            apply(other, kept)
        assert not [entry for entry in record(other).layers if entry.frozen], "nothing was changed"
        assert apply(other, kept, values=False).frozen
    assert apply(moved(ToynetKit().reference(), "body.layer_1.kernel"), kept).frozen, "what trains may be anything"


def test_without_values_nothing_is_compared() -> None:
    model = ToynetKit().reference()
    freeze(model, layers="head")
    assert apply(moved(ToynetKit().reference(), "head.kernel"), record(model)).frozen


def test_digests_of_another_version_are_left_out() -> None:
    model = ToynetKit().reference()
    freeze(model, layers="head")
    plain = {**record(model, values=True).to_dict(), "values": 99}
    assert apply(moved(ToynetKit().reference(), "head.kernel"), plain).frozen


def test_a_record_in_the_metadata_of_a_safetensors_file(tmp_path: Path) -> None:
    """The format: eight bytes for the length of the header, the header in JSON, the tensors."""
    model = ToynetKit().reference()
    freeze(model, layers="head")
    kept, file = record(model, values=True), tmp_path / "model.safetensors"
    header = json.dumps({"__metadata__": kept.metadata, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert Record.load(file) == Record.read({"format": "pt", **kept.metadata}) == kept
    assert apply(ToynetKit().reference(), file).frozen == ("head.kernel", "head.bias")
    file.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(RecipeError, match="has no record in its metadata"):
        Record.load(file)
    for cut in (b"", b"abc", (99).to_bytes(8, "little") + b"{", (2).to_bytes(8, "little") + b"\xff\xfe"):
        file.write_bytes(cut)
        with pytest.raises(RecipeError, match="no header of a safetensors file"):
            Record.load(file)


def test_a_foreign_model_is_refused_and_it_is_said_where_it_differs() -> None:
    kit = ToynetKit()
    model, other = kit.reference(), kit.reference()
    freeze(model, layers="head")
    other.body.layer_2.bias.value = np.zeros(9, np.float32)
    with pytest.raises(RecipeError, match=r"(?s)the record has body.layer_2 \(Dense\) with \(6, 6\), \(6,\).*the model has body.layer_2 .*\(9,\)"):
        apply(other, record(model, values=True))


def test_rows_outlive_in_a_record() -> None:
    entry = Record.read({"layers": [{"at": "0", "path": "a", "type": "Dense", "shapes": [[6, 3]], "rows": {"0": [[0, 2], [4, 5]]}}]})
    assert str(entry.layers[0].rows[0]) == "0:2, 4:5"
    assert Record.read(entry.to_json()) == entry


def test_the_digest_names_the_set_and_the_values() -> None:
    one, other = ToynetKit().reference(), ToynetKit().reference()
    first = freeze(one, layers=["stem", "head"]).digest()
    assert freeze(other, layers=["head", "stem"]).digest() == first
    assert str(first) == f"{first.plan}-{first.values}"
    assert re.fullmatch("[0-9a-f]{16}-[0-9a-f]{16}", str(first))
    fewer = freeze(ToynetKit().reference(), layers="head").digest()
    assert fewer.plan != first.plan
    without = freeze(ToynetKit().reference(), layers=["stem", "head"], inference="none").digest()
    assert without.plan != first.plan, "statistics that move are another promise"
    for path in ("head.kernel", "stem.norm.variance"):
        changed = freeze(moved(ToynetKit().reference(), path), layers=["stem", "head"]).digest()
        assert (changed.plan, changed.values == first.values) == (first.plan, False)
    same = freeze(moved(ToynetKit().reference(), "body.layer_1.kernel"), layers=["stem", "head"]).digest()
    assert same == first, "what trains does not count"


def test_the_digest_is_equal_in_another_process() -> None:
    code = "from unifreeze_toynet_kit import ToynetKit; from unifreeze import freeze; print(freeze(ToynetKit().reference(), layers=['stem', 'head']).digest())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert found.stdout.strip() == str(freeze(ToynetKit().reference(), layers=["stem", "head"]).digest())
