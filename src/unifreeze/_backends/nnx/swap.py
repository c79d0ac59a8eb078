"""The swaps of classes that make frozen true: variables that no filter for ``nnx.Param`` finds, and modules that run as at inference.

A class that is swapped in remembers the one it stands for, is made once, and can be pickled, copied, split and merged like any other.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import CellType, FunctionType
from typing import Any, Generic, Literal

from flax import nnx

from unifreeze.plugin import BackendError, Inference

from .parts import BOXES, class_of, is_array, is_layer_class, raw

#: How a module is held; ``weights`` only keeps frozen parameters from being rewritten by their wrapper.
Hold = Literal["norm", "all", "weights"]

#: What had which class before, in the order of the changes.
Before = list[tuple[Any, type]]

#: Modules that look for ``nnx.Param`` in what they hold at every call, or write to it: they see frozen parameters as plain ones, which then go back to
#: what they were.
REWRITERS = (nnx.SpectralNorm, nnx.WeightNorm, nnx.bridge.ToNNX)

_MODES: Mapping[Hold, Mapping[str, bool]] = {
    "weights": {},
    "norm": {"use_running_average": True, "update_stats": False, "training": False, "is_training": False, "train": False},
    "all": {"use_running_average": True, "update_stats": False, "training": False, "is_training": False, "train": False, "deterministic": True},
}
_PLAIN = {*nnx.Module.__mro__, *BOXES}


# Variables.


class _Frozen(type(nnx.Variable)):  # type: ignore[misc]
    """The class of the classes of frozen variables; pickle finds them through the class they stand for."""

    _stands_for: type


class FrozenParam(nnx.Variable, metaclass=_Frozen):
    """A frozen ``nnx.Param``. It is no ``Param``, so that ``nnx.grad`` and ``nnx.Optimizer(wrt=nnx.Param)`` pass it by."""

    _stands_for = nnx.Param


@cache
def frozen(kind: Any) -> Any:
    """The class that stands for a class of parameters while they are frozen: the same code, without ``nnx.Param`` among its ancestors."""
    if kind is nnx.Param:
        return FrozenParam
    if vars(kind).get("__slots__"):
        raise BackendError(
            f"A {kind.__name__} can't be frozen: it declares __slots__, and so its class can't be swapped.\n"
            f"  slots: {', '.join(kind.__slots__)}\n"
            "  Keep these in the variable's metadata (set_metadata) instead."
        )
    cell = CellType()
    bases = tuple(frozen(base) if issubclass(base, nnx.Param) else base for base in kind.__bases__ if base is not Generic)
    left_out = {"__dict__", "__weakref__", "__orig_bases__", "__parameters__"}
    body = {name: _rehomed(value, cell) for name, value in vars(kind).items() if name not in left_out}
    made = _Frozen(f"Frozen{kind.__name__}", bases, {**body, "_stands_for": kind})
    cell.cell_contents = made
    return made


copyreg.pickle(_Frozen, lambda kind: (frozen, (kind._stands_for,)))


def _rehomed(member: Any, home: CellType) -> Any:
    """A member of a class as it is written in another: ``super()`` looks for its class in a cell of the function."""
    if isinstance(member, staticmethod | classmethod):
        return type(member)(_rehomed(member.__func__, home))
    if isinstance(member, property):
        get, put, drop = (part and _rehomed(part, home) for part in (member.fget, member.fset, member.fdel))
        return property(get, put, drop, member.__doc__)
    if not isinstance(member, FunctionType) or "__class__" not in member.__code__.co_freevars:
        return member
    cells = zip(member.__code__.co_freevars, member.__closure__ or (), strict=True)
    closure = tuple(home if name == "__class__" else cell for name, cell in cells)
    copy = FunctionType(member.__code__, member.__globals__, member.__name__, member.__defaults__, closure)
    copy.__kwdefaults__ = member.__kwdefaults__
    return functools.update_wrapper(copy, member)


def set_frozen(variable: Any, path: str, wanted: bool, before: Before) -> None:
    """Freezes a variable or lets it train."""
    now = class_of(variable)
    kind = frozen(now) if wanted and issubclass(now, nnx.Param) else now._stands_for if not wanted and issubclass(now, FrozenParam) else now
    if kind is now:
        return
    if type(variable) is not now:
        raise BackendError(f"{path} can't be frozen in place: it is a hijax variable, whose class is part of its value.\n  Make the model with hijax=False.")
    before.append((variable, now))
    _set_class(variable, kind)


def restore(before: Before) -> None:
    """Gives everything its class back, once."""
    while before:
        _set_class(*before.pop())


def _set_class(thing: Any, kind: type) -> None:
    """Past nnx's guards, which would refuse a variable or module of another trace."""
    object.__setattr__(thing, "__class__", kind)


# Modules.


def held(native: Any) -> Inference | None:
    """How a module is held now."""
    how: Hold | None = getattr(type(native), "_unifreeze_holds", None)
    return None if how == "weights" else how


