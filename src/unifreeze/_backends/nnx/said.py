"""What a filter of nnx says of what trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flax import nnx

from unifreeze.plugin import Layer


def filtered(model: nnx.Module, tree: Layer, said: Any) -> Iterator[str]:
    """Yields the paths of the parameters that the filter lets through.

    nnx asks a filter once about a shared variable, at its first path. What it says of the others is taken at its word, so that a contradiction is seen.
    """
    fits = nnx.filterlib.to_predicate(said)
    first = {id(node): (path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)}
    for parameter in (one for layer in tree.walk() for one in layer.parameters):
        keys, variable = first[id(parameter.array)]
        here = keys if parameter.path == ".".join(map(str, keys)) else _keys(parameter.path)
        if fits(here, variable):
            yield parameter.path


def _keys(path: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))
