"""What is known of a value while a jaxpr is followed: a constant, something computed from weights alone, or data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from unifreeze.plugin import Sources

from .axes import Axes


@dataclass(frozen=True, slots=True)
class Const:
    """A value that depends on no weight and no input, and the number that each of its elements is, if that is known.

    Attributes:
        value: The number.
        counts: The axis along which it counts 0, 1, 2, …; below zero where it does not.
    """

    value: float | None = None
    counts: int = -1


@dataclass(frozen=True, slots=True)
class Expr:
    """A weight, or what is computed of weights alone.

    Attributes:
        op: The operation; empty for a weight as it is.
        args: What it is computed of.
        path: Of a weight: its path.
        shape: Of a weight: the shape in which it is stored.
        axes: Of a weight: its axes here.
    """

    op: str = ""
    args: tuple[Expr | Const, ...] = ()
    path: str = ""
    shape: tuple[int, ...] = ()
    axes: Axes = ()

    def moved(self, move: Callable[[Axes], Axes | None]) -> Expr:
        """The same with other axes. What can't follow the move can no longer be read."""
        if not self.op:
            axes = move(self.axes) if self.axes else ()
            return Expr("cut", (self,)) if axes is None else replace(self, axes=axes)
        return replace(self, args=tuple(one.moved(move) if isinstance(one, Expr) else one for one in self.args))

    def leaves(self) -> Iterator[Expr]:
        """The weights in it."""
        if not self.op:
            yield self
        for one in self.args:
            if isinstance(one, Expr):
                yield from one.leaves()


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A value that depends on the inputs.

    Attributes:
        axes: What its axes are.
        sources: Where the value comes from on which all this is based.
        base: A number for that value.
        form: How it is computed of that value, one of the words of ``FORMS``; ``x`` is the value itself.
        number: How many values were summed up on the way, or what was then added to their variance.
        pending: What weights did to it since then: operations, and what of weights.
    """

    axes: Axes
    sources: Sources
    base: int
    form: str = "x"
    number: float = 0.0
    pending: tuple[tuple[str, Expr], ...] = field(default=())


#: A mean over channels, a variance and what is normalised by them have no primitive; these are their steps, in each library's own spelling.
FORMS: dict[tuple[str, ...], str] = {
    ("reduce_sum", "x"): "sum",
    ("reduce_sum", "square"): "sum of squares",
    ("reduce_sum", "squared deviation"): "sum of squared deviations",
    ("reduce_sum", "exp"): "sum of exp",
    ("reduce_max", "x"): "max",
    ("count", "sum"): "mean",
    ("count", "sum of squares"): "mean square",
    ("count", "sum of squared deviations"): "variance",
    ("square", "x"): "square",
    ("square", "mean"): "squared mean",
    ("square", "deviation"): "squared deviation",
    ("sub", "x", "mean"): "deviation",
    ("sub", "mean square", "squared mean"): "variance",
    ("epsilon", "variance"): "safe variance",
    ("epsilon", "mean square"): "safe mean square",
    ("rsqrt", "safe variance"): "1/deviation",
    ("rsqrt", "safe mean square"): "1/size",
    ("sqrt", "safe variance"): "standard deviation",
    ("sqrt", "safe mean square"): "size",
    ("mul", "deviation", "1/deviation"): "layer_norm",
    ("div", "deviation", "standard deviation"): "layer_norm",
    ("mul", "x", "1/size"): "rms_norm",
    ("div", "x", "size"): "rms_norm",
    ("sub", "x", "max"): "shifted",
    ("exp", "shifted"): "exp",
    ("div", "exp", "sum of exp"): "activation",
    ("log", "sum of exp"): "log of sum of exp",
    ("sub", "shifted", "log of sum of exp"): "activation",
}
#: What leaves a form what it is: a floor of zero under a variance, and of minus infinity under a maximum.
FLOORS = {"variance": 0.0, "max": float("-inf")}
COMMUTATIVE = {"add", "mul"}