def hold(module: nnx.Module, how: Inference | None, before: Before) -> None:
    """Holds a module at inference behaviour, or lets go of it."""
    now: Any = type(module)
    plain = getattr(now, "_unifreeze_plain", now)
    rewrites = isinstance(module, REWRITERS) and any(True for _ in _frozen_below(module))
    wanted: Hold | None = how or ("weights" if rewrites else None)
    kind = plain
    if wanted is not None:
        stateful = rewrites or any(_state(module, wanted))
        kind = _holding(plain, wanted, _switches(module, plain, wanted), stateful)
    if kind is not now:
        before.append((module, now))
        _set_class(module, kind)


def _switches(module: nnx.Module, plain: type, how: Hold) -> tuple[str, ...]:
    """The switches that this module has among its attributes."""
    return tuple(name for name in _MODES[how] if isinstance(vars(module).get(name, getattr(plain, name, ...)), bool | None))


@cache
def _holding(kind: Any, how: Hold, switches: tuple[str, ...], stateful: bool) -> Any:
    """A subclass like its parent but for this: its switches read as at inference, and its state stays still during its calls."""
    body: dict[str, Any] = {name: _switch(name, _MODES[how][name]) for name in switches}
    methods = {name: member for base in reversed(kind.__mro__) if base not in _PLAIN for name, member in vars(base).items()}
    for name, member in methods.items():
        if _runs(name, member):
            forced = {argument: value for argument, value in _MODES[how].items() if argument in inspect.signature(member).parameters}
            if forced or stateful:
                body[name] = _quiet(member, forced, how)
    if not body:
        return kind
    told = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    ours = {"_unifreeze_plain": kind, "_unifreeze_holds": how, "_unifreeze_recipe": (kind, how, switches, stateful)}
    return _meta(class_of(kind))(kind.__name__, (kind,), {**body, **told, **ours}, pytree=kind._pytree__is_pytree)


@cache
def _meta(meta: Any) -> Any:
    """The class of the classes that ``_holding`` makes, so that pickle finds them."""
    made: Any = type(f"Holding{meta.__name__}", (meta,), {})
    copyreg.pickle(made, lambda kind: (_holding, kind._unifreeze_recipe))
    return made


def _runs(name: str, member: Any) -> bool:
    """Whether a member of a class is a method that computes; decorated ones (``nnx.jit``, ``nnx.remat``) are objects that bind like functions."""
    if name in {"set_view", "set_mode"} or (name.startswith("_") and name != "__call__"):
        return False
    return callable(member) and hasattr(member, "__get__") and not isinstance(member, type | staticmethod | classmethod)


def _switch(name: str, value: bool) -> property:
    def put(module: Any, asked: object) -> None:
        vars(module)[name] = asked

    return property(lambda _: value, put, doc="Held by unifreeze; what is assigned counts again once it lets go.")


def _quiet(method: Any, forced: Mapping[str, bool], how: Hold) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def quiet(module: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = method.__get__(module, type(module))
        if forced:
            bound = signature.bind(module, *args, **kwargs)
            told = {name for name, value in forced.items() if signature.parameters[name].default is not value} | bound.arguments.keys()
            bound.arguments.update({name: value for name, value in forced.items() if name in told})
            args, kwargs = bound.args[1:], bound.kwargs
        with _kept(module, how):
            return call(*args, **kwargs)

    return quiet


@contextmanager
def _kept(module: nnx.Module, how: Hold) -> Iterator[None]:
    """Takes back what a call writes to the module's state, and what a wrapper writes to frozen parameters."""
    state = list(_state(module, how))
    rewritten = [(variable, type(variable), _value(variable)) for variable in _frozen_below(module)] if isinstance(module, REWRITERS) else []
    try:
        for variable, kind, _ in rewritten:
            _set_class(variable, kind._stands_for)
        yield
    finally:
        for variable, kind, value in rewritten:
            _set_class(variable, kind)
            put(variable, value)
        for owner, name, member, value in state:
            owner[name] = member
            if isinstance(member, nnx.Variable):
                put(member, value)


def _value(array: Any) -> Any:
    """The value of a variable now; one in a mutable reference is read out of it."""
    value = raw(array)
    return value[...] if isinstance(array, nnx.Variable) and array.ref else value


def put(variable: Any, value: Any) -> None:
    """Stores a value in a variable, also in one that is a mutable reference."""
    if variable.ref:
        raw(variable)[...] = value
    elif raw(variable) is not value:
        variable.set_raw_value(value)


def _frozen_below(module: nnx.Module) -> Iterator[Any]:
    return (node for _, node in nnx.iter_graph(module) if isinstance(node, FrozenParam))


def _state(native: Any, how: Hold) -> Iterator[tuple[Any, Any, Any, Any]]:
    """What a module's calls must leave as it is: the dictionary or list it stands in, its name or place there, the array or container, its value."""
    if how == "weights":
        return
    owner = native if isinstance(native, list | dict) else vars(native)
    for name, member in list(owner.items() if isinstance(owner, dict) else enumerate(owner)):
        if is_array(member):
            if not isinstance(member, nnx.Param) and (how == "all" or not isinstance(member, nnx.RngState)):
                yield owner, name, member, _value(member)
        elif isinstance(member, list | dict) or (isinstance(member, nnx.Pytree) and not is_layer_class(class_of(member))):
            inside = list(_state(member, how))
            yield from inside
            if inside:
                yield owner, name, member, None
