"""Points a live optimizer at other variables, keeping what it knows about those that stay.

Keras builds an optimizer once, for one list of variables. Here its own ``build`` runs again on a stand-in that only notes which arrays it would make;
then every note is given the array that the optimizer has already, found by the identity of the variable it belongs to, or a new one. So the layout is
the one that a fresh optimizer would have, which loading a saved state relies on, and nothing is ever matched by name.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
from keras.src.utils.tracking import DotNotTrackScope, Tracker

from unifreeze.plugin import BackendError, ExitStack, UnifreezeWarning

from . import nadam
from .way import Way

Slots = dict[str, Any]

_STARTS = "_unifreeze_starts"
_INDEX = {"built", "_trainable_variables", "_trainable_variables_indices"}
_UPDATES = ("update_step", "_parallel_update_step")


class Bank:
    """Slots of variables that left an optimizer, for whoever brings them back: undo.

    Attributes:
        late: Variables that could not begin as in a fresh optimizer, with the name of the optimizer.
        ways: The way back of each optimizer, by identity, from the last change.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, object], tuple[Any, Slots, int]] = {}
        self.ways: dict[int, Way] = {}
        self.late: dict[str, str] = {}

    def tell(self) -> None:
        """Warns of what began late, once."""
        late, self.late = self.late, {}
        if late:
            path, name = next(iter(late.items()))
            warnings.warn(
                f"{len(late)} parameters, such as {path}, join a {name} that is under way, and it keeps state that all parameters share.\n"
                f"  Their own arrays are new, but that state is as old as the optimizer; Adam, for one, would take a first step of three times the rate.\n"
                "  To begin afresh with all of them instead: model.compile(optimizer=…) with a new one.",
                UnifreezeWarning,
                stacklevel=_outside(),
            )

    def put(self, optimizer: Any, key: object, slots: Slots, start: int) -> None:
        """Keeps the slots of a variable, and the iteration it began at."""
        self._kept[id(optimizer), key] = (optimizer, slots, start)

    def take(self, optimizer: Any, key: object) -> tuple[Slots, int] | None:
        """Hands them out, once."""
        found = self._kept.pop((id(optimizer), key), None)
        return None if found is None else found[1:]


def _outside() -> int:
    """How far up the user's own line is."""
    depth, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").startswith("unifreeze."):
        frame, depth = frame.f_back, depth + 1
    return depth - 1


def retarget(optimizer: Any, variables: Sequence[Any], bank: Bank) -> bool:
    """Makes a built optimizer train these variables, in this order; says whether it had to change.

    Raises:
        BackendError: If the optimizer keeps its arrays in a way that can't be followed. It is unchanged then.
    """
    # Slices, here and below: TensorFlow wraps lists, and goes through a wrapped one item by item in Python.
    if not optimizer.built or list(map(id, optimizer._trainable_variables[:])) == list(map(id, variables)):
        return False
    if hasattr(optimizer, "inner_optimizer"):
        retarget(optimizer.inner_optimizer, variables, bank)
    elif hasattr(optimizer, "_inner_optimizers"):
        _share_out(optimizer, variables, bank)
    else:
        strategy = getattr(optimizer, "_distribution_strategy", None)
        with strategy.scope() if strategy else nullcontext():
            _rebuild(optimizer, variables, bank)
        return True
    _commit(optimizer, _index(optimizer, variables))
    return True


def _index(optimizer: Any, variables: Sequence[Any]) -> dict[str, Any]:
    return {"_trainable_variables": list(variables), "_trainable_variables_indices": {optimizer._var_key(v): i for i, v in enumerate(variables)}}


def _share_out(optimizer: Any, variables: Sequence[Any], bank: Bank) -> None:
    """Gives every variable to the inner optimizer that the map of a ``MultiOptimizer`` names."""
    inner = optimizer._inner_optimizers
    shares: list[list[Any]] = [[] for _ in inner]
    places = {}
    for variable in variables:
        place = next((i for i, candidate in enumerate(inner) if candidate is optimizer._optimizer_map(variable)), None)
        if place is None:
            raise _unknown(optimizer)
        shares[place].append(variable)
        places[optimizer._var_key(variable)] = place
    with ExitStack() as back:
        for one, share in zip(inner, shares, strict=True):
            if one.built:
                back.callback(retarget, one, list(one._trainable_variables), bank)
                retarget(one, share, bank)
            elif share:
                one.build(share)
        back.pop_all()
    _commit(optimizer, {"_var_to_optimizer_idx": places})


