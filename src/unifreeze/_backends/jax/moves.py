"""The operations of a jaxpr that move, cut, join or sum axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from unifreeze.plugin import flow

from .units import Scribe, Value, opaque
from .values import FORMS, Const, Data, Expr

Shape = tuple[int, ...]


def _moved(scribe: Scribe, value: Value, move: Callable[[flow.Value], flow.Value], shape: Sequence[int]) -> Value:
    """A value after its axes have moved; ``shape`` is its shape until then."""
    if isinstance(value, Expr) and value.view and value.view.axes and value.view.shape != tuple(shape):
        # A weight that is repeated, and then more, is data by itself.
        value = scribe.data(scribe.full(value, shape))
    if isinstance(value, Expr):
        return value.moved(move, tuple(shape))
    assert isinstance(value, Data)
    value = scribe.settled(value) if value.form in {"x", "normal"} else value
    pending = tuple((word, expr.moved(move, tuple(shape))) for word, expr in value.pending)
    return replace(value, value=move(scribe.broadcast(value.value, shape)), pending=pending)


def reshape(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: Shape) -> Value:
    """A reshape, also one that drops or adds axes of size one."""
    return _moved(scribe, values[0], lambda value: flow.reshaped(value, shape), eqn.invars[0].aval.shape)


def transpose(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> Value:
    """Another order of axes."""
    return _moved(scribe, values[0], lambda value: flow.transposed(value, eqn.params["permutation"]), eqn.invars[0].aval.shape)


def broadcast(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: Shape) -> Value:
    """New axes, and longer ones. What is a weight stays as it is: its axes of size one are repeated where it is used."""
    places = [int(place) for place in eqn.params["broadcast_dimensions"]]

    def move(value: flow.Value) -> flow.Value:
        axes: list[Any] = [()] * len(shape)
        for place, digits in zip(places, value.axes, strict=True):
            axes[place] = digits
        found = replace(value, axes=tuple(axes))
        return found if found.weight else flow.broadcast(found, shape)

    return _moved(scribe, values[0], move, eqn.invars[0].aval.shape)


def tile(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: Shape) -> Value:
    """Repeated axes."""
    before, one = tuple(eqn.invars[0].aval.shape), values[0]
    if any(n not in (1, size) for n, size in zip(before, shape, strict=True)):
        scribe.refuse(f"tile of {before}")
    return one if isinstance(one, Expr) else _moved(scribe, one, lambda value: flow.broadcast(value, shape), before)


def cut(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> Value:
    """A slice."""
    starts, ends, steps = eqn.params["start_indices"], eqn.params["limit_indices"], eqn.params["strides"] or [1] * len(eqn.params["start_indices"])
    return _cut(scribe, values[0], list(zip(starts, ends, steps, strict=True)), eqn.invars[0].aval.shape)


def cut_where(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> Value:
    """A slice from where constants say."""
    starts = [one.value if isinstance(one, Const) else None for one in values[1:]]
    shape = eqn.invars[0].aval.shape
    whole = [size == n for size, n in zip(eqn.params["slice_sizes"], shape, strict=True)]
    if any(start is None and not all_of for start, all_of in zip(starts, whole, strict=True)):
        scribe.refuse("dynamic_slice from where data say")
    first = [int(start or 0) for start in starts]
    ranges = [(min(start, n - size), min(start, n - size) + size, 1) for start, size, n in zip(first, eqn.params["slice_sizes"], shape, strict=True)]
    return _cut(scribe, values[0], ranges, shape)


def _cut(scribe: Scribe, value: Value, ranges: Sequence[tuple[int, int, int]], shape: Sequence[int]) -> Value:
    def move(one: flow.Value) -> flow.Value:
        for axis, (start, end, step) in enumerate(ranges):
            one = flow.sliced(one, axis, start, step, len(range(start, end, step)))
        return one

    found = _moved(scribe, value, move, shape)
    return scribe.data(found.value) if isinstance(found, Data) and found.form == "x" and ranges != [(0, n, 1) for n in shape] else found


def row(scribe: Scribe, value: Value, number: int, shape: Sequence[int]) -> Value:
    """One row of a stack."""
    if isinstance(value, Const):
        return Const(tuple(shape[1:]), value.value)
    ranges = [(number, number + 1, 1), *((0, n, 1) for n in shape[1:])]
    return _moved(scribe, _cut(scribe, value, ranges, shape), lambda one: flow.dropped(one, 0), (1, *shape[1:]))


def parts(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> list[Value]:
    """All the parts of an axis."""
    axis, shape, at = eqn.params["axis"], eqn.invars[0].aval.shape, 0
    found = []
    for size in eqn.params["sizes"]:
        found.append(_cut(scribe, values[0], [(at, at + size, 1) if place == axis else (0, n, 1) for place, n in enumerate(shape)], shape))
        at += size
    return found


def join(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> Value:
    """A concatenation."""
    if not any(isinstance(one, Data) for one in values):
        return opaque("concatenate", values)
    given = [scribe.full(one, atom.aval.shape) for one, atom in zip(values, eqn.invars, strict=True)]
    return scribe.data(scribe.tracing.joined(given, eqn.params["dimension"]))


def stack(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> Value:
    """A concatenation along a new axis."""
    if not any(isinstance(one, Data) for one in values):
        return opaque("stack", values)
    axis = eqn.params["axis"]
    given = [flow.inserted(scribe.full(one, atom.aval.shape), axis) for one, atom in zip(values, eqn.invars, strict=True)]
    return scribe.data(scribe.tracing.joined(given, axis))


def pad(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: Shape) -> Value:
    """A pad with a constant."""
    if not isinstance(values[0], Data):
        return opaque("pad", values)
    value, config = scribe.value(values[0]), eqn.params["padding_config"]
    own = {key for one in value.flows for key in one.channel or ()}
    for axis, (low, high, inside) in enumerate(config):
        if own & {key for key, _ in value.axes[axis]} and (low, high, inside) != (0, 0, 0):
            if min(low, high, inside) < 0 or inside:
                scribe.refuse("pad of channels that leaves some out")
            value = flow.padded(value, axis, low, high)
    return scribe.data(flow.resized(value, shape))


def window(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: Shape) -> Value:
    """A pool."""
    if not all(isinstance(one, Data | Const) for one in values) or not isinstance(values[0], Data):
        scribe.refuse(f"{eqn.primitive.name} of weights")
    value = scribe.value(values[0])
    own = {key for one in value.flows for key in one.channel or ()}
    if any(size > 1 and own & {key for key, _ in value.axes[axis]} for axis, size in enumerate(eqn.params["window_dimensions"])):
        scribe.refuse(f"{eqn.primitive.name} over channels")
    return scribe.data(flow.resized(value, shape))


def reduce(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> Value:
    """A sum, or another reduction, over whole axes."""
    name, axes, one = eqn.primitive.name, [int(axis) for axis in eqn.params["axes"]], values[0]
    if not isinstance(one, Data):
        return opaque(name, values)
    one = scribe.settled(one)
    value = flow.reduced(scribe.value(one), axes, keep=False)
    if (name, one.form) in FORMS:
        return replace(one, value=value, form=FORMS[name, one.form], number=float(prod(eqn.invars[0].aval.shape[axis] for axis in axes)))
    return scribe.data(value)
