"""What is known of a tensor while a model is traced: where its content comes from, and along which of its axes. Pure functions, the same for all frameworks.

An axis is a row of *digits*, outermost first, each with a key and a size: a reshape splits digits and regroups them, a transpose permutes axes, and
nothing is forgotten. Digits of size one are left out, and so is the batch, which is traced as one. The keys of a value sort in the order that all
frameworks share: the positions in space first, the channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from zlib import crc32

from .errors import BackendError

Key = tuple[int, ...]
Digit = tuple[Key, int]
Axis = tuple[Digit, ...]
Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """One place that a value comes from.

    Attributes:
        unit: The unit, or below zero an input of the model.
        tags: The merges on the way, in words that all frameworks share.
        channel: The digits along which the unit's channels lie, outermost first; ``None`` once they have been summed over.
        index: Which of the unit's channels stands at each place along these digits, -1 where none does; empty for all of them in order.
        part: Which of the unit's channels are meant at all; empty for all. ``index`` counts within the part.
        spans: The digits along which the unit's output varies.
    """

    unit: int
    tags: tuple[str, ...] = ()
    channel: tuple[Key, ...] | None = ()
    index: Numbers = ()
    part: Numbers = ()
    spans: frozenset[Key] = frozenset()

    def tagged(self, word: str) -> Flow:
        """The flow after one more merge; the same merge again adds nothing."""
        return self if self.tags[-1:] == (word,) else replace(self, tags=(*self.tags, word))


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor: data (it has flows), a parameter or a view of one (it has a path), or a constant (it has neither).

    Attributes:
        axes: The digits of each axis.
        flows: Where it comes from.
        weight: The path of the parameter.
        cut: Of a parameter's view, the digits of which only a part is seen: the whole size, and which.
        computed: Of a parameter, that it has gone through more than views and casts.
    """

    axes: tuple[Axis, ...] = ()
    flows: frozenset[Flow] = frozenset()
    weight: str = ""
    cut: tuple[tuple[Key, int, Numbers], ...] = ()
    computed: bool = False

    @property
    def shape(self) -> Numbers:
        """The sizes of the axes."""
        return tuple(prod(size for _, size in axis) for axis in self.axes)

    @property
    def digits(self) -> dict[Key, int]:
        """The size of every digit."""
        return {key: size for axis in self.axes for key, size in axis}


def fresh(unit: int, shape: Sequence[int], channel: int | None = -1) -> Value:
    """The output of a unit, or an input of the model, whose channels lie along one of the axes; without one, along none."""
    rank = len(shape)
    last = None if channel is None else channel % rank
    keys = {axis: (rank if axis == last else axis,) for axis in range(rank)}
    axes = tuple(((keys[axis], size),) if size != 1 else () for axis, size in enumerate(shape))
    found = Value(axes)
    own = () if last is None else tuple(key for key, _ in axes[last])
    return replace(found, flows=frozenset({Flow(unit, channel=own, spans=frozenset(found.digits))}))


def parameter(path: str, shape: Sequence[int]) -> Value:
    """A parameter as the model holds it."""
    return Value(tuple((((axis,), size),) if size != 1 else () for axis, size in enumerate(shape)), weight=path)


def constant(shape: Sequence[int]) -> Value:
    """A tensor that comes from no input and no parameter."""
    return replace(parameter("", shape), weight="")


def transposed(value: Value, order: Sequence[int]) -> Value:
    """The value with its axes in another order."""
    return replace(value, axes=tuple(value.axes[axis] for axis in order))


def reshaped(value: Value, shape: Sequence[int]) -> Value:
    """The value in another shape; rows are counted as every framework does, the last axis fastest."""
    if value.shape == tuple(shape):
        return value
    runs = [digit for axis in value.axes for digit in axis]
    value = _fused(replace(value, axes=(tuple(runs),)), 0)
    cuts = products(shape)
    value = split(value, 0, cuts)
    axes, rest = [], list(value.axes[0])
    for size in shape:
        taken: list[Digit] = []
        while prod(n for _, n in taken) != size:
            taken.append(rest.pop(0))
        axes.append(tuple(taken))
    return replace(value, axes=tuple(axes))


