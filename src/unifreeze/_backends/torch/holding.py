"""Holding the layers of a request, and giving each its mode back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from unifreeze.plugin import ExitStack, Inference, Layer, Request

from .pin import asked, held, hold, release, set_mode
from .wrappers import unwrapped


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of one module.

    Attributes:
        module: The module.
        how: How it shall be held, or ``None`` to let it go.
        mode: The mode it shall have, or ``None`` to keep what was last asked for.
        follows: Whether it shall have the mode of what stands above it. What was asked for meanwhile can't be trusted: Lightning notes every module's mode
            before a validation, ``False`` for a held one, and sets it again afterwards.
    """

    module: nn.Module
    how: Inference | None
    mode: bool | None = None
    follows: bool = False


def hold_layers(request: Request, stack: ExitStack) -> None:
    """Holds the request's layers, or lets them go; the stack learns how to restore them."""
    asking = [layer for layer in request.tree.walk() if layer.path in request.layers]
    if all(layer.inference == request.state.inference.get(layer.path) for layer in asking):
        return
    wanted: dict[int, Inference | None] = {}
    for layer in asking:
        key = id(unwrapped(layer.native))
        wanted[key] = request.state.inference.get(layer.path) or wanted.get(key)
    plans: dict[int, _Plan] = {}
    before: dict[int, _Plan] = {}
    for module, above in _with_modes(request.tree):
        key, now = id(module), held(module)
        if key in wanted and now != wanted[key]:
            before[key] = _Plan(module, now, asked(module)) if now else _Plan(module, None, follows=above == module.training)
            plans[key] = _Plan(module, wanted[key], follows=wanted[key] is None)
    stack.callback(_bring_about, before, request.tree)
    _bring_about(plans, request.tree)


def _bring_about(plans: dict[int, _Plan], tree: Layer) -> None:
    for plan in plans.values():
        if plan.how is None:
            release(plan.module)
        else:
            hold(plan.module, plan.how)
    for module, above in _with_modes(tree):
        chosen = plans.get(id(module))
        mode = None if chosen is None else above if chosen.follows else chosen.mode
        if mode is not None:
            set_mode(module, mode)


def _with_modes(tree: Layer) -> Iterator[tuple[nn.Module, bool | None]]:
    """Yields each module with the mode of the nearest module above it that is not held, parents first, so that a mode set on the way is seen below."""
    pending: list[tuple[Layer, bool | None]] = [(tree, None)]
    while pending:
        layer, above = pending.pop()
        module = unwrapped(layer.native)
        yield module, above
        mode = above if held(module) else module.training
        pending.extend((child, mode) for child in layer.children)
