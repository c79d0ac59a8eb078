"""Goes on with a saved model: what a record keeps of an optimizer, and how its state is read back where Keras has left it out.

Keras gives back flags of layers, not those of variables, and skips the optimizer's state where it then has another length, with a warning only. In a loaded
model that a record has been applied to, the optimizer is laid out as it was when it was saved, so that the state fits.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from keras.src.saving import saving_lib

from unifreeze.plugin import BackendError, Layer

from . import training
from .optimizer import Bank, join_late, starts_of

_WEIGHTS = "model.weights.h5"


def notes(model: Any, tree: Layer) -> dict[str, object]:
    """The iteration at which parameters joined the optimizer late, which Adam's first steps depend on."""
    optimizer: Any = getattr(model, "optimizer", None)
    starts = starts_of(optimizer)
    return {p.path: starts[key] for layer in tree.walk() for p in layer.parameters if starts and (key := optimizer._var_key(p.array)) in starts}


def rejoin(model: Any, tree: Layer, noted: Mapping[str, object]) -> None:
    """Tells the optimizer what the record noted, if its own state was loaded: one that is at its beginning has nobody who came late."""
    optimizer = getattr(model, "optimizer", None)
    starts = {id(p.array): int(str(noted[p.path])) for layer in tree.walk() for p in layer.parameters if p.path in noted}
    if starts and optimizer is not None and optimizer.built and int(keras.ops.convert_to_numpy(optimizer.iterations)) >= max(starts.values()):
        training.pause([model])
        join_late(optimizer, starts)
        training.settle([model], Bank(), changed=True)


def load_optimizer(model: Any, file: str | os.PathLike[str]) -> None:
    """Reads the state of a model's optimizer from a ``.keras`` or ``.weights.h5`` file.

    Raises:
        BackendError: If the model is not compiled, or its optimizer is laid out for other variables than the saved one. Nothing was changed then.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise BackendError(f"{model.name!r} has no optimizer to load a state into.\n  Call model.compile(…) first.")
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    before = [keras.ops.copy(variable.value) for variable in optimizer.variables]
    with _store(Path(file)) as store, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        saving_lib._load_state(optimizer, weights_store=store, assets_store=None, inner_path="optimizer")
    skipped = [str(one.message) for one in said if "Skipping variable loading" in str(one.message)]
    if skipped:
        for variable, value in zip(optimizer.variables, before, strict=True):
            variable.assign(value)
        raise BackendError(
            f"The optimizer in {Path(file).name} was saved in another frozen state, so its arrays can't be given back.\n  {skipped[0].strip()}\n"
            "  Nothing was changed.\n"
            "  Keep unifreeze.record(model).to_json() beside the model when you save it, and apply it to the loaded model first."
        )


@contextmanager
def _store(file: Path) -> Iterator[Any]:
    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            store = saving_lib.H5IOStore(_WEIGHTS, archive, mode="r")
            yield store
            store.close()
    else:
        store = saving_lib.H5IOStore(file, mode="r")
        yield store
        store.close()
