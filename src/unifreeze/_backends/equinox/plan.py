"""The plan for a module: a plan of JAX, whose held layers run as at inference wherever the user's function runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import equinox as eqx
import jax

from unifreeze._backends.jax.checks import need_function
from unifreeze._backends.jax.plan import Plan
from unifreeze._backends.jax.record import StructureError
from unifreeze._backends.jax.tree import flat

from . import holding

T = TypeVar("T")


@jax.tree_util.register_static
class EquinoxPlan(Plan):
    """A plan for a module: held layers run as at inference, whatever ``eqx.nn.inference_mode`` or the call says."""

    def _settled(self, tree: Any) -> Any:
        laid, switches = flat(tree), {f"{path}.inference".lstrip(".") for path in self._held}
        leaves = [True if name in switches and holding.is_switch(leaf) else leaf for name, leaf in zip(laid.names, laid.leaves, strict=True)]
        return laid.treedef.unflatten(leaves)

    def _holding(self, under: str | None = None) -> AbstractContextManager[None]:
        del under
        return nullcontext()

    def value_and_grad(self, fn: Callable[..., Any], *, has_aux: bool = False, argnums: int = 0) -> Callable[..., Any]:
        """As ``eqx.filter_value_and_grad``, for the trainable part only: no gradient is computed for anything else, and ``None`` stands in its place.

        While ``fn`` runs, held layers run as at inference, also when they are told otherwise at the call.

        Args:
            fn: A loss: a function of the module and anything else.
            has_aux: Whether ``fn`` returns a pair of loss and anything else.
            argnums: Which positional argument is the module.
        """
        return super().value_and_grad(self._within(fn) if self._held and callable(fn) else fn, has_aux=has_aux, argnums=argnums)

    def carry(self, tx: Any, state: Any, params: Any) -> Any:
        """Takes an optimizer's state over from an earlier freezing, or from a plain optimizer made with ``tx.init(eqx.filter(model, eqx.is_inexact_array))``.

        What stays trainable keeps its moments. What became trainable starts as if fresh, with a count of its own, while schedules go on.

        Args:
            tx: What ``optimizer`` of this freezing returned.
            state: The state so far.
            params: The module as it is now.
        """
        return super().carry(tx, state, eqx.filter(params, eqx.is_inexact_array))

    def hold(self, fn: Callable[..., T], *, under: str | None = None) -> Callable[..., T]:
        """Wraps a function of the module, so that held layers run as at inference inside it.

        Args:
            fn: Any function that is given the module in whatever argument, alone or beside its State; or the module itself, or a method of it.
            under: Not used; a module is always the whole tree.
        """
        del under
        need_function(fn, "hold")
        return self._within(fn, must=True)

    def _within(self, fn: Callable[..., T], *, must: bool = False) -> Callable[..., T]:
        """Lets the function see every copy of the module among its arguments with the held layers at inference."""

        @wraps(fn)
        def call(*args: Any, **kwargs: Any) -> T:
            strangers: list[Any] = []
            seen = 0

            def held(node: Any) -> Any:
                nonlocal seen
                if isinstance(node, eqx.Module) and frozenset(flat(node).names) == self._status.keys():
                    seen += 1
                    return holding.hold(self._settled(node), self._held)
                strangers.extend([node] if isinstance(node, eqx.Module) else [])
                return node

            run, args, kwargs = jax.tree.map(held, (_opened(fn), args, kwargs), is_leaf=_is_whole)
            if must and not seen:
                raise self._nothing_to_hold(strangers)
            return holding.plain(_call(run, args, kwargs))

        return call

    def _nothing_to_hold(self, strangers: list[Any]) -> Exception:
        for module in strangers:
            self._laid_out(module, "The module")
        return StructureError("The module that was frozen is not among the arguments.\n  Give it to the function: f.hold(lambda model, x: model(x))(model, x).")


def _is_whole(node: Any) -> bool:
    return isinstance(node, eqx.Module | eqx.nn.State)


def _opened(fn: Any) -> Any:
    """A bound method of a module as the function and the module that it is bound to."""
    return (fn.__func__, fn.__self__) if isinstance(getattr(fn, "__self__", None), eqx.Module) else (fn,)


def _call(run: tuple[Any, ...], args: Any, kwargs: Any) -> Any:
    if len(run) == 1:
        return run[0](*args, **kwargs)
    function, owner = run
    return getattr(owner, function.__name__)(*args, **kwargs)
