"""What Keras users freeze by hand, recorded, saved, and applied in another process to a build with other names: flag by flag the same."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import pytest

from keras_recipes import RECIPES, thawed
from kits.keras_eyes import drawing
from unifreeze import Recipe, UnifreezeWarning, apply
from unifreeze._manager import read
from unifreeze.errors import RecipeError

PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import test_keras_recorded; test_keras_recorded.elsewhere(sys.argv[2:])"
LARGE = [name for name, recipe in RECIPES.items() if recipe.large]


def flags(model: Any) -> list[list[Any]]:
    """In the model's own order, whatever its layers are called; read from the variables."""
    known = {id(variable): bool(variable.trainable) for variable in model.trainable_variables}
    return [[list(variable.shape), known.get(id(variable), False)] for variable in model.variables if "seed" not in variable.path]


def held(model: Any) -> list[str | None]:
    return [layer.inference for layer in read(model)[1].walk()]


def anything_frozen(model: Any) -> bool:
    return not model.trainable or any(not variable.trainable for layer in model._flatten_layers() for variable in layer._trainable_variables)


def elsewhere(files: list[str]) -> None:
    """Runs in the other process: counts some names away, builds, applies, and writes what it sees."""
    for _ in range(3):
        keras.layers.Dense(1), keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()
    for file in map(Path, files):
        name = next(name for name in RECIPES if name.split()[0] == file.stem.split("-")[0])
        with drawing():
            fresh = thawed(next(RECIPES[name].script()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnifreezeWarning)
            apply(fresh, file)
        file.with_suffix(".seen").write_text(json.dumps([flags(fresh), held(fresh)]))


def travel(names: Iterable[str], folder: Path) -> dict[str, Recipe]:
    """Each phase of each recipe that freezes anything; a phase that freezes nothing has no recipe, and the error says so."""
    expected, recipes = {}, {}
    for name in names:
        for phase, model in enumerate(RECIPES[name].script()):
            if not anything_frozen(model):
                with pytest.raises(RecipeError, match="Nothing is frozen"):
                    Recipe.record(model, name)
                continue
            file = folder / f"{name.split()[0]}-{phase}.json"
            recipes[name] = recipe = Recipe.record(model, name)
            file.write_text(recipe.to_json(), encoding="utf-8")
            expected[file] = name, json.loads(json.dumps([flags(model), held(model)]))
            assert not recipe.notes, name
            assert len(recipe.to_json()) < 300, name
    subprocess.run([sys.executable, "-c", PROGRAM, str(Path(__file__).parent), *map(str, expected)], check=True)
    for file, (name, seen) in expected.items():
        assert json.loads(file.with_suffix(".seen").read_text()) == seen, name
    return recipes


def test_recipes_of_small_models_travel(tmp_path: Path) -> None:
    with drawing():
        travel((*(name for name in RECIPES if name not in LARGE), "5 Chollet, second edition"), tmp_path)


@pytest.mark.deep
def test_recipes_of_large_models_travel(tmp_path: Path) -> None:
    with drawing():
        recipes = travel(LARGE, tmp_path)
    assert any("kind:batch_norm" in str(step.layers) for step in recipes["6 EfficientNet fine-tuning"].steps)


def test_a_name_that_was_counted_up_is_known_as_such() -> None:
    inner = keras.Sequential([keras.Input((4, 3)), keras.layers.Bidirectional(keras.layers.LSTM(2)), keras.layers.Dense(2), keras.layers.Dense(2, name="head")])
    named = {layer.name: layer.auto_named for layer in read(inner)[1].walk() if layer.path}
    assert not named.pop("head")
    assert all(named.values()), named
