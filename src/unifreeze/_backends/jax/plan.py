"""The plan: what is frozen in a pytree, and the verbs with which a training step obeys it.

A plan knows the leaves of a tree by their dotted names, not by their place, so the verbs take the tree that was frozen, the same with FrozenDicts, or, where
linen's variables were frozen, their ``params`` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import jax

from unifreeze.plugin import Inference, Request

from .checks import need_argument, need_function, need_place, need_transformation
from .inference import held_at_inference
from .record import StructureError, fingerprint_of, recorded, require_same
from .tree import Flat, absent, flat

if TYPE_CHECKING:
    import optax

T = TypeVar("T")
Pairs = tuple[tuple[str, T], ...]


@jax.tree_util.register_static
class Plan:
    """What is frozen in a pytree.

    Immutable, equal by content, and a pytree without leaves: it may be closed over, be an argument of a jitted function, or ride in a train state, and jit
    traces anew exactly when it changes.
    """

    def __init__(self, names: tuple[str, ...], statuses: tuple[str, ...], treedef: Any, held: Pairs[Inference], layers: Pairs[str]) -> None:
        self._content = (names, statuses, held, layers, treedef)
        self._hash = hash((names, statuses, held, layers))
        self._treedef, self._held, self._layers = treedef, dict(held), dict(layers)

    @functools.cached_property
    def _status(self) -> dict[str, str]:
        names, statuses, *_ = self._content
        return dict(zip(names, statuses, strict=True))

    @functools.cached_property
    def _trainable(self) -> frozenset[str]:
        return frozenset([name for name, status in self._status.items() if status == "trainable"])

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and isinstance(other, Plan) and self._hash == other._hash and self._content == other._content)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._trainable)} of {len(self._status)} leaves trainable>"

    def __reduce__(self) -> tuple[Any, ...]:
        names, statuses, held, layers, treedef = self._content
        return type(self), (names, statuses, treedef, held, layers)

    # Seams for trees whose layers are objects (equinox).

    def _settled(self, tree: Any) -> Any:
        """Returns a merged tree as the user's function shall see it."""
        return tree

    def _holding(self, under: str | None = None) -> AbstractContextManager[None]:
        """Returns a context in which the held layers run as at inference."""
        return held_at_inference(self, self._held, self._layers, self._status, under)

    # What a training step needs.

    def value_and_grad(self, fn: Callable[..., Any], *, has_aux: bool = False, argnums: int = 0) -> Callable[..., Any]:
        """As ``jax.value_and_grad``, for the trainable part only: no gradient is computed for anything else, and ``None`` stands in its place.

        While ``fn`` runs, held layers run as at inference, also when it calls a linen or haiku model in training mode.

        Args:
            fn: A loss: a function of the tree and anything else.
            has_aux: Whether ``fn`` returns a pair of loss and anything else.
            argnums: Which positional argument is the tree.

        Raises:
            ArgumentError: If ``fn`` is no function, or if no argument is at that place.
        """
        need_function(fn, "value_and_grad")
        need_place(argnums, "value_and_grad")

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            need_argument(args, argnums, "value_and_grad")
            laid = self._laid_out(args[argnums], "The tree")
            places = [i for i, name in enumerate(laid.names) if name in self._trainable and not absent(laid.leaves[i])]

            def of_trainable(leaves: list[Any]) -> Any:
                tree = laid.treedef.unflatten(_replaced(laid.leaves, places, leaves))
                with self._holding():
                    return fn(*_replaced(args, [argnums], [self._settled(tree)]), **kwargs)

            value, grads = jax.value_and_grad(of_trainable, has_aux=has_aux)([laid.leaves[i] for i in places])
            return value, laid.treedef.unflatten(_replaced([None] * len(laid.leaves), places, grads))

        return call

    def grad(self, fn: Callable[..., Any], *, has_aux: bool = False, argnums: int = 0) -> Callable[..., Any]:
        """As ``jax.grad``, for the trainable part only; see ``value_and_grad``."""
        need_function(fn, "grad")
        both = self.value_and_grad(fn, has_aux=has_aux, argnums=argnums)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            value, grads = both(*args, **kwargs)
            return (grads, value[1]) if has_aux else grads

        return call

    def hold(self, fn: Callable[..., T], *, under: str | None = None) -> Callable[..., T]:
        """Wraps a function, such as a loss or ``model.apply``, so that held layers of linen and haiku models run as at inference inside it.

        Args:
            fn: Any function.
            under: The path of the sub-tree that holds the model's parameters, for a tree that holds several models. It is found out where it can be.
        """
        need_function(fn, "hold")

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> T:
            with self._holding(under):
                return fn(*args, **kwargs)

        return call

    def optimizer(self, tx: optax.GradientTransformation, pre: optax.GradientTransformation | None = None) -> optax.GradientTransformationExtraArgs:
        """Returns an optax transformation that keeps state for the trainable part only, and updates nothing else.

        It takes whole gradients or those of ``value_and_grad``, and fits into a step written with ``optax.apply_updates`` or flax's ``TrainState``: the
        updates of frozen leaves are zeros there.

        Args:
            tx: Any transformation, such as ``optax.adamw(1e-3)``.
            pre: What runs before it over all trainable gradients at once, such as ``optax.clip_by_global_norm(1.0)``. A clip inside ``tx`` would run for each
                group that was unfrozen at another time.

        Raises:
            ArgumentError: If either is no transformation, such as ``optax.adam`` without its call.
        """
        need_transformation(tx)
        if pre is not None:
            need_transformation(pre, "pre")
        from .optimizer import PlannedOptimizer  # optax is needed here only

        return PlannedOptimizer(self, tx, pre).transformation()

    def carry(self, tx: optax.GradientTransformation, state: Any, params: Any) -> Any:
        """Takes an optimizer's state over from an earlier freezing.

        What stays trainable keeps its moments, the very arrays. What became trainable starts as if fresh, with a count of its own, while schedules go on.

        Args:
            tx: What ``optimizer`` of this freezing returned.
            state: The state that the optimizer of the earlier freezing left, or one that a plain optimizer left over all parameters.
            params: The parameters as they are now.

        Raises:
            StructureError: If the state comes from elsewhere.
        """
        from .optimizer import PlannedOptimizer  # optax is needed here only

        return PlannedOptimizer.of(tx, self, "carry").carried(state, params)

    @property
    def fingerprint(self) -> str:
        """A digest of what is frozen, trainable and held at inference: equal in every process for equal plans. For logs, and part of ``record``."""
        return fingerprint_of(self._status.items(), self._held)

    def record(self, state: Any) -> dict[str, Any]:
        """Returns plain data (JSON) to save beside an optimizer's state: the plan, by name and fingerprint, and which parameters share a clock in the state.

        ``state_like`` takes it back before the state is restored.

        Args:
            state: The state that ``optimizer`` of this freezing made or left.

        Raises:
            StructureError: If the state is not one of this freezing.
        """
        from .optimizer import groups_of  # optax is needed here only

        return recorded(self._status, self._held, groups_of(state, self._trainable))

    def state_like(self, record: Any, tx: optax.GradientTransformation, params: Any) -> Any:
        """Returns a state of the same structure as the one that was recorded: what a checkpoint library restores into.

        Args:
            record: What ``record`` returned when the state was saved.
            tx: What ``optimizer`` of this freezing returned.
            params: The parameters, or their shapes (``jax.ShapeDtypeStruct``), for which the state is one of shapes and shardings, too.

        Raises:
            StructureError: If the state was saved under another plan; the message names both.
        """
        from .optimizer import PlannedOptimizer  # optax is needed here only

        groups = require_same(record, recorded(self._status, self._held, []))
        return PlannedOptimizer.of(tx, self, "state_like").blank(params, groups)

    def apply_updates(self, params: T, updates: Any) -> T:
        """As ``optax.apply_updates``; but what is frozen stays the same array, whatever the updates say of it."""
        laid, new = self._laid_out(params, "The tree"), self._laid_out(updates, "The updates", self._trainable).by_name
        moved = {name: _added(leaf, new[name]) for name, leaf in laid.by_name.items() if name in self._trainable}
        return laid.treedef.unflatten([moved.get(name, leaf) for name, leaf in zip(laid.names, laid.leaves, strict=True)])

    def partition(self, tree: T) -> tuple[T, T]:
        """Parts a tree into what is trainable and the rest, each of the tree's shape with ``None`` in the places of the other. Nothing is copied."""
        laid = self._laid_out(tree, "The tree")
        ours = [name in self._trainable for name in laid.names]
        trainable = [leaf if mine else None for leaf, mine in zip(laid.leaves, ours, strict=True)]
        rest = [None if mine else leaf for leaf, mine in zip(laid.leaves, ours, strict=True)]
        return laid.treedef.unflatten(trainable), laid.treedef.unflatten(rest)

    def combine(self, trainable: T, frozen: T) -> T:
        """Puts together what ``partition`` parted. Nothing is copied."""
        ours, theirs = flat(trainable), flat(frozen)
        there = theirs.by_name | ours.by_name
        self._check(there.keys(), "The two parts", self._parameters())
        whole = ours if len(ours.names) >= len(theirs.names) else theirs
        return self._settled(whole.treedef.unflatten([there.get(name, leaf) for name, leaf in zip(whole.names, whole.leaves, strict=True)]))

    @property
    def labels(self) -> Any:
        """For each leaf ``trainable``, ``frozen`` or ``buffer``, in the shape of the tree that was frozen: for ``optax.partition``."""
        return self._mapped(lambda status: status)

    @property
    def trainable_mask(self) -> Any:
        """``True`` for what is trainable, in the shape of the tree that was frozen: for ``equinox.partition`` and ``optax.masked``."""
        return self._mapped(lambda status: status == "trainable")

    @property
    def frozen_mask(self) -> Any:
        """``True`` for what is not trainable, in the shape of the tree that was frozen: for ``optax.freeze``."""
        return self._mapped(lambda status: status != "trainable")

    def _mapped(self, of: Callable[[str], Any]) -> Any:
        return self._treedef.unflatten([None if status == "none" else of(status) for status in self._status.values()])

    # What the verbs stand on.

    def _parameters(self) -> frozenset[str]:
        return frozenset(name for name, status in self._status.items() if status in {"trainable", "frozen"})

    def _laid_out(self, tree: Any, what: str, needed: Collection[str] | None = None) -> Flat:
        """Lays a tree out, and raises if it is not the one that was frozen."""
        laid = flat(tree)
        there = laid.names if laid.whole else laid.by_name.keys()
        self._check(there, what, self._parameters() if needed is None else needed)
        return laid

    def _check(self, there: Collection[str], what: str, needed: Collection[str]) -> None:
        here = frozenset(there)
        wrong = [("missing", sorted(frozenset(needed) - here)), ("unknown", sorted(here - self._status.keys()))]
        facts = [f"  {word}: {', '.join(names[:5])}{f', … and {len(names) - 5} more' if len(names) > 5 else ''}" for word, names in wrong if names]
        if facts:
            repair = "  Freeze the tree as it is now, and take the verbs of that Freezing."
            raise StructureError("\n".join([f"{what} must have the leaves of what was frozen.", *facts, repair]))


