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
    if not (changing and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    inside, arrays = {id(module) for module in model.modules()}, {id(parameter.array) for parameter in changing}
    for wrapper in [one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel)]:
        if id(wrapper) not in inside and any(id(array) in arrays for array in wrapper._module_parameters):
            stack.callback(wrapper.register_forward_pre_hook(_Watch(wrapper)).remove)


class _Watch:
    """Compares what is trainable with what was averaged when the wrapper was made."""

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.averaged = reduced(wrapper)

    def __call__(self, wrapper: DistributedDataParallel, _: Any) -> None:
        if not torch.is_grad_enabled():
            return
        trainable = {id(array): name for name, array in wrapper.module.named_parameters() if array.requires_grad}
        late = [name for key, name in trainable.items() if key not in self.averaged]
        gone = self.averaged - trainable.keys() if not wrapper.find_unused_parameters or wrapper.static_graph else ()
        if late or gone:
            what = f"{late[0]} is trainable and is not averaged" if late else "it waits for the gradients of what is frozen now"
            raise BackendError(
                "This DistributedDataParallel was made before its model was frozen or unfrozen, and the ranks would not agree.\n"
                f"  {what}\n"
                "  Wrap the model again: DistributedDataParallel(model.module, …); and give the wrapper itself to freeze and unfreeze."
            )
