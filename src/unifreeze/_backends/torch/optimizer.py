"""What a training loop needs beside the flags: an optimizer for what is trainable, and a live one made right again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import LBFGS, Muon, Optimizer

from unifreeze.plugin import BackendError, Parameter, UnifreezeWarning

from .arguments import check_class, check_decay, check_live, several
from .groups import add, by_decay, drop, exempt_from_decay, identities, renew, takes
from .tree import read

Made = TypeVar("Made")
NoDecay = bool | Callable[[Parameter], bool]

# What each optimizer was told of weight decay when it was made, so that parameters which join later are treated alike.
_no_decay: WeakKeyDictionary[Optimizer, NoDecay] = WeakKeyDictionary()


class Tools:
    """The verbs of a ``Freezing`` of a PyTorch model. They look at the model as it is when they are called."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def optimizer(self, cls: Callable[..., Made], *, no_decay: NoDecay = False, **kwargs: Any) -> Made:
        """Returns ``cls(parameters, **kwargs)`` over exactly what is trainable, a shared parameter once.

        Args:
            cls: The optimizer's class, or a function of the parameters that returns an optimizer.
            no_decay: Which parameters weight decay leaves alone: ``True`` for all of norms and for biases, or a function of ``Parameter`` that picks them. They
                become a group of their own, as do those that ``attach`` adds later.
            **kwargs: What the class takes, such as ``lr``.

        Raises:
            ArgumentError: If ``cls`` makes no optimizer.
            BackendError: If nothing is trainable, or if the optimizer can't train it.

        Example:
            >>> import torch
            >>> from unifreeze import freeze
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> optimizer = freeze(model, layers="0").optimizer(torch.optim.AdamW, lr=1e-3, no_decay=True)
            >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in optimizer.param_groups]
            [(0.01, [(2, 3)]), (0.0, [(2,)])]
        """
        check_class(cls)
        check_decay(no_decay, cls)
        trainable = list(self._trainable().values())
        if not trainable:
            raise BackendError(
                f"No parameter of {type(self._model).__name__} is trainable, so there is nothing to optimize.\n  Call unfreeze(model, layers=…) first."
            )
        if isinstance(cls, type) and issubclass(cls, Muon):
            self._refuse_what_is_no_matrix()
        exempt = exempt_from_decay(read(self._model), no_decay) if no_decay else set()
        made = cls([{**options, "params": part} for options, part in by_decay(trainable, exempt)] if exempt else trainable, **kwargs)
        if isinstance(made, Optimizer):
            _no_decay[made] = no_decay
        return made

    def attach(
        self,
        optimizer: Optimizer,
        scheduler: Any = None,
        *,
        others: Optimizer | Collection[Optimizer] = (),
        drop_frozen: bool = False,
        no_decay: NoDecay | None = None,
    ) -> Optimizer:
        """Makes a live optimizer right for what is frozen and trainable now, and returns it. What it knows about the others stays.

        Trainable parameters that it does not hold yet join as a new group with its defaults, and start as if fresh; the learning rate stands where a schedule
        has brought the last group. Frozen parameters stay in place, without gradient, so that they go on where they were when they are unfrozen.

        Args:
            optimizer: The optimizer.
            scheduler: The learning-rate scheduler of ``optimizer``, or several: they learn of the new group. ``LambdaLR`` raises at its next step if it is not
                told.
            others: Further optimizers of this model; what they hold does not join.
            drop_frozen: Whether frozen parameters leave the optimizer, and their state with them: memory is free again, and they start as if fresh when they
                are unfrozen.
            no_decay: Which of the parameters that join are exempt from weight decay, as in ``optimizer``. ``None`` is what the optimizer was made with.

        Raises:
            ArgumentError: If one of these is something else.
            BackendError: If the optimizer holds none of the model's parameters, or a scheduler drives another optimizer.

        Example:
            >>> import torch
            >>> from unifreeze import freeze, unfreeze
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> optimizer = freeze(model, layers="0").optimizer(torch.optim.AdamW, lr=1e-3)
            >>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            >>> [len(group["params"]) for group in unfreeze(model).attach(optimizer, scheduler).param_groups]
            [2, 2]
        """
        schedulers, others = several(scheduler), several(others)
        check_live(optimizer, schedulers, others)
        no_decay = _no_decay.get(optimizer, False) if no_decay is None else no_decay
        check_decay(no_decay, type(optimizer))
        trainable = self._trainable()
        frozen = [array for array in self._model.parameters() if not array.requires_grad]
        self._refuse_a_foreign(optimizer)
        known = identities(optimizer).union(*map(identities, others))
        new = {name: array for name, array in trainable.items() if id(array) not in known}
        joining = {name: array for name, array in new.items() if takes(optimizer, array)}
        exempt = exempt_from_decay(read(self._model), no_decay) if no_decay else set()
        if isinstance(optimizer, LBFGS):
            renew(optimizer, joining.values())
        else:
            add(optimizer, joining, exempt, schedulers)
        for array in frozen:
            array.grad = None
        if drop_frozen:
            drop(optimizer, {id(array) for array in frozen})
        left = [name for name in new if name not in joining]
        if left and not others:  # with others, one that is attached next may take them; check() tells
            warnings.warn(
                f"{_sentence(left)} trainable and in no optimizer: Muon takes matrices alone.\n  Attach one for the rest: freezing.attach(other, others=muon).",
                UnifreezeWarning,
                stacklevel=2,
            )
        return optimizer

    def check(self, *optimizers: Optimizer) -> None:
        """Says whether these optimizers train exactly what is trainable. It changes nothing; call it before a long run.

        Raises:
            ArgumentError: If one of these is no optimizer.
            BackendError: If a trainable parameter is in none of them or in two, if one of them holds none of the model's parameters, or if a frozen parameter
                that one of them holds has a gradient, which would move it.

        Example:
            >>> import torch
            >>> from unifreeze import freeze, unfreeze
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> optimizer = freeze(model, layers="0").optimizer(torch.optim.SGD, lr=0.1)
            >>> unfreeze(model).check(optimizer)
            Traceback (most recent call last):
            unifreeze.errors.BackendError: The optimizers don't fit what is trainable in Sequential.
              0.weight and 0.bias are trainable and in no optimizer: freezing.attach(optimizer) adds them
        """
        for optimizer in optimizers:
            check_live(optimizer, (), ())
            self._refuse_a_foreign(optimizer)
        held = [identities(optimizer) for optimizer in optimizers]
        named = dict(self._model.named_parameters())
        count = {name: sum(id(array) in one for one in held) for name, array in named.items()}
        wrong = {
            "trainable and in no optimizer: freezing.attach(optimizer) adds them": [n for n in named if named[n].requires_grad and not count[n]],
            "in more than one optimizer, which would each take a step": [n for n in named if named[n].requires_grad and count[n] > 1],
            "frozen and have a gradient, which an optimizer would apply: freeze again, or freezing.attach(optimizer)": [
                n for n in named if not named[n].requires_grad and count[n] and named[n].grad is not None
            ],
        }
        found = [f"  {_sentence(names)} {what}" for what, names in wrong.items() if names]
        if found:
            raise BackendError("\n".join([f"The optimizers don't fit what is trainable in {type(self._model).__name__}.", *found]))

    def _trainable(self) -> dict[str, torch.Tensor]:
        return {name: array for name, array in self._model.named_parameters() if array.requires_grad}

    def _refuse_a_foreign(self, optimizer: Optimizer) -> None:
        held = identities(optimizer)  # none, where everything was dropped
        if held and not held & {id(array) for array in self._model.parameters()}:
            raise BackendError(
                f"The optimizer holds no parameter of this {type(self._model).__name__}: it was made for another model, or for a copy.\n"
                "  Make one for this model: freezing.optimizer(torch.optim.AdamW, lr=…)."
            )

    def _refuse_what_is_no_matrix(self) -> None:
        others = [name for name, array in self._trainable().items() if array.ndim != 2]
        if others:
            raise BackendError(
                f"Muon trains matrices alone, and {_sentence(others)} none.\n"
                "  Make two: torch.optim.Muon([p for p in model.parameters() if p.requires_grad and p.ndim == 2]), and one like AdamW for the rest."
            )


def _sentence(names: Collection[str]) -> str:
    first = list(names)
    shown = f"{', '.join(first[:3])} and {len(first) - 3} more" if len(first) > 3 else " and ".join(filter(None, [", ".join(first[:-1]), first[-1]]))
    return f"{shown} {'is' if len(first) == 1 else 'are'}"
