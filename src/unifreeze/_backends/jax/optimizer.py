"""The optax side of a plan: state, decay and updates for what is trainable only, and taking state over when that changes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .plan import Plan
from .record import StructureError
from .tree import Flat, absent, flat, is_array, is_inexact, is_key


class Group(NamedTuple):
    """The state of parameters that became trainable together, and have a count of their own.

    ``members`` has no arrays: its keys are the dotted names.
    """

    members: dict[str, tuple[()]]
    inner: Any


class PlannedState(NamedTuple):
    """The state of an optimizer that obeys a plan. Made of named tuples and dicts, so that flax and orbax save and restore it as they do any of optax's."""

    pre: Any
    groups: tuple[Group, ...]


class PlannedOptimizer:
    """An optax transformation under a plan."""

    def __init__(self, plan: Plan, tx: Any, pre: Any = None) -> None:
        self.plan = plan
        self.tx = optax.with_extra_args_support(tx)
        self.pre = optax.with_extra_args_support(optax.identity() if pre is None else pre)
        self._structures: dict[Any, Any] = {}

    @classmethod
    def of(cls, tx: Any, plan: Plan, verb: str) -> PlannedOptimizer:
        """Finds the optimizer behind a transformation that ``Freezing.optimizer`` returned."""
        found = getattr(getattr(tx, "init", None), "__self__", None)
        if not isinstance(found, cls) or found.plan != plan:
            given = "that of another freezing" if isinstance(found, cls) else type(tx).__name__
            raise StructureError(f"{verb}() takes what optimizer() of this freezing returned.\n  given: {given}\n  Give it tx = f.optimizer(…).")
        return found

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer as optax knows it."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def init(self, params: Any) -> PlannedState:
        """Makes state for the trainable parameters."""
        if type(params).__name__ == "_ParamsPlaceholder":  # optax asks so which leaves of a state belong to parameters (tree_map_params)
            return PlannedState(self.pre.init(params), (Group(_keys(self.plan._trainable), self.tx.init(params)),))
        home, members = self.plan._laid_out(params, "The tree"), self.plan._trainable
        groups = (Group(_keys(members), self.tx.init(_masked(home, members))),) if members or not self._searches(home) else ()
        return PlannedState(self.pre.init(_masked(home, members)), groups)

    def blank(self, params: Any, groups: list[list[str]]) -> PlannedState:
        """Makes state for given groups of the trainable parameters; for shapes in place of parameters, shapes with the shardings of these."""
        home = self.plan._laid_out(params, "The tree")

        def made(tx: Any, members: Collection[str]) -> Any:
            masked = _masked(home, members)
            if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in home.leaves):
                return tx.init(masked)
            return _sharded_alike(jax.eval_shape(tx.init, masked), masked)

        return PlannedState(made(self.pre, self.plan._trainable), tuple(Group(_keys(members), made(self.tx, members)) for members in groups))

    def update(self, updates: Any, state: PlannedState, params: Any = None, **extra: Any) -> tuple[Any, PlannedState]:
        """Turns gradients into updates; those of everything that is not trainable are zeros."""
        trainable = self.plan._trainable
        grads = self.plan._laid_out(updates, "The gradients", trainable)
        home = grads if params is None else self.plan._laid_out(params, "The tree")
        self._check(state, home)

        def owned(members: Collection[str]) -> Any:
            return None if params is None else _masked(home, members)

        given, pre = self.pre.update(_masked(home, trainable, grads.by_name), state.pre, owned(trainable), **extra)
        clipped = flat(given).by_name
        made: dict[str, Any] = {}
        groups = []
        for group in state.groups:
            news, inner = self.tx.update(_masked(home, group.members, clipped), group.inner, owned(group.members), **_masked_extra(extra, home, group.members))
            made |= flat(news).by_name
            groups.append(Group(group.members, inner))
        leaves = [made[name] if name in made else _still(leaf) for name, leaf in zip(home.names, home.leaves, strict=True)]
        return home.treedef.unflatten(leaves), PlannedState(pre, tuple(groups))

    def carried(self, state: Any, params: Any) -> PlannedState:
        """Takes a state over from another plan: each group keeps what it knows of those that are still trainable; the others are a new group."""
        home, trainable = self.plan._laid_out(params, "The tree"), self.plan._trainable
        state = state if isinstance(state, PlannedState) else self._of_plain(state, home)
        kept = [(group, trainable & group.members.keys()) for group in state.groups]
        if self._searches(home) and [group.members.keys() for group in state.groups] != [trainable]:
            kept = []  # its steps span all parameters at once: it remembers nothing of fewer, nor of more
        groups = [Group(_keys(members), self._narrowed(self.tx, group.inner, home, members)) for group, members in kept if members]
        fresh = trainable - frozenset().union(*(members for _, members in kept))
        if fresh:
            groups.append(Group(_keys(fresh), self._continued(self.tx.init(_masked(home, fresh)), state.groups, home, fresh)))
        if not groups and state.groups and not self._searches(home):
            groups.append(Group({}, self._narrowed(self.tx, state.groups[0].inner, home, ())))  # for the clocks, until something trains again
        pre = self.pre.init(_masked(home, trainable))
        known = _paths(state.pre)
        pre = jax.tree_util.tree_map_with_path(lambda path, leaf: _same(known.get(path), leaf), pre)
        return PlannedState(pre, tuple(groups))

    def _of_plain(self, state: Any, home: Flat) -> PlannedState:
        """The state of a plain optimizer, under which everything was trainable: of ``tx`` alone, or of ``pre`` and ``tx`` in a chain."""
        whole, structure = _masked(home, home.names), jax.tree_util.tree_structure(state)
        members = _keys(home.by_name)
        if structure == jax.tree_util.tree_structure(jax.eval_shape(self.tx.init, whole)):
            return PlannedState((), (Group(members, state),))
        if structure == jax.tree_util.tree_structure(jax.eval_shape(optax.chain(self.pre, self.tx).init, whole)):
            return PlannedState(state[0], (Group(members, state[1]),))
        raise _foreign([f"it is neither that of an earlier freezing nor that of the same optimizer over all parameters, but a {type(state).__name__}"])

    def _searches(self, home: Flat) -> bool:
        """Whether the optimizer finds one step for all parameters together, as L-BFGS and every line search do, and not for each by itself."""
        names: list[str] = []

        def note(node: Any) -> bool:
            names.append(type(node).__name__.lower())
            return False

        jax.tree_util.tree_leaves(jax.eval_shape(self.tx.init, _masked(home, self.plan._parameters())), is_leaf=note)
        return any("lbfgs" in name or "linesearch" in name for name in names)

    def _narrowed(self, tx: Any, inner: Any, home: Flat, members: Collection[str]) -> Any:
        """The state without what it holds of parameters that are no longer trainable; the arrays are the same."""
        shape, known = jax.eval_shape(tx.init, _masked(home, members)), _paths(inner)
        lacking = [path for path, leaf in _paths(shape).items() if path not in known or jnp.shape(known[path]) != leaf.shape]
        if lacking:
            raise _foreign([jax.tree_util.keystr(path) for path in lacking])
        return jax.tree_util.tree_map_with_path(lambda path, _: known[path], shape)

    def _continued(self, inner: Any, groups: tuple[Group, ...], home: Flat, members: Collection[str]) -> Any:
        """Fresh state whose clocks go on: a count that stands beside moments (Adam's) starts anew with them, any other (a schedule's) does not."""
        leaves = _leaf_paths(home, members)
        lengths = {len(leaf) for leaf in leaves}
        moments = {path: length for path in _paths(inner) for length in lengths if path[-length:] in leaves}
        beside = {path[: -length - 1] for path, length in moments.items()}
        known = _paths(groups[0].inner) if groups else {}

        def pick(path: tuple[Any, ...], leaf: Any) -> Any:
            return leaf if path in moments or path[:-1] in beside else _same(known.get(path), leaf)

        return jax.tree_util.tree_map_with_path(pick, inner)

    def _check(self, state: Any, home: Flat) -> None:
        """Raises if a state is that of another plan, or came back incomplete from a checkpoint."""
        groups_of(state, self.plan._trainable)
        for group in state.groups:
            expected = self._expected(home, group.members)
            if jax.tree_util.tree_structure(group.inner) != expected:
                found = _paths(group.inner)
                lacking = [jax.tree_util.keystr(path) for path in _paths(expected.unflatten(range(expected.num_leaves))) if path not in found]
                raise _foreign(lacking or ["its containers differ"])

    def _expected(self, home: Flat, members: Collection[str]) -> Any:
        """The structure that the state of a group must have; worked out once where the tree's structure can be a key."""
        key = (frozenset(members), home.treedef)
        try:
            known = self._structures.get(key)
        except TypeError:  # a node with unhashable static fields
            return jax.tree_util.tree_structure(jax.eval_shape(self.tx.init, _masked(home, members)))
        if known is None:
            known = self._structures[key] = jax.tree_util.tree_structure(jax.eval_shape(self.tx.init, _masked(home, members)))
        return known


