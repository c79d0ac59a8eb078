"""The waist: what the core asks of a backend, and what it gets back. ``unifreeze.plugin`` is the door to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ._finding import Finding
from ._graph import Traced
from ._inputs import Inputs, Shape
from ._moves import Clue
from ._rows import Rows
from ._slots import Slots
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
        tree: Of a model that can't carry its state: how ``model``, without values, reads now, for the ``Freezing`` to keep; ``None`` has it read.
        state: Of a model that is changed in place: what it says now, read back from its flags and modules, where the backend can tell without reading all
            of it again; ``None`` has it read.
    """

    model: object
    undo: Callable[[], None] = nothing
    tools: object = None
    skipped: dict[str, str] = field(default_factory=dict)
    tree: Layer | None = None
    state: State | None = None


class Backend(ABC):
    """Who speaks for a framework.

    Attributes:
        name: The name that users see, such as ``torch``.
        in_place: Whether ``apply`` changes the model itself, so that ``layers`` shows what is frozen. Where a model can't carry any state
            (a pytree), set it to ``False``: ``layers`` then reports every parameter as trainable, and the ``Freezing`` carries the state.
        has_flags: Whether the model shows what its users froze by hand. Where they say it elsewhere (in a filter), ``audit`` goes by ``trainable=``.
        takes_apply: Whether a model may need, or take, a function that says how to compute with it, when it is traced.
    """

    name: str
    in_place: bool = True
    has_flags: bool = True
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

    def fingerprints(self, arrays: Sequence[Any]) -> Sequence[Hashable]:
        """Returns the fingerprint of each array, for frameworks that read many faster together than one by one."""
        return [self.fingerprint(array) for array in arrays]

    def marks(self, arrays: Sequence[Any], like: Sequence[Hashable] = ()) -> Sequence[Hashable]:  # noqa: ARG002 - for those who have several ways
        """Returns fingerprints that are only compared in this process, for ``verify`` and ``guard`` of models that are changed in place.

        Those of ``fingerprints`` go into digests and records, and are the same on every device. Where that can be had faster without, a mark may depend on
        where an array lies. The default returns fingerprints.

        Args:
            arrays: The arrays.
            like: For each, the mark that it is compared with. It may have been taken elsewhere: an array that was moved to another device, and no byte of which
                changed, has the same mark when it is taken in the same way.
        """
        return self.fingerprints(arrays)

    def values(self, array: Any) -> Any:
        """Returns a copy of an array's values as a NumPy array, for ``verify`` to say by how much it moved; ``None`` for one that holds no values.

        Its type holds every value exactly (``bfloat16`` as ``float32``). The default suits arrays that NumPy understands.
        """
        import numpy as np

        return np.array(array)

    def clues(self, model: Any, tree: Layer, optimizer: Any = None, *, living: bool = True) -> Mapping[str, Clue]:  # noqa: ARG002 - for those who have some
        """Says, once something frozen has moved, what the framework's own objects tell of it: left gradients, and optimizers that hold it. By path.

        Args:
            model: The model.
            tree: What ``layers`` says of it now.
            optimizer: An optimizer or its state, where the user gave one to ``verify``.
            living: Whether to search for optimizers among all living objects, where that takes time.
        """
        return {}

    def trainable(self, model: Any, tree: Layer, said: Any) -> Iterable[str]:  # noqa: ARG002 - for those who have ways to say it
        """Reads what this framework's users write to say what trains (masks, labels, filters): paths of parameters.

        Raises:
            BackendError: If it can't be read; by default, always.
        """
        raise BackendError(f"trainable= of a model of {self.name} is a Freezing or a selector.\n  given: {type(said).__name__}")

    def modes(self, model: Any, tree: Layer) -> Mapping[str, Literal["training", "still"]]:  # noqa: ARG002 - for those who can see it
        """Says of layers how they run in the next training step, for ``audit``: ``training``, or ``still`` (kept at inference by hand, or inactive). By path.

        A layer of which the model does not tell is left out.
        """
        return {}

    def draws(self, layer: Layer) -> bool:
        """Whether a layer draws random numbers in training mode, for ``audit``: a layer of dropout, or one that has a rate of its own (``dropout=0.1``)."""
        own = getattr(layer.native, "__dict__", {})
        return layer.kind == "dropout" or any("drop" in name and name[0] != "_" and type(rate) is float and rate > 0 for name, rate in own.items())

    def optimizer(self, given: Any) -> Any:
        """Returns what ``audit`` shall look at for one thing that the user gave as ``optimizer=``, such as the transformation inside a training state.

        Raises:
            ArgumentError: If it does not train models of this framework. By default anything is taken.
        """
        return given

    def audit(self, model: Any, tree: Layer, optimizers: tuple[Any, ...]) -> Iterable[Finding]:  # noqa: ARG002 - for those who have rules
        """Looks for what only this framework can get wrong. Nothing by default. It changes nothing.

        Args:
            model: The model.
            tree: The tree, with the statuses that are meant.
            optimizers: What the user gave as ``optimizer=``.
        """
        return ()

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

    def output_shapes(self, model: Any, tree: Layer, inputs: Inputs) -> Mapping[str, Shape]:  # noqa: ARG002 - for those who override it
        """Returns the shape of each layer's output, by path, when the model is called so; of several arrays, that of the first; of several calls, too.

        Optional. Nothing is computed, and the model, its modes, its statistics and every random state are afterwards as they were.

        Args:
            model: The model, or the abstract one that a ``Freezing`` keeps.
            tree: What ``layers`` returned for it.
            inputs: What to call it with; a ``Spec`` stands for an array of its shape.

        Raises:
            BackendError: If the model can't be called so; by default, always.
        """
        raise BackendError(f"The {self.name} backend can't tell output shapes from an input.\n  Leave inputs= and input_shape= out.")

    def mode(self, layer: Layer) -> str:  # noqa: ARG002 - for those who override it
        """Returns ``"train"`` or ``"eval"``, as the layer itself says; empty where the mode is given at the call. Optional."""
        return ""

    def slots(self, optimizer: str) -> Slots:
        """Returns what an optimizer of this framework keeps of each parameter, by its name in small letters, such as ``"adamw"``. Optional.

        Raises:
            ArgumentError: If there is none of that name; ``plugin.named`` says so.
            BackendError: If the backend knows no optimizers; by default, always.
        """
        raise BackendError(f"The {self.name} backend does not know what {optimizer} keeps in memory.\n  Leave optimizer= out.")

    def adopt(self, freezing: type) -> None:  # noqa: B027 - most frameworks keep no register
        """Is called once with the class of every ``Freezing``, for frameworks that keep a register of types. Does nothing by default."""
