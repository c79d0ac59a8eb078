"""Finds layers in what weights do to data element by element: the steps of a normalisation are recognised by what enters them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np

from unifreeze.plugin import BackendError, Tracing, flow

from .values import COMMUTATIVE, FORMS, OPEN, WORDS, Const, Data, Expr

Value = Const | Expr | Data
Pending = tuple[tuple[str, Expr], ...]


@dataclass(slots=True)
class Scribe:
    """Writes units down, and knows which value is computed of which.

    Attributes:
        tracing: Where they are written to.
        known: What values became by what weights did to them.
        where: The module that computes now, if the framework says so.
    """

    tracing: Tracing
    known: dict[tuple[int, Pending], flow.Value] = field(default_factory=dict)
    bases: int = 0
    where: str = ""

    def data(self, value: flow.Value) -> Data:
        """A value that is told apart from all others."""
        self.bases += 1
        return Data(value, self.bases)

    def refuse(self, what: str, *facts: str) -> NoReturn:
        """Raises, and says what led there."""
        first, *rest = str(self.tracing.refusal(what)).split("\n")
        raise BackendError("\n".join((first, *([f"  in {self.where}"] if self.where else []), *facts, *rest)))

    def value(self, one: Value) -> flow.Value:
        """A value as the language of tracing has it, with all that weights did to it made into units."""
        if isinstance(one, Const):
            return flow.constant(one.shape)
        if isinstance(one, Expr):
            return one.computed
        if one.form == "one hot":
            self.refuse("What is one-hot and meets no table")
        return self._settled(one) if one.pending or one.form == "normal" else one.value

    def broadcast(self, value: flow.Value, shape: Sequence[int]) -> flow.Value:
        """A value at its full shape, where a jaxpr leaves repeated axes unsaid."""
        return value if value.shape == tuple(shape) or value.weight else flow.broadcast(value, shape)

    def full(self, one: Value, shape: Sequence[int]) -> flow.Value:
        """The same, of a weight, too, which a repetition makes data."""
        value = self.value(one)
        return value if value.shape == tuple(shape) else self.tracing.broadcast(value, shape)

    def settled(self, one: Data) -> Data:
        """The same, as data that nothing is pending for."""
        return self.data(self.value(one)) if one.pending else one

    def _settled(self, one: Data) -> flow.Value:
        taken = max((count for count in range(len(one.pending) + 1) if (one.base, one.pending[:count]) in self.known), default=-1)
        found = self.known[one.base, one.pending[:taken]] if taken >= 0 else one.value
        if one.form != "x" and taken < 0:
            found, taken = self._normalised(one)
        taken = max(taken, 0)
        while taken < len(one.pending):
            count = 1
            if normal := _normalisation(one.pending[taken:], found):
                found, count = self._batch_norm(found, *normal), normal[2]
            else:
                word, expr = one.pending[taken]
                found = self.tracing.elementwise(WORDS[word], found, expr.computed)
            taken += count
            self.known[one.base, one.pending[:taken]] = found
        return found

    def _batch_norm(self, x: flow.Value, roles: dict[str, flow.Value], epsilon: float, _: int) -> flow.Value:
        axes = [axis for axis, size in enumerate(roles["mean"].shape) if size > 1] or [len(x.axes) - 1]
        return self.tracing.channelwise("batch_norm", x, axes, {role: roles.get(role) for role in ("scale", "bias", "mean", "variance")}, epsilon=epsilon)

    def _normalised(self, one: Data) -> tuple[flow.Value, int]:
        """A normalisation by the data's own statistics, with the scale and the bias that follow it."""
        if one.form != "normal":
            self.refuse(f"A weight that enters a {one.form}")
        roles: dict[str, flow.Value | None] = {}
        for role, word in (("scale", "mul"), ("bias", "add")):
            operation, expr = (*one.pending, ("", Expr()))[len(roles)]
            if operation == word and expr.view is not None:
                roles[role] = expr.view
        axes = sorted({axis for view in roles.values() if view for axis, size in enumerate(view.shape) if size > 1}) or [len(one.value.axes) - 1]
        found = self.tracing.channelwise("scale", one.value, axes, roles, epsilon=one.number)
        self.known[one.base, one.pending[: len(roles)]] = found
        return found, len(roles)


def _normalisation(steps: Pending, x: flow.Value) -> tuple[dict[str, flow.Value], float, int] | None:
    """The weights of ``(x - mean) / sqrt(variance + epsilon) * scale + bias``, the factors in any order; epsilon; and how many steps this takes."""
    mean = _plain(steps[0][1])
    if steps[0][0] != "sub" or mean is None:
        return None
    factors: list[_Factor] = []
    taken = 1
    while taken < len(steps) and steps[taken][0] in {"mul", "div"}:
        factors.extend(_factors(steps[taken][1], over=steps[taken][0] == "div"))
        taken += 1
    normal = [one for one in factors if one.root and one.over]
    others = [one for one in factors if not one.root and not one.over]
    if len(normal) != 1 or len(normal) + len(others) != len(factors) or len(others) > 1:
        return None
    given = {"mean": mean, "variance": _plain(normal[0].expr)} | ({"scale": _plain(others[0].expr)} if others else {})
    if taken < len(steps) and steps[taken][0] == "add":
        given["bias"] = _plain(steps[taken][1])
        taken += 1
    found = {role: view for role, view in given.items() if view is not None}
    fits = len(found) == len(given) and all(len(view.axes) == len(x.axes) for view in found.values())
    return (found, normal[0].epsilon, taken) if fits else None


