"""What training code may need of a freezing: an optimizer that fits what is trainable now, and a filter for saving."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from unifreeze._backends.jax.checks import need_function, need_transformation, shown
from unifreeze.plugin import ArgumentError, BackendError

from . import swap

Group = frozenset[tuple[Any, ...]]


class Tools:
    """The verbs of a ``Freezing`` of an nnx module.

    Training code needs none of them: ``nnx.grad`` and ``nnx.Optimizer(wrt=nnx.Param)`` pass frozen parameters by. ``attach`` is for an optimizer that
    was made before the call, ``param_filter`` for saving; ``optimizer`` and ``value_and_grad`` let code read as with any other JAX model.
    """

    def __init__(self, model: nnx.Module) -> None:
        self._model = model

    @property
    def param_filter(self) -> Any:
        """The filter for all parameters: ``nnx.state(model, freezing.param_filter)``. ``nnx.Param`` no longer finds the frozen ones."""
        return nnx.filterlib.Any(nnx.Param, swap.FrozenParam)

    def optimizer(self, tx: optax.GradientTransformation, *, pre: optax.GradientTransformation | None = None, wrt: Any = nnx.Param) -> nnx.Optimizer:
        """Makes an ``nnx.Optimizer`` for what is trainable.

        Args:
            tx: An optax optimizer.
            pre: What must see all gradients at once, such as ``optax.clip_by_global_norm``. Inside ``tx`` it would see only those of parameters that
                started together, once ``attach`` has let others follow.
            wrt: As for ``nnx.Optimizer``.
        """
        need_transformation(tx)
        if pre is not None:
            need_transformation(pre, "pre")
        return nnx.Optimizer(self._model, tx if pre is None else _grouped(tx, pre, (None,)), wrt=_unfrozen(wrt))

    def value_and_grad(self, loss: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Makes what ``nnx.value_and_grad`` makes, which differentiates what is trainable."""
        need_function(loss, "value_and_grad")
        return nnx.value_and_grad(loss, **options)

    def attach(self, optimizer: nnx.Optimizer) -> nnx.Optimizer:
        """Fits a live optimizer to what is trainable now, in place, and returns it.

        It keeps what it knows of parameters that stay trainable, and forgets the frozen. What is newly trainable starts as if fresh, in a group of its
        own, while schedules go on from where they are.

        Args:
            optimizer: An optimizer of this model.
        """
        if not isinstance(optimizer, nnx.Optimizer):
            raise ArgumentError(
                f"attach() takes the nnx.Optimizer of this model.\n  given: {shown(optimizer)}\n"
                "  For a new one: f.optimizer(optax.adamw(1e-3)), or nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)."
            )
        wrt = _unfrozen(optimizer.wrt)
        now = _paths(nnx.state(self._model, wrt))
        tx = optimizer.tx if isinstance(optimizer.tx, _Grouped) else _grouped(optimizer.tx, optax.identity(), (None,))
        old = optimizer.opt_state if isinstance(optimizer.opt_state, _State) else _State(optax.EmptyState(), (optimizer.opt_state,))
        known = [_known(state, now) if group is None else group for group, state in zip(tx.groups, old.groups, strict=True)]
        _need_same_model(self._model, known)
        kept = [(group & now, state) for group, state in zip(known, old.groups, strict=True) if group & now]
        late = now - Group().union(*known)
        groups = (*(group for group, _ in kept), *([late] if late else []))
        plain = not isinstance(optimizer.tx, _Grouped) and len(groups) < 2 and not (late and known[0])
        fitted = tx if plain else _grouped(tx.tx, tx.pre, groups)
        fresh = nnx.Optimizer(self._model, fitted, wrt=wrt).opt_state
        states = [_carried(new, state) for new, (_, state) in zip(fresh.groups, kept, strict=False)]
        states += [_in_step(new, old.groups[0]) for new in fresh.groups[len(states) :]]
        state = _State(_carried(fresh.pre, old.pre), tuple(states))
        optimizer.opt_state = nnx.data(states[0] if plain else state)
        optimizer.tx, optimizer.wrt = optimizer.tx if plain else fitted, wrt
        return optimizer


