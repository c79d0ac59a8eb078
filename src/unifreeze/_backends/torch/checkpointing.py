"""Reentrant checkpointing behind a frozen beginning: it recomputes without gradients whatever enters without one, and all that is trainable inside gets none.

Whether a checkpoint is reentrant is decided by a call inside the model's ``forward``, where nobody can see it from outside. The libraries that switch it on
for a model keep a note in its modules; those notes are read here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from unifreeze.plugin import Layer, UnifreezeWarning

from .tree import read

_SAY = (
    "Reentrant checkpointing gives no gradient to what it recomputes when nothing before it is trainable, and only PyTorch warns of it.\n"
    "  first: {path}\n"
    "  Checkpoint with use_reentrant=False, or let what enters require a gradient: model.enable_input_require_grads() in transformers."
)


_SIGNS = frozenset({"gradient_checkpointing", "grad_checkpointing", "checkpoint_impl"})


def warn_of_dead_gradients(model: nn.Module, before: Layer) -> None:
    """Warns when the model is known to checkpoint reentrantly and all that comes before is frozen now."""
    path = next((layer.path for layer in _dead(read(model))), None) if _reentrant(before) else None
    if path is not None:
        warnings.warn(_SAY.format(path=path), UnifreezeWarning, stacklevel=2)


def without_gradient(tree: Layer) -> Iterator[tuple[str, str]]:
    """Yields what got no gradient for that reason in a backward pass that gave one to others."""
    if not any(getattr(parameter.array, "grad", None) is not None for layer in tree.walk() for parameter in layer.parameters):
        return
    for dead in _dead(tree):
        for layer in dead.walk():
            for parameter in layer.parameters:
                if parameter.status == "trainable" and getattr(parameter.array, "grad", None) is None:
                    yield parameter.path, "is trainable and gets no gradient: reentrant checkpointing after a frozen beginning; use use_reentrant=False"


def _dead(tree: Layer) -> list[Layer]:
    """The checkpointed layers that hold something trainable and that no gradient leaves, in the model's order."""
    reentrant = _reentrant(tree)
    if not reentrant or any(_revives(cast(nn.Module, layer.native)) for layer in tree.walk()):
        return []
    dead: list[Layer] = []
    pending = [tree]
    while pending:
        layer = pending.pop()
        if id(layer.native) in reentrant:
            dead += [layer] if _trains(layer) else []
        elif any(parameter.status == "trainable" for parameter in layer.parameters):
            break  # from here on gradients flow
        else:
            pending.extend(reversed(layer.children))
    return dead


def _reentrant(tree: Layer) -> set[int]:
    told = [cast(nn.Module, layer.native) for layer in tree.walk() if not _SIGNS.isdisjoint(vars(layer.native))]
    return {id(module) for one in told for module in _checkpointed(one)}


def _trains(layer: Layer) -> bool:
    return any(parameter.status == "trainable" for inner in layer.walk() for parameter in inner.parameters)


def _checkpointed(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that are checkpointed reentrantly, as far as this module tells."""
    state = vars(module)
    if state.get("gradient_checkpointing") and _keywords(state.get("_gradient_checkpointing_func")).get("use_reentrant"):  # transformers
        if any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__):
            yield module
    elif state.get("grad_checkpointing") and _timm_is_reentrant():
        yield from vars(module)["_modules"].get("blocks") or ()
    elif getattr(state.get("checkpoint_impl"), "name", "") == "REENTRANT":  # torch.distributed's wrapper
        yield module


def _keywords(function: Any) -> dict[str, Any]:
    return getattr(function, "keywords", None) or {}


def _timm_is_reentrant() -> bool:
    config = sys.modules.get("timm.layers.config")
    return config is not None and bool(getattr(config, "use_reentrant_ckpt", bool)())


def _revives(module: nn.Module) -> bool:
    """Whether a hook lets what comes out of this module require a gradient (``enable_input_require_grads`` of transformers and peft)."""
    return any(getattr(hook, "__name__", "").startswith("make_inputs_require_grad") for hook in module._forward_hooks.values())
