"""What a tracer writes down while it follows a model: units, from the operations that all frameworks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ._flow import (
    Flow,
    Key,
    Value,
    broadcast,
    constant,
    contracted,
    digest,
    fresh,
    joined,
    merged_values,
    own_axes,
    padded,
    products,
    read,
    reshaped,
    resized,
    split,
)
from ._folding import Recorded, folded
from ._gathering import gathered
from ._graph import Graph, Weight
from .errors import BackendError


@dataclass(slots=True)
class Tracing:
    """The units that a tracer has met, in order.

    Attributes:
        owners: For the path of each array, the path of its layer.
        units: The units.
        inputs: How many inputs there are.
    """

    owners: Mapping[str, str]
    units: list[Recorded] = field(default_factory=list)
    inputs: int = 0

    def input(self, shape: Sequence[int], channel: int | None = -1) -> Value:
        """The next input of the model; ``channel`` is the axis of its channels, ``None`` for ids."""
        self.inputs += 1
        return fresh(-self.inputs, shape, channel)

    def refusal(self, what: str) -> BackendError:
        """The error for something that can't be traced, with what leads to it."""
        last = self.units[-1].layer if self.units else "the input"
        return BackendError(
            f"{what} can't be traced.\n  the last layer before it is {last}\n"
            "  Correspondence covers what applies weights by products, convolutions, look-ups and elementwise, and what reshapes, joins or mixes between."
        )

    def unit(self, kind: str, flows: frozenset[Flow], shape: tuple[int, ...], weights: dict[str, Weight], **settings: object) -> int:
        """Writes a unit down, and returns its place."""
        if not weights:
            raise self.refusal(f"A {kind} without a weight of its own (it may be computed, as by a parametrization)")
        path = next(iter(weights.values())).path
        self.units.append(Recorded(self.owners[path], kind, shape, flows, weights, settings))
        return len(self.units) - 1

    # Products with a weight.

    def einsum(self, letters: str, one: Value, other: Value) -> Value:
        """Any product of two values that ``einsum`` can write with one letter an axis: a dense layer, or attention."""
        inputs, out = letters.split("->")
        left, right = inputs.split(",")
        if one.flows and other.flows:
            return contracted(letters, one, other)
        if other.flows:
            return self.einsum(f"{right},{left}->{out}", other, one)
        if one.flows and other.weight:
            return self._dense(left, right, out, one, other)
        if one.weight or other.weight:
            raise self.refusal(f"A product of {one.weight or other.weight} with what is no data")
        if one.flows:
            raise self.refusal(f"A product with a constant matrix of shape {other.shape}")
        return Value(tuple((((place,), size),) if size != 1 else () for place, size in enumerate(_sizes(letters, one, other))))

    def _dense(self, left: str, right: str, out: str, x: Value, kernel: Value) -> Value:
        shared = [letter for letter in left if letter in right and letter not in out]
        outs = [letter for letter in out if letter not in left]
        if set(right) - {*shared, *outs} - {letter for letter, axis in zip(right, kernel.axes, strict=True) if not axis}:
            raise self.refusal(f"A product that applies another part of {kernel.weight} at each position")
        axes, rows = [left.index(letter) for letter in shared], [right.index(letter) for letter in shared]
        x, kernel, pairs = paired(x, axes, kernel, rows)
        flows, order = read(x, axes)
        columns = [right.index(letter) for letter in outs]
        weight = laid_out(kernel, [pairs[key] for key in order], columns)
        place = self.unit("dense", flows, weight.seen, {"kernel": weight})
        new = {letter: axis for letter, axis in zip(out, _columns(kernel, columns, out, outs, x), strict=True) if letter in outs}
        found = tuple(new[letter] if letter in new else x.axes[left.index(letter)] for letter in out)
        return output(place, found, [key for letter in outs for key, _ in new[letter]])

    def matmul(self, one: Value, other: Value) -> Value:
        """``one @ other``, with broadcast batches, as numpy has it."""
        if len(one.axes) == 1 or len(other.axes) == 1:
            raise self.refusal("A product with a vector")
        batch = "abcdefgh"[: max(len(one.axes), len(other.axes)) - 2]
        left, right = batch[len(batch) + 2 - len(one.axes) :], batch[len(batch) + 2 - len(other.axes) :]
        return self.einsum(f"{left}xy,{right}yz->{batch}xz", one, other)

    def linear(self, x: Value, kernel: Value, bias: Value | None = None) -> Value:
        """``x @ kernel + bias`` along the last axis; the kernel is seen as (in, out)."""
        letters = "abcdefgh"[: len(x.axes) - 1]
        found = self.einsum(f"{letters}x,xz->{letters}z", x, kernel)
        return found if bias is None else self.elementwise("+", found, bias)

    def convolution(
        self,
        x: Value,
        kernel: Value,
        out: Sequence[int],
        *,
        axes: tuple[int, int, int],
        groups: int = 1,
        overlaps: bool = True,
        transposed: bool = False,
        **settings: object,
    ) -> Value:
        """A convolution.

        Args:
            x: Its input.
            kernel: Its kernel, whatever the order of its axes.
            out: The shape of its output.
            axes: The axis of channels of the input and the output, and of the kernel the axes of what goes in and what comes out.
            groups: The number of groups.
            overlaps: Whether an input position is seen through more than one place of the kernel, or is padded. Where not, it is a dense layer on patches.
            transposed: Whether it is a transposed convolution.
            **settings: ``stride``, ``padding`` and ``dilation``.
        """
        channel, ins, outs = axes
        window = [axis for axis in range(len(kernel.axes)) if axis not in (ins, outs)]
        sizes = tuple(kernel.shape[axis] for axis in window)
        if not kernel.weight or kernel.computed:
            raise self.refusal(f"A convolution whose kernel is computed{f' from {kernel.weight}' * bool(kernel.weight)}")
        width, height = kernel.shape[outs], x.shape[channel]
        if groups > 1 and transposed:
            raise self.refusal("A grouped transposed convolution")
        if groups > 1:
            return fresh(self._grouped(x, kernel, axes, groups, settings), out, channel)
        x, kernel, pairs = paired(x, [channel], kernel, [ins])
        flows, order = read(x, [channel])
        rows = [key for axis in window for key, _ in kernel.axes[axis]] + [pairs[key] for key in order]
        dense = not overlaps and not transposed
        weight = laid_out(kernel, rows, [outs], None if dense else (*sizes, height, width))
        kind = "dense" if dense else "conv_transpose" if transposed else "conv"
        return fresh(self.unit(kind, flows, weight.seen, {"kernel": weight}, **settings), out, channel)

    def _grouped(self, x: Value, kernel: Value, axes: tuple[int, int, int], groups: int, settings: dict[str, object]) -> int:
        channel, ins, outs = axes
        flows, order = read(x, [channel])
        per, width = kernel.shape[ins], kernel.shape[outs]
        if len(order) > 1 or per * groups != x.shape[channel]:
            raise self.refusal(f"A convolution in {groups} groups of {x.shape[channel]} channels that have been regrouped")
        window = [axis for axis in range(len(kernel.axes)) if axis not in (ins, outs)]
        sizes = tuple(kernel.shape[axis] for axis in window)
        shape = (*sizes, groups, width // groups) if per == 1 else (*sizes, per, width)
        weight = laid_out(kernel, [key for axis in (*window, ins) for key, _ in kernel.axes[axis]], [outs], shape)
        if per == 1:
            return self.unit("depthwise_conv", flows, shape, {"kernel": weight}, **settings)
        return self.unit("conv", flows, (*shape, groups), {"kernel": weight}, **settings)

    # Vectors and tables.

    def channelwise(self, kind: str, x: Value, axes: Sequence[int], vectors: Mapping[str, Value | None], **settings: object) -> Value:
        """A unit with one weight for each channel, such as a norm. Without a weight it is an activation."""
        given = {role: vector for role, vector in vectors.items() if vector is not None and vector.weight}
        if not given:
            return x
        weights: dict[str, Weight] = {}
        for role, vector in given.items():
            if vector.computed:
                raise self.refusal(f"A {kind} whose {role} is computed from {vector.weight}")
            x, shaped, _ = paired(x, axes, reshaped(vector, [x.shape[axis] for axis in axes]), range(len(axes)))
        flows, order = read(x, axes or own_axes(x))
        for role, vector in given.items():
            _, shaped, pairs = paired(x, axes, reshaped(vector, [x.shape[axis] for axis in axes]), range(len(axes)))
            weights[role] = laid_out(shaped, (), [], keys=[pairs[key] for key in order] if axes else [])
        place = self.unit(kind, flows, next(iter(weights.values())).seen, weights, **settings)
        return output(place, x.axes, order)

    def table(self, weight: Value, like: Value | None = None) -> Value:
        """A parameter that becomes data by itself, such as a table of positions or a class token. ``like`` says along which axis its channels lie."""
        if weight.computed:
            raise self.refusal(f"A value that is computed from {weight.weight}")
        axis = _channel_axis(weight, like)
        columns = () if axis is None else weight.axes[axis]
        whole = weight.digits | {key: size for key, size, _ in weight.cut}
        rows = tuple((key, whole[key]) for key in sorted(whole) if key not in dict(columns))
        cut = tuple(one for one in weight.cut if one[0] in dict(columns))
        found = laid_out(replace(weight, axes=(rows, columns), cut=cut), [key for key, _ in rows], [1])
        place = self.unit("embedding", frozenset(), _squeezed(found.seen), {"embedding": found})
        axes = tuple(tuple(digit for digit in digits if digit[1] != 1) for digits in weight.axes)
        value = output(place, axes, () if axis is None else [key for key, _ in axes[axis]])
        tags = tuple(digest(seen) for key, _, seen in sorted(weight.cut) if key not in dict(columns) and seen != tuple(range(len(seen))))
        return replace(value, flows=frozenset(replace(flow, tags=tags) for flow in value.flows))

    def embedding(self, weight: Value, ids: Value) -> Value:
        """A look-up of rows; where the ids are constants, the table is data by itself."""
        if weight.computed or len(weight.axes) != 2:
            raise self.refusal(f"A look-up in {weight.weight or 'a tensor'} that is computed or no table")
        rows = [key for key, _ in weight.axes[0]]
        found = laid_out(weight, rows, [1])
        flows = frozenset(replace(flow, channel=None, index=(), spans=frozenset()) for flow in ids.flows)
        shape = found.seen if flows else _squeezed(found.seen)
        place = self.unit("embedding", flows, shape, {"embedding": found})
        channel = (max((key[0] for key in ids.digits), default=0) + 1,)
        last = ((channel, found.seen[-1]),) if found.seen[-1] != 1 else ()
        return output(place, (*ids.axes, last), [key for key, _ in last])

    def elementwise(self, word: str, *values: Value) -> Value:
        """An elementwise operation on data, parameters and constants, in any mixture: ``+ - * /``, or any other by a word that frameworks share."""
        found = values[0]
        for value in values[1:]:
            found = self._pair(word, found, value)
        return found

    def _pair(self, word: str, one: Value, other: Value) -> Value:
        if one.flows and other.flows:
            return merged_values(word, one, other)
        if one.flows or other.flows:
            data, rest = (one, other) if one.flows else (other, one)
            if rest.weight:
                return self._with_parameter(word, data, rest, first=data is one)
            return broadcast(data, _together(data.shape, rest.shape))
        if one.weight and other.weight:
            return replace(one, weight=f"{one.weight} and {other.weight}", computed=True)
        weight, rest = (one, other) if one.weight else (other, one)
        if not weight.weight:
            return constant(_together(one.shape, other.shape))
        if weight.shape != rest.shape and prod(rest.shape) > 1 and len(rest.shape) >= len(weight.shape):
            raise self.refusal(f"{weight.weight} with a constant of another shape")
        return replace(weight, computed=True)

    def _with_parameter(self, word: str, x: Value, weight: Value, *, first: bool) -> Value:
        kind = {"+": "bias", "*": "scale"}.get(word)
        if kind is None and not (word == "-" and first):
            raise self.refusal(f"{weight.weight} in an operation {word!r} with data")
        rank = max(len(x.axes), len(weight.axes))
        x, weight = (replace(value, axes=((),) * (rank - len(value.axes)) + value.axes) for value in (x, weight))
        along = [axis for axis, size in enumerate(weight.shape) if size > 1]
        own = own_axes(x)
        if kind and along and set(along) <= set(own):
            return self.channelwise(kind, x, along, {kind: weight})
        if kind and not along:
            return self._scalar(kind, x, weight, own)
        return merged_values(word, x, self.table(weight, x))

    def _scalar(self, kind: str, x: Value, weight: Value, own: Sequence[int]) -> Value:
        flows, order = read(x, own)
        place = self.unit(kind, flows, (1,), {kind: laid_out(weight, [], [])})
        return output(place, x.axes, order)

    def broadcast(self, value: Value, shape: Sequence[int]) -> Value:
        """The value repeated along axes of size one."""
        repeats = [size for size, old in zip(reversed(shape), reversed(value.shape), strict=False) if size != old]
        if value.weight and (repeats or prod(shape) != prod(value.shape)):
            value = self.table(value)
        return broadcast(value, shape)

    def joined(self, values: Sequence[Value], axis: int) -> Value:
        """A concatenation of data, parameters and constants."""
        if values and all(value.weight for value in values):
            raise self.refusal(f"A concatenation of {values[0].weight} and {values[-1].weight}")
        like = next((value for value in values if value.flows), None)
        return gathered(joined([self.table(value, like) if value.weight else value for value in values], axis), axis)

    def padded(self, value: Value, axis: int, before: int, after: int) -> Value:
        """The value with constants on both sides of an axis; negative numbers cut off."""
        if not (before or after):
            return value
        if axis in own_axes(value) and min(before, after) >= 0:
            return padded(value, axis, before, after)
        if value.weight:
            raise self.refusal(f"A pad of {value.weight}")
        return resized(value, [size + (before + after) * (place == axis) for place, size in enumerate(value.shape)])

    def attention(self, query: Value, key: Value, value: Value) -> Value:
        """Scaled dot-product attention of (…, positions, channels)."""
        batch = "abcdefgh"[: len(query.axes) - 2]
        scores = self.einsum(f"{batch}qx,{batch}kx->{batch}qk", query, key)
        return self.einsum(f"{batch}qk,{batch}kv->{batch}qv", scores, value)

    def finish(self, outputs: Sequence[Value], inputs: tuple[tuple[int, ...], ...] = ()) -> Graph:
        """The graph of all units: biases folded into what they belong to, and fused projections parted."""
        ends = [read(value, own_axes(value))[0] for value in outputs]
        return folded(self.units, ends, inputs)


def _together(one: Sequence[int], other: Sequence[int]) -> list[int]:
    rank = max(len(one), len(other))
    pairs = zip((1,) * (rank - len(one)) + tuple(one), (1,) * (rank - len(other)) + tuple(other), strict=True)
    return [b if a == 1 else a for a, b in pairs]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1) or (1,)


