"""The guard: a block of code in which nothing frozen may move, whoever froze it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

from ._backend import Backend
from ._freezing import Freezing, label_of
from ._manager import backend_of
from ._moves import explain
from ._said import as_said
from ._tree import STATELESS, Layer, Parameter, state_of, unique, wholes
from ._verify import Kept, Proof, broken, copies, marks
from .errors import ArgumentError, BackendError, FrozenMovedError, NothingSelectedError


def guard(model: object, *, trainable: object = None, exact: bool = False, buffers: bool = True) -> Guard:
    """Returns a context manager that raises on the way out if anything frozen has moved, whether unifreeze froze it or you did by hand.

    It takes the fingerprint of every frozen parameter, and of every buffer of a frozen layer (statistics, say), on entry, and compares them on exit. A layer is
    frozen if it has parameters, itself or inside, and all of them are; one without any goes with what it is in.

    A pytree can't carry what is frozen, and training makes a new one: say ``trainable=``, and give the new parameters to ``check`` inside the block.

    Args:
        model: The model; for JAX pytrees, the parameters.
        trainable: What trains, where the model does not show it: a ``Freezing``, a selector, or in JAX a mask that is ``True`` for what trains, labels that say
            ``trainable`` or ``frozen``, or a filter.
        exact: Also keeps a copy of each array in the memory of the host, to compare with and to say by how much it moved.
        buffers: Whether buffers are guarded; ``False`` where statistics of frozen layers are meant to move.

    Raises:
        NothingSelectedError: If nothing is frozen.
        FrozenMovedError: On exit, if anything moved; the message says what, the likely cause, and the repair.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import guard
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
        >>> for part in model[:2]:
        ...     _ = part.requires_grad_(False)
        >>> with guard(model):
        ...     _ = model(torch.randn(8, 4))
        Traceback (most recent call last):
        unifreeze.errors.FrozenMovedError: 3 of the promises made for Sequential (torch) are broken.
          1.running_mean: moved (statistics or other state: its layer ran in training mode and updated its statistics); freeze its layer with unifreeze, ...
    """
    if isinstance(model, Freezing):
        if not model._backend.in_place:
            raise ArgumentError(f"A Freezing of {model._label} keeps no values.\n  Give the parameters, and the Freezing: guard(params, trainable=freezing).")
        model = model.model
    backend = backend_of(model)
    tree = as_said(backend, model, backend.layers(model), trainable)
    return Guard(backend, model, tree, exact=exact, buffers=buffers, flags=backend.in_place and trainable is None)


class Guard:
    """What ``guard`` returns.

    Attributes:
        label: The model.
        arrays: Paths of the arrays that are guarded.
    """

    def __init__(self, backend: Backend, model: object, tree: Layer, *, exact: bool, buffers: bool, flags: bool) -> None:
        self.label = label_of(tree, backend)
        self._backend, self._model, self._exact, self._flags, self._checked = backend, model, exact, flags, False
        self._still = list(_guarded(tree, buffers=buffers))
        self._gradients = {path: clue.gradient for path, clue in backend.clues(model, tree, living=False).items() if clue.gradient}
        self._rows = dict(state_of(list(tree.walk())).rows)
        self.arrays = tuple(parameter.path for parameter in self._still)
        if not self._still:
            raise NothingSelectedError(f"Nothing of {self.label} is frozen, so there is nothing to guard.\n  {_repair(backend)}")
        self._keep()

    def _keep(self) -> None:
        arrays = {parameter.path: parameter.array for parameter in self._still}
        prints = marks(self._backend, arrays, self._rows)
        blank = next((path for path, value in prints.items() if value is None), None)
        if blank is not None:
            raise BackendError(f"{blank} of {self.label} holds no values, so nothing can be said of it later.\n  Give the real arrays.")
        kept = copies(self._backend, arrays, self._rows) if self._exact else {}
        ids = {path: id(array) for path, array in arrays.items()} if self._backend.in_place else {}
        self._kept = Kept(prints, self._rows, kept, ids, self._gradients, self._flags)

    def check(self, model: object = None, *, optimizer: object = None) -> Proof:
        """Compares now, and says what was compared.

        Args:
            model: The model as it is now; needed where training makes a new one.
            optimizer: As in ``Freezing.verify``: what trained it, to tell the cause by.

        Raises:
            FrozenMovedError: If anything moved.
        """
        if model is None and not self._backend.in_place:
            raise ArgumentError(f"{self.label} is not changed in place.\n  Give the parameters as they are now: g.check(params).")
        subject = self._model if model is None else model
        self._checked = True
        tree = self._backend.layers(subject)
        kept = self._kept if subject is self._model else replace(self._kept, ids={})
        wrong = broken(self._backend, subject, tree, kept, optimizer)
        if wrong:
            raise FrozenMovedError(explain(wrong, self.label, exact=self._exact), wrong)
        return self._kept.proof(self.label, tree)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            return
        if self._backend.in_place:
            self.check()
        elif not self._checked:
            raise ArgumentError(
                f"The guard of {self.label} was given nothing to compare with.\n  Call g.check(params) in the block: with guard(params, …) as g: …"
            )


def _guarded(tree: Layer, *, buffers: bool) -> Iterator[Parameter]:
    """Frozen parameters, also those of which only some rows are; then the buffers of frozen layers and of those that are held."""
    nodes = list(tree.walk())
    frozen = {path for path, whole in wholes(tree).items() if whole}
    parameters = (p for layer in nodes for p in layer.parameters if p.status == "frozen" or p.rows is not None)
    still = (
        buffer
        for layer in nodes
        for buffer in layer.buffers
        if (layer.path in frozen and buffer.role not in STATELESS)
        or (layer.inference is not None and (buffer.role not in STATELESS or layer.inference == "all"))
    )
    yield from unique(parameters)
    if buffers:
        yield from unique(still)


def _repair(backend: Backend) -> str:
    if backend.in_place:
        return "Freeze a part of it first, by freeze(model, layers=…) or by hand."
    return "A pytree can't carry what is frozen: say what trains, guard(params, trainable=freezing), or a mask, labels or a filter of what trains."