def sliced(value: Value, axis: int, start: int, step: int, count: int) -> Value:
    """Every ``step``-th of an axis from ``start`` on."""
    if (start, step, count) == (0, 1, value.shape[axis]):
        return value
    value = _fused(value, axis)
    if len(value.axes[axis]) != 1:
        return _sliced_outside(value, axis, start, step, count)
    ((key, size),) = value.axes[axis]
    places = tuple(start + step * number for number in range(count))
    rank = sorted(one[0][0] for one in value.axes if one).index(key)
    sizes = value.digits
    flows = [_sliced_flow(flow, key, places, sizes, f"{rank}[{start}:{step}:{count}]") for flow in value.flows]
    cut = value.cut
    if value.weight:
        known = {one: (whole, seen) for one, whole, seen in cut}
        whole, seen = known.get(key, (size, tuple(range(size))))
        cut = (*(one for one in cut if one[0] != key), (key, whole, tuple(seen[place] for place in places)))
    # The digit keeps its place even where one is left of it: a parameter must know which.
    kept = ((key, count),) if count != 1 or value.weight else ()
    return replace(_axis(value, axis, kept), flows=frozenset(flow for flow in flows if flow), cut=cut)


def _sliced_outside(value: Value, axis: int, start: int, step: int, count: int) -> Value:
    """A slice of an axis that holds several axes of before: whole steps of the outermost, or what lies inside one of them."""
    outer, *inner = value.axes[axis]
    width = prod(size for _, size in inner)
    opened = replace(value, axes=(*value.axes[:axis], (outer,), tuple(inner), *value.axes[axis + 1 :]))
    if step == 1 and not value.weight and start % width == count % width == 0:
        opened = sliced(opened, axis, start // width, 1, count // width)
    elif step == 1 and not value.weight and start // width == (start + count - 1) // width:
        opened = sliced(sliced(opened, axis, start // width, 1, 1), axis + 1, start % width, 1, count)
    else:
        raise BackendError(f"A slice of an axis of {value.shape[axis]} that holds several axes of before can't be traced.")
    return replace(opened, axes=(*opened.axes[:axis], opened.axes[axis] + opened.axes[axis + 1], *opened.axes[axis + 2 :]))


def dropped(value: Value, axis: int) -> Value:
    """The value without an axis of size one."""
    return replace(value, axes=(*value.axes[:axis], *value.axes[axis + 1 :]))


def inserted(value: Value, axis: int) -> Value:
    """The value with one more axis of size one."""
    return replace(value, axes=(*value.axes[:axis], (), *value.axes[axis:]))


def _sliced_flow(flow: Flow, key: Key, places: Numbers, sizes: Mapping[Key, int], tag: str) -> Flow | None:
    if flow.channel is None or key not in flow.channel:
        return flow.tagged(tag) if key in flow.spans else flow
    widths = [sizes[one] for one in flow.channel]
    position = flow.channel.index(key)
    index = flow.index or tuple(range(prod(widths)))
    inner = prod(widths[position + 1 :])
    size = widths[position]
    by_row = [index[row * size * inner : (row + 1) * size * inner] for row in range(prod(widths[:position]))]
    found = tuple(number for row in by_row for place in places for number in row[place * inner : (place + 1) * inner])
    channel = flow.channel if len(places) != 1 else tuple(one for one in flow.channel if one != key)
    return _narrowed(replace(flow, channel=channel, spans=flow.spans - ({key} if len(places) == 1 else frozenset()), index=found))


def _narrowed(flow: Flow) -> Flow | None:
    """The flow of what its index names: a part of the unit, in the order in which it is seen."""
    seen = tuple(number for number in flow.index if number >= 0)
    if not seen or len(set(seen)) != len(seen):
        return flow if seen else None
    part = tuple(flow.part[number] for number in seen) if flow.part else seen
    if len(seen) == len(flow.index):
        return replace(flow, part=part, index=())
    number = iter(range(len(seen)))
    return replace(flow, part=part, index=tuple(next(number) if one >= 0 else -1 for one in flow.index))


def joined(values: Sequence[Value], axis: int) -> Value:
    """A concatenation of data along an axis. Where the axis holds channels the place is remembered, else it is a merge."""
    widths = [value.shape[axis] for value in values]
    total, offset = sum(widths), 0
    whole: Value | None = None
    for value, width in zip(values, widths, strict=True):
        one = _extended(_fused(value, axis), axis, offset, total)
        whole = one if whole is None else _union(whole, one)
        offset += width
    assert whole is not None
    return whole


def padded(value: Value, axis: int, before: int, after: int) -> Value:
    """The value with constants on both sides of an axis of channels."""
    return _extended(_fused(value, axis), axis, before, before + value.shape[axis] + after)


def _extended(value: Value, axis: int, offset: int, total: int) -> Value:
    if len(value.axes[axis]) > 1:
        raise BackendError(f"A concatenation along an axis of {value.shape[axis]} that holds several axes of before can't be traced.")
    width = value.shape[axis]
    if total == width:
        return value
    key = value.axes[axis][0][0] if value.axes[axis] else _free((axis,), value)
    sizes = value.digits
    flows = frozenset(_extended_flow(flow, key, sizes, (offset, width, total), single=not value.axes[axis]) for flow in value.flows)
    return replace(_axis(value, axis, ((key, total),)), flows=flows)


def _extended_flow(flow: Flow, key: Key, sizes: Mapping[Key, int], place: tuple[int, int, int], *, single: bool) -> Flow:
    offset, width, total = place
    flow = replace(flow, spans=flow.spans | {key})
    if single and flow.channel == ():
        # One channel: the axis of size one was its.
        return replace(flow, channel=(key,), index=tuple(0 if at == offset else -1 for at in range(total)))
    if flow.channel is None or key not in flow.channel:
        return replace(flow, tags=(*flow.tags, f"axis{offset}"))
    widths = [sizes[one] for one in flow.channel]
    position = flow.channel.index(key)
    inner = prod(widths[position + 1 :])
    index = flow.index or tuple(range(prod(widths)))
    rows = [index[row * width * inner : (row + 1) * width * inner] for row in range(prod(widths[:position]))]
    before, after = (-1,) * (offset * inner), (-1,) * ((total - offset - width) * inner)
    return replace(flow, index=tuple(number for row in rows for number in (*before, *row, *after)))


#: How the two sides of an operation are tagged where order matters.
_WORDS = {"-": ("+", "-"), "/": ("*", "/")}


def merged_values(word: str, *values: Value) -> Value:
    """An elementwise merge of data, broadcast as every framework does. What comes from the same places, as in ``x * sigmoid(x)``, is an activation."""
    found = values[0]
    for value in values[1:]:
        found = _merged(word, found, value)
    return found


def _merged(word: str, one: Value, other: Value) -> Value:
    rank = max(len(one.axes), len(other.axes))
    one, other = (replace(value, axes=((),) * (rank - len(value.axes)) + value.axes) for value in (one, other))
    if not one.flows or not other.flows:
        return _union(other, one) if other.flows else _union(one, other)
    if _places(one) == _places(other):
        # The one that still has its channels and its positions goes on, not its mean or maximum.
        first, second = (one, other) if _kept(one) >= _kept(other) else (other, one)
        return _union(first, replace(second, flows=frozenset()))
    words = _WORDS.get(word) or ((word, word) if word in {"+", "*", "max", "min"} else (f"{word} 1", f"{word} 2"))
    tagged = (replace(value, flows=frozenset(flow.tagged(tag) for flow in value.flows)) for value, tag in zip((one, other), words, strict=True))
    return _union(*sorted(tagged, key=_seniority))


def _kept(value: Value) -> tuple[bool, int]:
    return all(flow.channel is not None for flow in value.flows), sum(len(flow.spans) for flow in value.flows)


def _places(value: Value) -> frozenset[tuple[int, Numbers, tuple[str, ...]]]:
    return frozenset((flow.unit, flow.part, flow.tags) for flow in value.flows)


def _seniority(value: Value) -> tuple[int, int]:
    """Whose digits go on: those of the larger value, for a table that is added to it says nothing of the rest; else of the older one."""
    return -prod(value.shape), max((flow.unit for flow in value.flows), default=-9)


def _union(one: Value, other: Value) -> Value:
    """The flows of both, on the digits of the first."""
    one, other = _aligned(one, other)
    return replace(one, flows=one.flows | other.flows, weight="", cut=())


def _aligned(one: Value, other: Value) -> tuple[Value, Value]:
    """Both, with digits of the same sizes and keys along each axis; where one has size one, it takes the digits of the other."""
    other = _apart(other, one)
    for axis in range(len(one.axes)):
        if one.axes[axis] and other.axes[axis]:
            one, other = _matched(one, axis, other, axis)
        elif one.axes[axis] or other.axes[axis]:
            one, other = (_axis(value, axis, one.axes[axis] or other.axes[axis]) for value in (one, other))
    return one, other


def _matched(one: Value, axis: int, other: Value, place: int) -> tuple[Value, Value]:
    """Both, with the digits of an axis of the second brought to those of an axis of the first."""
    if one.shape[axis] != other.shape[place]:
        raise BackendError(f"Axes of {one.shape[axis]} and {other.shape[place]} do not go together.")
    cuts = products(size for _, size in one.axes[axis]) | products(size for _, size in other.axes[place])
    one, other = split(one, axis, cuts), split(other, place, cuts)
    names = {old: new for (new, _), (old, _) in zip(one.axes[axis], other.axes[place], strict=True)}
    return one, renamed(other, names)


def _apart(value: Value, other: Value) -> Value:
    """The value with keys that the other does not have."""
    taken = set(other.digits) | {key for flow in other.flows for key in flow.spans}
    names: dict[Key, Key] = {}
    for key in sorted(value.digits):
        new = key
        while new in taken:
            new = (*new, 99)
        taken.add(new)
        names[key] = new
    return renamed(value, names)


def _free(key: Key, value: Value) -> Key:
    taken = set(value.digits)
    while key in taken:
        key = (*key, 99)
    return key


def renamed(value: Value, names: Mapping[Key, Key]) -> Value:
    """The value with other keys."""
    if all(old == new for old, new in names.items()):
        return value

    def flow_of(flow: Flow) -> Flow:
        channel = None if flow.channel is None else tuple(names.get(key, key) for key in flow.channel)
        return replace(flow, channel=channel, spans=frozenset(names.get(key, key) for key in flow.spans))

    axes = tuple(tuple((names.get(key, key), size) for key, size in axis) for axis in value.axes)
    return replace(value, axes=axes, flows=frozenset(map(flow_of, value.flows)))


def reduced(value: Value, axes: Iterable[int], *, keep: bool) -> Value:
    """The value after a sum, a mean or a maximum over axes."""
    gone = {axis % len(value.axes) for axis in axes}
    lost = {key for axis in gone for key, _ in value.axes[axis]}
    left = tuple(() if axis in gone else digits for axis, digits in enumerate(value.axes) if keep or axis not in gone)
    return replace(value, axes=left, flows=frozenset(_without(flow, lost) for flow in value.flows))


def _without(flow: Flow, lost: set[Key]) -> Flow:
    channel = None if flow.channel is None or lost & set(flow.channel) else flow.channel
    return replace(flow, channel=channel, index=flow.index if channel is not None else (), spans=flow.spans - lost)


def resized(value: Value, shape: Sequence[int]) -> Value:
    """The value after a pool, a pad or a crop: other sizes along axes that hold no channels."""
    for axis, size in enumerate(shape):
        if size != value.shape[axis]:
            lost = {key for key, _ in value.axes[axis]}
            if any(flow.channel and lost & set(flow.channel) for flow in value.flows):
                raise BackendError(f"An axis of {value.shape[axis]} channels becomes one of {size} in a way that can't be traced.")
            key = value.axes[axis][0][0] if value.axes[axis] else _free((axis,), value)
            flows = frozenset(replace(flow, spans=(flow.spans - lost) | ({key} if size != 1 else set())) for flow in value.flows)
            value = replace(_axis(value, axis, ((key, size),) if size != 1 else ()), flows=flows)
    return value


def broadcast(value: Value, shape: Sequence[int]) -> Value:
    """The value repeated along axes of size one, aligned to the right."""
    value = replace(value, axes=((),) * (len(shape) - len(value.axes)) + value.axes)
    for axis, size in enumerate(shape):
        if value.shape[axis] != size:
            value = _axis(value, axis, ((_free((axis,), value), size),))
    return value


def contracted(letters: str, one: Value, other: Value) -> Value:
    """A product of two data values, as ``einsum`` writes it: ``"bqd,bkd->bqk"``.

    What is summed over is noted on either side: the unit's own channels, with their size and stride, its own positions, or positions of the other side.
    """
    inputs, out = letters.split("->")
    left, right = inputs.split(",")
    other = _apart(other, one)
    for letter in left:
        if letter in right:
            a, b = left.index(letter), right.index(letter)
            if one.axes[a] and other.axes[b]:
                one, other = _matched(one, a, other, b)
    summed = {letter for letter in (left + right) if letter not in out}
    flows = set()
    for value, own in ((one, left), (other, right)):
        lost = [key for letter, axis in zip(own, value.axes, strict=True) if letter in summed for key, _ in axis]
        flows |= {_without(replace(flow, tags=(*flow.tags, _summed(flow, lost, value.digits))), set(lost)) for flow in value.flows}
    found = {letter: axis for own, value in ((right, other), (left, one)) for letter, axis in zip(own, value.axes, strict=True) if axis}
    return Value(tuple(found.get(letter, ()) for letter in out), frozenset(flows))


def _summed(flow: Flow, lost: Sequence[Key], sizes: Mapping[Key, int]) -> str:
    if flow.channel is not None and set(flow.channel) & set(lost):
        return "@" + strides([key for key in flow.channel if key in lost], flow.channel, sizes)
    return "@" if flow.spans & set(lost) else "@other"


def strides(keys: Sequence[Key], channel: Sequence[Key], sizes: Mapping[Key, int]) -> str:
    """Some of the digits of a channel in words: the size of each and how far apart its steps are; ``64:1`` are the inner 64."""
    words: list[tuple[int, int]] = []
    for key in keys:
        stride = prod(sizes[one] for one in channel[channel.index(key) + 1 :])
        if words and words[-1][1] == stride * sizes[key]:
            words[-1] = (words[-1][0] * sizes[key], stride)
        else:
            words.append((sizes[key], stride))
    return ",".join(f"{size}:{stride}" for size, stride in words)


def read(value: Value, axes: Sequence[int]) -> tuple[frozenset[Flow], tuple[Key, ...]]:
    """What a unit reads that takes its channels along these axes, and the digits of these axes in the order that all frameworks share."""
    seen = [key for axis in axes for key, _ in value.axes[axis]]
    leading = min((flow for flow in value.flows if flow.channel and set(flow.channel) <= set(seen)), key=_order, default=None)
    channel = tuple(leading.channel or ()) if leading else ()
    order = (*sorted(key for key in seen if key not in channel), *channel)
    return frozenset(_read(flow, order, value.digits) for flow in value.flows), order


def own_axes(value: Value) -> list[int]:
    """The axes along which the channels of its sources lie."""
    keys = {key for flow in value.flows for key in flow.channel or ()}
    return [axis for axis, digits in enumerate(value.axes) if keys & {key for key, _ in digits}]


def _order(flow: Flow) -> tuple[int, int, tuple[Key, ...]]:
    """What tells of the most digits leads, whenever it was computed: a table of biases of attention knows the heads alone. Else the oldest."""
    channel = flow.channel or ()
    return -len(channel), flow.unit, channel


def _read(flow: Flow, order: tuple[Key, ...], sizes: Mapping[Key, int]) -> Flow:
    plain = replace(flow, channel=() if flow.channel is not None else None, spans=frozenset())
    if flow.channel is None:
        return plain
    inside = [key for key in flow.channel if key in order]
    if len(inside) < len(flow.channel):
        return replace(plain, tags=(*flow.tags, f"per {strides(inside, flow.channel, sizes)}" if inside else "across"))
    wanted = [key for key in order if key in flow.channel]
    return plain if wanted == list(flow.channel) else replace(plain, index=_permuted(flow, wanted, sizes))


def _permuted(flow: Flow, wanted: Sequence[Key], sizes: Mapping[Key, int]) -> Numbers:
    channel = flow.channel or ()
    stride = {key: prod(sizes[one] for one in channel[channel.index(key) + 1 :]) for key in channel}
    places = [0]
    for key in wanted:
        places = [place + step * stride[key] for place in places for step in range(sizes[key])]
    return tuple(flow.index[place] if flow.index else place for place in places)


def digest(numbers: Sequence[int]) -> str:
    """A short word for a row of numbers."""
    return f"#{crc32(','.join(map(str, numbers)).encode()):08x}"


def _axis(value: Value, axis: int, digits: Axis) -> Value:
    return replace(value, axes=(*value.axes[:axis], digits, *value.axes[axis + 1 :]))


def products(sizes: Iterable[int]) -> set[int]:
    """The products of the first sizes, from none to all."""
    found, product = {1}, 1
    for size in sizes:
        product *= size
        found.add(product)
    return found


def split(value: Value, axis: int, cuts: Iterable[int]) -> Value:
    """The value with an axis cut at these products of sizes, counted from the outside."""
    pieces: dict[Key, tuple[Digit, ...]] = {}
    before = 1
    for key, size in value.axes[axis]:
        points = [before, *sorted(cut for cut in cuts if before < cut < before * size), before * size]
        if any(b % a for a, b in pairwise(points)):
            raise BackendError(f"An axis of {value.shape[axis]} is regrouped in a way that mixes axes, which can't be traced.")
        if len(points) > 2:
            pieces[key] = tuple(((*key, number), b // a) for number, (a, b) in enumerate(pairwise(points)))
        before *= size
    return _replaced(value, pieces) if pieces else value


def _replaced(value: Value, pieces: Mapping[Key, tuple[Digit, ...]]) -> Value:
    if any(key in pieces for key, _, _ in value.cut):
        raise BackendError(f"A slice of {value.weight} is reshaped in a way that can't be traced.")
    axes = tuple(tuple(new for digit in axis for new in pieces.get(digit[0], (digit,))) for axis in value.axes)

    def pieces_of(keys: Iterable[Key]) -> tuple[Key, ...]:
        return tuple(new for key in keys for new in ([one for one, _ in pieces[key]] if key in pieces else [key]))

    def flow_of(flow: Flow) -> Flow:
        return replace(flow, channel=None if flow.channel is None else pieces_of(flow.channel), spans=frozenset(pieces_of(flow.spans)))

    return replace(value, axes=axes, flows=frozenset(map(flow_of, value.flows)))


def _fused(value: Value, axis: int) -> Value:
    """The value with neighbouring digits of an axis made one where nothing is lost by it."""
    for place in range(len(value.axes[axis]) - 1):
        (first, n), (second, m) = value.axes[axis][place : place + 2]
        if _neighbours(value, first, second):
            axes = (*value.axes[axis][:place], (first, n * m), *value.axes[axis][place + 2 :])
            flows = frozenset(map(_forget(second), value.flows))
            return _fused(replace(_axis(value, axis, axes), flows=flows), axis)
    return value


def _forget(key: Key) -> Callable[[Flow], Flow]:
    def forget(flow: Flow) -> Flow:
        channel = None if flow.channel is None else tuple(one for one in flow.channel if one != key)
        return replace(flow, channel=channel, spans=flow.spans - {key})

    return forget


def _neighbours(value: Value, first: Key, second: Key) -> bool:
    everything = sorted(value.digits)
    in_order = everything.index(second) - everything.index(first) == 1
    if value.weight:
        return in_order and not any(key in (first, second) for key, _, _ in value.cut)
    return all(_beside(flow, first, second, in_order=in_order) for flow in value.flows) and (bool(value.flows) or in_order)


def _beside(flow: Flow, first: Key, second: Key, *, in_order: bool) -> bool:
    channel = flow.channel or ()
    if first in channel and second in channel:
        return channel.index(second) - channel.index(first) == 1
    return first not in channel and second not in channel and in_order and (first in flow.spans) == (second in flow.spans)
