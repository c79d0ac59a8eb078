"""What is taken for a tree of parameters and is none, and what is given to a verb in place of what it takes: said with the way out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from unifreeze.plugin import ArgumentError, UnbuiltModelError

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


def refuse_optimizer_state(node: Any, path: tuple[str, ...]) -> None:
    """Raises if a container in a tree is one of optax's states, or of ours."""
    kind = type(node)
    if kind.__module__.startswith("optax.") or kind.__name__ == "PlannedState":
        where = f" at {'.'.join(path)}" if path else ""
        raise ArgumentError(f"This tree holds the state of an optimizer{where}: {kind.__name__}.\n  Give the parameters alone, such as state.params.")


def refuse_without_floats(names: list[str]) -> None:
    """Raises for a tree in which nothing could ever train."""
    shown = ", ".join(names[:5]) + (f", … and {len(names) - 5} more" if len(names) > 5 else "")
    raise ArgumentError(
        "No array of this tree is floating-point, so nothing in it can train or be frozen.\n"
        f"  its arrays: {shown}\n"
        "  Give the parameters; data, counters and random keys are no model."
    )


def a_function(fn: object, verb: str) -> None:
    """Raises if a verb that takes a function is given what the function returns, or anything else."""
    if not callable(fn):
        raise ArgumentError(
            f"{verb} takes a function.\n  given: {type(fn).__name__}\n  Give the function and call what comes back: f.{verb}(loss)(params, batch)."
        )


def a_transformation(tx: object, argument: str) -> None:
    """Raises if this is no optax transformation, or one that is under a freezing already."""
    init, update = getattr(tx, "init", None), getattr(tx, "update", None)
    if isinstance(tx, type) or not callable(init) or not callable(update):
        name = getattr(tx, "__name__", "")
        repair = f"Call it: f.optimizer(optax.{name}(…))." if callable(tx) and name else "Give one, such as optax.adamw(1e-3)."
        raise ArgumentError(f"optimizer({argument}=…) takes an optax transformation.\n  given: {name or type(tx).__name__}\n  {repair}")
    if type(getattr(init, "__self__", None)).__name__ == "PlannedOptimizer":
        raise ArgumentError(
            f"optimizer({argument}=…) was given what optimizer() of a freezing returned.\n  Give the plain transformation again, such as optax.adamw(1e-3)."
        )


def the_tree(args: tuple[Any, ...], argnums: object) -> Any:
    """The argument that is the tree.

    Raises:
        ArgumentError: If there is none at that place.
    """
    if not isinstance(argnums, int) or isinstance(argnums, bool):
        raise ArgumentError(f"argnums={argnums!r} is no place of one argument.\n  Only one argument is the tree that was frozen; put what else trains into it.")
    if not -len(args) <= argnums < len(args):
        raise ArgumentError(f"The tree is positional argument {argnums}, and {len(args)} were given.\n  Give it by position: f.grad(loss)(params, batch).")
    return args[argnums]
