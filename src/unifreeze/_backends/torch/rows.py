"""Freezing some rows of a parameter.

A parameter has one flag for all its rows, so its frozen rows are kept still by what surrounds a step: their gradient is set to zero once it is accumulated,
so that it reaches no norm and no clipping, and whichever optimizer takes a step, the rows are put back as they were before it. The first alone would leave
weight decay and momentum, the second alone the norms. The hooks on steps are torch's global ones: no optimizer has to be told, so none can be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, cast
from weakref import WeakSet, ref

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from unifreeze.plugin import BackendError, ExitStack, Parameter, Request, Rows

from .wrappers import unwrapped

_KEPT = "_unifreeze_rows"
_guards: WeakSet[Guard] = WeakSet()
_before: dict[int, list[tuple[Guard, torch.Tensor]]] = {}

Place = tuple[nn.Module, str]


class Guard:
    """Keeps rows of one parameter still.

    The module that owns the parameter keeps the guard beside it. Hooks are not copied with a tensor; the guard is, and then guards the copy.
    """

    def __init__(self, module: nn.Module, name: str, parameter: torch.Tensor, rows: Rows) -> None:
        self._begin(module, name, parameter, rows)
        module.__dict__.setdefault(_KEPT, {})[name] = self

    def _begin(self, module: nn.Module, name: str, parameter: torch.Tensor, rows: Rows) -> None:
        self.module, self.name, self.parameter, self.rows = ref(module), name, parameter, rows
        flag = parameter.requires_grad
        parameter.requires_grad = True  # else torch takes no hook; it stays when the flag goes
        self._hook = parameter.register_post_accumulate_grad_hook(_mask)
        parameter.requires_grad = flag
        _guards.add(self)
        _watch_steps()

    def release(self) -> None:
        """Lets the rows train again."""
        self._hook.remove()
        _guards.discard(self)
        module = self.module()
        kept = module.__dict__.get(_KEPT, {}) if module is not None else {}
        kept.pop(self.name, None)
        if module is not None and not kept:
            module.__dict__.pop(_KEPT, None)

    def __getstate__(self) -> tuple[nn.Module | None, str, torch.Tensor, tuple[tuple[int, int], ...]]:
        return self.module(), self.name, self.parameter, self.rows.spans

    def __setstate__(self, state: tuple[nn.Module, str, torch.Tensor, tuple[tuple[int, int], ...]]) -> None:
        module, name, parameter, spans = state
        self._begin(module, name, parameter, Rows(spans))


def frozen_rows() -> dict[int, Rows]:
    """Returns the rows that are kept still of each parameter, by its identity: the same whichever module it is reached through."""
    return {id(guard.parameter): guard.rows for guard in _guards}


def take(array: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Returns these rows of a parameter, as a view where they are one span.

    Raises:
        BackendError: If its rows can't be put back one by one.
    """
    if hasattr(array, "__tensor_flatten__") or array.layout is not torch.strided or array.is_quantized:
        raise BackendError(
            f"Rows of a {type(array).__name__} can't be frozen: where it is sharded, quantised or sparse, they can't be put back one by one.\n"
            "  Freeze the parameter whole, or keep in two parameters what shall train apart."
        )
    (start, stop), *more = rows.spans
    return array.detach().index_select(0, _index(rows, array.device)) if more else array.detach()[start:stop]


def keep_rows(request: Request, stack: ExitStack) -> None:
    """Keeps the request's rows still and lets others go; the stack learns how to restore what was."""
    if not (request.state.rows or _guards):
        return
    before = frozen_rows()
    places: dict[int, list[Place]] = {}
    asked: dict[int, tuple[torch.Tensor, Rows | None]] = {}
    for layer in request.tree.walk():
        for parameter in layer.parameters:
            module, name = place = _place(cast(nn.Module, layer.native), layer.path, parameter)
            if parameter.path in request.parameters and (parameter.path in request.state.rows or parameter.rows or name in module.__dict__.get(_KEPT, {})):
                places.setdefault(id(parameter.array), []).append(place)
                asked[id(parameter.array)] = cast(torch.Tensor, parameter.array), request.state.rows.get(parameter.path)
    for key, (array, rows) in asked.items():
        stack.callback(_keep, array, before.get(key), places[key])
        _keep(array, rows, places[key])
        if rows is not None and array.grad is not None:
            kept, array.grad = array.grad, _without(array.grad, rows)
            stack.callback(_give_back, array, array.grad, kept)