@dataclass(frozen=True, slots=True)
class _Factor:
    """A factor: a weight, or the root of a weight and epsilon; ``over``, if it divides."""

    expr: Expr
    over: bool
    root: bool = False
    epsilon: float = 0.0


def _factors(expr: Expr, *, over: bool) -> list[_Factor]:
    """Takes a product of weights apart."""
    first = expr.args[0] if expr.args else None
    if expr.op in {"mul", "div"} and all(isinstance(one, Expr) for one in expr.args) and _plain(expr) is None:
        sides = [one for one in expr.args if isinstance(one, Expr)]
        return [*_factors(sides[0], over=over), *_factors(sides[1], over=over ^ (expr.op == "div"))]
    if expr.op in {"rsqrt", "sqrt"} and isinstance(first, Expr) and first.op == "add":
        inner = [one for one in first.args if isinstance(one, Expr)]
        epsilons = [one.value for one in first.args if isinstance(one, Const) and one.value is not None]
        if len(inner) == len(epsilons) == 1:
            return [_Factor(inner[0], over ^ (expr.op == "rsqrt"), root=True, epsilon=written(epsilons[0]))]
    return [_Factor(expr, over)]


def _plain(expr: Expr) -> flow.Value | None:
    """The weight that this is. A running mean may be stored as it accumulates; it is then divided by what a counter says that is missing from it."""
    if expr.op == "div" and isinstance(expr.args[0], Expr) and isinstance(expr.args[1], Expr) and all(not leaf.axes for leaf in expr.args[1].leaves()):
        return _plain(expr.args[0])
    return expr.view


def written(value: float) -> float:
    """A number as it was written before it was rounded to single precision."""
    return float(str(np.float32(value)))


# Element by element.


def elementwise(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """What comes out of an operation that computes each element of its own."""
    name = eqn.primitive.name
    if name == "select_n" and isinstance(values[0], Const) and values[0].value is not None:
        return values[1 + int(values[0].value)]
    data = [one for one in values if isinstance(one, Data)]
    weights = [one for one in values if isinstance(one, Expr)]
    if not data:
        return opaque(name, values)
    if weights:
        return _weighted(scribe, name, values)
    if len(data) == 1:
        return _of_one(scribe, eqn, values, data[0], shape)
    return _of_several(scribe, name, data)


def opaque(name: str, values: Sequence[Value]) -> Expr:
    """Something computed of weights alone, which counts only when data meet it."""
    return Expr(name, tuple(one for one in values if isinstance(one, Expr | Const)))


def _weighted(scribe: Scribe, name: str, values: Sequence[Value]) -> Value:
    """Data and a weight. A step of a normalisation is kept in mind until it is seen what becomes of it."""
    first, second = (values[1], values[0]) if name in COMMUTATIVE and isinstance(values[0], Expr) else (values[0], values[-1])
    if len(values) == 2 and isinstance(first, Data) and isinstance(second, Expr) and name in WORDS:
        starts = first.form in OPEN or (first.form == "x" and (name == "sub" or second.view is None))
        if first.pending or starts:
            return replace(first, pending=(*first.pending, (name, second)))
    return scribe.data(scribe.tracing.elementwise(WORDS.get(name, name), *(scribe.value(one) for one in values)))


def _of_one(scribe: Scribe, eqn: Any, values: Sequence[Value], one: Data, shape: tuple[int, ...]) -> Value:
    name = eqn.primitive.name
    one = scribe.settled(one)
    others = [other for other in values if isinstance(other, Const)]
    number = others[0].value if len(others) == 1 else None
    if name == "eq" and others and others[0].counts == len(shape) - 1 and not one.value.axes[-1]:
        return replace(one, form="one hot", number=float(shape[-1]))
    step = _step(name, eqn, number, one)
    if (step, one.form) in FORMS:
        return replace(one, form=FORMS[step, one.form], number=written(number or 0.0) if step == "epsilon" else one.number)
    return scribe.data(scribe.tracing.elementwise("", scribe.value(one), *(scribe.value(other) for other in others if other.shape)))


def _step(name: str, eqn: Any, number: float | None, one: Data) -> str:
    """The word for a step with a number in it."""
    if name == "integer_pow" and eqn.params["y"] == 2:
        return "square"
    if number is None:
        return name
    if (name == "div" and number == one.number) or (name == "mul" and one.number and abs(number * one.number - 1) < 1e-6):
        return "count"
    words: dict[tuple[str, bool], str] = {("max", True): "floor", ("add", False): "epsilon"}
    return words.get((name, number == 0), f"{name} with a number")


def _of_several(scribe: Scribe, name: str, data: Sequence[Data]) -> Value:
    data = [scribe.settled(one) if one.form == "x" else one for one in data]
    if len(data) == 2 and data[0].base == data[1].base:
        first, second = data if (name, data[0].form, data[1].form) in FORMS or name not in COMMUTATIVE else data[::-1]
        if (name, first.form, second.form) in FORMS:
            # What is normalised is told apart from what it was.
            normal = FORMS[name, first.form, second.form] == "normal"
            value = flow.merged_values("", first.value, second.value)
            base = scribe.data(value).base if normal else first.base
            return Data(value, base, FORMS[name, first.form, second.form], second.number, (*first.pending, *second.pending))
        if name == "mul" and first.form == second.form and ("square", first.form) in FORMS:
            return replace(first, form=FORMS["square", first.form])
    found = scribe.tracing.elementwise(WORDS.get(name, name), *map(scribe.value, data))
    return scribe.data(found)
