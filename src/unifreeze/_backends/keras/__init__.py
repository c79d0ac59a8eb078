"""Keras 3, on TensorFlow, JAX and PyTorch alike.

Flags are set one by one on every layer and variable, since a single assignment does not reach them all on every backend. Then whatever trains the layers is
brought in line at once, without compiling again: the optimizer in place, with its moments, iterations and schedule; and the compiled functions.

Freeze the model that is trained. Layers of a part may be picked in it (``freeze(model, layers=model.get_layer("base"))``); where only the part is given,
living models around it are searched for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from typing import Any

import keras
import numpy as np

from unifreeze.plugin import Applied, Backend, ExitStack, Layer, Request, Traced, hookimpl

from . import graph, training, tree
from .flags import Setter
from .optimizer import Bank, retarget


class KerasTools:
    """What a training loop of one's own needs; ``fit`` and ``train_on_batch`` need nothing."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def attach(self, optimizer: Any) -> None:
        """Points an optimizer that ``model.compile`` does not know at what is trainable now; moments of what stays are kept."""
        retarget(optimizer, self._model.trainable_variables, Bank())


class KerasBackend(Backend):
    """Speaks for Keras 3."""

    name = "keras"

    def layers(self, model: Any) -> Layer:
        """Reads any layer or model. During a fit on JAX, the values that the fit holds are handed back to the variables, as for a callback that saves them."""
        root = tree.read(model)
        if any(isinstance(variable, keras.Variable) and variable._value is None for variable in _arrays(root)):
            training.hand_over([layer.native for layer in root.walk() if isinstance(layer.native, keras.Model)])
        return root

    def apply(self, model: Any, request: Request) -> Applied:
        """Sets flags and pins, and lets training obey at once.

        A parameter that is unfrozen late begins as in a fresh optimizer, except in Nadam, whose momentum schedule all parameters share.
        """
        nodes = list(request.tree.walk())
        models = training.trainers(model, (node.native for node in nodes))
        bank = Bank()
        training.pause(models)
        training.need_values(variable for variable in _arrays(request.tree) if isinstance(variable, keras.Variable))
        with ExitStack() as stack:
            setter = Setter(stack, request, nodes)
            stack.callback(lambda: training.settle(models, bank, changed=setter.changed))
            setter.set_all()
            stack.callback(training.pause, models)
            training.settle(models, bank, changed=setter.changed)
            return Applied(model, stack.pop_all().close, KerasTools(model))

    def graph(self, model: Any, shape: tuple[int, ...] | None) -> Traced:
        """Traces the weighted dataflow in inference."""
        return graph.trace(model, self.layers(model), shape)

    def fingerprint(self, array: Any) -> Hashable:
        """Hashes the bytes of a variable, or of a wrapped torch module's buffer."""
        value = getattr(array, "_value", array)
        if value is None:
            return None
        data = np.ascontiguousarray(keras.ops.convert_to_numpy(value))
        return hashlib.blake2b(data.reshape(-1).view(np.uint8).data, digest_size=16).digest()


def _arrays(root: Layer) -> Iterable[Any]:
    return (parameter.array for parameter in root.arrays())


BACKEND = KerasBackend()


@hookimpl(tryfirst=True)
def unifreeze_backend(model: object) -> Backend | None:
    """Speaks for every Keras layer and model; on the torch backend they are torch modules as well, so this is asked first."""
    return BACKEND if isinstance(model, keras.layers.Layer) else None
