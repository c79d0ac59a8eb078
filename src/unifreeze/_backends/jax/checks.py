"""Arguments that are not what a verb takes, and what was meant by them."""

from __future__ import annotations

from typing import Any

from unifreeze.plugin import ArgumentError


def need_transformation(tx: Any, name: str = "tx") -> None:
    """Raises unless this is an optax transformation. No module of optax is needed to know one."""
    if is_transformation(tx) and not isinstance(tx, type):
        if hasattr(getattr(tx.init, "__self__", None), "plan"):
            raise ArgumentError(
                f"{name} of optimizer() is a freezing's optimizer already.\n"
                "  Give the plain optax transformation: f.optimizer(optax.adamw(1e-3)); to take its state over: f.carry(f.optimizer(tx), state, params)."
            )
        return
    raise ArgumentError(f"{name} of optimizer() must be an optax transformation.\n  given: {shown(tx)}\n  {_meant(tx)}")


def is_transformation(tx: Any) -> bool:
    """Whether this has what an optax transformation has."""
    return callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))


def _meant(tx: Any) -> str:
    if isinstance(tx, type) or (callable(tx) and hasattr(tx, "__name__")):
        return f"Call it first: f.optimizer(optax.{tx.__name__}(1e-3))."
    if is_transformation(getattr(tx, "tx", None)):
        advice = "; f.attach(optimizer) fits a live nnx.Optimizer to what is trainable now" if type(tx).__module__.startswith("flax.nnx") else ""
        return f"Give the transformation inside it: f.optimizer({type(tx).__name__.lower()}.tx){advice}."
    return "Give one: f.optimizer(optax.adamw(1e-3))."


def need_function(fn: object, verb: str) -> None:
    """Raises unless this can be called. The value of a loss in its place is the usual slip."""
    if not callable(fn):
        repair = f"Call what it returns: f.{verb}(loss)(params, batch), not f.{verb}(loss(params, batch))."
        raise ArgumentError(f"{verb}() takes a function.\n  given: {shown(fn)}\n  {repair}")


def need_place(argnums: object, verb: str) -> None:
    """Raises unless this is the place of one argument."""
    if isinstance(argnums, bool) or not isinstance(argnums, int):
        raise ArgumentError(
            f"argnums of {verb}() is the position of the argument that was frozen, one number.\n  given: {shown(argnums)}\n"
            "  For gradients of other arguments too, put them into one tree with it, and freeze that."
        )


def need_argument(args: tuple[Any, ...], argnums: int, verb: str) -> None:
    """Raises if a call gives no positional argument there."""
    if not -len(args) <= argnums < len(args):
        raise ArgumentError(
            f"The function that {verb}() made was called without the tree at position {argnums}.\n  positional arguments: {len(args)}\n"
            "  Give the tree by position, as to jax.grad, or name its position: argnums=…."
        )


def shown(value: Any) -> str:
    """What was given, in a few words."""
    name = getattr(value, "__name__", "")
    if name:
        return f"the {'class' if isinstance(value, type) else 'function'} {name}"
    return f"{type(value).__name__}{f' of shape {value.shape}' if hasattr(value, 'shape') else ''}"
