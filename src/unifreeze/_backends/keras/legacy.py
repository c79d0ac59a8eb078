"""Refuses legacy ``.h5`` files where the order of their weights would mix them up.

They list the weights of each top layer with the trainable ones first and are read back by place: under other flags, layers of equal shape change places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras.src.legacy.saving import legacy_h5_format

from unifreeze.plugin import BackendError


def is_legacy(file: object) -> bool:
    """Whether Keras reads and writes this name in the legacy format."""
    return str(file).endswith((".h5", ".hdf5")) and not str(file).endswith(".weights.h5")


def need_same_order(model: Any, file: object, *, by_name: bool = False) -> None:
    """Refuses a legacy file that was written under other flags.

    Raises:
        BackendError: If a layer's weights lie in another order than its flags ask for now.
    """
    for layer, saved in _saved(model, str(file), by_name=by_name):
        now = [str(variable.path) for variable in legacy_h5_format._legacy_weights(layer)]
        for theirs, ours in ((saved, now), (_unnumbered(saved), _unnumbered(now))):
            if sorted(theirs) == sorted(ours):
                if theirs != ours:
                    raise BackendError(_message(f"{file} was saved while other parameters were trainable", layer, theirs, ours, "now it would be read as"))
                break


def need_lasting_order(model: Any, file: object) -> None:
    """Refuses to write a legacy file whose order the loaded model would not know, since flags of variables are not saved.

    Raises:
        BackendError: If a layer has variables whose flags differ from its own.
    """
    owner = {id(v): layer for layer in model._flatten_layers() for v in layer._trainable_variables}
    for layer in model.layers:
        flag = layer.trainable or isinstance(layer, keras.Sequential)
        first = [v for v in layer.variables if flag and id(v) in owner and owner[id(v)]._trainable]
        known = set(map(id, first))
        loaded = [v for v in (*first, *(v for v in layer.variables if id(v) not in known)) if any(v is one for one in layer.weights)]
        now = legacy_h5_format._legacy_weights(layer)
        if list(map(id, loaded)) != list(map(id, now)):
            written, read = ([str(v.path) for v in order] for order in (now, loaded))
            raise BackendError(_message(f"{file} would be read back wrongly, for it does not keep flags of variables", layer, written, read, "read back as"))


def _saved(model: Any, file: str, *, by_name: bool) -> list[tuple[Any, list[str]]]:
    import h5py

    names = legacy_h5_format.load_attributes_from_hdf5_group
    with h5py.File(file, "r") as opened:
        group = opened["model_weights"] if "layer_names" not in opened.attrs and "model_weights" in opened else opened
        weights = {name: names(group[name], "weight_names") for name in names(group, "layer_names")}
    if by_name:
        return [(layer, weights[layer.name]) for layer in model.layers if weights.get(layer.name)]
    layers = [layer for layer in model.layers if legacy_h5_format._legacy_weights(layer)]
    return list(zip(layers, filter(None, weights.values()), strict=False))


def _unnumbered(paths: Sequence[str]) -> list[str]:
    return ["/".join(re.sub(r"(_\d+)+$", "", part) for part in path.split("/")) for path in paths]


def _message(what: str, layer: Any, saved: Sequence[str], other: Sequence[str], how: str) -> str:
    place = next(i for i, (one, two) in enumerate(zip(saved, other, strict=True)) if one != two)
    return (
        f"{what}: a legacy .h5 file lists trainable weights first.\n"
        f"  in {layer.name}, weight {place} is {saved[place]}, and {how} {other[place]}\n"
        "  Nothing was changed.\n"
        "  Save as .keras or .weights.h5, which go by name; or load the legacy file under the flags it was saved with, and freeze then."
    )
