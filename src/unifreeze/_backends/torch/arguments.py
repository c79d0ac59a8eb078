"""What a verb of the optimizers was given in the place of something else, and what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unifreeze.plugin import ArgumentError, BackendError


def several(one_or_more: Any) -> tuple[Any, ...]:
    """Returns none, one or several as a tuple."""
    if one_or_more is None:
        return ()
    return tuple(one_or_more) if isinstance(one_or_more, list | tuple | set | frozenset) else (one_or_more,)


def check_class(cls: Any) -> None:
    """Raises if this is not what makes an optimizer."""
    name = cls.__name__ if isinstance(cls, type) else type(cls).__name__
    if isinstance(cls, Optimizer):
        raise ArgumentError(
            f"optimizer() makes one, and takes the class; this {name} is made already.\n"
            f"  Give the class: freezing.optimizer(torch.optim.{name}, lr=…); or let the live one follow: freezing.attach(optimizer)."
        )
    if not callable(cls) or isinstance(cls, nn.Module | LRScheduler) or (isinstance(cls, type) and issubclass(cls, nn.Module | LRScheduler)):
        raise ArgumentError(
            f"{cls if isinstance(cls, str) else name} makes no optimizer.\n  Give the class of one: freezing.optimizer(torch.optim.AdamW, lr=…)."
        )


def check_decay(no_decay: Any, cls: Any) -> None:
    """Raises if this does not say what is exempt from weight decay, or if there is none."""
    if not isinstance(no_decay, bool) and not callable(no_decay):
        raise ArgumentError(f"no_decay={no_decay!r} is not understood.\n  it is True (norms and biases), or a function of Parameter that picks what is exempt")
    if no_decay and isinstance(cls, type) and issubclass(cls, Optimizer) and "weight_decay" not in inspect.signature(cls).parameters:
        raise BackendError(f"{cls.__name__} has no weight decay to be exempt from.\n  Leave no_decay out, or take torch.optim.AdamW.")


def check_live(optimizer: Any, schedulers: Collection[Any], others: Collection[Any]) -> None:
    """Raises if these are not a live optimizer, its schedulers, and other optimizers."""
    _check_optimizer(optimizer)
    for other in others:
        _check_optimizer(other)
    for scheduler in schedulers:
        if isinstance(scheduler, Optimizer):
            raise ArgumentError(
                f"An optimizer ({type(scheduler).__name__}) was given in the place of a scheduler.\n"
                "  Attach one optimizer after the other: freezing.attach(optimizer, scheduler, others=other)."
            )
        if isinstance(scheduler, type) or not hasattr(scheduler, "optimizer"):
            name = scheduler.__name__ if isinstance(scheduler, type) else type(scheduler).__name__
            raise ArgumentError(f"{name} is no live scheduler.\n  Give the object that steps: freezing.attach(optimizer, scheduler).")
        if scheduler.optimizer is not optimizer:
            raise BackendError(
                f"The scheduler ({type(scheduler).__name__}) drives another optimizer than the one given.\n"
                "  Give attach(optimizer, scheduler) the scheduler of that optimizer."
            )


def _check_optimizer(optimizer: Any) -> None:
    if isinstance(optimizer, Optimizer):
        return
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        raise ArgumentError(
            f"attach() takes a live optimizer, and {optimizer.__name__} is a class.\n  To make one: freezing.optimizer(torch.optim.{optimizer.__name__}, lr=…)."
        )
    if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        raise ArgumentError(
            f"{type(optimizer).__name__} is not an optimizer; it has one.\n  Give both: freezing.attach(optimizer, scheduler); or the inner one of a wrapper."
        )
    if isinstance(optimizer, list | tuple | set | dict):
        raise ArgumentError(
            "attach() takes one optimizer, not several.\n  Attach each: freezing.attach(one, others=[other]); freezing.attach(other, others=[one])."
        )
    raise ArgumentError(f"{type(optimizer).__name__} is not a live optimizer.\n  Give the object whose step() the training loop calls.")
