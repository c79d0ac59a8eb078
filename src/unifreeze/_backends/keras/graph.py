"""Traces a model to its weighted dataflow: along the functional graph that Keras keeps, and through ``call`` of what is subclassed, on symbols."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import keras
import numpy as np
from keras.src.models.functional import Functional

from unifreeze.plugin import BackendError, Layer, Traced, Tracing, flow

from .layers import handler_of
from .operations import flat, operation
from .symbolic import Stage

#: What an open size of an input is taken for.
_OPEN = 32


class _Tracer:
    def __init__(self, model: Any, tree: Layer) -> None:
        arrays = list(tree.arrays())
        self.arrays: dict[str, Any] = {array.path: array.array for array in arrays}
        self.paths = {id(array): path for path, array in reversed(self.arrays.items())}
        self.tracing = Tracing({array.path: layer.path for layer in reversed(list(tree.walk())) for array in (*layer.parameters, *layer.buffers)})
        self.stage = Stage([model, *model._flatten_layers(include_self=False)])
        self.expanded: list[Any] = []

    def of(self, variable: Any) -> Any:
        """What is known of a weight, or of the symbol that stands for it."""
        real = self.stage.symbols.get(id(variable), variable)
        return flow.parameter(self.paths[id(real)], tuple(real.shape))

    def functional(self, model: Any, inputs: Sequence[Any]) -> list[Any]:
        """Walks the nodes of a functional graph, parents first."""
        known = {id(tensor): value for tensor, value in zip(model._inputs, inputs, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if not node.is_input:
                    self._node(node, known)
        return [known[id(tensor)] for tensor in model._outputs]

    def expansion(self, layer: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
        """Runs ``call`` of a layer on symbols and walks the nodes that come out; arguments are values where the layer takes tensors."""
        known: dict[int, Any] = {}
        alive: list[Any] = []

        def symbol(value: Any) -> Any:
            if not isinstance(value, flow.Value):
                return value
            tensor = keras.KerasTensor(value.shape, dtype=self._dtype(value))
            alive.append(tensor)
            known[id(tensor)] = value
            return tensor

        self.expanded.append(layer)
        out = self.stage.run(layer, *keras.tree.map_structure(symbol, (list(args), dict(kwargs))))
        ends = [one for one in keras.tree.flatten(out) if isinstance(one, keras.KerasTensor)]
        for node in _nodes(ends, known, self.stage.symbols):
            self._node(node, known)
        return [known[id(tensor)] if id(tensor) in known else self.of(tensor) for tensor in ends]

    def _dtype(self, value: Any) -> str:
        inputs = all(one.unit < 0 and one.channel is None for one in value.flows) and value.flows
        return "int32" if inputs else "float32"

    def _node(self, node: Any, known: dict[int, Any]) -> None:
        def value(one: Any) -> Any:
            if id(one) in known:
                return known[id(one)]
            if isinstance(one, keras.Variable) or id(one) in self.stage.symbols:
                real = self.stage.symbols.get(id(one), one)
                return self.of(one) if id(real) in self.paths else flow.constant(tuple(real.shape))
            if isinstance(one, keras.KerasTensor):
                return flow.constant(tuple(size or 1 for size in one.shape))
            if isinstance(one, np.ndarray) or keras.ops.is_tensor(one):
                return flow.constant(tuple(one.shape))
            return one

        args, kwargs = keras.tree.map_structure(value, (list(node.arguments.args), dict(node.arguments.kwargs)))
        found = self._operation(node.operation, args, kwargs)
        found = found if isinstance(found, list) else [found] * len(node.outputs)
        for tensor, one in zip(node.outputs, found, strict=True):
            known[id(tensor)] = self._masked(tensor, one)

    def _masked(self, tensor: Any, value: Any) -> Any:
        """Neither a mask nor a count of positions is data."""
        counts = value.flows and all(one.unit < 0 and one.channel is None for one in value.flows)
        if tensor.dtype == "bool" or (counts and tensor.dtype.startswith(("float", "bfloat"))) or not (value.flows or value.weight or value.axes):
            return flow.constant(tuple(size or 1 for size in tensor.shape))
        return value

    def _operation(self, op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not isinstance(op, keras.Layer):
            return operation(self.tracing, op, [*args, *kwargs.values()])
        inner = _functional(op)
        if inner is not None:
            return self.functional(inner, [one for one in flat(args) if isinstance(one, flow.Value)])
        handler = handler_of(op)
        if handler:
            return handler(self.tracing, op, [one for one in flat(args) if isinstance(one, flow.Value)], self.of)
        if not op.built:
            raise BackendError(f"{type(op).__name__} {op.name!r} has not been built, so unifreeze can't trace it.")
        return self.expansion(op, args, kwargs)

    def check(self) -> None:
        """Refuses a layer whose ``call`` has used a weight where symbols do not reach."""
        seen = {weight.path for unit in self.tracing.units for weight in unit.weights.values()}
        for layer in self.expanded:
            for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
                path = self.paths.get(id(variable))
                if path and path not in seen and variable.dtype.startswith("float") and "seed" not in variable.name:
                    raise BackendError(f"{type(layer).__name__} {layer.name!r} uses {path} in a way that unifreeze can't trace.")


def _nodes(ends: Sequence[Any], known: Mapping[int, Any], symbols: Mapping[int, Any]) -> Iterator[Any]:
    """The nodes that lead to these tensors, parents first."""
    done: set[int] = set()
    stack = [(tensor, False) for tensor in reversed(ends)]
    while stack:
        tensor, ready = stack.pop()
        history = getattr(tensor, "_keras_history", None)
        if id(tensor) in symbols or history is None or history.operation is None:
            continue
        node = history.operation._inbound_nodes[history.node_index]
        if id(node) in done or (id(tensor) in known and not ready):
            continue
        if ready:
            done.add(id(node))
            yield node
        else:
            stack.append((tensor, True))
            stack += [(parent, False) for parent in reversed(node.arguments.keras_tensors)]


def _functional(model: Any) -> Any:
    """The functional graph of a model whose ``call`` is that of the graph."""
    if isinstance(model, keras.Sequential):
        return model._functional if type(model).call is keras.Sequential.call else None
    if hasattr(model, "_nodes_by_depth") and isinstance(model, keras.Model):
        return model if type(model).call is Functional.call else None
    return None


def _shapes(shape: Any) -> tuple[list[str], list[tuple[int, ...]]]:
    if isinstance(shape, Mapping):
        return list(shape), [tuple(one) for one in shape.values()]
    if shape is not None and shape and not isinstance(shape[0], int | None):
        return [""] * len(shape), [tuple(one) for one in shape]
    return [""], [tuple(shape)]


def _closed(shape: Sequence[int | None], given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None and len(given) == len(shape):
        return (1, *given[1:])
    return (1, *(size or _OPEN for size in shape[1:]))


def trace(model: Any, tree: Layer, shape: Any) -> Traced:
    """Traces a functional, sequential or subclassed model; ``shape`` is one shape, a list of them, or a dictionary by name."""
    tracer = _Tracer(model, tree)
    functional = _functional(model)
    given = _shapes(shape)[1] if shape is not None else []
    with tracer.stage.open():
        if functional is not None:
            tensors = list(functional._inputs)
            shapes = [_closed(tensor.shape, given[place] if place < len(given) else None) for place, tensor in enumerate(tensors)]
            values = [_input(tracer.tracing, size, tensor.dtype) for tensor, size in zip(tensors, shapes, strict=True)]
            outputs, call = tracer.functional(functional, values), _packed(functional)
        else:
            outputs, shapes, call = _subclassed(tracer, model, shape)
    tracer.check()
    outputs = [value for value in outputs if value.flows]
    graph = tracer.tracing.finish(outputs, tuple(shapes))
    arrays = tracer.arrays
    return Traced(
        graph,
        lambda wanted: {path: keras.ops.convert_to_numpy(arrays[path].value) for path in wanted},
        lambda new: _write(model, arrays, new),
        _runner(model, call),
    )


def _input(tracing: Tracing, shape: Sequence[int], dtype: str) -> Any:
    return tracing.input(shape, -1 if dtype.startswith(("float", "bfloat", "uint8")) else None)


def _packed(functional: Any) -> Callable[[list[Any]], tuple[list[Any], dict[str, Any]]]:
    return lambda arrays: ([keras.tree.pack_sequence_as(functional._inputs_struct, arrays)], {})


def _subclassed(tracer: _Tracer, model: Any, shape: Any) -> tuple[list[Any], list[tuple[int, ...]], Any]:
    """Runs ``call`` on what it was built with, or on what is given; numbers are tried first, then ids."""
    given = shape if shape is not None else _built(model)
    if given is None:
        raise BackendError(f"{type(model).__name__} {model.name!r} does not say the shape of its input.\n  Give it, channels last: shape=(1, 224, 224, 3).")
    names, shapes = _shapes(given)
    shapes = [_closed(one, None) for one in shapes]
    first: BackendError | None = None
    for call, dtype in product(_calls(names, _parameters(model)), ("float32", "int32")):
        tracer.tracing.units.clear()
        tracer.tracing.inputs = 0
        tracer.expanded.clear()
        try:
            args, kwargs = call([_input(tracer.tracing, one, dtype) for one in shapes])
            return tracer.expansion(model, args, kwargs), shapes, call
        except BackendError as error:
            first = first or error
    assert first is not None
    raise first


def _calls(names: list[str], parameters: list[str]) -> list[Callable[[list[Any]], tuple[list[Any], dict[str, Any]]]]:
    """The ways in which ``call`` may take its inputs: by name, one after another, or as one list or dictionary."""
    if any(names) and all(name in parameters for name in names):
        return [lambda made: ([], dict(zip(names, made, strict=True)))]
    if len(names) == 1 or len(parameters) > 1:
        return [lambda made: (made, {})]
    listed: list[Callable[[list[Any]], tuple[list[Any], dict[str, Any]]]] = [lambda made: ([made], {})]
    return [lambda made: ([dict(zip(names, made, strict=True))], {}), *listed] if any(names) else listed


def _parameters(model: Any) -> list[str]:
    found = inspect.signature(model.call).parameters
    return [name for name, one in found.items() if name not in {"training", "mask"} and one.kind is not inspect.Parameter.VAR_KEYWORD]


def _built(model: Any) -> Any:
    known = getattr(model, "_build_shapes_dict", None) or {}
    values = list(known.values())
    return values[0] if len(values) == 1 else values or None


def _write(model: Any, arrays: dict[str, Any], new: dict[str, Any]) -> Any:
    for path, value in new.items():
        arrays[path].assign(value)
    return model


def _runner(model: Any, call: Callable[[list[Any]], tuple[list[Any], dict[str, Any]]]) -> Callable[[list[Any]], list[Any]]:
    def run(inputs: list[Any]) -> list[Any]:
        args, kwargs = call(list(inputs))
        out = model(*args, **kwargs, training=False)
        return [np.asarray(keras.ops.convert_to_numpy(one)) for one in keras.tree.flatten(out)]

    return run
