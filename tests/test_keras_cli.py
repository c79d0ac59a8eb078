"""The command line on a real Keras model, as a process, on the backend of this session."""

from __future__ import annotations

import json
import os
from pathlib import Path

import keras
import numpy as np

from kits.prompt import run


def test_an_application_of_keras_is_frozen_from_the_prompt(tmp_path: Path) -> None:
    words = ("keras.applications:MobileNetV2", "before:block_2_expand", "--arg", "weights=None", "--arg", "input_shape=(32, 32, 3)", "--arg", "classes=10")
    done = run("freeze", *words, "--record", "record.json", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)["summary"]["totals"]
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=10)
    place = next(place for place, layer in enumerate(model.layers) if layer.name == "block_2_expand")
    front = [variable for layer in model.layers[:place] for variable in layer.trainable_weights]
    assert totals["frozen"] == sum(int(np.prod(variable.shape)) for variable in front)
    assert totals["parameters"] == sum(int(np.prod(variable.shape)) for variable in model.trainable_weights)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["model"].endswith("(keras)")
    assert sum(len(layer.get("frozen", ())) for layer in record["layers"]) == len(front)


def test_the_backends_say_what_is_here(tmp_path: Path) -> None:
    done = run("backends", "--json", cwd=tmp_path)
    state = {info["name"]: info["installed"] for info in json.loads(done.stdout)["backends"]}
    assert state["keras"]
    assert state["torch"] is (os.environ["KERAS_BACKEND"] == "torch")
