"""Follows weights and inputs through a jaxpr, equation by equation; calls are followed into, and nothing is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from jax.extend.core import Literal

from unifreeze.plugin import Sources, concatenated, merged

from . import axes as ax
from .axes import Axes, axis, factors_of
from .units import Recorder, width, written
from .values import COMMUTATIVE, FLOORS, FORMS, Const, Data, Expr

Value = Const | Expr | Data
_COMPARISONS = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
_FOLDED: dict[str, Callable[..., float]] = {
    **_COMPARISONS,
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
#: What hands on its only operand.
_SAME = {"convert_element_type", "copy", "copy_p", "stop_gradient", "optimization_barrier", "name", "reduce_precision", "real", "sharding_constraint"}
_ELEMENTWISE = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
} | {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "named_call": "call_jaxpr",
    "custom_lin": "jaxpr",
}
_LOOPS = {"while": "a loop", "scan": "a scan", "cond": "a branch that is chosen at run time"}


@dataclass(slots=True)
class Follower:
    """One jaxpr, and those that it calls."""

    rec: Recorder

    def run(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """What comes out of a closed jaxpr of these values."""
        inner = getattr(jaxpr, "jaxpr", jaxpr)
        known: dict[Any, Value] = dict(zip(inner.invars, args, strict=True))
        known |= {variable: _constant(value) for variable, value in zip(inner.constvars, getattr(jaxpr, "consts", ()), strict=True)}

        def read(atom: Any) -> Value:
            return _constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for eqn in inner.eqns:
            found = self.equation(eqn, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in inner.outvars]

    def equation(self, eqn: Any, values: list[Value]) -> list[Value]:
        """What comes out of one equation."""
        name, shapes = eqn.primitive.name, [tuple(variable.aval.shape) for variable in eqn.outvars]
        if name in _CALLS:
            return self.run(eqn.params[_CALLS[name]], values)
        self.rec.where = str(eqn.source_info.name_stack)
        weights, data = (any(isinstance(value, kind) for value in values) for kind in (Expr, Data))
        if not shapes or not (weights or data):
            return [_folded(name, eqn, values) for _ in shapes]
        handler = _HANDLERS.get(name) or (_elementwise if name in _ELEMENTWISE else None)
        if handler and len(shapes) == 1:
            return [handler(self, eqn, values, shapes[0])]
        if data:
            self.refuse(eqn, values)
        return [_opaque(name, values) for _ in shapes]

    def refuse(self, eqn: Any, values: Sequence[Value]) -> NoReturn:
        """Raises for an equation that can't be followed."""
        name = eqn.primitive.name
        weights = dict.fromkeys(leaf.path for value in values if isinstance(value, Expr) for leaf in value.leaves())
        shapes = ", ".join(str(tuple(atom.aval.shape)) for atom in eqn.invars)
        self.rec.refuse(
            f"{name} ({_LOOPS[name]})" if name in _LOOPS else f"{name} of {shapes}",
            *([f"  it reads {', '.join(list(weights)[:3])}"] if weights else []),
            "  Correspondence covers convolutions, dense layers, norms, embeddings, and what is elementwise, pools, pads, reshapes or joins between them.",
        )

    def activated(self, value: Data, axes: Axes | None = None) -> Data:
        """What is computed of one value without weights."""
        plain = self.rec.used(value)
        return self.rec.fresh(plain.axes if axes is None else axes, plain.sources)

    def moved(self, value: Value, move: Callable[[Axes], Axes | None], before: Sequence[int], what: str) -> Value:
        """A value after its axes have moved; ``before`` is its shape until then."""

        def filled(axes: Axes) -> Axes | None:
            return move(ax.filled(axes, before))

        if isinstance(value, Expr):
            return value.moved(filled)
        assert isinstance(value, Data)
        value = self.rec.settled(value) if value.form == "x" else value
        axes = filled(value.axes)
        if axes is None:
            self.rec.refuse(f"A {what} that cuts axes in no even way")
        return replace(value, axes=axes, pending=tuple((operation, expr.moved(filled)) for operation, expr in value.pending))


def _opaque(name: str, values: Sequence[Value]) -> Expr:
    """Something computed of weights alone, which counts only when data meet it."""
    return Expr(name, tuple(value for value in values if isinstance(value, Expr | Const)))


