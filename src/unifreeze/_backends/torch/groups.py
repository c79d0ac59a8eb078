"""The parameter groups of a live optimizer: adding what is newly trainable, dropping what is frozen, and telling the schedulers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch.optim import LBFGS, Muon, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from unifreeze.plugin import Layer, Parameter

Exempt = Callable[[Parameter], bool]
_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
_LISTS = ("base_lrs", "min_lrs", "max_lrs", "base_momentums", "max_momentums", "lr_lambdas", "_last_lr")


def identities(optimizer: Optimizer) -> set[int]:
    """Which parameters an optimizer holds."""
    return {id(array) for group in optimizer.param_groups for array in group["params"]}


def takes(optimizer: Optimizer, array: torch.Tensor) -> bool:
    """Whether an optimizer can train this parameter. Muon says so only when it is made, and fails at a step if it was given another later."""
    return array.ndim == 2 or not isinstance(optimizer, Muon)


def exempt_from_decay(tree: Layer, no_decay: bool | Exempt) -> set[int]:
    """The identities of the parameters that weight decay shall leave alone: those of norms, and biases; or what a function picks."""
    picked: dict[int, bool] = {}
    for layer in tree.walk():
        for parameter in layer.parameters:
            usual = parameter.role == "bias" or layer.kind in _NORMS
            picked.setdefault(id(parameter.array), bool(no_decay(parameter)) if callable(no_decay) else no_decay and usual)
    return {key for key, exempt in picked.items() if exempt}


def renew(optimizer: LBFGS, new: Collection[torch.Tensor]) -> None:
    """Lets LBFGS begin anew: it keeps one direction over all its parameters together, which moves frozen ones, too, and does not fit new ones."""
    optimizer.state.clear()
    optimizer._params.extend(new)  # the list of its one group
    optimizer._numel_cache = None


def drop(optimizer: Optimizer, frozen: Collection[int]) -> None:
    """Takes parameters out, with what the optimizer knows of them: state alone would make ``state_dict()`` fail. A group stays, even if it gets empty."""
    for group in optimizer.param_groups:
        staying = [place for place, array in enumerate(group["params"]) if id(array) not in frozen]
        for array in group["params"]:
            if id(array) in frozen:
                optimizer.state.pop(array, None)
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [group[key][place] for place in staying]


def add(optimizer: Optimizer, new: Mapping[str, torch.Tensor], exempt: set[int], schedulers: Collection[Any]) -> None:
    """Adds parameters as a new group, or as two where some are exempt from decay."""
    schedulers = list(_flat(schedulers))
    names = {id(array): name for name, array in new.items()}
    for options, part in by_decay(new.values(), exempt):
        group = {**_now(optimizer, schedulers), **options}
        named = "param_names" in optimizer.param_groups[-1]
        optimizer.add_param_group({**group, "params": [(names[id(array)], array) for array in part] if named else part})
        for scheduler in schedulers:
            _tell(scheduler, optimizer.param_groups[-1])


def _flat(schedulers: Collection[Any]) -> Iterator[Any]:
    """Yields the schedulers, and those that they are made of."""
    for scheduler in schedulers:
        yield scheduler
        yield from _flat(getattr(scheduler, "_schedulers", ()))


def by_decay(arrays: Collection[torch.Tensor], exempt: set[int]) -> Iterator[tuple[dict[str, float], list[torch.Tensor]]]:
    """Yields the options of each group that is needed, and its parameters: those that decay, and those that are exempt."""
    for options, wanted in (({}, False), ({"weight_decay": 0.0}, True)):
        part = [array for array in arrays if (id(array) in exempt) == wanted]
        if part:
            yield options, part


def _now(optimizer: Optimizer, schedulers: Collection[Any]) -> dict[str, Any]:
    """What the schedulers have made of the last group, for a new one beside it."""
    last = optimizer.param_groups[-1]
    group = {key: value for key, value in last.items() if key not in {*optimizer.defaults, "params", "param_names"}}  # schedulers' own
    cycling = "max_lr" in last or any(hasattr(scheduler, "max_lrs") for scheduler in schedulers)
    if "initial_lr" in last:
        start = last["initial_lr"]
        group["initial_lr"] = start if cycling else optimizer.defaults["lr"]
        group["lr"] = group["initial_lr"] * (last["lr"] / start if start else 1)
    elif any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers):  # the one that notes no initial rate
        group["lr"] = last["lr"]
    if cycling and ("max_momentum" in last or any(getattr(scheduler, "cycle_momentum", False) for scheduler in schedulers)):
        group |= {key: last[key] for key in ("momentum", "betas") if key in last}
    return group


def _tell(scheduler: Any, group: dict[str, Any]) -> None:
    """Makes the lists that a scheduler keeps, one entry for each group, one longer."""
    for name in _LISTS:
        entries = getattr(scheduler, name, None)
        if entries:
            own = {"base_lrs": group.get("initial_lr"), "_last_lr": group["lr"]}.get(name)
            setattr(scheduler, name, [*entries, entries[-1] if own is None else own])
