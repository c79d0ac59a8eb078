"""Finds layers in what weights do to data: a sum with a vector is a bias, and the steps of a normalisation are recognised by what enters them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NoReturn

import numpy as np

from unifreeze.plugin import BackendError, Sources, Unit, Weight

from .axes import Axes, Axis, Factor, axis, beside, factors_of, weight
from .values import Const, Data, Expr

Pending = tuple[tuple[str, Expr], ...]


@dataclass(slots=True)
class Recorder:
    """Collects units.

    Attributes:
        owners: The path of the layer that owns each weight, by the weight's path.
        units: The units found so far.
        raw: Which unit's output a value is that no bias was added to, by the value's number.
        read: The numbers of the values that something has read as they are.
        known: What values became by what weights did to them.
    """

    owners: Mapping[str, str]
    units: list[Unit] = field(default_factory=list)
    raw: dict[int, int] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    known: dict[tuple[int, str, Pending], Data] = field(default_factory=dict)
    bases: int = 0
    where: str = ""

    def fresh(self, axes: Axes, sources: Sources) -> Data:
        """A value that is told apart from all others."""
        self.bases += 1
        return Data(axes, sources, self.bases)

    def refuse(self, what: str, *more: str) -> NoReturn:
        """Raises, and says what led there."""
        last = f"after {self.units[-1].layer}" if self.units else "right after the input"
        raise BackendError("\n".join((f"{what} is an operation that unifreeze can't trace.", f"  {last}{f', in {self.where}' if self.where else ''}", *more)))

    def used(self, value: Data) -> Data:
        """The value as something reads it, with all that weights did to it made into units."""
        plain = self.settled(value)
        self.read.add(plain.base)
        return plain

    def settled(self, value: Data) -> Data:
        """The same, for what only moves axes."""
        if value.form == "x" and not value.pending:
            return value
        if value.form == "square" and not value.pending:
            return self.fresh(value.axes, value.sources)
        start, rest = replace(value, pending=()), value.pending
        if value.form != "x":
            start, rest = self._normalised(value)
        for taken in range(len(rest), 0, -1):
            if found := self.known.get((start.base, "", rest[:taken])):
                return self._chained(found, start.base, rest, taken)
        return self._chained(start, start.base, rest, 0)

    def _chained(self, value: Data, base: int, steps: Pending, taken: int) -> Data:
        while taken < len(steps):
            value, count = self._batch_norm(value, steps[taken:]) or self._bias(value, steps[taken:]) or self._unknown(steps[taken:])
            taken += count
            self.known[base, "", steps[:taken]] = value
        return value

    def _unknown(self, steps: Pending) -> NoReturn:
        operation, expr = steps[0]
        self.refuse(f"{operation} with {', '.join(leaf.path for leaf in expr.leaves())}", "  it is no bias, and the steps around it are no normalisation")

    def unit(self, kind: str, value: Data, shape: tuple[int, ...], weights: dict[str, Weight], axes: Axes, **settings: object) -> Data:
        """Adds a unit, and returns what comes out of it."""
        sources = self.used(value).sources
        owner = self.owners[next(iter(weights.values())).path]
        self.units.append(Unit(owner, kind, shape, sources, weights, settings))
        out = self.fresh(axes, frozenset({(len(self.units) - 1, 0, ())}))
        self.raw[out.base] = len(self.units) - 1
        return out

    # What enters element by element.

    def _vector(self, expr: Expr, axes: Axes) -> Weight | None:
        """The weight, if this is one that has a value for each channel and varies with nothing else."""
        leaf = _without_debiasing(expr)
        if leaf.op or not leaf.path or len(leaf.axes) != len(axes):
            return None
        found: list[tuple[Factor, Factor]] = []
        for ours, theirs in zip(axes, leaf.axes, strict=True):
            pairs = beside(ours, theirs) if theirs else []
            if pairs is None:
                return None
            found.extend((a, b) for a, b in pairs if b.name)
        found.sort(key=lambda pair: -pair[0].step)
        if [a for a, _ in found if a.name != "c"] or prod(a.size for a, _ in found) != width(axes):
            return None
        return weight(leaf.path, leaf.shape, [[b for _, b in found]])

    def _bias(self, value: Data, steps: Pending) -> tuple[Data, int] | None:
        place, vector = self.raw.get(value.base, -1), self._vector(steps[0][1], value.axes)
        if steps[0][0] != "add" or vector is None or place < 0 or value.base in self.read or "bias" in self.units[place].weights:
            return None
        self.units[place] = replace(self.units[place], weights={**self.units[place].weights, "bias": vector})
        return self.fresh(value.axes, value.sources), 1

    def _batch_norm(self, value: Data, steps: Pending) -> tuple[Data, int] | None:
        """``(x - mean) / sqrt(variance + epsilon) * scale + bias``, the factors in any order."""
        if steps[0][0] != "sub":
            return None
        factors: list[_Gain] = []
        taken = 1
        while taken < len(steps) and steps[taken][0] in {"mul", "div"}:
            factors.extend(_gains(steps[taken][1], over=steps[taken][0] == "div"))
            taken += 1
        normal = [one for one in factors if one.root and one.over]
        if len(normal) != 1 or len(factors) > 2 or any(one.over or one.root for one in factors if one is not normal[0]):
            return None
        given = {"scale": next((one.expr for one in factors if one is not normal[0]), None), "mean": steps[0][1], "variance": normal[0].expr}
        if taken < len(steps) and steps[taken][0] == "add":
            given["bias"] = steps[taken][1]
            taken += 1
        found = {role: self._vector(expr, value.axes) for role, expr in given.items() if expr is not None}
        if None in found.values():
            return None
        weights = {role: found[role] for role in ("scale", "bias", "mean", "variance") if role in found}
        return self.unit("batch_norm", value, (width(value.axes),), weights, value.axes, epsilon=normal[0].epsilon), taken

    def _normalised(self, value: Data) -> tuple[Data, Pending]:
        """A normalisation by the data's own statistics, with the scale and the bias that follow it."""
        if value.form not in {"layer_norm", "rms_norm"}:
            self.refuse(f"A {value.form} over the channels", "  it is no step of a softmax or a normalisation that is known")
        base, steps = replace(value, form="x", pending=(), number=0.0), value.pending
        weights: dict[str, Weight] = {}
        for role, operation in (("scale", "mul"), ("bias", "add")):
            vector = self._vector(steps[0][1], value.axes) if steps and steps[0][0] == operation else None
            if vector:
                weights[role], steps = vector, steps[1:]
        key = (value.base, value.form, value.pending[: len(value.pending) - len(steps)])
        if key not in self.known:
            if not weights:
                self.refuse(f"A {value.form} without weights")
            self.known[key] = self.unit(value.form, base, (width(value.axes),), weights, value.axes, epsilon=value.number)
        return self.known[key], steps

    # What contracts channels.

    def convolution(self, value: Data, kernel: Expr, params: Mapping[str, Any], shape: tuple[int, ...]) -> Data:
        """A convolution, with its axes wherever they lie."""
        numbers, groups = params["dimension_numbers"], params["feature_group_count"]
        if set(params["lhs_dilation"]) - {1} or params["batch_group_count"] != 1:
            self.refuse("A transposed convolution")
        leaf = self._kernel(kernel, "convolution")
        (batch, channel, *spatial), (outs, ins, *window), (new_batch, new_channel, *new) = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        self._need_channels(value, value.axes[channel], "convolution")
        names = [self._position(value.axes[place], str(number)) for number, place in enumerate(spatial)]
        order = sorted(range(len(names)), key=names.__getitem__)
        sizes = [prod(one.size for one in leaf.axes[window[number]]) for number in order]
        ways, out, depth = (list(leaf.axes[place]) for place in (ins, outs, ins))
        count, inner = prod(one.size for one in out), prod(one.size for one in depth)
        windows: list[Sequence[Factor]] = [leaf.axes[window[number]] for number in order]
        kind, final, groups_of = "conv", (*sizes, inner, count), [*windows, ways, out]
        if groups > 1 and inner == 1 and groups == width(value.axes):
            final = (*sizes, groups, count // groups)
            kind, groups_of = "depthwise_conv", [*windows, *_cut(out, groups)]
        elif groups == 1 and prod(sizes) == 1:
            kind, final, groups_of = "dense", (inner, count), [ways, out]
        elif groups > 1:
            final = (*final, groups)
        array = weight(leaf.path, leaf.shape, groups_of)
        if array is None:
            self.refuse(f"A convolution with a part of {leaf.path}")
        axes: list[Axis] = [()] * len(shape)
        axes[new_batch], axes[new_channel] = value.axes[batch], axis("c", count)
        for place, name in zip(new, names, strict=True):
            axes[place] = axis(name, shape[place])
        settings = {"stride": params["window_strides"], "padding": _padding(params["padding"]), "dilation": params["rhs_dilation"]}
        return self.unit(kind, value, final, {"kernel": array}, tuple(axes), **{name: _ordered(given, order) for name, given in settings.items()})

    def dense(self, value: Data, kernel: Expr, dims: tuple[Sequence[int], Sequence[int]], *, first: bool) -> Data:
        """A matrix product; ``dims`` are the contracted axes of the value and of the kernel, and ``first`` says that the value is the first operand."""
        leaf = self._kernel(kernel, "matrix product")
        pairs: list[tuple[Factor, Factor]] = []
        for ours, theirs in zip(*dims, strict=True):
            found = beside(value.axes[ours], leaf.axes[theirs])
            pairs += found if found is not None else self.refuse(f"A matrix product with {leaf.path}")
        pairs.sort(key=lambda pair: (pair[0].name, -pair[0].step))
        kept = tuple(one for place, one in enumerate(value.axes) if place not in dims[0])
        free = tuple(one for place, one in enumerate(leaf.axes) if place not in dims[1])
        self._need_contractable(kept, [a for a, _ in pairs], leaf.path)
        array = weight(leaf.path, leaf.shape, [[b for _, b in pairs], [one for whole in free for one in whole]])
        if array is None:
            self.refuse(f"A matrix product with a part of {leaf.path}")
        new = channels(free)
        axes = (*kept, *new) if first else (*new, *kept)
        if pairs and pairs[0][0].name == "o":
            return self.unit("embedding", value, array.shape, {"embedding": array}, axes)
        return self.unit("dense", value, array.shape, {"kernel": array}, axes)

    def _need_contractable(self, kept: Axes, summed: list[Factor], path: str) -> None:
        names = {one.name for one in summed}
        if names == {"o"}:
            return
        positions = {one.name for one in factors_of(kept)} & names
        if factors_of(kept, "c") or not names <= {"0", "1", "2", "c"} or positions:
            self.refuse(f"A matrix product of {path} with other axes than all channels, or all that was flattened,")

    def embedding(self, value: Data, table: Expr, axes: Axes, columns: Sequence[int]) -> Data:
        """Looks rows of a table up; ``columns`` are the places of the output's axes that come from the table."""
        leaf = self._kernel(table, "look-up")
        new = channels(leaf.axes[1:])
        whole = list(axes)
        for place, one in zip(columns, new, strict=True):
            whole[place] = one
        array = weight(leaf.path, leaf.shape, [leaf.axes[0], [one for part in leaf.axes[1:] for one in part]])
        if array is None:
            self.refuse(f"A look-up in a part of {leaf.path}")
        return self.unit("embedding", value, array.shape, {"embedding": array}, tuple(whole))

    def _kernel(self, expr: Expr, what: str) -> Expr:
        if expr.op:
            paths = ", ".join(dict.fromkeys(leaf.path for leaf in expr.leaves()))
            self.refuse(f"A {what} with what is computed ({expr.op}) of {paths or 'no weight'}", "  its weights are no array of the model")
        return expr

    def _need_channels(self, value: Data, one: Axis, what: str) -> None:
        if factors_of([one]) != factors_of(value.axes, "c") or any(factor.name != "c" for factor in one):
            self.refuse(f"A {what} over an axis that is not the channels")

    def _position(self, one: Axis, otherwise: str) -> str:
        if len(one) > 1 or any(factor.name not in {"0", "1", "2"} for factor in one):
            self.refuse("A convolution along an axis that is no position")
        return one[0].name if one else otherwise


@dataclass(frozen=True, slots=True)
class _Gain:
    """A factor: of a weight, or of the root of a weight and epsilon; ``over``, if it divides."""

    expr: Expr
    over: bool
    root: bool = False
    epsilon: float = 0.0


def _gains(expr: Expr, *, over: bool) -> list[_Gain]:
    """Takes a product of weights apart."""
    first, second = (*expr.args, Const(), Const())[:2]
    if expr.op in {"mul", "div"} and isinstance(first, Expr) and isinstance(second, Expr) and _without_debiasing(expr).op:
        return [*_gains(first, over=over), *_gains(second, over=over ^ (expr.op == "div"))]
    if expr.op in {"rsqrt", "sqrt"} and isinstance(first, Expr) and first.op == "add":
        inner = [one for one in first.args if isinstance(one, Expr)]
        epsilons = [one.value for one in first.args if isinstance(one, Const) and one.value is not None]
        if len(inner) == len(epsilons) == 1:
            return [_Gain(inner[0], over ^ (expr.op == "rsqrt"), root=True, epsilon=written(epsilons[0]))]
    return [_Gain(expr, over)]


def _without_debiasing(expr: Expr) -> Expr:
    """A running mean may be stored as it accumulates; it is then divided by what a counter says that is missing from it."""
    if expr.op == "div" and isinstance(expr.args[0], Expr) and isinstance(expr.args[1], Expr) and all(leaf.shape == () for leaf in expr.args[1].leaves()):
        return _without_debiasing(expr.args[0])
    return expr


def written(value: float) -> float:
    """A number as it was written before it was rounded to single precision."""
    return float(str(np.float32(value)))


def width(axes: Axes) -> int:
    """How many channels there are."""
    return prod(one.size for one in factors_of(axes, "c"))


def channels(axes: Axes) -> Axes:
    """Axes of the same sizes that together are the channels."""
    sizes = [prod(one.size for one in whole) for whole in axes]
    return tuple(axis("c", size, prod(sizes[place + 1 :])) for place, size in enumerate(sizes))


def _cut(factors: list[Factor], groups: int) -> list[list[Factor]]:
    """The factors of an axis in two groups, of which the first has so many values."""
    pairs = beside(tuple(factors), (*axis("a", groups, 1), *axis("b", prod(one.size for one in factors) // groups, 1)))
    return [[ours for ours, theirs in pairs or [] if theirs.name == name] for name in "ab"]


def _padding(padding: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    return tuple(low if low == high else (low, high) for low, high in padding)


def _ordered(given: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(given[number] for number in order)
