"""The Freezing: what is frozen now, what a call changed, how to undo it, and what the training code needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Self

from ._backend import Backend, Request, nothing
from ._digest import Digest, digest_of
from ._moves import Moved, explain
from ._rows import Rows
from ._summary import Summary
from ._summary.make import summarise
from ._summary.wanted import Wanted
from ._told import Calls, Told, forget, remember
from ._tree import STATELESS, Layer, State, state_of, unique, with_state
from ._undisturbed import undisturbed
from ._undoing import after_later_ones
from ._verify import Kept, Proof, broken, copies, fingerprints, marks, still
from .errors import ArgumentError, BackendError, FrozenMovedError, near


@dataclass(frozen=True, eq=False, repr=False)
class Freezing:
    """What came of a ``freeze``, ``unfreeze`` or ``apply``.

    It is immutable and tells how things stood right after the call. It also offers the verbs that the framework's training code needs, such as
    ``optimizer``; ``dir(freezing)`` lists them. As a context manager it undoes itself on the way out, also when the block raises.

    Attributes:
        model: The model. For JAX pytrees, which can't be changed, an abstract copy (shapes and dtypes).
        frozen: Paths of the parameters that are frozen, of the whole model.
        trainable: Paths of those that are trainable, also if some of their rows are frozen.
        held: Paths of the layers that run as at inference.
        changed: Paths of the parameters whose status this call changed.
        layers: Paths of the weighted layers that this call picked.
        skipped: For each parameter that was picked and could not be changed, why.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import freeze
        >>> from unifreeze.select import first
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> freeze(model, layers=first(1)).frozen
        ('0.weight', '0.bias')
    """

    model: Any
    frozen: tuple[str, ...]
    trainable: tuple[str, ...]
    held: tuple[str, ...]
    changed: tuple[str, ...]
    layers: tuple[str, ...]
    skipped: Mapping[str, str]
    _backend: Backend
    _label: str
    _state: State
    _before: State
    _revert: Callable[[], None]
    _tools: object = None
    _fingerprints: Mapping[str, Hashable] = field(default_factory=dict)
    _layers: frozenset[str] = frozenset({""})
    _trained: frozenset[str] = frozenset()
    _ids: Mapping[str, int] = field(default_factory=dict)
    _copies: Mapping[str, Any] = field(default_factory=dict)
    _told: Calls = ()
    _tree: Layer | None = None

    @property
    def rows(self) -> Mapping[str, Rows]:
        """For each parameter of which only some rows are frozen, these rows."""
        return MappingProxyType({path: self._state.rows[path] for path in self.trainable if path in self._state.rows})

    def undo(self) -> Freezing:
        """Restores exactly what was there before this call, and says how things stand then. The second call changes nothing more.

        Later calls on the same layers are undone with it, in the opposite order, as nested ``with`` blocks do, also those through another model that
        holds them; those on other layers stay.
        """
        with undisturbed():
            self._revert()
            tree = self._read()
            if self._backend.in_place:
                return describe(self._backend, self.model, tree, before=self._state, tools=self._tools)
        every = frozenset(parameter.path for layer in tree.walk() for parameter in layer.parameters)
        request = Request(tree, self._before, every, frozenset(layer.path for layer in tree.walk()))
        return bring_about(self._backend, self.model, request, picked=(), known=self._fingerprints, told=self._told[:-1])

    def summary(self, **wanted: Any) -> Summary:
        """Returns the table of layers and totals; it takes the arguments of ``unifreeze.summary``."""
        return summarise(self._backend, self.model, self._read(), self._label, Wanted.of(wanted), told=[one for call in self._told for one in call])

    def verify(self, model: object = None, *, optimizer: object = None) -> Proof:
        """Compares every frozen parameter, and every buffer of a layer that is held, with what it was at the call: byte by byte, by its fingerprint.

        After ``remember(exact=True)`` it is compared with a copy as well, and the message says by how much it moved.

        Args:
            model: The model as it is now. Not needed where the model is changed in place; needed for JAX pytrees, where training makes new arrays.
            optimizer: What trained it (a ``torch`` or Keras optimizer, an optax state, an ``nnx.Optimizer``). Only looked at if something moved, to tell why;
                those of PyTorch, and one that a Keras model was compiled with, are found without.

        Raises:
            FrozenMovedError: If anything moved, is trainable again, or is no longer there. The message names it, the likely cause and the repair; ``moves``
                holds the same as data.
            BackendError: If the values of something frozen were not known at the call.
        """
        if isinstance(model, Freezing) or (model is None and not self._backend.in_place):
            raise ArgumentError(f"A Freezing of {self._label} keeps no values.\n  Give the parameters as they are now: freezing.verify(params).")
        subject = self.model if model is None else model
        tree = self._backend.layers(subject)
        kept = Kept(self._fingerprints, self._state.rows, self._copies, self._ids if subject is self.model else {}, flags=self._backend.in_place)
        wrong = broken(self._backend, subject, tree, kept, optimizer)
        wrong += [*self._let_go(tree), *self._added(tree), *(Moved(path, "backend", why) for path, why in self._backend.objections(subject))]
        if wrong:
            raise FrozenMovedError(explain(wrong, self._label, exact=bool(self._copies)), wrong)
        unknown = [path for path, value in self._fingerprints.items() if value is None]
        if unknown:
            raise BackendError(
                f"The values of {len(unknown)} frozen arrays of {self._label} were not known at the call, so nothing can be said of them.\n"
                f"  first: {unknown[0]}\n  freezing = freezing.remember(model), given the real arrays, before training, makes them comparable."
            )
        return kept.proof(self._label, tree)

    def remember(self, model: object = None, *, exact: bool = False) -> Freezing:
        """Returns this Freezing with the values that its frozen arrays have in ``model``, for ``verify`` to compare with.

        For models that were abstract at the call (``jax.eval_shape``, the meta device), for JAX when a second freeze started from a ``Freezing``, which keeps
        no arrays, and for copies.

        Args:
            model: The model. Not needed where it is changed in place.
            exact: Also keeps a copy of every frozen array in the memory of the host, so that ``verify`` can tell by how much it moved, and more surely why.

        Example:
            >>> import pytest; torch = pytest.importorskip("torch")
            >>> from unifreeze import freeze
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> freezing = freeze(model, layers="0").remember(exact=True)
            >>> _ = model[0].weight.data.mul_(0.99)
            >>> freezing.verify()
            Traceback (most recent call last):
            unifreeze.errors.FrozenMovedError: 1 of the promises made for Sequential (torch) are broken.
              0.weight: moved by 0.01 of its norm ... (every element was multiplied by 0.99..., as weight decay ...
        """
        if isinstance(model, Freezing) or (model is None and not self._backend.in_place):
            raise ArgumentError(f"A Freezing of {self._label} keeps no values.\n  Give the parameters themselves: freezing.remember(params).")
        there = {parameter.path: parameter.array for parameter in self._backend.layers(self.model if model is None else model).arrays()}
        missing = [path for path in self._fingerprints if path not in there]
        if missing:
            raise ArgumentError(f"This is not the model of the Freezing of {self._label}.\n  it has no {missing[0]}")
        arrays, rows = {path: there[path] for path in self._fingerprints}, self._state.rows
        ids = {path: id(there[path]) for path in self._ids} if model is None or model is self.model else self._ids
        return replace(self, _fingerprints=marks(self._backend, arrays, rows), _ids=ids, _copies=copies(self._backend, arrays, rows) if exact else {})

    def digest(self, model: object = None) -> Digest:
        """Returns short texts that name what is frozen (``plan``) and its bytes (``values``), to log, and to compare across restarts and ranks.

        Args:
            model: The model whose values are meant, where it is not changed in place. Without it they are those that the Freezing was made with.

        Example:
            >>> import pytest; torch = pytest.importorskip("torch")
            >>> from unifreeze import freeze
            >>> _ = torch.manual_seed(0)
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> one, other = freeze(model, params="0.bias").digest(), freeze(model, layers="0").digest()
            >>> len(one.plan), len(one.values), one.plan == other.plan
            (16, 16, False)
        """
        if isinstance(model, Freezing):
            raise ArgumentError(f"A Freezing of {self._label} keeps no values.\n  Give the parameters themselves: freezing.digest(params).")
        tree = read(self._backend, self.model if model is None else model, self._state)
        fresh = model is not None or self._backend.in_place
        return digest_of(tree, prints_of(self._backend, tree) if fresh else self._fingerprints)

    def _read(self) -> Layer:
        """The model as it is now; a pytree as it was at the call."""
        return self._tree or read(self._backend, self.model, self._state)

    def _let_go(self, tree: Layer) -> Iterator[Moved]:
        """The layers that no longer run as at inference; until their statistics move, no array shows it."""
        how = {layer.path: layer.inference for layer in tree.walk()}
        for path in self.held if self._backend.in_place else ():
            if path in how and how[path] is None:
                yield Moved(path, "held", "is no longer held at inference; was it replaced, converted or unfrozen? Freeze again")

    def _added(self, tree: Layer) -> Iterator[Moved]:
        """What was put into a frozen part after the call: it is not frozen, and nothing holds it."""
        frozen, held = _above(self._state.frozen), _above(self.held)
        trainable, known = _above(self._trained), self._trained | self._state.frozen
        for layer in tree.walk() if self._backend.in_place else ():
            part = next(path for path in _upwards(layer.path) if path in self._layers)
            still = part in frozen and part not in trainable
            for parameter in layer.parameters if still else ():
                if parameter.status == "trainable" and parameter.path not in known:
                    why = f"was added to a frozen part ({part or 'the model'}) and is trainable"
                    yield Moved(parameter.path, "added", why, "freeze again, or unfreeze it if it is meant to train")
            if layer.path not in self._layers and layer.inference is None:
                moves = still and part in held and any(buffer.role not in STATELESS for buffer in layer.buffers)
                if moves or self._state.inference.get(part) == "all":
                    yield Moved(layer.path, "added", f"was added to a part that is held at inference ({part or 'the model'}) and is not held", "freeze again")

    def __enter__(self) -> Self:
        if getattr(self._revert, "done", False):
            raise ArgumentError(f"This Freezing of {self._label} has been undone, so the block would run without it.\n  Freeze again: with freeze(model, …):")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.undo()

    def __repr__(self) -> str:
        total = len(self.frozen) + len(self.trainable)
        rows = f", some rows of {len(self.rows)}" if self.rows else ""
        return f"<Freezing of {self._label}: {len(self.frozen)} of {total} parameters frozen{rows}, {len(self.changed)} changed by this call>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """A copied train state shares the Freezing of a pytree, which is immutable and kept by identity; a copied model gets its own."""
        if not self._backend.in_place:
            return self
        memo[id(self)] = made = object.__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, also of a model that keeps its Freezing. How to undo belongs to the arrays and flags that were changed, so it stays here."""
        return {
            **vars(self),
            "skipped": dict(self.skipped),
            "_revert": _elsewhere if self._backend.in_place else nothing,
            "_ids": {},
            "_tree": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, skipped=MappingProxyType(state["skipped"]))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if hasattr(self._tools, name):
                return getattr(self._tools, name)
            raise AttributeError(f"a Freezing of {self._label} has no {name!r}.\n  it has: {', '.join(dir(self))}\n  {near(name, dir(self))}".rstrip())
        raise AttributeError(name)

    def __dir__(self) -> list[str]:
        own = ["changed", "digest", "frozen", "held", "layers", "model", "remember", "rows", "skipped", "summary", "trainable", "undo", "verify"]
        return sorted({*own, *(name for name in dir(self._tools) if not name.startswith("_") and self._tools is not None)})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Freezing) or not self._by_content:
            return self is other
        return self._tools == other._tools

    def __hash__(self) -> int:
        return hash(self._tools) if self._by_content else object.__hash__(self)

    @property
    def _by_content(self) -> bool:
        return type(self._tools).__eq__ is not object.__eq__ and self._tools is not None


