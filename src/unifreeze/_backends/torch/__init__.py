"""The backend for PyTorch: any ``torch.nn.Module``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast
from weakref import ref

import torch
from torch import nn

from unifreeze.plugin import (
    Applied,
    Backend,
    BackendError,
    Clue,
    ExitStack,
    Finding,
    Inputs,
    Layer,
    Parameter,
    Request,
    Rows,
    Shape,
    Slots,
    Traced,
    hookimpl,
    named,
)

from . import graph
from .audit import findings, known, modes
from .checkpointing import warn_of_dead_gradients, without_gradient
from .clues import clues
from .fingerprint import fingerprint, fingerprints, marks, values
from .holding import hold_layers
from .optimizer import Tools
from .rows import keep_rows, take
from .shapes import output_shapes
from .slots import SLOTS
from .stray import watch_wrappers_left_behind, watch_wrappers_outside
from .tree import read, state_now
from .wrappers import refuse_what_ddp_cannot_follow, warn_of_recompiling


class TorchBackend(Backend):
    """Speaks for PyTorch."""

    name = "torch"

    def layers(self, model: object) -> Layer:
        """Reads the modules, without running any of them."""
        return read(cast(nn.Module, model))

    def apply(self, model: object, request: Request) -> Applied:
        """Sets ``requires_grad``, drops the gradients of what is frozen, and holds modules at inference behaviour."""
        root = cast(nn.Module, model)
        freezing, thawing, skipped = _flags(request)
        changing = [p for p in freezing if p.status == "trainable"]
        refuse_what_ddp_cannot_follow(root, changing, thawing)
        with ExitStack() as stack:
            _set_flags(freezing, thawing, stack)
            keep_rows(request, stack)
            hold_layers(request, stack)
            watch_wrappers_outside(root, changing + thawing, stack)
            warn_of_dead_gradients(root, request.tree)
            warn_of_recompiling(root, request.tree, (request.state.frozen, frozenset(request.state.inference.items())))
            state = state_now(request.tree)
            return Applied(model, undo=_undo(ref(root), freezing, thawing, stack.pop_all()), tools=Tools(root), skipped=skipped, state=state)

    def objections(self, model: object) -> Iterable[tuple[str, str]]:
        """Names what trains in words and gets no gradient."""
        return without_gradient(read(cast(nn.Module, model)))

    def graph(self, model: object, shape: Any, apply: object = None) -> Traced:  # noqa: ARG002 - these models say what they compute
        """Traces the weighted dataflow in inference."""
        return graph.trace(cast(nn.Module, model), self.layers(model), shape)

    def output_shapes(self, model: object, tree: Layer, inputs: Inputs) -> Mapping[str, Shape]:
        """Runs the module in inference on fake tensors."""
        return output_shapes(cast(nn.Module, model), tree, inputs)

    def mode(self, layer: Layer) -> str:
        """The module's own flag."""
        return "train" if cast(nn.Module, layer.native).training else "eval"

    def slots(self, optimizer: str) -> Slots:
        """Those of ``torch.optim``, and lion."""
        return named(optimizer, SLOTS)

    def fingerprint(self, array: object) -> Hashable:
        """Reads the whole tensor on its own device."""
        return fingerprint(array)

    def fingerprints(self, arrays: Sequence[object]) -> Sequence[Hashable]:
        """Reads several large tensors at a time."""
        return fingerprints(arrays)

    def marks(self, arrays: Sequence[object], like: Sequence[Hashable] = ()) -> Sequence[Hashable]:
        """Reads them all, by what is quickest on the CPU, or as those were read that they are compared with."""
        return marks(arrays, like)

    def values(self, array: object) -> Any:
        """A copy on the host; of a sharded tensor, the part that this process holds."""
        return values(array)

    def clues(self, model: object, tree: Layer, optimizer: object = None, *, living: bool = True) -> Mapping[str, Clue]:
        """Left gradients, and living optimizers that hold a parameter."""
        del model
        return clues(tree, optimizer, living=living)

    def modes(self, model: object, tree: Layer) -> Mapping[str, Literal["training", "still"]]:
        """Every module knows its mode."""
        del model
        return modes(tree)

    def draws(self, layer: Layer) -> bool:
        """Dropout, also of an attention; a recurrent network has its own between layers, so not if there is one alone."""
        return super().draws(layer) and getattr(layer.native, "num_layers", 2) != 1

    def optimizer(self, given: Any) -> Any:
        """An optimizer of ``torch.optim``'s kind."""
        return known(given)

    def audit(self, model: object, tree: Layer, optimizers: tuple[object, ...]) -> Iterable[Finding]:
        """Memory, optimizers with one state for all, and wrappers."""
        del model
        return findings(tree, optimizers)

    def take(self, array: object, rows: Rows) -> torch.Tensor:
        """The rows on their own device, where they are dense and in one piece."""
        return take(cast(torch.Tensor, array), rows)


