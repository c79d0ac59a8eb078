"""Resolving: which layers and which parameters of a tree a user's words pick."""

from __future__ import annotations

import builtins
from fnmatch import fnmatchcase
from types import BuiltinFunctionType, FunctionType, MethodType

from ._scene import Scene, Selection, components_match
from ._tree import Layer, Parameter
from .errors import NothingSelectedError, SelectorError, near
from .select import Selector, everything, selector


def resolve(layers: object, tree: Layer, label: str) -> Selection:
    """Returns the layers of ``tree`` that ``layers`` picks; ``None`` is the whole model.

    Args:
        layers: Whatever ``freeze`` takes as ``layers=``.
        tree: The model.
        label: What to call the model in an error, such as ``"Sequential (torch)"``.

    Raises:
        NothingSelectedError: If it, or a part of it, picks nothing.
        SelectorError: If it can't be understood.
    """
    chosen = everything if layers is None else selector(layers)
    return chosen.pick(Scene(tree, label))


def resolve_parameters(params: object, candidates: list[Parameter], label: str) -> list[Parameter]:
    """Narrows parameters by role, name or path (a glob), by a function, or by the framework's own arrays.

    Raises:
        NothingSelectedError: If it, or a part of it, picks nothing.
        SelectorError: If it can't be understood.
    """
    if isinstance(params, bool | int | slice | Selector):
        raise SelectorError(
            f"params={params!r} does not pick parameters.\n  Give a role or a glob such as 'bias' or '*.weight', a list, a function, or arrays."
        )
    if isinstance(params, str):
        components = params.split(".")
        chosen = [p for p in candidates if fnmatchcase(p.role, params) or fnmatchcase(p.name, params) or components_match(components, p.path.split("."))]
    elif isinstance(params, FunctionType | MethodType | BuiltinFunctionType):
        chosen = [p for p in candidates if params(p)]
    elif isinstance(params, list | tuple | set | frozenset):
        found = {p.path for one in params for p in resolve_parameters(one, candidates, label)}
        chosen = [p for p in candidates if p.path in found]
    else:
        chosen = [p for p in candidates if p.array is params]
    if not chosen:
        words = sorted({p.role for p in candidates})
        hint = near(params, {*words, *(p.path for p in candidates)}) if isinstance(params, str) else ""
        shown = params if isinstance(params, str) else builtins.type(params).__name__
        raise NothingSelectedError(
            "\n".join(
                filter(
                    None,
                    [
                        f"params={shown!r} matches no parameter of the chosen layers of {label}.",
                        f"  their roles: {', '.join(words)}",
                        f"  {hint}" if hint else "",
                    ],
                )
            )
        )
    return chosen