def _rebuild(optimizer: Any, variables: Sequence[Any], bank: Bank) -> None:
    _refuse_average(optimizer)
    if _went_back(optimizer, variables, bank):
        return
    plan = _Plan(optimizer, variables)
    key = optimizer._var_key
    now = dict(optimizer._trainable_variables_indices)  # TensorFlow takes its time over a key
    starts = dict(vars(optimizer).get(_STARTS, {}))
    clock = _iterations(optimizer)
    joins_as_fresh = not plan.shared or nadam.is_one(optimizer)
    old = {name: getattr(optimizer, name)[:] for name in plan.slots if now}
    arrays: dict[int, Any] = {}
    kept: dict[object, int] = {}
    for place, variable in enumerate(variables):
        name_of = key(variable)
        if name_of in now:
            has, kept[name_of] = {name: slots[now[name_of]] for name, slots in old.items()}, starts.get(name_of, 0)
        elif (found := bank.take(optimizer, name_of)) is not None:
            has, kept[name_of] = found
        else:
            has, kept[name_of] = {name: plan.make(slots[place], variable) for name, slots in plan.slots.items()}, clock if joins_as_fresh else 0
            if clock and not joins_as_fresh:
                bank.late[variable.path] = type(optimizer).__name__
        arrays |= {id(slots[place]): has[name] for name, slots in plan.slots.items()}
    for name_of, place in now.items():
        if name_of not in kept:
            bank.put(optimizer, name_of, {name: slots[place] for name, slots in old.items()}, starts.get(name_of, 0))
    settled, order = plan.settled(arrays), plan.order(arrays)
    # Copies of what is written: Keras edits these lists in place.
    since = {name: list(value) if isinstance(value, list) else value for name, value in settled.items()}
    bank.ways[id(optimizer)] = Way({name: getattr(optimizer, name) for name in settled}, optimizer._variables, starts, since, list(order))
    _commit(optimizer, settled, order)
    _tell_time(optimizer, {name_of: start for name_of, start in kept.items() if start})


def _went_back(optimizer: Any, variables: Sequence[Any], bank: Bank) -> bool:
    """Goes back the way that the optimizer came, where nobody has changed it since; says whether that could be."""
    way = bank.ways.pop(id(optimizer), None)
    if way is None or not way.leads(optimizer, variables):
        return False
    for key in way.before["_trainable_variables_indices"]:
        bank.take(optimizer, key)
    _commit(optimizer, way.before, way.listed)
    _tell_time(optimizer, way.starts)
    return True


def _refuse_average(optimizer: Any) -> None:
    if optimizer.use_ema and keras.backend.backend() == "jax":
        raise BackendError(
            f"{type(optimizer).__name__} keeps a moving average of the weights (use_ema), which Keras on JAX can't carry into another set of variables.\n"
            "  Nothing was changed.\n"
            "  Freeze before the first fit; or set model.optimizer = None, freeze, and compile again with a new optimizer."
        )


class _Note:
    """An array that a build asked for."""

    def __init__(self, wish: dict[str, Any]) -> None:
        self.wish = wish
        self.value: Any = None