def read(backend: Backend, model: object, state: State | None) -> Layer:
    """Reads the model; where it can't carry its state, that of a Freezing is laid over it."""
    tree = backend.layers(model)
    return tree if backend.in_place or state is None else with_state(tree, state)


def bring_about(
    backend: Backend,
    model: object,
    request: Request,
    *,
    picked: Iterable[str],
    skipped: Mapping[str, str] = MappingProxyType({}),
    known: Mapping[str, Hashable] = MappingProxyType({}),
    told: Calls = (),
    before: State | None = None,
) -> Freezing:
    """Asks the backend, and describes what came of it.

    ``known`` are fingerprints of arrays that an abstract model does not show; ``told`` is what was asked for, in words, call by call; ``before`` is the state
    that the request's tree shows, where that is known.
    """
    before = state_of(list(request.tree.walk())) if before is None else before
    applied = backend.apply(model, request)
    with ExitStack() as safely:
        safely.callback(applied.undo)
        tree = applied.tree or request.tree
        if applied.tree is None and applied.state is None:
            tree = backend.layers(applied.model) if backend.in_place else with_state(tree, request.state)
        skipped = {**skipped, **applied.skipped}
        undo = applied.undo
        if backend.in_place:
            undo = after_later_ones(model, partial(_undone, applied.undo, remember(model, told[-1:]), told[-1:]), request)
        given = None if backend.in_place else request.tree
        freezing = describe(backend, applied.model, tree, before, applied.state, picked=picked, undo=undo, tools=applied.tools, skipped=skipped, given=given)
        blank = {path: known.get(path) for path, value in freezing._fingerprints.items() if value is None}
        safely.pop_all()
    if any(blank.values()):
        freezing = replace(freezing, _fingerprints={**freezing._fingerprints, **blank})
    return freezing if backend.in_place else replace(freezing, _told=told, _tree=applied.tree)


