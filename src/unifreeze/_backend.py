"""The waist: what the core asks of a backend, and what it gets back. ``unifreeze.plugin`` is the door to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._graph import Traced
from ._rows import Rows
from ._tree import Layer, State
from .errors import BackendError


@dataclass(frozen=True, slots=True)
class Request:
    """What a backend is asked to bring about.

    Attributes:
        tree: What ``Backend.layers`` returned for the model just now.
        state: The state that the whole model shall be in.
        parameters: Paths of the parameters that this call is about, with every other path of a shared one. Their flags are set, and undo
            restores them; all others are left alone.
        layers: Paths of the layers that this call is about; their inference behaviour is set (``state.inference.get(path)``), and undo restores it.
        notes: What ``Backend.notes`` said when the state was recorded, by parameter path; empty unless a record is applied.
    """

    tree: Layer
    state: State
    parameters: frozenset[str]
    layers: frozenset[str]
    notes: Mapping[str, object] = field(default_factory=dict)


def nothing() -> None:
    """How to undo what changed nothing."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of a request.

    Attributes:
        model: What the ``Freezing`` keeps as its model.
        undo: Restores exactly what was there before; the second call does nothing.
        tools: An object whose public attributes the ``Freezing`` offers as its own: the verbs that the framework's training code needs
            (``optimizer``, ``value_and_grad``). If it is hashable and equal by content, so is the ``Freezing``.
        skipped: For each parameter that was asked for and could not be changed, why.
    """

    model: object
    undo: Callable[[], None] = nothing
    tools: object = None
    skipped: dict[str, str] = field(default_factory=dict)


class Backend(ABC):
    """Who speaks for a framework.

    Attributes:
        name: The name that users see, such as ``torch``.
        in_place: Whether ``apply`` changes the model itself, so that ``layers`` shows what is frozen. Where a model can't carry any state
            (a pytree), set it to ``False``: ``layers`` then reports every parameter as trainable, and the ``Freezing`` carries the state.
        takes_apply: Whether a model may need, or take, a function that says how to compute with it, when it is traced.
    """

    name: str
    in_place: bool = True
    takes_apply: bool = False

    @abstractmethod
    def layers(self, model: Any) -> Layer:
        """Reads the model as a tree, without any effect: no forward pass, no change of mode, no allocation, no random numbers.

        Raises:
            UnbuiltModelError: If the parameters do not exist yet.
        """

    @abstractmethod
    def apply(self, model: Any, request: Request) -> Applied:
        """Brings about the requested state, or raises and has changed nothing.

        ``contextlib.ExitStack`` does the bookkeeping: register how to restore a thing before changing it, and return ``stack.pop_all().close`` as undo.
        """

    def fingerprint(self, array: Any) -> Hashable:
        """Returns a value that changes whenever a byte of the array changes; ``None`` for an array that holds no values.

        The default suits arrays that offer Python's buffer protocol.
        """
        import hashlib

        return hashlib.blake2b(memoryview(array).cast("B"), digest_size=16).digest()

    def objections(self, model: Any) -> Iterable[tuple[str, str]]:  # noqa: ARG002 - for those who have some
        """Names what ``verify`` can't see in arrays and statuses: paths, and what is wrong with each. Nothing by default."""
        return ()

    def take(self, array: Any, rows: Rows) -> Any:  # noqa: ARG002 - what a backend that knows rows needs
        """Returns these rows of an array, as an array that ``fingerprint`` reads.

        A backend that can freeze some rows of a parameter overrides this, obeys ``request.state.rows`` and reports ``Parameter.rows``. It raises here for an
        array whose rows it can't hold; that happens before anything changes.

        Raises:
            BackendError: By default.
        """
        raise BackendError(f"rows= is not known to the {self.name} backend.\n  Freeze whole parameters, or keep in two parameters what shall train apart.")

    def remarks(self, tree: Layer) -> tuple[str, ...]:
        """Returns what a summary shall say besides the totals, such as the framework's own figures where they differ. Nothing by default."""
        del tree
        return ()

    def notes(self, model: Any, tree: Layer) -> Mapping[str, object]:  # noqa: ARG002 - for those who need it
        """What a record shall keep beside statuses, by parameter path: numbers and texts that training needs and a saved model loses. None by default."""
        return {}

    def graph(self, model: Any, shape: Any, apply: Callable[..., Any] | None = None) -> Traced:  # noqa: ARG002 - for those who override it
        """Traces the model's weighted dataflow, for ``unifreeze.correspond``. Optional; nothing else needs it.

        Args:
            model: The model.
            shape: The shape of its input, channels last, or ``None`` where the caller does not know it.
            apply: How the caller computes the outputs, ``apply(model, x)``; given only if ``takes_apply`` is true.

        Raises:
            BackendError: If the model has an operation that can't be traced; by default, always.
        """
        raise BackendError(f"The {self.name} backend can't trace the dataflow of a {type(model).__name__}, so it knows no correspondence.")

    def adopt(self, freezing: type) -> None:  # noqa: B027 - most frameworks keep no register
        """Is called once with the class of every ``Freezing``, for frameworks that keep a register of types. Does nothing by default."""
