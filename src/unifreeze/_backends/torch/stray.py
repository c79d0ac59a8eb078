"""A parallel wrapper that was not given: ``freeze(wrapper.module)`` changes what the wrapper trains, and the wrapper can't be seen from inside."""

from __future__ import annotations

import gc
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unifreeze.plugin import BackendError, ExitStack, Parameter

from .wrappers import reduced


def watch_wrappers_outside(model: nn.Module, changing: Collection[Parameter], stack: ExitStack) -> None:
    """Lets a wrapper outside of the model refuse to train once its parameters no longer are those that it averages.

    The call itself is no mistake: to change the bare model and wrap it again is the way to do it. The next pass through the old wrapper is one.
    """
    for wrapper in _outside(model, changing):
        stack.callback(wrapper.register_forward_pre_hook(_Watch(wrapper)).remove)


def watch_wrappers_left_behind(model: nn.Module, changed: Collection[Parameter]) -> None:
    """The same after an undo, where a wrapper was made in between. One that fits is left alone, for this can't be taken back."""
    for wrapper in _outside(model, changed):
        watch = _Watch(wrapper)
        if watch.wrong(wrapper):
            wrapper.register_forward_pre_hook(watch)


def _outside(model: nn.Module, changing: Collection[Parameter]) -> list[DistributedDataParallel]:
    if not (changing and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    inside, arrays = {id(module) for module in model.modules()}, {id(parameter.array) for parameter in changing}
    alive = [one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel) and id(one) not in inside]
    return [wrapper for wrapper in alive if any(id(array) in arrays for array in wrapper._module_parameters)]


class _Watch:
    """Compares what is trainable with what was averaged when the wrapper was made."""

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.averaged = reduced(wrapper)

    def __call__(self, wrapper: DistributedDataParallel, _: Any) -> None:
        wrong = self.wrong(wrapper) if torch.is_grad_enabled() else ""
        if wrong:
            raise BackendError(
                "This DistributedDataParallel was made before its model was frozen or unfrozen, and the ranks would not agree.\n"
                f"  {wrong}\n"
                "  Wrap the model again: DistributedDataParallel(model.module, …); and give the wrapper itself to freeze and unfreeze."
            )

    def wrong(self, wrapper: DistributedDataParallel) -> str:
        """What the wrapper can't follow in the flags as they are now, or nothing."""
        trainable = {id(array): name for name, array in wrapper.module.named_parameters() if array.requires_grad}
        late = [name for key, name in trainable.items() if key not in self.averaged]
        if late:
            return f"{late[0]} is trainable and is not averaged"
        gone = self.averaged - trainable.keys() if not wrapper.find_unused_parameters or wrapper.static_graph else ()
        return "it waits for the gradients of what is frozen now" if gone else ""