class _Plan:
    """What a fresh build for these variables would make, found out without making it.

    Attributes:
        slots: For each attribute that holds an array for each variable, its notes.
        shared: Whether the optimizer keeps further arrays that all variables share, beside iterations and learning rate.
    """

    def __init__(self, optimizer: Any, variables: Sequence[Any]) -> None:
        self.optimizer = optimizer
        self.twin, self.made = self._dry_build(variables)
        self.slots = {name: list(value) for name, value in self.made.items() if self._per_variable(name, value, len(variables))}
        if not variables:
            count = len(optimizer._trainable_variables)
            self.slots = {name: [] for name in self.made if self._per_variable(name, getattr(optimizer, name, None), count)}
        self.shared = any(isinstance(value, _Note | keras.Variable) for value in self.made.values())
        self._need_plain()

    def _dry_build(self, variables: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """Runs the optimizer's own build on a stand-in that shares its settings; what it sets is its plan."""
        kind = type(self.optimizer)
        twin = object.__new__(kind)
        own = {name: value for name, value in vars(self.optimizer).items() if not name.startswith("_self_") and name not in {_STARTS, *_UPDATES}}
        standing = self._standing()
        notes = list(standing)
        own |= {"built": False, "_variables": notes, "_trainable_variables": [], "_trainable_variables_indices": {}}
        own["_tracker"] = Tracker({"variables": (self.optimizer._tracker.config["variables"][0], notes)})
        own["_tracker"].stored_ids["variables"] = set(map(id, notes))
        vars(twin).update(own)
        vars(twin)["add_variable"] = lambda *args, **wish: self._note(notes, *args, **wish)
        vars(twin)["assign"] = self._remember
        try:
            twin.build(list(variables))
        except Exception as error:
            raise _unknown(self.optimizer) from error
        ours = {"add_variable", "assign", "_tracker", "_variables"}
        made = {name: value for name, value in vars(twin).items() if name not in ours and not name.startswith("_self_")}
        return twin, {name: value for name, value in made.items() if name not in own or own[name] is not value or name.startswith("_trainable_variables")}

    def _need_plain(self) -> None:
        """Refuses arrays in places that are not followed, and optimizers inside that are not known."""
        alone = {"_trainable_variables", *self.slots}
        parts = [
            part
            for name, value in self.made.items()
            if name not in alone and not isinstance(value, _Note | keras.Variable)
            for part in keras.tree.flatten(value)
        ]
        inside = [value for value in vars(self.optimizer).values() if isinstance(value, keras.optimizers.Optimizer)]
        if inside or any(isinstance(part, _Note | keras.Variable) for part in parts) or any(map(self._forgets, self.made.keys() - alone)):
            raise _unknown(self.optimizer)

    def _forgets(self, name: str) -> bool:
        """Whether a fresh build would overwrite something that is neither an array nor a setting, and may have changed since: a count in plain Python."""
        value, known = self.made[name], vars(self.optimizer).get(name)
        if name in _INDEX or isinstance(value, _Note | keras.Variable):
            return False
        empty = isinstance(value, list | tuple | dict) and not value and not known
        return not empty and (not isinstance(value, bool | int | float | str | None) or value != known)

    def _standing(self) -> list[Any]:
        """The arrays that stand before any build: iterations and learning rate."""
        known = {id(self.optimizer._iterations), id(self.optimizer._learning_rate)}
        return [variable for variable in self.optimizer._variables[:] if id(variable) in known]

    @staticmethod
    def _note(notes: list[Any], shape: Any = (), initializer: Any = "zeros", **wish: Any) -> _Note:
        note = _Note({"shape": shape, "initializer": initializer, **wish})
        notes.append(note)
        return note

    def _remember(self, variable: Any, value: Any) -> None:
        if isinstance(variable, _Note):
            variable.value = value
        else:
            variable.assign(value)

    @staticmethod
    def _per_variable(name: str, value: object, count: int) -> bool:
        arrays = isinstance(value, list) and len(value) == count and all(one is None or isinstance(one, _Note | keras.Variable) for one in value)
        return arrays and name != "_trainable_variables"

    def make(self, note: Any, variable: Any) -> Any:
        """Makes the array of a note; the average of weights begins at the weight itself."""
        if not isinstance(note, _Note):
            return note
        strategy = getattr(self.optimizer, "_distribution_strategy", None)
        place = strategy.extended.colocate_vars_with(variable.value) if strategy else nullcontext()
        with DotNotTrackScope(), _aside(self.optimizer), place:
            array = self.optimizer.add_variable(**note.wish)
        begin = note.value
        if self.optimizer.use_ema and any(note is one for one in self.slots.get("_model_variables_moving_average", ())):
            begin = variable.value
        if begin is not None:
            array.assign(begin)
        return array

    def settled(self, arrays: dict[int, Any]) -> dict[str, Any]:
        """What the optimizer's attributes shall be: with arrays for notes, and with its own shared arrays as they are."""
        result = {name: list(value) if isinstance(value, list) else value for name, value in self.made.items() if not isinstance(value, _Note | keras.Variable)}
        return result | {name: [arrays[id(note)] for note in notes] for name, notes in self.slots.items()}

    def order(self, arrays: dict[int, Any]) -> list[Any]:
        """All arrays of the optimizer, in the order of a fresh build."""
        shared = {id(value): getattr(self.optimizer, name) for name, value in self.made.items() if isinstance(value, _Note | keras.Variable)}
        standing = {id(variable): variable for variable in self._standing()}
        known = arrays | shared | standing
        noted = vars(self.twin)["_variables"]
        if any(id(note) not in known for note in noted):
            raise _unknown(self.optimizer)
        return [known[id(note)] for note in noted]


@contextmanager
def _aside(optimizer: Any) -> Iterator[None]:
    """Lets an array be made without being listed: the list is written as a whole afterwards."""
    before = optimizer._tracker
    listed: list[Any] = []
    vars(optimizer)["_tracker"] = Tracker({"variables": (before.config["variables"][0], listed)})
    try:
        yield
    finally:
        vars(optimizer)["_tracker"] = before


def _commit(optimizer: Any, attributes: dict[str, Any], variables: list[Any] | None = None) -> None:
    """Writes the new lists. They are new objects, since TensorFlow refuses lists that were edited in place."""
    with DotNotTrackScope():
        for name, value in attributes.items():
            setattr(optimizer, name, value)
        if variables is not None:
            optimizer._variables = variables
            store = optimizer._tracker.config["variables"]
            optimizer._tracker.config["variables"] = (store[0], optimizer._variables)
            optimizer._tracker.stored_ids["variables"] = set(map(id, variables))
        if hasattr(optimizer, "_exclude_from_weight_decay_cache"):
            optimizer._exclude_from_weight_decay_cache = {}


def starts_of(optimizer: Any) -> dict[object, int]:
    """At which iteration the variables that joined late did so."""
    parts = (optimizer, getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "_inner_optimizers", ()))
    return {key: start for part in parts if part is not None for key, start in vars(part).get(_STARTS, {}).items()}


