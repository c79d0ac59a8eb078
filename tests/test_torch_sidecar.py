"""What outlives the process in PyTorch: a record beside saved weights, in another process; and the digest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from unifreeze import Record, apply, freeze, record
from unifreeze.errors import FrozenMovedError, RecipeError

BUILD = """
import torch
from torch import nn

def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(50, 16), nn.Conv1d(16, 300, 3), nn.BatchNorm1d(300), nn.Linear(300, 2))
"""
space: dict[str, Any] = {}
exec(BUILD, space)
build = space["build"]

RESTORED = (
    BUILD
    + """
import sys
from pathlib import Path
from safetensors.torch import load_file
from unifreeze import apply
from unifreeze.errors import FrozenMovedError

file, model = Path(sys.argv[1]), build(1)
try:
    apply(model, file)
except FrozenMovedError as error:
    assert "4 arrays" not in str(error) and "not the weights that were frozen" in str(error), error
else:
    raise SystemExit("other weights were taken")
assert all(p.requires_grad for p in model.parameters()), "a call that raises has changed nothing"
model.load_state_dict(load_file(file))
freezing = apply(model, file)
assert not model.train()[2].training
print(freezing.digest(), *freezing.frozen)
"""
)


def in_another_process(code: str, *args: Any) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_a_record_in_safetensors_is_applied_and_checked_in_another_process(tmp_path: Path) -> None:
    model = build(0)
    freezing = freeze(model, layers=["1", "2"])
    freeze(model, layers="0", rows=slice(0, 40))
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file, metadata=record(model, values=True).metadata)
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata()
    assert all(type(key) is type(value) is str for key, value in metadata.items())
    assert apply(model, metadata).frozen == freezing.frozen
    now = freeze(model, layers=["1", "2"])
    assert in_another_process(RESTORED, file) == " ".join([str(now.digest()), *freezing.frozen])


def test_rows_are_recorded_and_checked(tmp_path: Path) -> None:
    model = build(0)
    freeze(model, layers="0", rows=slice(0, 40))
    record(model, values=True).save(tmp_path / "model.json")
    other = build(0)
    other[0].weight.data[45] += 1
    freezing = apply(other, tmp_path / "model.json")
    assert str(freezing.rows["0.weight"]) == "0:40"
    freezing.undo()
    other[0].weight.data[5] += 1
    with pytest.raises(FrozenMovedError, match=r"0\.weight"):
        apply(other, tmp_path / "model.json")


def test_a_foreign_model_is_refused(tmp_path: Path) -> None:
    model = build(0)
    freeze(model, layers="1")
    record(model, values=True).save(tmp_path / "model.json")
    with pytest.raises(RecipeError, match=r"(?s)the record has 3 \(Linear\).*\(2, 300\).*the model has 3"):
        apply(nn.Sequential(*build(0)[:3], nn.Linear(300, 5)), Record.load(tmp_path / "model.json"))


def test_weights_loaded_from_safetensors_without_a_record_say_so(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(build(0).state_dict(), file)
    assert load_file(file)
    with pytest.raises(RecipeError, match="no record in its metadata"):
        apply(build(0), file)


def test_the_digest_does_not_depend_on_layout_or_threads() -> None:
    digests = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = build(0)
        if threads == 2:
            model[1].weight.data = model[1].weight.data.transpose(0, 1).contiguous().transpose(0, 1)
        digests.append(freeze(model, layers=["1", "2"]).digest())
    torch.set_num_threads(1)
    assert digests[0] == digests[1]
    meta = freeze(build(0).to("meta"), layers=["1", "2"]).digest()
    assert (meta.plan, meta.values) == (digests[0].plan, "")