class _State(NamedTuple):
    pre: Any
    groups: tuple[Any, ...]


class _Grouped(optax.GradientTransformationExtraArgs):
    """One optimizer, run for each group of parameters on its own, after something that sees all gradients. A group of ``None`` is everything."""

    tx: optax.GradientTransformation
    pre: optax.GradientTransformation
    groups: tuple[Group | None, ...]


def _grouped(tx: optax.GradientTransformation, pre: optax.GradientTransformation, groups: tuple[Group | None, ...]) -> _Grouped:
    inner, outer = optax.with_extra_args_support(tx), optax.with_extra_args_support(pre)

    def init(params: Any) -> _State:
        return _State(outer.init(params), tuple(inner.init(_only(params, group)) for group in groups))

    def update(updates: Any, state: _State, params: Any = None, **extra: Any) -> tuple[Any, _State]:
        updates, first = outer.update(updates, state.pre, params, **extra)
        parts = [inner.update(_only(updates, g), s, _only(params, g), **extra) for g, s in zip(groups, state.groups, strict=True)]
        joined = nnx.from_flat_state({path: leaf for part, _ in parts for path, leaf in nnx.to_flat_state(part)})
        return joined, _State(first, tuple(own for _, own in parts))

    made = _Grouped(init, update)
    made.tx, made.pre, made.groups = tx, pre, groups
    return made


def _unfrozen(wrt: Any) -> Any:
    """The same filter, without the frozen parameters that one by path alone would find."""
    guard = nnx.filterlib.Not(swap.FrozenParam)
    by_type = isinstance(wrt, type) and issubclass(wrt, nnx.Param)
    return wrt if by_type or (isinstance(wrt, nnx.filterlib.All) and guard in wrt.predicates) else nnx.filterlib.All(wrt, guard)


def _paths(state: Any) -> Group:
    return Group(path for path, _ in nnx.to_flat_state(state))


def _only(state: Any, group: Group | None) -> Any:
    return state if group is None or state is None else nnx.from_flat_state({path: leaf for path, leaf in nnx.to_flat_state(state) if path in group})


def _known(state: Any, now: Group) -> Group:
    """The parameters that an optimizer's state speaks of. One that keeps nothing about parameters has nothing to forget or to start."""
    found = [_paths(part) for part in _parts(state) if isinstance(part, nnx.State)]
    return Group().union(*found) if found else now


def _is_part(node: object) -> bool:
    return isinstance(node, nnx.State | nnx.Variable)


def _parts(state: Any) -> Iterable[Any]:
    return jax.tree.leaves(state, is_leaf=_is_part)


def _carried(fresh: Any, old: Any) -> Any:
    """The old state, for the parameters that the fresh one is for."""

    def part(new: Any, before: Any) -> Any:
        if not isinstance(new, nnx.State):
            return before
        known = dict(nnx.to_flat_state(before))
        return nnx.from_flat_state({path: known.get(path, leaf) for path, leaf in nnx.to_flat_state(new)})

    return jax.tree.map(part, fresh, old, is_leaf=_is_part)


def _in_step(fresh: Any, old: Any) -> Any:
    """The fresh state, with the old one's counts where they are those of a schedule: where nothing beside them is about parameters."""
    before = _parts(old)
    parts, structure = jax.tree_util.tree_flatten_with_path(fresh, is_leaf=_is_part)
    about_parameters = {path[:-1] for path, part in parts if isinstance(part, nnx.State)}
    joined = [
        new if isinstance(new, nnx.State) or path[:-1] in about_parameters or not isinstance(new, nnx.Variable) else new.replace(was.get_value())
        for (path, new), was in zip(parts, before, strict=True)
    ]
    return jax.tree.unflatten(structure, joined)


def _need_same_model(model: nnx.Module, known: list[Group]) -> None:
    strange = Group().union(*known) - _paths(nnx.state(model))
    if strange:
        shown = ", ".join(".".join(map(str, path)) for path in sorted(strange, key=str)[:3])
        raise BackendError(
            f"This optimizer belongs to another model than {type(model).__name__}.\n  it has state for {shown}, which the model lacks\n"
            "  Make a new one: nnx.Optimizer(model, tx, wrt=nnx.Param)."
        )
