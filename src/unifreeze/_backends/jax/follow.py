"""Follows weights and inputs through a jaxpr, equation by equation; calls are followed into, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Literal

from . import moves, products
from .constants import constant, folded
from .units import Scribe, Value, elementwise, opaque
from .values import Const, Data, Expr

_ELEMENTWISE = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_CALLS = {
    **dict.fromkeys(("jit", "pjit", "remat", "remat2", "checkpoint", "custom_lin"), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call", "named_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
_LOOPS = {"while": "a loop", "cond": "a branch that is chosen at run time"}


@dataclass(slots=True)
class Follower:
    """Follows a jaxpr, and those that it calls."""

    scribe: Scribe

    def run(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """What comes out of a jaxpr of these values."""
        inner = getattr(jaxpr, "jaxpr", jaxpr)
        known: dict[Any, Value] = dict(zip(inner.invars, args, strict=True))
        known |= {variable: constant(value) for variable, value in zip(inner.constvars, getattr(jaxpr, "consts", ()), strict=True)}

        def read(atom: Any) -> Value:
            return constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for eqn in inner.eqns:
            found = self.equation(eqn, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in inner.outvars]

    def equation(self, eqn: Any, values: list[Value]) -> list[Value]:
        """What comes out of one equation."""
        name, shapes = eqn.primitive.name, [tuple(variable.aval.shape) for variable in eqn.outvars]
        if name in _CALLS:
            return self.run(eqn.params[_CALLS[name]], values)
        constants = [one for one in values if isinstance(one, Const)]
        if len(constants) == len(values) and name != "scan":
            return [folded(name, eqn, constants, shape) for shape in shapes]
        self.scribe.where = str(eqn.source_info.name_stack)
        if name == "scan":
            return self.scan(eqn, values)
        if name == "split":
            return moves.parts(self.scribe, eqn, values, shapes[0])
        handler = _HANDLERS.get(name) or (elementwise if name in _ELEMENTWISE else None)
        if handler and len(shapes) == 1:
            return [handler(self.scribe, eqn, values, shapes[0])]
        if any(isinstance(one, Data) for one in values) and shapes:
            self.refuse(eqn, values)
        return [opaque(name, values) for _ in shapes]

    def scan(self, eqn: Any, values: list[Value]) -> list[Value]:
        """A stack of equal layers, one after the other: the weights of each are rows of arrays. What steps through data is not followed."""
        params = eqn.params
        first, then = params["num_consts"], params["num_consts"] + params["num_carry"]
        carry, rows = values[first:then], values[then:]
        shapes = [atom.aval.shape for atom in eqn.invars[then:]]
        if any(isinstance(one, Data) for one in rows):
            self.refuse(eqn, values)
        steps = range(params["length"])
        for step in reversed(steps) if params["reverse"] else steps:
            picked = [moves.row(self.scribe, one, step, shape) for one, shape in zip(rows, shapes, strict=True)]
            carry = self.run(params["jaxpr"], [*values[:first], *carry, *picked])
            out, carry = carry[then - first :], carry[: then - first]
            if any(isinstance(one, Data) for one in out):
                self.refuse(eqn, values)
        return [*carry, *(opaque("scan", values) for _ in eqn.outvars[then - first :])]

    def refuse(self, eqn: Any, values: Sequence[Value]) -> None:
        """Raises for an equation that can't be followed."""
        name = eqn.primitive.name
        weights = dict.fromkeys(leaf.weight for one in values if isinstance(one, Expr) for leaf in one.leaves())
        shapes = ", ".join(str(tuple(atom.aval.shape)) for atom in eqn.invars)
        what = "scan over data (a recurrence)" if name == "scan" else f"{name} ({_LOOPS[name]})" if name in _LOOPS else f"{name} of {shapes}"
        self.scribe.refuse(what, *([f"  it reads {', '.join(list(weights)[:3])}"] if weights else []))


def _same(scribe: Scribe, eqn: Any, values: Sequence[Value], shape: tuple[int, ...]) -> Value:  # noqa: ARG001 - as all handlers are called
    return values[0]


_HANDLERS: Mapping[str, Callable[[Scribe, Any, Sequence[Value], tuple[int, ...]], Value]] = {
    **dict.fromkeys(
        ("convert_element_type", "copy", "copy_p", "stop_gradient", "optimization_barrier", "name", "reduce_precision", "sharding_constraint"), _same
    ),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), moves.reshape),
    "transpose": moves.transpose,
    "broadcast_in_dim": moves.broadcast,
    "slice": moves.cut,
    "dynamic_slice": moves.cut_where,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), moves.reduce),
    **dict.fromkeys(("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"), moves.window),
    "pad": moves.pad,
    "tile": moves.tile,
    "concatenate": moves.join,
    "stack": moves.stack,
    "conv_general_dilated": products.convolution,
    "dot_general": products.product,
    "gather": products.look_up,
}