def join_late(optimizer: Any, starts: Mapping[int, int]) -> None:
    """Tells a loaded optimizer at which iteration its variables, by identity, joined; nothing that Keras saves does."""
    inside = [*getattr(optimizer, "_inner_optimizers", ()), *filter(None, [getattr(optimizer, "inner_optimizer", None)])]
    for part in inside:
        join_late(part, starts)
    if not inside:
        _tell_time(optimizer, {optimizer._var_key(v): starts[id(v)] for v in optimizer._trainable_variables if id(v) in starts})


def _iterations(optimizer: Any) -> int:
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _tell_time(optimizer: Any, starts: dict[object, int]) -> None:
    """Lets variables that joined late see the iterations since they joined, so that Adam corrects their young moments as it would in a fresh optimizer.

    Schedules and weight decay read the clock elsewhere and see it as it is.
    """
    for name in (_STARTS, *_UPDATES):
        vars(optimizer).pop(name, None)
    if starts:
        vars(optimizer)[_STARTS] = starts
        together = hasattr(optimizer, "_parallel_update_step")
        name = _UPDATES[together]
        vars(optimizer)[name] = (_by_start if together else _one_by_one)(optimizer, getattr(optimizer, name), starts)


def _one_by_one(optimizer: Any, update: Callable[..., None], starts: dict[object, int]) -> Callable[..., None]:
    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        start = starts.get(optimizer._var_key(variable), 0)
        with _since(optimizer, start), nadam.since(optimizer, start):
            update(gradient, variable, learning_rate)

    return update_step


def _by_start(optimizer: Any, update: Callable[..., None], starts: dict[object, int]) -> Callable[..., None]:
    """For Keras's torch optimizers, which update all variables in one go."""

    def parallel_update_step(grads: Sequence[Any], variables: Sequence[Any], learning_rate: Any) -> None:
        cohorts: dict[int, tuple[list[Any], list[Any]]] = {}
        for gradient, variable in zip(grads, variables, strict=True):
            its_gradients, its_variables = cohorts.setdefault(starts.get(optimizer._var_key(variable), 0), ([], []))
            its_gradients.append(gradient)
            its_variables.append(variable)
        for start, (its_gradients, its_variables) in cohorts.items():
            with _since(optimizer, start), nadam.since(optimizer, start):
                update(its_gradients, its_variables, learning_rate)
        if 0 not in cohorts:
            nadam.go_on(optimizer)

    return parallel_update_step


@contextmanager
def _since(optimizer: Any, start: int) -> Iterator[None]:
    clock = vars(optimizer)["_iterations"]
    vars(optimizer)["_iterations"] = clock - start * (optimizer.gradient_accumulation_steps or 1)
    try:
        yield
    finally:
        vars(optimizer)["_iterations"] = clock


def _unknown(optimizer: Any) -> BackendError:
    return BackendError(
        f"{type(optimizer).__name__} keeps its arrays in a way that unifreeze can't follow, so it can't be pointed at other variables.\n"
        "  Nothing was changed.\n"
        "  Set model.optimizer = None, freeze, and compile again with a new optimizer."
    )
