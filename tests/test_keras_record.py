"""What outlives a process: a record beside a saved model, the optimizer's state, and legacy files."""

from __future__ import annotations

import copy
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from unifreeze import apply, freeze, record, unfreeze
from unifreeze.errors import BackendError, RecipeError
from unifreeze.select import kind

X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(2).normal(size=(8, 4)).astype("float32")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(5)


def values(model: Any) -> list[NDArray[Any]]:
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in (*model.variables, *model.optimizer.variables)]


def trainable(model: Any) -> list[int]:
    """Places of the variables that Keras itself calls trainable; names differ from build to build."""
    known = {id(v) for v in model.trainable_variables}
    return [place for place, v in enumerate(model.variables) if id(v) in known]


def stack(units: int = 4) -> Any:
    """Layers without names of their own, in a model inside a model, with a normalisation and a layer that is used twice."""
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(4)])
    shared = keras.layers.Dense(4)
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(units)(shared(shared(inner(inputs)))))


def partly(model: Any) -> None:
    """Freezes a layer, a normalisation in part, and one role; puts a dropout to rest."""
    inner = model.layers[1]
    freeze(model, layers=inner.layers[0])
    freeze(model, layers=inner.layers[1])
    unfreeze(model, layers=inner.layers[1], params="bias")
    freeze(model, layers=inner.layers[2], inference="all")
    freeze(model, layers=model.layers[2], params="kernel")


def test_a_record_brings_a_second_build_under_other_names_to_the_same_state() -> None:
    first, second = stack(), stack()
    assert {layer.name for layer in first._flatten_layers()}.isdisjoint(layer.name for layer in second._flatten_layers() if "input" not in layer.name)
    partly(first)
    kept = json.loads(record(first).to_json())
    freezing = apply(second, kept)
    assert trainable(second) == trainable(first)
    assert len(trainable(second)) < len(second.variables)
    second.compile(keras.optimizers.SGD(0.1), "mse")
    start = values(second)
    second.fit(X, Y, verbose=0)
    moved = [place for place, (a, b) in enumerate(zip(start, values(second), strict=True)) if a.tobytes() != b.tobytes() and place < len(second.variables)]
    assert set(moved) <= set(trainable(first)), "a partly frozen normalisation, or a dropout that rests, was not held"
    freezing.verify()
    freezing.undo()
    assert len(second.trainable_variables) == len(second.weights) - 2


def test_all_of_inception_is_found_again_though_every_name_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", lambda _, shape, dtype=None, **__: np.zeros(shape, dtype or "float32"))
    make = lambda: keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(75, 75, 3))  # noqa: E731
    first, second = make(), make()
    owned = [[layer.name for layer in model.layers if layer.weights] for model in (first, second)]
    assert len(owned[0]) == 188
    assert set(owned[0]).isdisjoint(owned[1])
    freeze(first, layers=first.layers[:249])
    unfreeze(first, layers=kind("conv") & first.layers[:20], params="kernel")
    apply(second, record(first).to_json())
    assert trainable(second) == trainable(first)
    assert 0 < len(trainable(second)) < len(second.weights)


@pytest.mark.parametrize("what", ["deepcopy", "save", "clone"])
def test_what_a_copy_loses_a_record_gives_back(what: str, tmp_path: Path) -> None:
    model = stack()
    model.compile("sgd", "mse")
    partly(model)
    if what == "deepcopy":
        other = copy.deepcopy(model)
    elif what == "clone":
        other = keras.models.clone_model(model)
    else:
        model.save(tmp_path / "model.keras")
        other = keras.models.load_model(tmp_path / "model.keras")
    assert trainable(other) != trainable(model), "Keras keeps flags of variables now: this test, and the docs, say too much"
    (tmp_path / "model.json").write_text(record(model).to_json())
    apply(other, tmp_path / "model.json")
    assert trainable(other) == trainable(model)
    assert record(other).to_dict()["layers"] == record(model).to_dict()["layers"] or what == "clone"
    assert [entry.held for entry in record(other).layers] == [entry.held for entry in record(model).layers]


def test_a_record_of_another_architecture_is_refused_and_nothing_changes() -> None:
    model, other, longer = stack(), stack(units=5), keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    partly(model)
    for wrong in (other, longer):
        before = [(v.trainable, v.path) for v in wrong.variables]
        with pytest.raises(RecipeError, match=r"does not fit .* nothing was changed.\n  the record has .*\n  the model has "):
            apply(wrong, record(model))
        assert [(v.trainable, v.path) for v in wrong.variables] == before
    named = [keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in names)]) for names in ("ab", "bc")]
    with pytest.raises(RecipeError, match="a \\(Dense\\)"):
        apply(named[1], record(named[0]))
    more = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in "abc")])
    with pytest.raises(RecipeError, match="the model has c"):
        apply(more, record(named[0]))


