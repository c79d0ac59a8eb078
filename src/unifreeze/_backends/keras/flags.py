"""Sets flags and pins, layer by layer and variable by variable.

Keras trains a variable if its own flag and the flag of the model that is trained say so; the flags of layers in between hide nothing. A layer's flag still
matters: batch normalisation reads its own, it is what ``summary`` and a saved file show, and on TensorFlow setting it to the value that it already has
reaches nothing inside. So the flags of layers follow from their variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from unifreeze.plugin import ExitStack, Inference, Layer, Request

from . import pin, tree

_STRENGTH = (None, "norm", "all")


class Setter:
    """Brings about what a request asks for, and tells a stack how to restore it.

    Attributes:
        changed: Whether anything had to be changed.
    """

    def __init__(self, stack: ExitStack, request: Request, nodes: list[Layer]) -> None:
        self.stack = stack
        self.request = request
        self.nodes = nodes
        self.changed = False
        self._was: list[tuple[Any, str, Any]] = []

    def set_all(self) -> None:
        """Sets the variables first; flags and holds of layers follow from them."""
        self.stack.callback(_restore, self._was)  # one for all of them: a model has thousands
        asked = self._asked()
        holds = self._holds()
        self._variables()
        trains, wakes, owns = self._summed()
        for node in self.nodes:
            layer, touched = node.native, id(node.native) in asked
            hold = holds[id(layer)]
            on = trains[node.path]
            if pin.by_flag(layer):
                on = on or hold is None
                hold = None if not on and hold == "norm" else hold
            if (on and wakes[node.path]) or (touched and (on or pin.by_flag(layer) or owns[node.path])):
                self._flag(layer, on=on)
            if touched:
                self.changed |= pin.place(layer, hold, self.stack)

    def back(self) -> Callable[[], None]:
        """Restores the flags alone, and returns how to set them again."""
        now = [(one, name, one[name] if type(one) is dict else getattr(one, name)) for one, name, _ in self._was]
        _restore(self._was)
        return functools.partial(_restore, now)

    def _asked(self) -> set[int]:
        """The layers that the request is about: picked, or owning one of its parameters; with a kernel, the spectral normalisation that overwrites it."""
        arrays = {id(p.array) for node in self.nodes for p in node.parameters if p.path in self.request.parameters}
        layers = self.request.layers
        return {
            id(node.native)
            for node in self.nodes
            if node.path in layers or not arrays.isdisjoint([id(p.array) for p in node.parameters]) or id(_overwritten(node.native)) in arrays
        }

    def _holds(self) -> dict[int, Inference | None]:
        """How each layer shall be held: as asked, at any of its paths; else as it is. A kernel that is overwritten at each call is still with its layer."""
        asked: dict[int, list[Inference | None]] = {}
        for node in self.nodes:
            if node.path in self.request.layers:
                asked.setdefault(id(node.native), []).append(self.request.state.inference.get(node.path))
        holds = {id(node.native): node.inference for node in self.nodes}
        holds |= {key: hows[0] if len(hows) == 1 else max(hows, key=_STRENGTH.index) for key, hows in asked.items()}
        frozen = {id(p.array) for node in self.nodes for p in node.parameters if p.path in self.request.state.frozen}
        for node in self.nodes:
            kernel = _overwritten(node.native)
            if kernel is not None and holds[id(node.native)] != "all":
                holds[id(node.native)] = "norm" if id(kernel) in frozen else None
        return holds

    def _variables(self) -> None:
        """Sets the variables that the request names; all of them where the model's own flag, which hides them now, has to go up."""
        frozen, named = self.request.state.frozen, self.request.parameters
        root: Any = self.nodes[0].native
        every = not root.trainable and not named <= frozen
        for node in self.nodes:
            for parameter in node.parameters:
                if (every or parameter.path in named) and not parameter.untrainable:
                    self._variable(parameter.array, on=parameter.path not in frozen)

    def _variable(self, variable: Any, *, on: bool) -> None:
        if on == tree.trains(variable):
            return
        tensor = variable._value
        if hasattr(tensor, "requires_grad"):
            self._was.append((tensor, "requires_grad", tensor.requires_grad))
            if not on:
                self._was.append((tensor, "grad", tensor.grad))
                tensor.grad = None
        self._was.append((variable, "trainable", variable.trainable))
        variable.trainable = on
        self.changed = True

    def _flag(self, layer: Any, *, on: bool) -> None:
        """Writes one flag and no other: Keras's own setter goes on to everything inside. Past the attribute hooks, which track nothing in a flag."""
        own = vars(layer)
        if bool(own["_trainable"]) != on:
            self._was.append((own, "_trainable", own["_trainable"]))
            own["_trainable"] = on
            self.changed = True

    def _summed(self) -> tuple[dict[str, bool], dict[str, bool], dict[str, bool]]:
        """For each layer: whether anything in it trains, whether the request makes anything in it train, and whether it has parameters at all."""
        trains: dict[str, bool] = {}
        wakes: dict[str, bool] = {}
        owns: dict[str, bool] = {}
        asked = self.request.parameters
        for node in reversed(self.nodes):
            path, below = node.path, [child.path for child in node.children]
            alive = [p.path for p in node.parameters if tree.trains(p.array)]
            trains[path] = bool(alive) or True in map(trains.get, below)
            wakes[path] = not asked.isdisjoint(alive) or True in map(wakes.get, below)
            owns[path] = bool(node.parameters) or True in map(owns.get, below)
        return trains, wakes, owns


def _restore(was: list[tuple[Any, str, Any]]) -> None:
    """Writes back what attributes of objects, and entries of dictionaries, were."""
    for one, name, value in reversed(was):
        if type(one) is dict:
            one[name] = value
        else:
            setattr(one, name, value)


def _overwritten(layer: Any) -> Any:
    return layer.kernel if isinstance(layer, keras.layers.SpectralNormalization) else None
