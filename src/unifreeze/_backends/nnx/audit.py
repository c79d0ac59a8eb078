"""What only nnx can get wrong: modes that are attributes, and an optimizer whose ``wrt`` is not what trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from flax import nnx

from unifreeze._backends.jax.audit import statuses, tried
from unifreeze._backends.jax.checks import is_transformation
from unifreeze.plugin import Finding, Layer

_STILL = {"use_running_average": True, "deterministic": True, "rate": 0.0, "update_stats": False}


def modes(tree: Layer) -> dict[str, Literal["training", "still"]]:
    """Modes that are attributes of modules; those that are arguments of a call are not to be seen."""
    found: dict[str, Literal["training", "still"]] = {}
    for layer in tree.walk():
        told = {name: getattr(layer.native, name, None) for name in _STILL}
        if any(told[name] is not None and told[name] == still for name, still in _STILL.items()):
            found[layer.path] = "still"
        elif told["use_running_average"] is False or told["deterministic"] is False:
            found[layer.path] = "training"
    return found


def findings(model: nnx.Module, tree: Layer, optimizers: tuple[Any, ...]) -> Iterator[Finding]:
    """Runs the transformation of each optimizer over the variables that it is made for, on copies."""
    taken = [one for one in optimizers if isinstance(one, nnx.Optimizer) or is_transformation(one)]
    pairs = [(one.tx, one.wrt) if isinstance(one, nnx.Optimizer) else (one, nnx.Param) for one in taken]
    yield from tried([(tx, nnx.as_pure(nnx.state(model, wrt))) for tx, wrt in pairs], statuses(tree))
