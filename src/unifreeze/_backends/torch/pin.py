"""Holding a module at inference behaviour, whatever ``train()``, ``eval()`` or an assignment to ``training`` say.

A held module gets a subclass of its own class, under the same name, whose ``training`` reads ``False``. This is the one way we know that lasts through
deepcopy, pickle, compilation before and after, export and sharding: a hook is not guarded by compiled code, a patched method breaks pickle, a replaced
module loses its identity, and ``momentum=0`` or ``track_running_stats=False`` compute another function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unifreeze.plugin import BackendError, Inference

_HELD = "_unifreeze_held"
_classes: dict[type, type] = {}


class Pin:
    """First base of every class that we put in a module's place."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Ends here, so that a register which the user's class keeps of its subclasses never hears of ours."""

    @property
    def training(self) -> bool:
        """``False`` while held; otherwise what was last asked for."""
        state = self.__dict__
        return False if _HELD in state else state["training"]

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["training"] = mode

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Writes the user's class into the pickle, for ours can't be found by its name."""
        ours = type(self)
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *rest = reduced
        original = ours.__bases__[1] if _exactly_ours(ours) else ours
        return _remake, (make, tuple(original if argument is ours else argument for argument in arguments)), *rest

    def __prepare_scriptable__(self) -> Any:
        """Is asked by ``torch.jit.script``, which would compile the mode that was asked for and not the one that is held."""
        if _HELD in self.__dict__:
            raise BackendError(
                f"{type(self).__name__} is held at inference behaviour, which TorchScript can't express.\n"
                "  Script a copy that holds nothing: twin = copy.deepcopy(model); unfreeze(twin); torch.jit.script(twin.eval())."
            )
        prepare = getattr(super(), "__prepare_scriptable__", None)
        return self if prepare is None else prepare()


def _remake(make: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    """Makes a module from its pickle; whether it is held stands in its state, which follows."""
    module = make(*arguments)
    if not isinstance(module, Pin):
        _become(module, _pinned(type(module)))
    return module


def held(module: nn.Module) -> Inference | None:
    """Returns how the module is held, read from the module itself, so that it is true of copies, too."""
    return module.__dict__.get(_HELD) if isinstance(module, Pin) else None


def hold(module: nn.Module, how: Inference) -> None:
    """Holds the module, and the parametrizations that make its weights."""
    for part in _parts(module):
        if isinstance(part, torch.jit.ScriptModule):
            raise BackendError(
                f"{part.original_name} is TorchScript, whose mode can't be held.\n"
                "  Compiled script reads its mode where Python can't reach it.\n"
                "  Freeze before torch.jit.script, in eval mode; or freeze with inference='none' and keep the module in eval mode yourself."
            )
        _pin(part)
        part.__dict__[_HELD] = how


def release(module: nn.Module) -> None:
    """Lets the module follow its mode again. Its class goes back only where nobody has built on ours (FSDP2 and parametrizations do)."""
    for part in _parts(module):
        part.__dict__.pop(_HELD, None)
        if _exactly_ours(type(part)):
            _become(part, type(part).__bases__[1])


def asked(module: nn.Module) -> bool:
    """Returns the mode that was last asked for, which a held module remembers."""
    return module.__dict__["training"] if isinstance(module, Pin) else module.training


def set_mode(module: nn.Module, mode: bool) -> None:
    """Sets the mode of the module and of its parametrizations, and of nothing below."""
    for part in _parts(module):
        if asked(part) != mode:
            object.__setattr__(part, "training", mode)


def parametrizations(module: nn.Module) -> nn.ModuleDict | None:
    """Returns the modules that make this module's weights (``torch.nn.utils.parametrize``), if there are any."""
    inside = module._modules
    inner = inside["parametrizations"] if "parametrizations" in inside else None  # noqa: SIM401 (TorchScript's has no get)
    return inner if isinstance(inner, nn.ModuleDict) and len(inner) else None


def _parts(module: nn.Module) -> list[nn.Module]:
    inner = parametrizations(module)
    return [module] if inner is None else [module, *inner.modules()]


def _pin(module: nn.Module) -> None:
    if isinstance(module, Pin):
        return
    cls = type(module)
    try:
        if parametrizations(module) is None:
            _become(module, _pinned(cls))
        else:
            # Torch made this class for this module alone and takes it apart by its own attributes when the parametrization is removed, so ours goes
            # below it. It stays there when the module is released, for a deepcopy shares the class and may still be held.
            cls.__bases__ = (_pinned(cls.__bases__[0]), *cls.__bases__[1:])
    except TypeError as error:
        raise BackendError(
            f"{cls.__name__} can't be held at inference behaviour.\n  Python refuses it another class: {error}\n"
            "  Freeze it with inference='none' and keep it in eval mode yourself."
        ) from error


def _become(module: nn.Module, cls: type) -> None:
    object.__setattr__(module, "__class__", cls)  # past the __setattr__ of modules that forward to others


def _pinned(cls: type) -> type:
    if cls not in _classes:
        _classes[cls] = type(cls)(cls.__name__, (Pin, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__})
    return _classes[cls]


def _exactly_ours(cls: type) -> bool:
    return cls.__bases__[0] is Pin