def _channel_axis(weight: Value, like: Value | None) -> int | None:
    seen = [axis for axis, digits in enumerate(weight.axes) if digits]
    if like is not None:
        behind = {axis - len(like.axes) for axis in own_axes(like)}
        shared = [axis for axis in seen if axis - len(weight.axes) in behind]
        seen = shared or seen
    return seen[-1] if seen else None


def output(place: int, axes: Sequence[Any], channel: Sequence[Key]) -> Value:
    """The output of a unit that keeps the axes of before."""
    found = Value(tuple(axes))
    return replace(found, flows=frozenset({Flow(place, channel=tuple(channel), spans=frozenset(found.digits))}))


def _columns(kernel: Value, columns: Sequence[int], out: str, outs: Sequence[str], x: Value) -> list[Any]:
    """The digits of the output's new axes, whose keys sort last."""
    base = max((key[0] for key in x.digits), default=0) + 1
    sizes = {letter: kernel.shape[column] for letter, column in zip(outs, columns, strict=True)}
    numbers = {letter: (base, number) if len(outs) > 1 else (base,) for number, letter in enumerate(outs)}
    return [((numbers[letter], sizes[letter]),) if letter in sizes and sizes[letter] != 1 else () for letter in out]


def paired(x: Value, axes: Sequence[int], weight: Value, places: Sequence[int]) -> tuple[Value, Value, dict[Key, Key]]:
    """Both, with digits of the same sizes along these axes; and for each key of the data that of the weight."""
    pairs: dict[Key, Key] = {}
    for axis, place in zip(axes, places, strict=True):
        if x.shape[axis] != weight.shape[place]:
            raise BackendError(f"{weight.weight} of {weight.shape} does not fit an axis of {x.shape[axis]}.")
        if not weight.axes[place] or (len(weight.axes[place]), len(x.axes[axis])) == (1, 1):
            pairs |= {key: other for (key, _), (other, _) in zip(x.axes[axis], weight.axes[place], strict=True)}
            continue
        cuts = products(size for _, size in x.axes[axis]) | products(size for _, size in weight.axes[place])
        x, weight = split(x, axis, cuts), split(weight, place, cuts)
        pairs |= {key: other for (key, _), (other, _) in zip(x.axes[axis], weight.axes[place], strict=True)}
    return x, weight, pairs


