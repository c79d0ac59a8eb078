"""The command line on a real Keras model, as a process, on the backend of this session."""

from __future__ import annotations

import json
import os
from pathlib import Path

from kits.prompt import run


def test_an_application_of_keras_is_frozen_from_the_prompt(tmp_path: Path) -> None:
    """VGG16 without its top has 14,714,688 parameters, as Keras's documentation says; before its third block lie four convolutions of 3 x 3."""
    words = ("keras.applications:VGG16", "before:block3_conv1", "--arg", "weights=None", "--arg", "input_shape=(32, 32, 3)", "--arg", "include_top=False")
    done = run("freeze", *words, "--record", "record.json", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)["summary"]["totals"]
    assert totals["frozen"] == sum(9 * inputs * outputs + outputs for inputs, outputs in ((3, 64), (64, 64), (64, 128), (128, 128)))
    assert totals["parameters"] == 14_714_688
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["model"].endswith("(keras)")
    assert sum(len(layer.get("frozen", ())) for layer in record["layers"]) == 8


def test_the_backends_say_what_is_here(tmp_path: Path) -> None:
    done = run("backends", "--json", cwd=tmp_path)
    state = {info["name"]: info["installed"] for info in json.loads(done.stdout)["backends"]}
    assert state["keras"]
    assert state["torch"] is (os.environ["KERAS_BACKEND"] == "torch")