BACKEND = TorchBackend()


@hookimpl
def unifreeze_backend(model: object) -> Backend | None:
    """Speaks for modules."""
    return BACKEND if isinstance(model, nn.Module) else None


def _flags(request: Request) -> tuple[list[Parameter], list[Parameter], dict[str, str]]:
    """What is to be frozen, what is to be made trainable, and what can't be, each array once."""
    freezing: dict[int, Parameter] = {}
    thawing: dict[int, Parameter] = {}
    skipped: dict[str, str] = {}
    for parameter in [one for layer in request.tree.walk() for one in layer.parameters if one.path in request.parameters]:
        if parameter.path in request.state.frozen:
            freezing[id(parameter.array)] = parameter
        elif parameter.untrainable:
            skipped[parameter.path] = parameter.untrainable
        elif parameter.status == "frozen":
            thawing[id(parameter.array)] = parameter
    return list(freezing.values()), list(thawing.values()), skipped


def _undo(root: ref[nn.Module], frozen: list[Parameter], thawed: list[Parameter], restoring: ExitStack) -> Callable[[], None]:
    """What restores, after a look at wrappers that have been put round the model since: to undo a freeze is to unfreeze."""
    were_trainable = [parameter for parameter in frozen if parameter.status == "trainable"]

    def undo() -> None:
        model = root()
        freezing = [parameter for parameter in thawed if cast(torch.Tensor, parameter.array).requires_grad]
        thawing = [parameter for parameter in were_trainable if not cast(torch.Tensor, parameter.array).requires_grad]
        if model is not None:
            refuse_what_ddp_cannot_follow(model, freezing, thawing)
        restoring.close()
        if model is not None:
            watch_wrappers_left_behind(model, freezing + thawing)

    return undo


def _set_flags(freezing: list[Parameter], thawing: list[Parameter], stack: ExitStack) -> None:
    before: list[tuple[torch.Tensor, bool, torch.Tensor | None]] = []
    stack.callback(_restore_flags, before)
    for parameter in freezing:
        array = cast(torch.Tensor, parameter.array)
        # An optimizer moves whatever has a gradient: a stale one by itself, a zero one by its momentum and its decay.
        trains, gradient = array.requires_grad, array.grad
        if trains or gradient is not None:
            before.append((array, trains, gradient))
            array.requires_grad = False
            if gradient is not None:
                array.grad = None
    for parameter in thawing:
        array = cast(torch.Tensor, parameter.array)
        before.append((array, array.requires_grad, array.grad))
        try:
            array.requires_grad = True
        except RuntimeError as error:
            raise BackendError(f"{parameter.path} can't be made trainable.\n  {error}\n  Make the model outside torch.inference_mode().") from error


def _restore_flags(before: list[tuple[torch.Tensor, bool, torch.Tensor | None]]) -> None:
    for array, requires_grad, gradient in reversed(before):
        array.requires_grad = requires_grad
        array.grad = gradient
