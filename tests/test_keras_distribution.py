"""Keras on JAX over four devices: frozen means frozen, growing and undoing work, shardings are kept, and the results are those of one device.

Only JAX has ``keras.distribution`` in full, so this file belongs to its session alone (see ``conftest.py``). Devices are counted when JAX starts: each
layout is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAM = """
import json, sys
import keras
import numpy as np
from unifreeze import freeze, unfreeze
from unifreeze.select import upto

layout, folder = sys.argv[1:]
places = keras.distribution
if layout == "data":
    places.set_distribution(places.DataParallel(devices=places.list_devices()))
if layout == "model":
    table = places.LayoutMap(places.DeviceMesh((2, 2), ("batch", "model"), places.list_devices()))
    table[".*a/kernel"], table[".*b/kernel"] = (None, "model"), ("model", None)
    places.set_distribution(places.ModelParallel(layout_map=table, batch_dim_name="batch"))

X = np.random.default_rng(1).normal(size=(16, 4)).astype("float32")
layers = keras.layers
first_layer = layers.Dense(8, use_bias=False, name="a")  # a bias before a normalisation has no gradient
model = keras.Sequential([keras.Input((4,)), first_layer, layers.BatchNormalization(name="bn"), layers.Dense(8, name="b"), layers.Dense(4, name="c")])
draw = np.random.default_rng(3)
model.set_weights([np.abs(draw.normal(size=w.shape)) * 0.3 + 0.1 for w in model.get_weights()])
model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")

def now():
    return {v.path.split("/", 1)[1]: np.array(v.value) for v in model.variables}

def spread(variables):
    return {v.path: [len(v.value.devices()), str(getattr(v.value.sharding, "spec", None))] for v in variables}

moved = []
def fit():
    start = now()
    model.fit(X, X, batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.train_on_batch(X[:8], X[:8])
    moved.append(sorted(path for path, value in now().items() if value.tobytes() != start[path].tobytes()))

fit()
before = spread(model.variables)
first = freeze(model, layers=upto("bn"))
fit()
first.verify()
grown = unfreeze(model, layers="a")
fit()
swapped = freeze(model, layers="b")
model.predict(X, verbose=0)
fit()
first.undo()
swapped.undo()
fit()
slots = {v.path.removeprefix("sgd/").removesuffix("_momentum"): s for v, s in zip(model.optimizer.variables, spread(model.optimizer.variables).values())}
weights = {path.replace("/", "_"): s for path, s in spread(model.variables).items()}
print(json.dumps({"moved": moved, "kept": before == spread(model.variables), "slots": slots, "weights": weights}))
np.savez(f"{folder}/{layout}.npz", **now())
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("layouts")
    script = folder / "layout.py"
    script.write_text(PROGRAM)
    devices = {"one": 1, "data": 4, "model": 4}
    given = os.environ.get("XLA_FLAGS", "")
    flags = {layout: os.environ | {"XLA_FLAGS": f"{given} --xla_force_host_platform_device_count={count}"} for layout, count in devices.items()}
    running = {
        layout: subprocess.Popen([sys.executable, str(script), layout, str(folder)], env=flags[layout], stdout=subprocess.PIPE, text=True) for layout in devices
    }
    said = {layout: process.communicate()[0] for layout, process in running.items()}
    assert {layout: process.returncode for layout, process in running.items()} == dict.fromkeys(devices, 0)
    return {layout: (json.loads(said[layout].splitlines()[-1]), _arrays(folder / f"{layout}.npz")) for layout in devices}


def _arrays(file: Path) -> dict[str, Any]:
    with np.load(file) as opened:
        return {name: opened[name] for name in opened.files}


A, BN, B, C = (
    {"a/kernel"},
    {"bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"},
    {"b/kernel", "b/bias"},
    {"c/kernel", "c/bias"},
)


@pytest.mark.parametrize("layout", ["one", "data", "model"])
def test_what_is_frozen_is_bit_identical_and_all_else_moves(runs: Any, layout: str) -> None:
    everything = A | BN | B | C
    phases = [everything, B | C, A | B | C, A | C, everything]
    assert [set(found) for found in runs[layout][0]["moved"]] == phases


@pytest.mark.parametrize("layout", ["data", "model"])
def test_four_devices_end_where_one_does(runs: Any, layout: str) -> None:
    """Sums over a batch, or over a contracted axis, are added up in another order: a few units of the last place (6e-8) in each of the 25 steps."""
    for path, value in runs["one"][1].items():
        np.testing.assert_allclose(runs[layout][1][path], value, rtol=1e-5, atol=1e-5, err_msg=path)


def test_variables_and_new_slots_lie_as_before_on_all_devices(runs: Any) -> None:
    for layout in ("data", "model"):
        found = runs[layout][0]
        assert found["kept"]
        slots = {path: place for path, place in found["slots"].items() if path in found["weights"]}
        assert len(slots) == 7
        assert slots == {path: found["weights"][path] for path in slots}, "a slot lies elsewhere than its variable"
        assert {count for count, _ in found["slots"].values()} == {4}
    sharded = {path.partition("_")[2]: place for path, (_, place) in runs["model"][0]["slots"].items() if "'model'" in place}
    assert sharded == {"a_kernel": "P(None, 'model')", "b_kernel": "P('model', None)"}
