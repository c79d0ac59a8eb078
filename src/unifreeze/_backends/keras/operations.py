"""What each operation of ``keras.ops`` does, in the language that all tracers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from unifreeze.plugin import Tracing, flow

_PLAIN = frozenset(
    """
    Relu Relu6 Sigmoid Tanh Silu Gelu HardSwish HardSilu HardSigmoid Softmax LogSoftmax Negative Square Sqrt Rsqrt Exp Expm1 Log Log1p Abs Absolute Clip
    Identity Swish Erf Elu Selu Celu LeakyRelu Softplus Softsign HardTanh Sign Sin Cos Power Reciprocal NanToNum Floor Ceil Round Tril Triu StopGradient
    Cast ConvertToTensor Copy Normalize LogSigmoid Squareplus SparsePlus TanhShrink Mod
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_VIEWS = frozenset({"Cast", "ConvertToTensor", "Copy", "StopGradient", "Identity"})
_MASKS = frozenset(
    """
    Equal NotEqual Greater GreaterEqual Less LessEqual LogicalAnd LogicalNot LogicalOr LogicalXor Any All Isnan Isinf Isfinite OnesLike ZerosLike EmptyLike
    FullLike Shape Argmax Argmin
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_WORDS = {"Add": "+", "Subtract": "-", "Multiply": "*", "Divide": "/", "TrueDivide": "/", "Maximum": "max", "Minimum": "min", "Average": "+"}
_REDUCTIONS = frozenset("Mean Sum Max Min Amax Amin Std Var Prod Logsumexp".split())  # noqa: SIM905 - as above

Arguments = Sequence[Any]
Handler = Callable[[Tracing, Any, Arguments], Any]
_HANDLERS: dict[str, Handler] = {}


def operation(tracing: Tracing, op: Any, args: Arguments) -> Any:
    """The values that come out of an operation, or the one value of all outputs. Arguments are values, or lists of them, or plain numbers."""
    name = type(op).__name__
    values = [one for one in flat(args) if isinstance(one, flow.Value)]
    if name in _MASKS or not any(value.flows or value.weight for value in values):
        return flow.constant(())
    if name in _HANDLERS:
        return _HANDLERS[name](tracing, op, args)
    if name in _WORDS and len(values) > 1:
        return tracing.elementwise(_WORDS[name], *values)
    if name in _PLAIN | _WORDS.keys():
        return _plain(tracing, name, values)
    if name in _REDUCTIONS:
        return _reduced(op, values[0])
    raise tracing.refusal(f"The operation {name}")


def flat(args: Any) -> list[Any]:
    """What is in nested lists."""
    return [inner for one in args for inner in (flat(one) if isinstance(one, list | tuple) else [one])]


def _plain(tracing: Tracing, name: str, values: Sequence[Any]) -> Any:
    data = [value for value in values if value.flows]
    if len(data) > 1:
        raise tracing.refusal(f"The operation {name} of several values")
    return data[0] if data else values[0] if name in _VIEWS else replace(values[0], computed=True)


def _reduced(op: Any, value: Any) -> Any:
    if not value.flows:
        return replace(value, computed=True)
    axis = range(len(value.axes)) if op.axis is None else [op.axis] if isinstance(op.axis, int) else op.axis
    return flow.reduced(value, axis, keep=op.keepdims)


def _for(*names: str) -> Callable[[Handler], Handler]:
    def put(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return put


@_for("Matmul")
def _matmul(tracing: Tracing, _: Any, args: Arguments) -> Any:
    return tracing.matmul(*args[:2])


@_for("Einsum")
def _einsum(tracing: Tracing, op: Any, args: Arguments) -> Any:
    one, other = flat(args)
    return tracing.einsum(spelt(op.subscripts, len(one.axes), len(other.axes)), one, other)


def spelt(equation: str, left: int, right: int) -> str:
    """The equation with letters for its dots."""
    inputs, out = equation.replace(" ", "").split("->")
    one, other = inputs.split(",")
    spare = "ABCDEFGHIJKLMNOP"
    dots = max(rank - len(part) + 3 if "..." in part else 0 for part, rank in ((one, left), (other, right)))

    def filled(part: str, count: int) -> str:
        return part.replace("...", spare[dots - count : dots])

    counts = left - len(one) + 3, right - len(other) + 3
    return f"{filled(one, counts[0])},{filled(other, counts[1])}->{filled(out, dots)}"


@_for("DotProductAttention")
def _attention(tracing: Tracing, _: Any, args: Arguments) -> Any:
    query, key, value = args[:3]
    scores = tracing.einsum("bqhd,bkhd->bhqk", query, key)
    bias = args[3] if len(args) > 3 else None
    if isinstance(bias, flow.Value):
        scores = tracing.elementwise("+", scores, bias)
    return tracing.einsum("bhqk,bkhd->bqhd", scores, value)


@_for("Reshape")
def _reshape(_: Tracing, op: Any, args: Arguments) -> Any:
    return flow.reshaped(args[0], known(op.newshape, prod(args[0].shape)))


def known(shape: Any, size: int) -> list[int]:
    """The shape with its open sizes filled in: the batch is one, and one more may be open."""
    sizes = [shape] if isinstance(shape, int) else list(shape)
    found = [-1 if one is None else one for one in sizes]
    missing = [place for place, one in enumerate(found) if one == -1]
    if len(missing) > 1:
        found[0] = 1
    rest = size // prod(one for one in found if one != -1)
    return [rest if one == -1 else one for one in found]


@_for("Ravel")
def _ravel(_: Tracing, __: Any, args: Arguments) -> Any:
    return flow.reshaped(args[0], [prod(args[0].shape)])


@_for("Transpose")
def _transpose(_: Tracing, op: Any, args: Arguments) -> Any:
    rank = len(args[0].axes)
    return flow.transposed(args[0], [axis % rank for axis in (op.axes or range(rank - 1, -1, -1))])


@_for("Swapaxes")
def _swapaxes(_: Tracing, op: Any, args: Arguments) -> Any:
    order = list(range(len(args[0].axes)))
    order[op.axis1], order[op.axis2] = order[op.axis2], order[op.axis1]
    return flow.transposed(args[0], order)


@_for("Moveaxis")
def _moveaxis(_: Tracing, op: Any, args: Arguments) -> Any:
    rank = len(args[0].axes)
    order = [axis for axis in range(rank) if axis not in {one % rank for one in op.source}]
    for source, place in sorted(zip(op.source, op.destination, strict=True), key=lambda pair: pair[1] % rank):
        order.insert(place % rank, source % rank)
    return flow.transposed(args[0], order)


@_for("ExpandDims")
def _expand_dims(_: Tracing, op: Any, args: Arguments) -> Any:
    value = args[0]
    for axis in [op.axis] if isinstance(op.axis, int) else op.axis:
        value = flow.inserted(value, axis % (len(value.axes) + 1))
    return value


@_for("Squeeze")
def _squeeze(_: Tracing, op: Any, args: Arguments) -> Any:
    value = args[0]
    rank = len(value.axes)
    gone = [axis for axis, size in enumerate(value.shape) if size == 1] if op.axis is None else [op.axis] if isinstance(op.axis, int) else op.axis
    for axis in sorted((axis % rank for axis in gone), reverse=True):
        value = flow.dropped(value, axis)
    return value


@_for("Concatenate")
def _concatenate(tracing: Tracing, op: Any, args: Arguments) -> Any:
    values = flat(args)
    return tracing.joined(values, op.axis % len(values[0].axes))


@_for("Stack")
def _stack(tracing: Tracing, op: Any, args: Arguments) -> Any:
    values = flat(args)
    axis = op.axis % (len(values[0].axes) + 1)
    return tracing.joined([flow.inserted(value, axis) for value in values], axis)


@_for("Split")
def _split(_: Tracing, op: Any, args: Arguments) -> Any:
    axis = op.axis % len(args[0].axes)
    size, how = args[0].shape[axis], op.indices_or_sections
    ends = [size * number // how for number in range(1, how + 1)] if isinstance(how, int) else [*how, size]
    return [flow.sliced(args[0], axis, start, 1, stop - start) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


@_for("Unstack")
def _unstack(_: Tracing, op: Any, args: Arguments) -> Any:
    axis = op.axis % len(args[0].axes)
    return [flow.dropped(flow.sliced(args[0], axis, place, 1, 1), axis) for place in range(args[0].shape[axis])]


@_for("GetItem")
def _get_item(tracing: Tracing, _: Any, args: Arguments) -> Any:
    value, keys = args[0], args[1] if isinstance(args[1], list | tuple) else [args[1]]
    given = sum(key is not None and key is not Ellipsis for key in keys)
    rest = [slice(None)] * (len(value.axes) - given)
    place = next((number for number, key in enumerate(keys) if key is Ellipsis), len(keys))
    axis = 0
    for key in [*keys[:place], *rest, *keys[place + 1 :]]:
        if key is None:
            value = flow.inserted(value, axis)
        elif isinstance(key, slice):
            start, stop, step = key.indices(value.shape[axis])
            if step < 1:
                raise tracing.refusal("A slice that runs backwards")
            value = flow.sliced(value, axis, start, step, len(range(start, stop, step)))
        elif isinstance(key, int | np.integer):
            value = flow.dropped(flow.sliced(value, axis, int(key) % value.shape[axis], 1, 1), axis)
            continue
        else:
            raise tracing.refusal("An index of data by an array")
        axis += 1
    return value


@_for("Slice")
def _slice(_: Tracing, op: Any, args: Arguments) -> Any:
    value = args[0]
    for axis, (start, count) in enumerate(zip(args[1], op.shape, strict=True)):
        value = flow.sliced(value, axis, int(start), 1, value.shape[axis] - int(start) if count == -1 else int(count))
    return value


@_for("BroadcastTo")
def _broadcast(tracing: Tracing, op: Any, args: Arguments) -> Any:
    return tracing.broadcast(args[0], [1 if size is None else size for size in op.shape])


@_for("Tile", "Repeat")
def _tile(tracing: Tracing, op: Any, args: Arguments) -> Any:
    value = args[0]
    if type(op).__name__ == "Tile":
        repeats = list(np.atleast_1d(op.repeats))
        shape = (1,) * (len(repeats) - len(value.axes)) + value.shape
        repeats = [1] * (len(shape) - len(repeats)) + [int(times) for times in repeats]
    else:
        shape = value.shape
        repeats = [1 if axis != op.axis % len(shape) else int(op.repeats) for axis in range(len(shape))]
    if any(size > 1 and times > 1 for size, times in zip(shape, repeats, strict=True)):
        return _repeated(tracing, op, value, repeats)
    return tracing.broadcast(value, [size * times for size, times in zip(shape, repeats, strict=True)])


def _repeated(tracing: Tracing, op: Any, value: Any, repeats: Sequence[int]) -> Any:
    if type(op).__name__ == "Tile" or not value.flows:
        raise tracing.refusal("A repetition of an axis")
    axis = next(place for place, times in enumerate(repeats) if times > 1)
    shape = list(value.shape)
    wide = flow.broadcast(flow.inserted(value, axis + 1), [*shape[: axis + 1], repeats[axis], *shape[axis + 1 :]])
    shape[axis] *= repeats[axis]
    return flow.reshaped(wide, shape)


@_for("Take")
def _take(tracing: Tracing, op: Any, args: Arguments) -> Any:
    value, ids = args[0], args[1]
    if value.weight and op.axis in (0, None):
        return tracing.embedding(value, ids if isinstance(ids, flow.Value) else flow.constant(np.shape(ids)))
    raise tracing.refusal("An index of data by an array")


@_for("Where")
def _where(tracing: Tracing, _: Any, args: Arguments) -> Any:
    return tracing.elementwise("where", *(value for value in args[1:] if isinstance(value, flow.Value)))


@_for("Pad")
def _pad(tracing: Tracing, op: Any, args: Arguments) -> Any:
    value = args[0]
    for axis, (before, after) in enumerate(op.pad_width):
        value = tracing.padded(value, axis, int(before), int(after))
    return value


@_for("Glu")
def _glu(tracing: Tracing, op: Any, args: Arguments) -> Any:
    axis = op.axis % len(args[0].axes)
    half = args[0].shape[axis] // 2
    return tracing.elementwise("*", *(flow.sliced(args[0], axis, start, 1, half) for start in (0, half)))


@_for("LayerNorm", "RMSNorm")
def _norm(tracing: Tracing, op: Any, args: Arguments) -> Any:
    axes = [op.axis] if isinstance(op.axis, int) else op.axis
    arrays = dict(zip(("scale", "bias"), (one for one in args[1:] if isinstance(one, flow.Value)), strict=False))
    return tracing.channelwise("scale", args[0], [axis % len(args[0].axes) for axis in axes], arrays)
