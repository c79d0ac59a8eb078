"""What is put round a model: compiled and parallel wrappers, what they hide and what they can't follow."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Hashable
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from unifreeze.plugin import BackendError, Layer, Parameter, UnifreezeWarning

_PARALLEL = (DistributedDataParallel, DataParallel)
_states: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns what ``torch.compile``, ``DistributedDataParallel`` or ``DataParallel`` wraps, so that paths read the same before and after wrapping."""
    while True:
        inside = module._modules
        if "module" in inside and isinstance(module, _PARALLEL):
            module = inside["module"]
        elif "_orig_mod" in inside:
            module = inside["_orig_mod"]
        else:
            return module


def refuse_what_ddp_cannot_follow(model: nn.Module, freezing: Collection[Parameter], thawing: Collection[Parameter]) -> None:
    """Raises where DistributedDataParallel, which looks at the flags once, when it wraps, would train wrongly or fail later."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized() and (freezing or thawing)):
        return
    for wrapper in [module for module in model.modules() if isinstance(module, DistributedDataParallel)]:
        own = {id(array) for array in wrapper._module_parameters}
        if not wrapper.find_unused_parameters or wrapper.static_graph:
            _refuse(
                "Freezing after DistributedDataParallel has wrapped the model makes it wait for gradients that never come.",
                [parameter.path for parameter in freezing if id(parameter.array) in own],
                "Freeze first and wrap then, or wrap with find_unused_parameters=True and without static_graph.",
            )
        late = [parameter for parameter in thawing if id(parameter.array) in own]
        known = reduced(wrapper) if late else set()
        _refuse(
            "Unfreezing after DistributedDataParallel has wrapped the model lets the ranks drift apart: gradients of what was frozen then are not averaged.",
            [parameter.path for parameter in late if id(parameter.array) not in known],
            "Unfreeze the bare model and wrap it again: unfreeze(model.module, …); DistributedDataParallel(model.module, …).",
        )


def reduced(wrapper: DistributedDataParallel) -> set[int]:
    """The identities of the parameters whose gradients are averaged. Only the buckets tell, at the price of arrays as large as the gradients for a moment."""
    return {id(array) for bucket in wrapper.reducer._get_zeros_like_grad_buckets() for array in bucket.parameters()}


def _refuse(what: str, paths: list[str], repair: str) -> None:
    if paths:
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        raise BackendError(f"{what}\n  {', '.join(paths[:3])}{more}\n  {repair}")


def warn_of_recompiling(model: nn.Module, tree: Layer, state: Hashable) -> None:
    """Warns when a compiled model has been given more states than ``torch.compile`` keeps graphs for: it then runs uncompiled, and does not say so."""
    if not _is_compiled(model, tree):
        return
    states = _states.setdefault(model, set())
    states.add(state)
    limit = torch._dynamo.config.recompile_limit
    if len(states) > limit:
        warnings.warn(
            f"This compiled model has been frozen in {len(states)} different ways; torch.compile keeps {limit} graphs and then runs uncompiled.\n"
            f"  Set torch._dynamo.config.recompile_limit = {2 * limit}, or call torch.compiler.reset() when a way does not come back.",
            UnifreezeWarning,
            stacklevel=2,
        )


def frozen_sets(model: nn.Module) -> tuple[int, int]:
    """In how many ways a compiled model has been frozen, as far as that was seen; and for how many ``torch.compile`` keeps a graph."""
    return len(_states.get(model, ())), torch._dynamo.config.recompile_limit if "torch._dynamo" in sys.modules else 0


def _is_compiled(model: nn.Module, tree: Layer) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    return "_orig_mod" in model._modules or any(cast(nn.Module, layer.native)._compiled_call_impl is not None for layer in tree.walk())