def _undone(undo: Callable[[], None], calls: list[Told], told: Calls) -> None:
    undo()
    forget(calls, told)


def _elsewhere() -> None:
    raise ArgumentError("This is a copy of a Freezing, and only the original can be undone.\n  unfreeze(model, layers=…) lets the copied model train.")


def describe(
    backend: Backend,
    model: object,
    tree: Layer,
    before: State,
    state: State | None = None,
    *,
    picked: Iterable[str] = (),
    undo: Callable[[], None] = nothing,
    tools: object = None,
    skipped: Mapping[str, str] = MappingProxyType({}),
    given: Layer | None = None,
) -> Freezing:
    """Reads off a tree what a Freezing tells.

    ``state`` is what holds now, where it is not what the tree shows; ``given`` is the tree with the arrays of a model for which ``tree`` has shapes.
    """
    nodes = list(tree.walk())
    state = state_of(nodes) if state is None else state
    every = [p for layer in nodes for p in layer.parameters]
    parameters = unique(every)
    paths = [p.path for p in parameters]
    trainable = tuple([path for path in paths if path not in state.frozen])
    changed = before.differing(state)
    return Freezing(
        model=model,
        frozen=tuple([path for path in paths if path in state.frozen]),
        trainable=trainable,
        held=tuple([layer.path for layer in nodes if layer.path in state.inference]) if state.inference else (),
        changed=tuple([path for path in paths if path in changed]) if changed else (),
        layers=tuple(picked),
        skipped=MappingProxyType(dict(skipped)),
        _backend=backend,
        _label=label_of(tree, backend),
        _state=state,
        _before=before,
        _revert=undo,
        _tools=tools,
        _fingerprints=marks(backend, _promised(nodes if given is None else list(given.walk()), state, paths), state.rows),
        _ids={p.path: id(p.array) for p in parameters if p.path in state.frozen} if backend.in_place else {},
        _layers=frozenset([layer.path for layer in nodes]),
        _trained=frozenset(trainable if len(every) == len(paths) else [p.path for p in every if p.path not in state.frozen]),
    )


