"""Resolving: which layers and which parameters of a tree a user's words pick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from fnmatch import fnmatchcase
from functools import partial
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


def resolve_parameters(params: object, layers: Sequence[Layer], label: str) -> list[Parameter]:
    """Narrows the parameters of layers by role, name or path (a glob), by a function, or by the framework's own arrays.

    Raises:
        NothingSelectedError: If it, or a part of it, picks nothing.
        SelectorError: If it can't be understood.
    """
    candidates = [parameter for layer in layers for parameter in layer.parameters]
    if isinstance(params, bool | int | slice | range | type(None) | Selector | Mapping):
        raise SelectorError(
            f"params={params!r} does not pick parameters.\n  Give a role or a glob such as 'bias' or '*.weight', a list, a function, or arrays."
        )
    if isinstance(params, _MANY):
        several = list(params)
        if not several:
            raise SelectorError("params= is empty: it selects nothing.\n  To pick every parameter of the layers, leave params= out.")
        found = {p.path for one in several for p in resolve_parameters(one, layers, label)}
        return [p for p in candidates if p.path in found]
    chosen = [p for p in candidates if matches(params, p)]
    if not chosen:
        raise _no_parameter(params, candidates, [buffer for layer in layers for buffer in layer.buffers], label)
    return chosen


_MANY = (list, tuple, set, frozenset, Iterator, KeysView, ValuesView)


def matches(params: object, parameter: Parameter) -> bool:
    """Whether what stands as ``params=`` picks a parameter."""
    if isinstance(params, str):
        whole = components_match(params.split("."), parameter.path.split("."))
        return whole or fnmatchcase(parameter.role, params) or fnmatchcase(parameter.name, params)
    if isinstance(params, FunctionType | MethodType | BuiltinFunctionType | partial):
        return bool(params(parameter))
    return parameter.array is params


def _no_parameter(params: object, candidates: Iterable[Parameter], buffers: Iterable[Parameter], label: str) -> NothingSelectedError:
    words = sorted({p.role for p in candidates})
    shown = repr(params) if isinstance(params, str) else f"<{type(params).__name__}>"
    lines = [f"params={shown} matches no parameter of the chosen layers of {label}.", f"  their roles: {', '.join(words) or 'none, they own no parameters'}"]
    buffer = next((one for one in buffers if matches(params, one)), None)
    if buffer is not None:
        lines.append(f"  {buffer.path} is a buffer, which no optimizer trains; freezing its whole layer holds it still")
    elif isinstance(params, str):
        lines.append("  " + near(params, {*words, *(p.path for p in candidates)}))
    else:
        lines.append("  an array is found by identity; it may belong to another layer or another model, or be a copy")
    return NothingSelectedError("\n".join(lines).rstrip())