def groups_of(state: Any, trainable: frozenset[str]) -> list[list[str]]:
    """The dotted names of each group in a state.

    Raises:
        StructureError: If the state is not one of these trainable parameters.
    """
    if not isinstance(state, PlannedState):
        raise _foreign([f"it is a {type(state).__name__}"])
    groups = [sorted(group.members) for group in state.groups]
    odd = trainable ^ {name for group in groups for name in group}
    if odd:
        raise _foreign([f"{name} is {'trainable now' if name in trainable else 'not trainable any more'}" for name in sorted(odd)])
    return groups


def _foreign(facts: list[str]) -> StructureError:
    shown = [f"  {fact}" for fact in facts[:5]] + ([f"  … and {len(facts) - 5} more"] if len(facts) > 5 else [])
    repairs = ["  After freezing or unfreezing: state = f.carry(f.optimizer(tx), state, params).", "  A checkpoint belongs to the freezing it was saved under."]
    return StructureError("\n".join(["The optimizer's state is not one of this freezing.", *shown, *repairs]))


def _keys(members: Collection[str]) -> dict[str, tuple[()]]:
    return dict.fromkeys(sorted(members), ())


def _masked(home: Flat, members: Collection[str], values: dict[str, Any] | None = None) -> Any:
    """The tree with optax's MaskedNode in place of every leaf but the members; with other values, if given."""
    there = home.by_name if values is None else values
    return home.treedef.unflatten([there.get(name) if name in members else optax.MaskedNode() for name in home.names])


