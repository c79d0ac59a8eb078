"""What only PyTorch can get wrong: modes, memory that two parameters share, optimizers with one state for all, and wrappers that looked at the flags once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

from unifreeze.plugin import ArgumentError, Finding, Layer, Parameter

from .groups import identities
from .pin import asked
from .wrappers import frozen_sets, reduced, unwrapped

Mode = Literal["training", "still"]
_RATES = ("p", "drop_prob", "drop_rate", "drop")


def modes(tree: Layer) -> dict[str, Mode]:
    """How each layer runs in the next training step, where the model is in training mode: a module in eval mode inside was put there by hand.

    A model that is in eval mode as a whole tells nothing of the next step; a dropout of rate 0 and a norm without running statistics are still in any case.
    """
    root = asked(unwrapped(cast(nn.Module, tree.native)))
    natives = ((layer.path, unwrapped(cast(nn.Module, layer.native))) for layer in tree.walk())
    found: dict[str, Mode] = {}
    for path, module in natives:
        if _inactive(module) or (root and not module.training):
            found[path] = "still"
        elif root:
            found[path] = "training"
    return found


def _inactive(module: nn.Module) -> bool:
    rates = [getattr(module, name, None) for name in _RATES if name in vars(module)]
    return bool(rates) and all(rate in {0, None} for rate in rates if isinstance(rate, int | float | None))


def known(given: Any) -> Optimizer:
    """Returns what was given, if it is an optimizer.

    Raises:
        ArgumentError: Otherwise.
    """
    if isinstance(given, Optimizer):
        return given
    inner = getattr(given, "optimizer", None)
    repair = "Give the one inside it: optimizer=….optimizer." if isinstance(inner, Optimizer) else "Give it as you made it: torch.optim.AdamW(…)."
    raise ArgumentError(f"optimizer= is an optimizer of torch.optim, or a list of several.\n  given: {type(given).__name__}\n  {repair}")


def findings(tree: Layer, optimizers: tuple[Any, ...]) -> Iterator[Finding]:
    """Asks every rule of PyTorch's."""
    parameters = [parameter for layer in tree.walk() for parameter in layer.parameters]
    for optimizer in optimizers:
        if isinstance(optimizer, Optimizer):
            yield from _of_optimizer(optimizer, parameters)
    yield from _of_memory(parameters)
    wrappers = [layer.native for layer in tree.walk() if isinstance(layer.native, DistributedDataParallel)]
    for wrapper in wrappers:
        yield from _of_parallel(wrapper, parameters)
    ways, limit = frozen_sets(cast(nn.Module, tree.native))
    if ways > limit:
        why = f"this compiled model has been frozen in {ways} different ways; torch.compile keeps {limit} graphs and then runs uncompiled"
        yield Finding.of("UF403", (), why, f"set torch._dynamo.config.recompile_limit = {2 * ways}, or call torch.compiler.reset()")


def _of_optimizer(optimizer: Optimizer, parameters: Collection[Parameter]) -> Iterator[Finding]:
    held, name = identities(optimizer), type(optimizer).__name__
    if held and not held & {id(parameter.array) for parameter in parameters}:
        why = f"the {name} holds no parameter of this model: it was made for another one, or for a copy"
        yield Finding.of("UF112", (), why, "make one for this model: freezing.optimizer(torch.optim.AdamW, lr=…)")
    frozen = [p.path for p in parameters if p.status == "frozen" and id(p.array) in held]
    if isinstance(optimizer, LBFGS) and optimizer.state and frozen:
        why = "it is frozen, and LBFGS remembers steps over all its parameters together, which move it without any gradient"
        yield Finding.of("UF105", frozen, why, "freezing.attach(optimizer) lets it begin anew; by hand, make a new one for what is trainable")


def _of_memory(parameters: Collection[Parameter]) -> Iterator[Finding]:
    """Two parameters over one memory, such as a head made of ``embedding.weight.data``: flags are of parameters, and steps are taken in memory."""
    spans: dict[int, list[tuple[int, int, Parameter]]] = {}
    for parameter in parameters:
        array = cast(torch.Tensor, parameter.array)
        if type(array) in {torch.Tensor, nn.Parameter} and array.layout is torch.strided and not array.is_meta and array.numel() and array.is_contiguous():
            start = array.storage_offset() * array.element_size()
            spans.setdefault(array.untyped_storage().data_ptr(), []).append((start, start + array.nbytes, parameter))
    for shared in spans.values():
        for begin, end, frozen in shared:
            over = [p for start, stop, p in shared if p.status == "trainable" and start < end and begin < stop]
            if frozen.status == "frozen" and over:
                why = f"{frozen.path} is frozen, and {over[0].path} trains in the same memory"
                yield Finding.of(
                    "UF302", (frozen.path, *(p.path for p in over)), why, "share the parameter itself, and freeze that; or copy the array: .clone()"
                )


def _of_parallel(wrapper: DistributedDataParallel, parameters: Collection[Parameter]) -> Iterator[Finding]:
    known, own = reduced(wrapper), {id(array) for array in wrapper._module_parameters}
    late = [p.path for p in parameters if p.status == "trainable" and id(p.array) in own and id(p.array) not in known]
    if late:
        why = "it was unfrozen after DistributedDataParallel had wrapped the model: its gradients are not averaged, and the ranks drift apart"
        yield Finding.of("UF401", late, why, "wrap again: DistributedDataParallel(model.module, …)")
    waits = not wrapper.find_unused_parameters or wrapper.static_graph
    gone = [p.path for p in parameters if p.status == "frozen" and id(p.array) in known]
    if waits and gone:
        why = "it was frozen after DistributedDataParallel had wrapped the model, which waits for its gradient"
        yield Finding.of("UF402", gone, why, "freeze first and wrap then, or wrap with find_unused_parameters=True and without static_graph")