def _upwards(path: str) -> Iterator[str]:
    """Yields the path and those of the layers above it, down to the root's.

    >>> list(_upwards("a.b"))
    ['a.b', 'a', '']
    """
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _above(paths: Iterable[str]) -> set[str]:
    """Returns the paths and those of every layer above one of them."""
    found: set[str] = set()
    for path in paths:
        for one in _upwards(path):
            if one in found:
                break
            found.add(one)
    return found


def prints_of(backend: Backend, tree: Layer) -> dict[str, Hashable]:
    """Fingerprints of all that a tree shows to be promised."""
    nodes = list(tree.walk())
    state = state_of(nodes)
    return fingerprints(backend, _promised(nodes, state, [p.path for p in unique(p for layer in nodes for p in layer.parameters)]), state.rows)


def _promised(nodes: list[Layer], state: State, paths: list[str]) -> dict[str, object]:
    """All arrays that are promised to stay still, by path.

    Args:
        nodes: The layers, with the arrays.
        state: What is promised.
        paths: Of each parameter its first path.
    """
    promised = state.frozen | state.rows.keys() if state.rows else state.frozen
    arrays = {p.path: p.array for layer in nodes for p in layer.parameters if p.path in promised} if promised else {}
    kept = {path: arrays[path] for path in paths if path in state.frozen}
    if state.inference:
        kept |= {b.path: b.array for b in still(nodes, state.inference)}
    if state.rows:
        kept |= {path: arrays[path] for path in paths if path in state.rows}
    return kept


def label_of(tree: Layer, backend: Backend) -> str:
    """What to call the model: ``Sequential (torch)``."""
    return f"{tree.type} ({backend.name})"
