"""What freezing a large Keras model costs. The docs have medians (``nox -s bench_keras``); here the best of many turns, which a busy machine disturbs least."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from unittest.mock import patch

import keras
import numpy as np
import pytest

from unifreeze import freeze, summary

TURNS = 40


def taken(call: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return (time.perf_counter() - start) * 1e3, result


@pytest.mark.deep
def test_toggling_efficientnet_b7_takes_less_than_100_ms_and_its_summary_less_than_50() -> None:
    constant = lambda _, shape, dtype=None, **__: np.full(shape, 0.1, dtype or "float32")  # noqa: E731 - drawing 66 million numbers takes most of the time
    with patch.object(keras.initializers.VarianceScaling, "__call__", constant):
        model = keras.applications.EfficientNetB7(weights=None, input_shape=(64, 64, 3), classes=10)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    times: dict[str, list[float]] = {"freeze": [], "undo": [], "summary": []}
    for _ in range(TURNS):
        took, freezing = taken(lambda: freeze(model, layers="~last:1"))
        assert model.layers[-1].trainable_variables == model.trainable_variables
        times["freeze"].append(took)
        times["undo"].append(taken(freezing.undo)[0])
        times["summary"].append(taken(lambda: str(summary(model)))[0])
    with contextlib.redirect_stdout(io.StringIO()):
        keras_takes, _ = taken(model.summary)
    best = {what: min(turns) for what, turns in times.items()}
    assert best["freeze"] < 100, best
    assert best["undo"] < 100, best
    assert best["summary"] < 50, best
    assert best["summary"] * 10 < keras_takes, best