def _constant(value: Any) -> Const:
    """A number, if it is one; an array's values are not looked at."""
    if getattr(value, "shape", ()) == () and isinstance(value, int | float | bool | np.generic | np.ndarray):
        try:
            return Const(float(value))
        except (TypeError, ValueError):
            return Const()
    return Const()


def _folded(name: str, eqn: Any, values: Sequence[Value]) -> Const:
    """Computes with numbers, so far as they are known."""
    first = values[0] if values else None
    if name == "iota":
        return Const(counts=eqn.params["dimension"])
    if not isinstance(first, Const):
        return Const()
    if name in {*_SAME, "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice"}:
        return Const(first.value, _counting(name, eqn, first.counts))
    if name == "integer_pow" and first.value is not None:
        return Const(first.value ** eqn.params["y"])
    numbers = [value.value for value in values if isinstance(value, Const)]
    if name == "select_n" and numbers[0] is not None:
        picked = values[1 + int(numbers[0])]
        return picked if isinstance(picked, Const) else Const()
    if name == "select_n" and all(value == values[-1] for value in values[1:]):
        return first
    if name in _FOLDED and None not in numbers:
        return Const(float(_FOLDED[name](*numbers)))
    return Const()


def _counting(name: str, eqn: Any, counts: int) -> int:
    """Where the axis that counts lies after a move."""
    if counts < 0 or name in _SAME:
        return counts
    if name == "broadcast_in_dim":
        return int(eqn.params["broadcast_dimensions"][counts])
    before, after = tuple(eqn.invars[0].aval.shape), tuple(eqn.outvars[0].aval.shape)
    if name == "transpose":
        return int(eqn.params["permutation"].index(counts))
    if name in {"reshape", "squeeze"} and [n for n in before if n != 1] == [n for n in after if n != 1] and before[counts] != 1:
        return [place for place, n in enumerate(after) if n != 1][sum(n != 1 for n in before[:counts])]
    return -1


# What is computed element by element.


