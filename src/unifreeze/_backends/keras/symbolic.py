"""Runs ``call`` of a layer on symbols, its weights included, by Keras's own machinery, and leaves no trace of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.ops.node import Node

from unifreeze.plugin import BackendError

_INTERNAL = {"_trainable_variables", "_non_trainable_variables", "_variables", "_layers", "_metrics", "_seed_generators", "_losses", "_tracker"}


class Stage:
    """Where weights are symbols for a while.

    While ``call`` of one layer runs, every weight of the model is a ``KerasTensor``; a layer inside it is asked for the shape of its output with its
    real weights back in place.

    Attributes:
        symbols: For the id of each symbol, the variable that it stands for.
        live: Whether the weights are symbols now.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._holders: list[tuple[dict[str, Any], str, Any, Any]] = []
        self.symbols: dict[int, Any] = {}
        self.live = False

    def _prepare(self) -> None:
        symbols: dict[int, Any] = {}

        def symbol(variable: Any) -> Any:
            if id(variable) not in symbols:
                symbols[id(variable)] = keras.KerasTensor(tuple(variable.shape), dtype=variable.dtype)
                self.symbols[id(symbols[id(variable)])] = variable
            return symbols[id(variable)]

        for layer in self._layers:
            for name, value in vars(layer).items():
                if name in _INTERNAL or "seed" in name:
                    continue
                if isinstance(value, keras.Variable):
                    self._holders.append((vars(layer), name, value, symbol(value)))
                elif isinstance(value, list | tuple) and value and all(isinstance(one, keras.Variable) for one in value):
                    self._holders.append((vars(layer), name, value, [symbol(one) for one in value]))

    def _put(self, *, symbolic: bool) -> None:
        self.live = symbolic
        for holder, name, real, symbol in self._holders:
            holder[name] = symbol if symbolic else real

    @contextmanager
    def symbolic(self) -> Iterator[None]:
        """The weights are symbols."""
        if not self._holders:
            self._prepare()
        self._put(symbolic=True)
        try:
            yield
        finally:
            self._put(symbolic=False)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Everything that a symbolic call leaves behind is taken back afterwards: nodes, losses and the counters of names."""
        names = global_state.get_global_attribute("object_name_uids")
        before = dict(names) if names is not None else None
        nodes = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes), list(layer._losses)) for layer in self._layers]
        for layer in self._layers:
            vars(layer).update(compute_output_spec=_with_real_weights(self, layer), call=_with_symbols(self, layer))
        try:
            yield
        finally:
            for layer, inbound, outbound, losses in nodes:
                vars(layer).pop("compute_output_spec")
                vars(layer).pop("call")
                del layer._inbound_nodes[inbound:], layer._outbound_nodes[outbound:]
                with suppress(AttributeError):
                    layer._losses[:] = losses
            if before is not None:
                names.clear()
                names.update(before)

    def run(self, layer: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        """What ``call`` returns for these symbols."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        if "training" in inspect.signature(type(layer).call).parameters:
            given["training"] = False
        try:
            with self.symbolic():
                return type(layer).call(layer, *args, **given)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"{type(layer).__name__} {layer.name!r} is a layer that unifreeze can't trace: its call does not run on symbols.\n"
                f"  {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error


def _with_real_weights(stage: Stage, layer: Any) -> Any:
    usual = type(layer).compute_output_spec

    def compute_output_spec(*args: Any, **kwargs: Any) -> Any:
        stage._put(symbolic=False)
        try:
            return usual(layer, *args, **kwargs)
        finally:
            stage._put(symbolic=True)

    return compute_output_spec


def _with_symbols(stage: Stage, layer: Any) -> Any:
    """``call`` of a layer that is given constants while weights are symbols, such as positions: a node all the same."""
    usual = type(layer).call

    def call(*args: Any, **kwargs: Any) -> Any:
        if not stage.live:
            return usual(layer, *args, **kwargs)
        given = keras.tree.map_structure(_symbol, (args, kwargs))
        outputs = layer.compute_output_spec(*given[0], **given[1])
        Node(operation=layer, call_args=given[0], call_kwargs=given[1], outputs=outputs)
        return outputs

    return call


def _symbol(one: Any) -> Any:
    is_array = keras.ops.is_tensor(one) or isinstance(one, np.ndarray)
    return keras.KerasTensor(tuple(one.shape), dtype=keras.backend.standardize_dtype(one.dtype)) if is_array else one
