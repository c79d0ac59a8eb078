"""What is taken for a tree of parameters and is none, said with the way out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from unifreeze.plugin import ArgumentError, BackendError, UnbuiltModelError

_MAKERS = (
    ("flax.linen", "Module"),
    ("haiku", "Transformed"),
    ("haiku", "TransformedWithState"),
    ("haiku", "MultiTransformed"),
    ("haiku", "MultiTransformedWithState"),
)


def makes_parameters(model: object) -> bool:
    """Whether this is what makes a tree of parameters: a linen module, or what haiku's ``transform`` gives."""
    classes = [getattr(sys.modules[library], kind, None) for library, kind in _MAKERS if library in sys.modules]
    return isinstance(model, tuple(kind for kind in classes if kind is not None))


def refuse_what_makes_parameters(model: Any) -> None:
    """Raises if the parameters are not in this object, but in what its ``init`` returns."""
    if not makes_parameters(model):
        return
    name = type(model).__name__
    if getattr(model, "scope", None) is not None:
        raise UnbuiltModelError(f"{name} is a bound linen module; its parameters lie in its variables.\n  Freeze these: f = freeze(model.variables).")
    raise UnbuiltModelError(
        f"{name} holds no parameters; they are what its init returns.\n"
        "  variables = model.init(key, x)\n"
        "  Freeze these, and go on calling model.apply with them: f = freeze(variables)."
    )


def refuse_training_state(model: Any) -> None:
    """Raises for flax's TrainState and its like, whose moments would count as parameters."""
    fields = list(map(str, model)) if isinstance(model, Mapping) else list(vars(model)) if hasattr(model, "opt_state") and hasattr(model, "__dict__") else []
    if "opt_state" in fields:
        place = "state['params']" if isinstance(model, Mapping) else "state.params"
        raise ArgumentError(
            f"{type(model).__name__} is a training state, not a model: beside the parameters it holds the optimizer's state.\n"
            f"  it has: {', '.join(fields)}\n"
            f"  Give its parameters: f = freeze({place}); and make the state with tx=f.optimizer(tx)."
        )


def refuse_optimizer_state(node: Any, path: str) -> None:
    """Raises if a container in a tree is one of optax's states, or of ours."""
    kind = type(node)
    if kind.__module__.startswith("optax.") or kind.__name__ == "PlannedState":
        where = f" at {path}" if path else ""
        raise ArgumentError(f"This tree holds the state of an optimizer{where}: {kind.__name__}.\n  Give the parameters alone, such as state.params.")


def refuse_without_floats(names: list[str]) -> None:
    """Raises for a tree in which nothing could ever train."""
    shown = ", ".join(names[:5]) + (f", … and {len(names) - 5} more" if len(names) > 5 else "")
    raise ArgumentError(
        "No array of this tree is floating-point, so nothing in it can train or be frozen.\n"
        f"  its arrays: {shown}\n"
        "  Give the parameters; data, counters and random keys are no model."
    )


def refuse_rows(name: str) -> NoReturn:
    """Raises for some rows of an array: its gradient, its moments and its decay are one with those of the other rows.

    Raises:
        BackendError: Always.
    """
    raise BackendError(
        f"rows= is not known to the {name} backend: what an optimizer of JAX keeps and moves is a whole array.\n"
        "  Keep two arrays and join them where they are used, as in jnp.concatenate([params['old'], params['new']]); then freeze(params, layers='old')."
    )
