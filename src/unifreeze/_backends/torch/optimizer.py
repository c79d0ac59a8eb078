"""What a training loop needs beside the flags: an optimizer for what is trainable, and a live one made right again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from unifreeze.plugin import BackendError

Made = TypeVar("Made")


class Tools:
    """The verbs of a ``Freezing`` of a PyTorch model. They look at the model as it is when they are called."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def optimizer(self, cls: Callable[..., Made], **kwargs: Any) -> Made:
        """Returns ``cls(parameters, **kwargs)`` over exactly what is trainable, a shared parameter once.

        Raises:
            BackendError: If nothing is trainable.

        Example:
            >>> import torch
            >>> from unifreeze import freeze
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> optimizer = freeze(model, layers="0").optimizer(torch.optim.AdamW, lr=1e-3)
            >>> [tuple(p.shape) for p in optimizer.param_groups[0]["params"]]
            [(2, 3), (2,)]
        """
        trainable = self._trainable()
        if not trainable:
            raise BackendError(
                f"No parameter of {type(self._model).__name__} is trainable, so there is nothing to optimize.\n  Call unfreeze(model, layers=…) first."
            )
        return cls(trainable, **kwargs)

    def attach(self, optimizer: Optimizer, *, others: Collection[Optimizer] = (), schedulers: Collection[Any] = ()) -> Optimizer:
        """Makes a live optimizer right for what is frozen and trainable now, and returns it. What it knows about the others stays.

        Trainable parameters that it does not hold yet join as a new group with its defaults, and start as if fresh; the learning rate stands where a schedule
        has brought the last group. Frozen parameters stay in place, without gradient, so that they go on where they were when they are unfrozen.

        Args:
            optimizer: The optimizer.
            others: Further optimizers of this model; what they hold does not join.
            schedulers: Learning-rate schedulers of ``optimizer``, which learn of the new group. ``LambdaLR`` raises at its next step if it is not told.

        Raises:
            BackendError: If the optimizer holds none of the model's parameters.
        """
        names = {id(array): name for name, array in self._model.named_parameters()}
        own = _identities(optimizer)
        if not names.keys() & own:
            raise BackendError(
                f"The optimizer holds no parameter of this {type(self._model).__name__}: it was made for another model, or for a copy.\n"
                "  Make one for this model: freezing.optimizer(torch.optim.AdamW, lr=…)."
            )
        if any(scheduler.optimizer is not optimizer for scheduler in schedulers):
            raise BackendError(
                "A scheduler drives another optimizer than the one given.\n  Give attach(optimizer, schedulers=…) the schedulers of that optimizer."
            )
        known = own.union(*map(_identities, others))
        new = {names[id(array)]: array for array in self._trainable() if id(array) not in known}
        for array in self._model.parameters():
            if not array.requires_grad:
                array.grad = None
        if isinstance(optimizer, LBFGS):
            _renew(optimizer, list(new.values()))
        elif new:
            _add_group(optimizer, new, cycling=any(hasattr(scheduler, "max_lrs") for scheduler in schedulers))
            for scheduler in schedulers:
                _tell(scheduler, optimizer.param_groups[-1])
        return optimizer

    def _trainable(self) -> list[torch.Tensor]:
        return [array for array in self._model.parameters() if array.requires_grad]


def _identities(optimizer: Optimizer) -> set[int]:
    return {id(array) for group in optimizer.param_groups for array in group["params"]}


def _renew(optimizer: LBFGS, new: list[torch.Tensor]) -> None:
    """Lets LBFGS begin anew: it keeps one direction over all its parameters together, which moves frozen ones, too, and does not fit new ones."""
    optimizer.state.clear()
    optimizer._params.extend(new)  # the list of its one group
    optimizer._numel_cache = None


def _add_group(optimizer: Optimizer, new: dict[str, torch.Tensor], *, cycling: bool) -> None:
    last = optimizer.param_groups[-1]
    group = {key: value for key, value in last.items() if key not in {*optimizer.defaults, "params", "param_names"}}  # schedulers' own
    if "initial_lr" in last:
        start = last["initial_lr"]
        group["initial_lr"] = start if cycling or "max_lr" in last else optimizer.defaults["lr"]
        group["lr"] = group["initial_lr"] * (last["lr"] / start if start else 1)
    optimizer.add_param_group({**group, "params": list(new.items() if "param_names" in last else new.values())})


def _tell(scheduler: Any, group: dict[str, Any]) -> None:
    """Makes the lists that a scheduler keeps, one entry for each group, one longer."""
    for inner in getattr(scheduler, "_schedulers", ()):
        _tell(inner, group)
    for name in ("base_lrs", "min_lrs", "max_lrs", "base_momentums", "max_momentums", "lr_lambdas", "_last_lr"):
        entries = getattr(scheduler, name, None)
        if entries:
            own = {"base_lrs": group.get("initial_lr"), "_last_lr": group["lr"]}.get(name)
            setattr(scheduler, name, [*entries, entries[-1] if own is None else own])