def _place(module: nn.Module, path: str, parameter: Parameter) -> Place:
    """The module that owns a parameter; a parametrized layer reports those of its parametrizations."""
    module = unwrapped(module)
    above, _, name = parameter.path[len(path) + 1 if path else 0 :].rpartition(".")
    return (module.get_submodule(above) if above else module), name


def _keep(array: torch.Tensor, rows: Rows | None, places: list[Place]) -> None:
    stale = [module.__dict__.get(_KEPT, {}).get(name) for module, name in places]
    for guard in {*stale, *(guard for guard in _guards if guard.parameter is array)} - {None}:
        guard.release()
    for module, name in places if rows is not None else ():
        Guard(module, name, array, cast(Rows, rows))


def _give_back(array: torch.Tensor, masked: torch.Tensor, whole: torch.Tensor) -> None:
    if array.grad is masked:  # no step or backward pass has come since
        array.grad = whole


# The gradient.


@torch.no_grad()
def _mask(parameter: torch.Tensor) -> None:
    rows = frozen_rows().get(id(parameter))
    if rows is None or parameter.grad is None:
        return
    if parameter.grad.layout is torch.strided:
        _put(parameter.grad, rows, 0)
    else:
        parameter.grad = _without(parameter.grad, rows)


def _without(gradient: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Returns a copy of a gradient that is zero in these rows."""
    if gradient.layout is torch.strided:
        copied = gradient.detach().clone()
        _put(copied, rows, 0)
        return copied
    sparse = gradient.detach().coalesce()
    gone = torch.isin(sparse.indices()[0], _index(rows, gradient.device))
    values = sparse.values().clone()
    values[gone] = 0
    return torch.sparse_coo_tensor(sparse.indices(), values, sparse.shape, is_coalesced=True, check_invariants=False)


# The step.


@cache
def _watch_steps() -> None:
    register_optimizer_step_pre_hook(_note)
    register_optimizer_step_post_hook(_restore)


@torch.no_grad()
def _note(optimizer: Optimizer, *_: Any) -> None:
    if _guards:
        own = {id(array) for group in optimizer.param_groups for array in group["params"]}
        _refuse_what_was_replaced(own)
        _before[id(optimizer)] = [(guard, take(guard.parameter, guard.rows).clone()) for guard in _held(own)]


@torch.no_grad()
def _restore(optimizer: Optimizer, *_: Any) -> None:
    for guard, rows in _before.pop(id(optimizer), ()):
        _put(guard.parameter.detach(), guard.rows, rows)


def _held(own: set[int]) -> Iterator[Guard]:
    """One guard for each parameter; a shared one has several."""
    yield from {id(guard.parameter): guard for guard in _guards if id(guard.parameter) in own}.values()


def _refuse_what_was_replaced(own: set[int]) -> None:
    for guard in list(_guards):
        module = guard.module()
        now = module._parameters.get(guard.name) if module is not None else guard.parameter
        if now is not guard.parameter and id(now) in own:
            raise BackendError(
                f"Rows {guard.rows} of the {guard.name} of a {type(module).__name__} are frozen, but that parameter has been replaced since: sharded, "
                "converted, or loaded with assign=True. This step would move them.\n"
                f"  it was a {type(guard.parameter).__name__} of shape {tuple(guard.parameter.shape)} and is a {type(now).__name__} now\n"
                "  Freeze the rows again, or unfreeze the layer, which lets them train. Rows of a sharded parameter can't be frozen."
            )


def _put(array: torch.Tensor, rows: Rows, values: torch.Tensor | float) -> None:
    (start, stop), *more = rows.spans
    if not more:
        array[start:stop] = values
    else:
        array[_index(rows, array.device)] = values


@lru_cache(maxsize=16)
def _index(rows: Rows, device: torch.device) -> torch.Tensor:
    return torch.tensor(list(rows), device=device)
