"""The command line on a real PyTorch model, as a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import torchvision_cpu  # noqa: F401 - before torchvision
from kits.prompt import run
from unifreeze import apply


def test_resnet18_is_frozen_from_the_prompt(tmp_path: Path) -> None:
    import torchvision

    words = ("torchvision.models:resnet18", "before:layer2", "--arg", "num_classes=10", "--output", "recipe.yaml", "--json")
    done = run("freeze", *words, cwd=tmp_path, first="import torchvision_cpu")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    model = torchvision.models.resnet18(num_classes=10)
    front = {path: array for path, array in model.named_parameters() if path.startswith(("conv1.", "bn1.", "layer1."))}
    assert set(told["freezing"]["frozen"]) == set(front)
    assert told["summary"]["totals"]["frozen"] == sum(array.numel() for array in front.values())
    assert told["summary"]["totals"]["parameters"] == sum(array.numel() for array in model.parameters())
    apply(model, tmp_path / "recipe.yaml")
    assert {path for path, array in model.named_parameters() if not array.requires_grad} == set(front)


def test_what_torchvision_refuses_is_its_error(tmp_path: Path) -> None:
    done = run("summary", "torchvision.models:resnet18", "--arg", "weights=unknown", cwd=tmp_path, first="import torchvision_cpu")
    assert done.returncode == 3
    assert "torchvision.models:resnet18(weights='unknown') raised" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.deep
def test_the_demo_tells_its_proof_as_json(tmp_path: Path) -> None:
    done = run("demo", "--framework", "torch", "--steps", "2", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (done.returncode, told["held"], told["steps"]) == (0, True, 2)
    assert set(told["frozen"].values()) == {0}
    assert 0 < told["moved"] <= told["others"]