def laid_out(weight: Value, rows: Sequence[Key], columns: Sequence[int], shape: tuple[int, ...] | None = None, *, keys: Sequence[Key] | None = None) -> Weight:
    """The weight in the shared layout: these rows, then the digits of these axes (or, for a vector, of these keys)."""
    if weight.computed or " and " in weight.weight:
        raise BackendError(f"A weight that is computed from {weight.weight} can't be traced.")
    cut = {key: (whole, seen) for key, whole, seen in weight.cut}
    sizes = weight.digits | {key: whole for key, (whole, _) in cut.items()}
    outs = [*(key for key in cut if key not in weight.digits), *(keys if keys is not None else (key for axis in columns for key, _ in weight.axes[axis]))]
    if any(key in cut for key in rows):
        raise BackendError(f"A part of the rows of {weight.weight} can't be traced.")
    order = [*rows, *outs]
    ordered = sorted(sizes)
    if set(order) != set(ordered):
        raise BackendError(f"{weight.weight} is used in a way that can't be traced.")
    high, wide = prod(sizes[key] for key in rows), prod(sizes[key] for key in outs)
    plain = (wide,) if keys is not None or not rows else (high, wide)
    axes = tuple(ordered.index(key) for key in order)
    take = _taken([(sizes[key], cut[key][1] if key in cut else None) for key in outs]) if cut else ()
    turned = axes != tuple(range(len(axes)))
    # Without a reshape or a transpose the array is as it is.
    return Weight(weight.weight, tuple(sizes[key] for key in ordered) if turned else (), axes if turned else (), shape or plain, take)


def _taken(digits: Sequence[tuple[int, tuple[int, ...] | None]]) -> tuple[int, ...]:
    places = [0]
    for size, seen in digits:
        places = [place * size + step for place in places for step in (range(size) if seen is None else seen)]
    return tuple(places)


def _sizes(letters: str, one: Value, other: Value) -> list[int]:
    inputs, out = letters.split("->")
    left, right = inputs.split(",")
    known = dict(zip(right, other.shape, strict=True)) | {letter: size for letter, size in zip(left, one.shape, strict=True) if size != 1}
    return [known.get(letter, 1) for letter in out]
