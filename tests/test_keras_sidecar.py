"""What outlives the process in Keras: a record with values beside a saved model, in another process and under other automatic names; and the digest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from unifreeze import apply, freeze, record
from unifreeze.errors import FrozenMovedError

RESTORED = """
import sys
from pathlib import Path
import keras
from unifreeze import apply
from unifreeze.errors import FrozenMovedError

for _ in range(3):
    keras.layers.Dense(1), keras.layers.BatchNormalization()  # counts names up
model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(300), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
try:
    apply(model, Path(sys.argv[2]))
except FrozenMovedError as error:
    assert "not the weights that were frozen" in str(error)
else:
    raise SystemExit("other weights were taken")
assert len(model.trainable_variables) == 6, "a call that raises has changed nothing"
model.load_weights(sys.argv[1])
freezing = apply(model, Path(sys.argv[2]))
print(freezing.digest(), len(freezing.frozen), len(freezing.held))
"""


def network() -> Any:
    return keras.Sequential([keras.Input((40,)), keras.layers.Dense(300), keras.layers.BatchNormalization(), keras.layers.Dense(2)])


def test_a_record_is_applied_and_checked_in_another_process(tmp_path: Path) -> None:
    model = network()
    model.compile("adam", "mse")
    model.fit(np.ones((8, 40), "float32"), np.ones((8, 2), "float32"), verbose=0)
    freezing = freeze(model, layers=model.layers[:2])
    model.save_weights(tmp_path / "model.weights.h5")
    record(model, values=True).save(tmp_path / "model.json")
    call = [sys.executable, "-c", RESTORED, str(tmp_path / "model.weights.h5"), str(tmp_path / "model.json")]
    found = subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip().splitlines()[-1] == f"{freezing.digest()} 4 1"


def test_statistics_that_moved_since_are_other_weights() -> None:
    model = network()
    freeze(model, layers=model.layers[:2])
    kept = record(model, values=True)
    apply(model, kept)
    model.layers[1].moving_mean.assign_add(keras.ops.ones(300))
    with pytest.raises(FrozenMovedError, match="moving_mean"):
        apply(model, kept)


def test_the_digest_of_the_same_values_under_other_names() -> None:
    one, other = network(), network()
    other.set_weights(one.get_weights())
    assert one.layers[0].name != other.layers[0].name
    assert freeze(one, layers=one.layers[:2]).digest() == freeze(other, layers=other.layers[:2]).digest()
