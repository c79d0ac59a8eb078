"""Keras 3, on TensorFlow, JAX and PyTorch alike.

Flags are set one by one on every layer and variable, since a single assignment does not reach them all on every backend. Then whatever trains the layers is
brought in line at once, without compiling again: the optimizer in place, with its moments, iterations and schedule; and the compiled functions.

Layers of a part may be picked in the model that is trained (``freeze(model, layers=model.get_layer("base"))``), or the part may be given: all living models
around it obey, also those that are made before it is undone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import keras

from unifreeze.plugin import Applied, Backend, Clue, ExitStack, Finding, Inputs, Layer, Request, Shape, Slots, Traced, hookimpl, named

from . import audit, drift, figures, graph, living, resume, shapes, training, tree
from .clues import clues
from .fingerprint import fingerprint, fingerprints, marks, values
from .flags import Setter
from .optimizer import Bank, retarget
from .slots import SLOTS


class KerasTools:
    """What a training loop of one's own needs; ``fit`` and ``train_on_batch`` need nothing."""

    def __init__(self, model: Any, notes: Mapping[str, object]) -> None:
        self._model, self._notes = model, notes

    def attach(self, optimizer: Any) -> None:
        """Points an optimizer that ``model.compile`` does not know at what is trainable now; moments of what stays are kept.

        What it trains beside this model stays in it: the model's variables stand where its first one stood, or last.
        """
        bank = Bank()
        retarget(optimizer, training.targets(optimizer, self._model, self._model._flatten_layers()), bank)
        bank.tell()

    def load_optimizer(self, file: str | os.PathLike[str]) -> None:
        """Reads the optimizer's state from a saved model (``.keras`` or ``.weights.h5``), which Keras skips where flags of variables differ when it loads.

        Apply the record that was taken when the model was saved, then call this: ``apply(model, Path("model.json")).load_optimizer("model.keras")``.
        """
        resume.load_optimizer(self._model, file)
        resume.rejoin(self._model, tree.read(self._model), self._notes)


class KerasBackend(Backend):
    """Speaks for Keras 3."""

    name = "keras"

    def layers(self, model: Any) -> Layer:
        """Reads any layer or model. During a fit on JAX, the values that the fit holds are handed back to the variables, as for a callback that saves them."""
        root = tree.read(model)
        if keras.backend.backend() == "jax" and any(getattr(variable, "_value", variable) is None for variable in _arrays(root)):
            training.hand_over(training.trainers([layer.native for layer in root.walk()]))
        return root

    def apply(self, model: Any, request: Request) -> Applied:
        """Sets flags and pins, and lets training obey at once.

        A parameter that is unfrozen late begins as in a fresh optimizer; where that can't be (an optimizer of one's own, with state that all parameters
        share), a warning says so.
        """
        nodes = list(request.tree.walk())
        natives = [node.native for node in nodes]
        models = training.trainers(natives)
        bank = Bank()
        training.pause(models)
        training.need_values(variable for variable in _arrays(request.tree) if isinstance(variable, keras.Variable))
        with ExitStack() as stack:
            drift.watch(models, functools.partial(training.obey, bank=bank), stack)
            setter = Setter(stack, request, nodes)
            stack.callback(lambda: training.settle(models, bank, changed=setter.changed))
            setter.set_all()
            training.settle(models, bank, changed=setter.changed)
            bank.tell()
            resume.rejoin(model, request.tree, request.notes)
            undo = functools.partial(training.close, models, natives, setter, bank, stack.pop_all())
            return Applied(model, undo, KerasTools(model, request.notes), state=tree.state_now(request.tree))

    def notes(self, model: Any, tree: Layer) -> Mapping[str, object]:
        """Keeps at which iteration parameters joined the optimizer late."""
        return resume.notes(model, tree)

    def modes(self, model: Any, tree: Layer) -> Mapping[str, Literal["training", "still"]]:
        """What ``fit`` does."""
        del model
        return audit.modes(tree)

    def draws(self, layer: Layer) -> bool:
        """Dropout, also of a recurrent cell, and noise."""
        return super().draws(layer) or (isinstance(layer.native, keras.layers.GaussianNoise) and layer.native.stddev > 0)

    def optimizer(self, given: Any) -> Any:
        """An optimizer of Keras."""
        return audit.known(given)

    def audit(self, model: Any, tree: Layer, optimizers: tuple[Any, ...]) -> Iterable[Finding]:
        """Flags against variables, and against what was compiled."""
        return audit.findings(model, tree, optimizers)

    def remarks(self, tree: Layer) -> tuple[str, ...]:
        """Keras's own figures where they differ, the optimizer's arrays, and flags that do not say what happens."""
        return figures.compared(tree)

    def graph(self, model: Any, shape: Any, apply: object = None) -> Traced:  # noqa: ARG002 - these models say what they compute
        """Traces the weighted dataflow in inference."""
        return graph.trace(model, self.layers(model), shape)

    def output_shapes(self, model: Any, tree: Layer, inputs: Inputs) -> Mapping[str, Shape]:
        """Calls the model on shapes, as Keras itself does to build one."""
        return shapes.output_shapes(model, tree, inputs)

    def slots(self, optimizer: str) -> Slots:
        """Those of ``keras.optimizers``."""
        return named(optimizer, SLOTS)

    def fingerprint(self, array: Any) -> Hashable:
        """Reads the bytes of a variable, or of a wrapped torch module's buffer, once."""
        return fingerprint(array)

    def fingerprints(self, arrays: Sequence[Any]) -> Sequence[Hashable]:
        """Reads them all, TensorFlow's in one go."""
        return fingerprints(arrays)

    def marks(self, arrays: Sequence[Any], like: Sequence[Hashable] = ()) -> Sequence[Hashable]:
        """Reads them all, by what is quickest on the host, or as those were read that they are compared with."""
        return marks(arrays, like)

    def values(self, array: Any) -> Any:
        """A copy on the host."""
        return values(array)

    def clues(self, model: Any, tree: Layer, optimizer: Any = None, *, living: bool = True) -> Mapping[str, Clue]:
        """Optimizers that still hold a variable, and a gradient that was left on it."""
        del model
        return clues(tree, optimizer, moved=living)


def _arrays(root: Layer) -> Iterable[Any]:
    return [parameter.array for parameter in root.arrays()]


living.listen(training.join)
BACKEND = KerasBackend()


@hookimpl(tryfirst=True)
def unifreeze_backend(model: object) -> Backend | None:
    """Speaks for every Keras layer and model; on the torch backend they are torch modules as well, so this is asked first."""
    return BACKEND if isinstance(model, keras.layers.Layer) else None
