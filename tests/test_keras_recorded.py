"""What Keras users freeze by hand, recorded, saved, and applied in another process to a build with other names: flag by flag the same."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest

import keras_recipes
from unifreeze import Recipe, UnifreezeWarning, apply
from unifreeze._manager import read

PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import test_keras_recorded; test_keras_recorded.elsewhere(sys.argv[2:])"


def flags(model: Any) -> list[list[Any]]:
    """In the model's own order, whatever its layers are called; read from the variables."""
    known = {id(variable): bool(variable.trainable) for variable in model.trainable_variables}
    return [[list(variable.shape), known.get(id(variable), False)] for variable in model.variables if "seed" not in variable.path]


def held(model: Any) -> list[str | None]:
    return [layer.inference for layer in read(model)[1].walk()]


def elsewhere(files: list[str]) -> None:
    """Runs in the other process: counts some names away, builds, applies, and writes what it sees."""
    for _ in range(3):
        keras.layers.Dense(1), keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()
    for file in map(Path, files):
        fresh = getattr(keras_recipes, file.stem)(do=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnifreezeWarning)
            apply(fresh, file)
        file.with_suffix(".seen").write_text(json.dumps([flags(fresh), held(fresh)]))


def travel(makers: tuple[Callable[[], Any], ...], folder: Path) -> dict[str, Recipe]:
    expected, recipes = {}, {}
    for make in makers:
        model = make()
        recipes[make.__name__] = recipe = Recipe.record(model, make.__name__)
        expected[make.__name__] = json.loads(json.dumps([flags(model), held(model)]))
        (folder / f"{make.__name__}.json").write_text(recipe.to_json(), encoding="utf-8")
    files = [str(folder / f"{name}.json") for name in expected]
    subprocess.run([sys.executable, "-c", PROGRAM, str(Path(__file__).parent), *files], check=True)
    for name, seen in expected.items():
        assert json.loads((folder / f"{name}.seen").read_text()) == seen, name
        assert not recipes[name].notes, name
        assert len(recipes[name].to_json()) < 250, name
    return recipes


def test_recipes_of_small_models_travel(tmp_path: Path) -> None:
    travel((*keras_recipes.SMALL, keras_recipes.vgg_by_name), tmp_path)


@pytest.mark.deep
def test_recipes_of_large_models_travel(tmp_path: Path) -> None:
    recipes = travel(keras_recipes.LARGE, tmp_path)
    assert "kind:batch_norm" in str(recipes["efficientnet"].steps[0].layers)


def test_a_name_that_was_counted_up_is_known_as_such() -> None:
    inner = keras.Sequential([keras.Input((4, 3)), keras.layers.Bidirectional(keras.layers.LSTM(2)), keras.layers.Dense(2), keras.layers.Dense(2, name="head")])
    named = {layer.name: layer.auto_named for layer in read(inner)[1].walk() if layer.path}
    assert not named.pop("head")
    assert all(named.values()), named
