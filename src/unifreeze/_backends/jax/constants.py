"""Computing with the numbers of a jaxpr, so far as they are known without computing arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .values import Const

_FOLDED: dict[str, Callable[..., float]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "max": max,
    "min": min,
    "neg": operator.neg,
    "square": lambda x: x * x,
    "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
    "rsqrt": lambda x: 1 / math.sqrt(x) if x > 0 else math.nan,
    "div": lambda a, b: a / b if b else math.nan,
}
_MOVES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "convert_element_type", "copy", "copy_p", "stop_gradient"}


def constant(value: Any) -> Const:
    """A number, if it is one; an array's values are not looked at."""
    shape = tuple(getattr(value, "shape", ()))
    number = isinstance(value, int | float | bool | np.generic | np.ndarray) and not shape and np.asarray(value).dtype.kind in "biuf"
    return Const(shape, float(value) if number else None)


def folded(name: str, eqn: Any, values: Sequence[Const], shape: tuple[int, ...]) -> Const:
    """What comes out of an operation on constants."""
    if name == "iota":
        return Const(shape, counts=eqn.params["dimension"])
    if not values:
        return Const(shape)
    if name in _MOVES:
        return Const(shape, values[0].value, _counting(name, eqn, values[0]))
    if name == "select_n":
        return _selected(values, shape)
    return Const(shape, _number(name, eqn, [one.value for one in values]))


def _number(name: str, eqn: Any, numbers: Sequence[float | None]) -> float | None:
    if None in numbers:
        return None
    if name == "integer_pow":
        base, power = numbers[0] or 0.0, eqn.params["y"]
        return base**power if base or power > 0 else None
    return float(_FOLDED[name](*numbers)) if name in _FOLDED else None


def _selected(values: Sequence[Const], shape: tuple[int, ...]) -> Const:
    which, *cases = values
    picked = cases[int(which.value)] if which.value is not None else cases[0] if all(one == cases[0] for one in cases) else Const(shape)
    return Const(shape, picked.value, picked.counts)


def _counting(name: str, eqn: Any, before: Const) -> int:
    """Where the axis that counts lies after a move."""
    counts, shape = before.counts, tuple(eqn.outvars[0].aval.shape)
    if counts < 0 or shape == before.shape:
        return counts
    if name == "broadcast_in_dim":
        return int(eqn.params["broadcast_dimensions"][counts])
    if name == "transpose":
        return int(eqn.params["permutation"].index(counts))
    if name == "slice" or [n for n in before.shape if n != 1] != [n for n in shape if n != 1] or before.shape[counts] == 1:
        return -1
    return [place for place, n in enumerate(shape) if n != 1][sum(n != 1 for n in before.shape[:counts])]