def _replaced(values: Any, places: list[int], new: Any) -> list[Any]:
    """A list with new values in some places."""
    result = list(values)
    for place, value in zip(places, new, strict=True):
        result[place] = value
    return result


def _added(old: Any, update: Any) -> Any:
    return jax.numpy.asarray(old + update).astype(jax.numpy.asarray(old).dtype)


_plans: WeakValueDictionary[Any, Plan] = WeakValueDictionary()


def plan_of(model: Any, request: Request, kind: type[Plan] = Plan) -> Plan:
    """Returns the plan for a request; equal ones are the same object, so that jit compares them at no cost.

    Args:
        model: The tree.
        request: What shall be frozen. The paths of its parameters are the dotted names of ``tree.flat(model)``.
        kind: The class of the plan.
    """
    laid, frozen, nodes = flat(model), request.state.frozen, list(request.tree.walk())
    known = {one.path: "frozen" if one.untrainable or one.path in frozen else "trainable" for layer in nodes for one in layer.parameters}
    statuses = tuple([known.get(name, "buffer") for name in laid.names])
    if not laid.whole:
        statuses = tuple(["none" if absent(leaf) else status for leaf, status in zip(laid.leaves, statuses, strict=True)])
    held = tuple(sorted(request.state.inference.items()))
    # Kinds matter to what is held alone. They are sorted, since a mapped tree has another order, and the same plan.
    layers = tuple(sorted([(layer.path, layer.kind) for layer in nodes])) if held else ()
    plan = kind(laid.names, statuses, laid.treedef, held, layers)
    try:
        return _plans.setdefault((kind, plan._content), plan)
    except TypeError:  # a node with unhashable static fields
        return plan