def _masked_extra(extra: dict[str, Any], home: Flat, members: Collection[str]) -> dict[str, Any]:
    """What a line search is given beside the gradients, for the members alone."""

    def of_whole(fn: Any) -> Any:
        def of_members(masked: Any, *args: Any, **kwargs: Any) -> Any:
            moved = flat(masked).by_name
            return fn(home.treedef.unflatten([moved.get(name, leaf) for name, leaf in zip(home.names, home.leaves, strict=True)]), *args, **kwargs)

        return of_members

    adapted = {"grad": lambda tree: _masked(home, members, flat(tree).by_name), "value_fn": of_whole, "obj_fn": of_whole}
    return {name: adapted[name](value) if name in adapted else value for name, value in extra.items()}


def _still(leaf: Any) -> Any:
    """An update that moves nothing: adding -0.0 leaves every float as it is, 0.0 would turn -0.0 into 0.0."""
    if absent(leaf) or not is_array(leaf) or is_key(leaf.dtype) or leaf.dtype == jax.dtypes.float0:
        return 0 if isinstance(leaf, int | float) else None
    return jnp.full_like(leaf, -0.0) if is_inexact(leaf.dtype) else jnp.zeros_like(leaf)


def _paths(tree: Any) -> dict[tuple[Any, ...], Any]:
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])


def _sharded_alike(state: Any, params: Any) -> Any:
    """Shapes of a state with the sharding of the parameter that each belongs to."""
    known = {path: leaf for path, leaf in _paths(params).items() if getattr(leaf, "sharding", None) is not None}

    def like(path: tuple[Any, ...], leaf: Any) -> Any:
        of = next((known[path[i:]] for i in range(len(path)) if path[i:] in known), None)
        return leaf if of is None or of.shape != leaf.shape else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of.sharding)

    return jax.tree_util.tree_map_with_path(like, state)


def _leaf_paths(home: Flat, members: Collection[str]) -> set[tuple[Any, ...]]:
    paths = jax.tree_util.tree_flatten_with_path(home.treedef.unflatten(home.leaves), is_leaf=absent)[0]
    return {path for name, (path, _) in zip(home.names, paths, strict=True) if name in members}


def _same(old: Any, new: Any) -> Any:
    """The old array, if there is one of the same kind."""
    return old if old is not None and jnp.shape(old) == jnp.shape(new) and jnp.result_type(old) == jnp.result_type(new) else new
