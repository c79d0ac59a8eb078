"""The unifreeze backend for toynet: what a stranger writes to bring a framework of his own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import toynet
from unifreeze.plugin import Applied, Backend, Clue, Finding, Layer, Parameter, Request, Status, hookimpl, role

KINDS = {
    "Dense": "dense",
    "Conv": "conv",
    "BatchNorm": "batch_norm",
    "LayerNorm": "layer_norm",
    "Embedding": "embedding",
    "Unembedding": "dense",
    "Dropout": "dropout",
    "Chain": "container",
    "Relu": "activation",
    "Pool": "pooling",
}


class ToynetBackend(Backend):
    """Speaks for toynet."""

    name = "toynet"

    def layers(self, model: toynet.Layer, path: str = "") -> Layer:
        """Reads the model, or the part of it at ``path``, as a tree."""
        kind = KINDS.get(type(model).__name__, "other")
        owned = {name: self.parameter(_join(path, name), kind, variable) for name, variable in model.variables().items()}
        return Layer(
            path,
            kind,
            type(model).__name__,
            parameters=tuple(p for p in owned.values() if p.status != "buffer"),
            buffers=tuple(p for p in owned.values() if p.status == "buffer"),
            children=tuple(self.layers(child, _join(path, name)) for name, child in model.children().items()),
            inference=model.pinned,
            native=model,
        )

    def parameter(self, path: str, kind: str, variable: toynet.Variable) -> Parameter:
        """Describes one variable; toynet keeps statistics in variables that are never trainable."""
        name = path.rpartition(".")[2]
        status: Status = "buffer" if name in {"mean", "variance"} else "trainable" if variable.trainable else "frozen"
        value = variable.value
        return Parameter(path, value.shape, str(value.dtype), value.nbytes, status, "embedding" if name == "table" else role(kind, name), variable)

    def apply(self, model: toynet.Layer, request: Request) -> Applied:
        """Sets the flags, and pins the layers that are held."""
        with ExitStack() as undo:
            for layer in request.tree.walk():
                for parameter in layer.parameters:
                    if parameter.path in request.parameters:
                        _set(undo, parameter.array, "trainable", parameter.path not in request.state.frozen)
                        _set(undo, parameter.array, "gradient", None)
                if layer.path in request.layers:
                    _set(undo, layer.native, "pinned", request.state.inference.get(layer.path))
            return Applied(model, undo=undo.pop_all().close)

    def fingerprint(self, array: toynet.Variable) -> bytes:
        """The bytes themselves: toynet's models are small."""
        return array.value.tobytes()

    def values(self, array: toynet.Variable) -> toynet.Values:
        """A copy."""
        return array.value.copy()

    def clues(self, model: toynet.Layer, tree: Layer, optimizer: toynet.Optimizer | None = None, *, living: bool = True) -> dict[str, Clue]:
        """Left gradients, and what the given optimizer keeps."""
        del model, living
        return {p.path: self._clue(p.array, optimizer) for layer in tree.walk() for p in layer.parameters}

    def modes(self, model: toynet.Layer, tree: Layer) -> dict[str, Literal["training", "still"]]:
        """Every layer knows its mode."""
        natives: dict[str, Any] = {layer.path: layer.native for layer in tree.walk()}
        return {path: "training" if layer.learning else "still" for path, layer in natives.items() if model.training}

    def _clue(self, variable: Any, optimizer: toynet.Optimizer | None) -> Clue:
        left = "" if variable.gradient is None else "some" if variable.gradient.any() else "zero"
        if optimizer is None or variable not in optimizer.variables:
            return Clue(left)
        return Clue(left, "Optimizer", moments=id(variable) in optimizer.slots, decay=optimizer.decay)


def _set(undo: ExitStack, thing: object, attribute: str, value: object) -> None:
    undo.callback(setattr, thing, attribute, getattr(thing, attribute))
    setattr(thing, attribute, value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


BACKEND = ToynetBackend()


@hookimpl
def unifreeze_backend(model: object) -> Backend | None:
    """Answers for toynet's layers."""
    return BACKEND if isinstance(model, toynet.Layer) else None


@hookimpl
def unifreeze_audit(model: object, tree: Layer) -> list[Finding]:
    """A rule of our own: statistics that are marked trainable, which an optimizer over all variables would train."""
    if not isinstance(model, toynet.Layer):
        return []
    statistics: dict[str, Any] = {buffer.path: buffer.array for layer in tree.walk() for buffer in layer.buffers}
    wrong = [path for path, variable in statistics.items() if variable.trainable]
    why = "it is a statistic and marked trainable"
    return [Finding("TOY1", "error", tuple(wrong), why, "Variable(…, trainable=False)")] if wrong else []
