"""The operations of a jaxpr in which weights meet data other than element by element."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from unifreeze.plugin import flow

from .units import Scribe, Value, opaque
from .values import Const, Data

Shape = tuple[int, ...]


def convolution(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: Shape) -> Value:
    """A convolution, with its axes wherever they lie."""
    params, (x, kernel) = eqn.params, values
    numbers, (_, _, *places) = params["dimension_numbers"], params["dimension_numbers"].out_spec
    if not isinstance(x, Data):
        return opaque("conv_general_dilated", values)
    if isinstance(kernel, Data) or set(params["lhs_dilation"]) - {1} or params["batch_group_count"] != 1:
        scribe.refuse("A transposed convolution, or one with data for its kernel,")
    order = [old for _, old in sorted(zip(numbers.out_spec, numbers.lhs_spec, strict=True))]
    image = flow.transposed(scribe.value(x), order)
    keys = [image.axes[place][0][0] for place in places if image.axes[place]]
    if keys != sorted(keys) or places != sorted(places):
        scribe.refuse("A convolution of positions in another order")
    outs, ins, *spatial = numbers.rhs_spec
    weight = flow.transposed(scribe.value(kernel), [*spatial, ins, outs])
    channel, rank = numbers.out_spec[1], len(spatial)
    sizes, strides, padding = weight.shape[:rank], params["window_strides"], params["padding"]
    overlaps = any(size > stride for size, stride in zip(sizes, strides, strict=True)) or any(map(any, padding))
    settings: dict[str, Any] = {"stride": tuple(strides), "padding": tuple(low if low == high else (low, high) for low, high in padding)}
    axes, groups = (channel, rank, rank + 1), params["feature_group_count"]
    found = scribe.tracing.convolution(image, weight, shape, axes=axes, groups=groups, overlaps=overlaps, **settings, dilation=tuple(params["rhs_dilation"]))
    return scribe.data(found)


def product(scribe: Scribe, eqn: Any, values: Sequence[Value], _: Shape) -> Value:
    """A product of matrices, or of any more axes."""
    if not any(isinstance(one, Data) for one in values):
        return opaque("dot_general", values)
    (contracted, batched), letters = eqn.params["dimension_numbers"], iter(ascii_lowercase)
    sides: list[dict[int, str]] = [{}, {}]
    for places in (*zip(*batched, strict=True), *zip(*contracted, strict=True)):
        letter = next(letters)
        for side, place in zip(sides, places, strict=True):
            side[place] = letter
    shapes = [atom.aval.shape for atom in eqn.invars]
    words = ["".join(side[place] if place in side else next(letters) for place in range(len(shape))) for side, shape in zip(sides, shapes, strict=True)]
    common = "".join(sides[0][place] for place in batched[0])
    free = "".join(letter for side, word in zip(sides, words, strict=True) for place, letter in enumerate(word) if place not in side)
    if found := _looked_up(scribe, values, contracted):
        return found
    given = [scribe.full(one, shape) for one, shape in zip(values, shapes, strict=True)]
    return scribe.data(scribe.tracing.einsum(f"{','.join(words)}->{common}{free}", *given))


def _looked_up(scribe: Scribe, values: Sequence[Value], contracted: Any) -> Value | None:
    """A table, if one side is one-hot."""
    hot = next((side for side, one in enumerate(values) if isinstance(one, Data) and one.form == "one hot"), None)
    if hot is None:
        return None
    ids, table = values[hot], scribe.value(values[1 - hot])
    assert isinstance(ids, Data)
    rows = contracted[1 - hot]
    if hot or len(rows) != 1 or len(table.axes) != 2 or tuple(contracted[0]) != (len(ids.value.axes) - 1,):
        scribe.refuse("A product with what is one-hot")
    table = flow.transposed(table, [rows[0], 1 - rows[0]])
    return scribe.data(scribe.tracing.embedding(table, flow.dropped(ids.value, len(ids.value.axes) - 1)))


def look_up(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: Shape) -> Value:
    """Rows of a table."""
    table, rows = values
    numbers: Any = eqn.params["dimension_numbers"]
    whole = tuple(eqn.invars[0].aval.shape)
    plain = tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (0,) and tuple(eqn.params["slice_sizes"]) == (1, *whole[1:])
    last = tuple(numbers.offset_dims) == tuple(range(len(shape) - len(whole) + 1, len(shape)))
    if isinstance(table, Data) or not plain or not last or numbers.operand_batching_dims:
        scribe.refuse(f"gather of {whole}")
    if isinstance(table, Const):
        return scribe.data(flow.resized(scribe.value(rows), shape)) if isinstance(rows, Data) else Const(shape)
    ids = scribe.full(rows, eqn.invars[1].aval.shape)
    return scribe.data(scribe.tracing.embedding(scribe.value(table), flow.dropped(ids, len(ids.axes) - 1)))
