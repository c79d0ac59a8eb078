"""From ``package.module:callable`` to a model. This runs the user's own code, and no word of a recipe ever does."""

import ast
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import reduce
from importlib import import_module
from typing import Any

from unifreeze import Freezing
from unifreeze._manager import backend_of
from unifreeze.demo.engine import choose_backend
from unifreeze.errors import ArgumentError, UnknownModelError, near

from .output import waiting

_FORM = "It reads package.module:callable, such as mymodels:build."


class TargetError(Exception):
    """The user's code raised; ``__cause__`` is what it raised."""


def built(target: str, arguments: Sequence[str] | None = None) -> Any:
    """Returns the model, or the Freezing, that a target names or makes.

    Raises:
        ArgumentError: If the target or an argument can't be understood or found.
        UnknownModelError: If no backend speaks for what it made.
        TargetError: If the user's code raises.
    """
    words = dict(map(_argument, arguments or ()))
    if len(words) < len(arguments or ()):
        raise ArgumentError("--arg names the same argument twice.\n  Give each once.")
    with waiting(f"building {target}"), redirect_stdout(sys.stderr):
        found = _found(target)
        made = found if _is_model(found) and not words else _called(target, found, words)
    if not isinstance(made, Freezing):
        _known(target, made)
    return made


def _argument(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ArgumentError(f"--arg {text} is no argument.\n  It reads name=value, such as num_classes=10.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _found(target: str) -> object:
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ArgumentError(f"{target!r} is no target.\n  {_FORM}")
    return reduce(lambda thing, name: _part(target, thing, name), attribute.split("."), _imported(target, module))


def _imported(target: str, module: str) -> object:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - an entry of sys.path is a string
    choose_backend()
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ArgumentError(f"{target!r} can't be found.\n  {error}\n  {_FORM} The package must be installed or right here.") from error
        raise _failed(f"import {module}", error) from error
    except Exception as error:
        raise _failed(f"import {module}", error) from error


def _part(target: str, thing: object, name: str) -> object:
    try:
        return getattr(thing, name)
    except AttributeError as error:
        raise ArgumentError(f"{target!r} can't be found.\n  {error}\n  {near(name, dir(thing)) or _FORM}") from error


def _is_model(found: object) -> bool:
    """Whether it is a model and not what makes one. Models can be called, too, so a backend is asked; a function or a class is never one."""
    if isinstance(found, Freezing):
        return True
    if inspect.isroutine(found) or inspect.isclass(found):
        return False
    try:
        backend_of(found)
    except UnknownModelError:
        return False
    return True


def _called(target: str, found: Any, words: Mapping[str, object]) -> object:
    if not callable(found) or _is_model(found):
        what = "is a model already, so it takes no --arg" if _is_model(found) else f"can't be called and is no model, but {type(found).__name__}"
        raise ArgumentError(f"{target!r} {what}.\n  Name a function that returns the model, or the model.")
    _check(target, found, words)
    try:
        return found(**words)
    except Exception as error:
        raise _failed(f"{target}({', '.join(f'{name}={value!r}' for name, value in words.items())})", error) from error


def _check(target: str, found: Any, words: Mapping[str, object]) -> None:
    """Tells a call that can't work from a function that fails."""
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(**words)
    except TypeError as error:
        unknown = next((name for name in words if name not in signature.parameters), "")
        hint = near(unknown, signature.parameters) if unknown else "Give what it needs with --arg name=value."
        raise ArgumentError(f"{target} can't be called so: {error}.\n  it takes {signature}\n  {hint}".rstrip()) from error


def _failed(what: str, error: Exception) -> TargetError:
    return TargetError(f"{what} raised {type(error).__name__}: {error}")


def _known(target: str, made: object) -> None:
    try:
        backend_of(made)
    except UnknownModelError as error:
        raise UnknownModelError(f"{target} gives no model. {error}") from None