def _elementwise(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    name = eqn.primitive.name
    data = [value for value in values if isinstance(value, Data)]
    if not data:
        return _of_weights(name, eqn, values)
    if name == "select_n" and isinstance(values[0], Const) and values[0].value is not None:
        return values[1 + int(values[0].value)]
    if any(isinstance(value, Expr) for value in values):
        return _weighted(follow, eqn, values)
    if len(data) == 1:
        return _of_one(follow, eqn, values, data[0], shape)
    return _of_several(follow, eqn, name, [follow.rec.settled(one) if one.form == "x" else one for one in data])


def _of_weights(name: str, eqn: Any, values: list[Value]) -> Value:
    if name == "select_n" and isinstance(values[0], Const) and values[0].value is not None:
        return values[1 + int(values[0].value)]
    return _opaque(name, values)


def _weighted(follow: Follower, eqn: Any, values: list[Value]) -> Value:
    """Data and a weight: kept in mind until it is seen what becomes of it."""
    name = eqn.primitive.name
    first, second = (values[1], values[0]) if name in COMMUTATIVE and isinstance(values[0], Expr) else (values[0], values[-1])
    if name not in {"add", "sub", "mul", "div"} or not isinstance(first, Data) or not isinstance(second, Expr):
        follow.refuse(eqn, values)
    assert isinstance(first, Data)
    assert isinstance(second, Expr)
    if first.form in {"x", "layer_norm", "rms_norm"} or (first.form in {"1/deviation", "1/size"} and name == "mul"):
        return replace(first, pending=(*first.pending, (name, second)))
    follow.refuse(eqn, values)


def _of_one(follow: Follower, eqn: Any, values: list[Value], value: Data, shape: tuple[int, ...]) -> Value:
    name = eqn.primitive.name
    value = follow.rec.settled(value) if value.form == "x" else value
    others = [one for one in values if isinstance(one, Const)]
    number = others[0].value if len(others) == 1 else None
    if name == "eq" and others and others[0].counts >= 0 and not factors_of([value.axes[others[0].counts]]):
        place = others[0].counts
        return follow.activated(value, (*value.axes[:place], axis("o", shape[place]), *value.axes[place + 1 :]))
    if value.form in FLOORS and name == "max" and number == FLOORS[value.form]:
        return value
    step = _step(name, eqn, number, value)
    if (step, value.form) in FORMS:
        return replace(value, form=FORMS[step, value.form], number=written(number or 0.0) if step == "epsilon" else value.number)
    axes = ax.joined([value.axes, tuple(axis("", size, 0) for size in shape)]) if len(value.axes) == len(shape) else None
    return follow.activated(value, value.axes if axes is None else axes)


def _step(name: str, eqn: Any, number: float | None, value: Data) -> str:
    """The word for a step with a number in it."""
    if name == "integer_pow" and eqn.params["y"] == 2:
        return "square"
    if number is None:
        return name
    if (name == "div" and number == value.number) or (name == "mul" and value.number and abs(number * value.number - 1) < 1e-6):
        return "count"
    return "epsilon" if name == "add" else f"{name} with a number"


def _of_several(follow: Follower, eqn: Any, name: str, data: list[Data]) -> Value:
    axes = ax.joined([one.axes for one in data])
    if axes is None:
        follow.rec.refuse(f"{name} of values whose axes lie across each other")
    if len(data) == 2 and data[0].base == data[1].base:
        first, second = data if (name, data[0].form, data[1].form) in FORMS or name not in COMMUTATIVE else data[::-1]
        if (name, first.form, second.form) in FORMS:
            form = FORMS[name, first.form, second.form]
            if form == "activation":
                return follow.activated(replace(first, form="x", pending=()), axes)
            return replace(first, axes=axes, form=form, number=second.number, pending=(*first.pending, *second.pending))
        if name == "mul" and first.form == second.form and ("square", first.form) in FORMS:
            return replace(first, form=FORMS["square", first.form])
    used = [follow.rec.used(one) for one in data]
    word = {"add": "+", "mul": "*", "max": "max", "min": "min"}.get(name, "")
    sources = {one.sources for one in used}
    if len(sources) > 1 and not word:
        follow.refuse(eqn, data)
    return follow.rec.fresh(axes, merged(word, *(one.sources for one in used)))


# What moves axes.


def _reshape(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    return follow.moved(values[0], lambda axes: ax.reshaped(axes, shape), eqn.invars[0].aval.shape, "reshape")


def _transpose(follow: Follower, eqn: Any, values: list[Value], _: tuple[int, ...]) -> Value:
    order = eqn.params["permutation"]
    return follow.moved(values[0], lambda axes: tuple(axes[place] for place in order), eqn.invars[0].aval.shape, "transpose")


def _broadcast(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    places = [int(place) for place in eqn.params["broadcast_dimensions"]]

    def move(axes: Axes) -> Axes:
        found = [axis("", size, 0) for size in shape]
        for place, one in zip(places, axes, strict=True):
            found[place] = one or found[place]
        return tuple(found)

    return follow.moved(values[0], move, eqn.invars[0].aval.shape, "broadcast")


# What reads several positions.


def _reduce(follow: Follower, eqn: Any, values: list[Value], _: tuple[int, ...]) -> Value:
    name, (value,), places = eqn.primitive.name, values, {int(place) for place in eqn.params["axes"]}
    if isinstance(value, Expr):
        return _opaque(name, values)
    assert isinstance(value, Data)
    value = follow.rec.settled(value) if value.form == "x" else value
    summed = factors_of(value.axes[place] for place in places)
    kept = tuple(one for place, one in enumerate(value.axes) if place not in places)
    names = {one.name for one in summed}
    if "n" in names:
        follow.rec.refuse(f"{name} over the batch", "  Batch normalisation in training mode does this; let the model run as at inference, as with apply=….")
    if names == {"c"} and summed == factors_of(value.axes, "c") and (name, value.form) in FORMS:
        return replace(follow.rec.used(value) if value.form == "x" else value, axes=kept, form=FORMS[name, value.form], number=float(width(value.axes)))
    if "c" in names:
        follow.refuse(eqn, values)
    return follow.activated(value, kept)


def _window(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    value, window = values[0], eqn.params["window_dimensions"]
    if not isinstance(value, Data) or any(isinstance(one, Expr) for one in values):
        follow.refuse(eqn, values)
    return follow.activated(value, _resized(follow, eqn, value, shape, [place for place, size in enumerate(window) if size != 1]))


def _pad(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    value = values[0]
    if not isinstance(value, Data) or not isinstance(values[1], Const):
        follow.refuse(eqn, values)
    return follow.activated(value, _resized(follow, eqn, value, shape, [place for place, how in enumerate(eqn.params["padding_config"]) if any(how)]))


def _resized(follow: Follower, eqn: Any, value: Data, shape: tuple[int, ...], places: list[int]) -> Axes:
    """The axes after those at some places have got another size; they must be positions."""
    found = list(value.axes)
    for place in places:
        if any(one.name not in {"0", "1", "2"} for one in found[place]) or len(found[place]) > 1:
            follow.refuse(eqn, [value])
        found[place] = axis(found[place][0].name if found[place] else _free_name(found), shape[place])
    return tuple(found)


def _free_name(axes: Sequence[ax.Axis]) -> str:
    names = {one.name for one in factors_of(axes)}
    return next(name for name in "0123456789" if name not in names)


def _concatenate(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    place = eqn.params["dimension"]
    if not all(isinstance(value, Data) for value in values):
        if not any(isinstance(value, Data) for value in values):
            return _opaque("concatenate", values)
        follow.refuse(eqn, values)
    data = [follow.rec.used(value) for value in values if isinstance(value, Data)]
    widths = [atom.aval.shape[place] for atom in eqn.invars]
    along_channels = all(factors_of([one.axes[place]]) == factors_of(one.axes, "c") for one in data)
    if not along_channels and any(len(one.axes[place]) > 1 or any(f.name not in {"0", "1", "2"} for f in one.axes[place]) for one in data):
        follow.refuse(eqn, values)
    rest = ax.joined([(*one.axes[:place], (), *one.axes[place + 1 :]) for one in data])
    if rest is None:
        follow.rec.refuse("A concatenation of values whose axes lie across each other")
    name = "c" if along_channels else next((one.axes[place][0].name for one in data if one.axes[place]), _free_name(rest))
    sources: Sources = concatenated([(one.sources, size) for one, size in zip(data, widths, strict=True)], "" if along_channels else "axis")
    return follow.rec.fresh((*rest[:place], axis(name, shape[place]), *rest[place + 1 :]), sources)


# What contracts channels.


def _convolution(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    value, kernel = values
    if not isinstance(value, Data) or isinstance(kernel, Data):
        follow.refuse(eqn, values)
    return follow.rec.convolution(value, kernel if isinstance(kernel, Expr) else Expr("a constant"), eqn.params, shape)


def _dot(follow: Follower, eqn: Any, values: list[Value], _: tuple[int, ...]) -> Value:
    contracted, batched = eqn.params["dimension_numbers"]
    first = isinstance(values[0], Data)
    value, kernel = values if first else values[::-1]
    if isinstance(value, Expr | Const):
        return _opaque("dot_general", values)
    if isinstance(kernel, Data) or any(batched):
        follow.refuse(eqn, values)
    kernel = kernel if isinstance(kernel, Expr) else Expr("a constant")
    return follow.rec.dense(value, kernel, contracted if first else contracted[::-1], first=first)


def _gather(follow: Follower, eqn: Any, values: list[Value], shape: tuple[int, ...]) -> Value:
    table, rows = values
    numbers: Any = eqn.params["dimension_numbers"]
    if isinstance(table, Expr) and isinstance(rows, Expr | Const):
        return _opaque("gather", values)
    whole = tuple(eqn.invars[0].aval.shape)
    plain = tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (0,) and eqn.params["slice_sizes"] == (1, *whole[1:])
    if not isinstance(table, Expr) or not isinstance(rows, Data) or not plain or numbers.operand_batching_dims:
        follow.refuse(eqn, values)
    columns = [int(place) for place in numbers.offset_dims]
    index = iter(ax.filled(rows.axes[:-1], eqn.invars[1].aval.shape[:-1]))
    axes = tuple(() if place in columns else next(index) for place in range(len(shape)))
    return follow.rec.embedding(rows, table, axes, columns)


def _same(follow: Follower, eqn: Any, values: list[Value], _: tuple[int, ...]) -> Value:  # noqa: ARG001 - as all handlers are called
    return values[0]


_HANDLERS: Mapping[str, Callable[[Follower, Any, list[Value], tuple[int, ...]], Value]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), _reduce),
    **dict.fromkeys(("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "pad": _pad,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "gather": _gather,
}