PHASES = """
import sys
import keras
import numpy as np
from pathlib import Path
from unifreeze import apply, freeze, record, unfreeze

X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(2).normal(size=(8, 4)).astype("float32")
folder, phases = Path(sys.argv[1]), sys.argv[2]

def steps(model, count):
    for _ in range(count):
        model.train_on_batch(X, Y)

if "1" in phases:
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4), keras.layers.Dense(4)])
    draw = np.random.default_rng(3)
    model.set_weights([draw.normal(size=w.shape) for w in model.get_weights()])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 50)), "mse")
    freeze(model, layers=model.layers[:2])
    steps(model, 9)
    unfreeze(model, layers=model.layers[1], params="kernel")
    steps(model, 2)
if phases == "1":
    model.save(folder / "model.keras")
    (folder / "model.json").write_text(record(model).to_json())
if phases == "2":
    keras.layers.Dense(3)  # another process names its layers otherwise
    model = keras.models.load_model(folder / "model.keras")
    apply(model, folder / "model.json").load_optimizer(folder / "model.keras")
if "2" in phases:
    assert int(model.optimizer.iterations) == 11
    steps(model, 2)
    unfreeze(model, layers=model.layers[0])
    steps(model, 3)
    arrays = [np.array(keras.ops.convert_to_numpy(v.value)) for v in (*model.variables, *model.optimizer.variables)]
    np.savez(folder / f"{phases}.npz", *arrays)
"""


def test_two_processes_end_where_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a layer of which a variable alone was unfrozen late: Keras gives back neither its flag nor the optimizer's state, nor when it joined."""
    script = tmp_path / "phases.py"
    script.write_text(PHASES)
    for phases in ("12", "1"):
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path), phases])
        runpy.run_path(str(script))
    subprocess.run([sys.executable, str(script), str(tmp_path), "2"], check=True)
    whole, resumed = (np.load(tmp_path / f"{phases}.npz") for phases in ("12", "2"))
    assert len(whole.files) == len(resumed.files) == 6 + 1 + 2 * 5
    for name in whole.files:
        assert whole[name].tobytes() == resumed[name].tobytes(), name


def test_an_optimizer_of_another_frozen_state_is_refused(tmp_path: Path) -> None:
    model = stack()
    model.compile("adam", "mse")
    freezing = freeze(model, layers=model.layers[1])
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    with pytest.raises(BackendError, match=r"another frozen state.*\n.*\n  Nothing was changed"):
        start = values(freezing.undo().model)
        freezing.load_optimizer(tmp_path / "model.keras")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(start, values(model), strict=True))


def pair() -> Any:
    """Two layers of equal shape in a part of their own, as in a backbone."""
    part = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(4, name="b")], name="part")
    return keras.Sequential([keras.Input((4,)), part, keras.layers.Dense(4, name="head")])


def test_legacy_weights_saved_under_other_flags_are_refused(tmp_path: Path) -> None:
    saved, other, alone = pair(), pair(), pair()
    freeze(saved, layers="part.a")
    saved.save(tmp_path / "model.h5")
    expected = [np.array(w) for w in saved.get_weights()]
    alone.load_weights(tmp_path / "model.h5")
    assert any(a.tobytes() != b.tobytes() for a, b in zip(expected, alone.get_weights(), strict=True)), "Keras alone mixes them up"
    freezing = freeze(other, layers="part.b")
    before = [np.array(w) for w in other.get_weights()]
    with pytest.raises(BackendError, match=r"trainable weights first\.\n  in part, weight 0 is .*b/kernel.*\n  Nothing was changed"):
        other.load_weights(tmp_path / "model.h5")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, other.get_weights(), strict=True))
    freezing.undo()
    freeze(other, layers="part.a")
    other.load_weights(tmp_path / "model.h5")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, other.get_weights(), strict=True))


def test_a_legacy_file_that_would_be_read_back_wrongly_is_not_written(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(4, name="head")])
    with freeze(model, layers="bn", params="scale"):
        with pytest.raises(BackendError, match=r"in bn, weight 0 is .*beta.*read back as .*gamma"):
            model.save(tmp_path / "model.h5")
        model.save(tmp_path / "model.keras")
        assert not (tmp_path / "model.h5").exists()
    with freeze(model, layers="bn"):
        model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    assert all(a.tobytes() == np.array(b).tobytes() for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True))
