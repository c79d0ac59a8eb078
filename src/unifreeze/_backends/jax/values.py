"""What is known of a value while a jaxpr is followed: a constant, something computed from weights alone, or data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from unifreeze.plugin import flow


@dataclass(frozen=True, slots=True)
class Const:
    """A value that depends on no weight and no input.

    Attributes:
        shape: Its shape.
        value: The number that each of its elements is, if that is known.
        counts: The axis along which it counts 0, 1, 2, …; below zero where it does not.
    """

    shape: tuple[int, ...]
    value: float | None = None
    counts: int = -1


@dataclass(frozen=True, slots=True)
class Expr:
    """A weight, or what is computed of weights alone.

    Attributes:
        op: The operation; empty for a weight, or for a view of one.
        args: What it is computed of.
        view: The weight, as the language of tracing has it.
    """

    op: str = ""
    args: tuple[Expr | Const, ...] = ()
    view: flow.Value | None = None

    def moved(self, move: Callable[[flow.Value], flow.Value], shape: tuple[int, ...]) -> Expr:
        """The same after its axes have moved; ``shape`` is its shape before, and what a broadcast has brought to it can no longer be read."""
        if self.view is None:
            return replace(self, args=tuple(one.moved(move, shape) if isinstance(one, Expr) else one for one in self.args))
        if not self.view.axes:
            return self
        return replace(self, view=move(self.view)) if self.view.shape == shape else Expr("broadcast", (self,))

    def leaves(self) -> Iterator[flow.Value]:
        """The weights in it."""
        if self.view is not None:
            yield self.view
        for one in self.args:
            if isinstance(one, Expr):
                yield from one.leaves()

    @property
    def computed(self) -> flow.Value:
        """The same as the language of tracing has it: the first weight, marked as computed unless it is a view."""
        found = next(self.leaves(), flow.constant(()))
        return found if self.view is not None else replace(found, computed=True)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A value that depends on the inputs.

    Attributes:
        value: The same as the language of tracing has it; without what is pending.
        base: A number for the value of which it is computed, and for that value.
        form: How it is computed of that value, one of the words of ``FORMS``; ``x`` is the value itself.
        number: How many values were summed up on the way, or what was then added to their variance.
        pending: What weights did to it since then: operations, and what of weights.
    """

    value: flow.Value
    base: int
    form: str = "x"
    number: float = 0.0
    pending: tuple[tuple[str, Expr], ...] = ()


#: A mean of data, a variance and what is normalised by them have no primitive; these are their steps, in each library's own spelling.
FORMS: dict[tuple[str, ...], str] = {
    ("reduce_sum", "x"): "sum",
    ("reduce_sum", "square"): "sum of squares",
    ("reduce_sum", "squared deviation"): "sum of squared deviations",
    ("count", "sum"): "mean",
    ("count", "sum of squares"): "mean square",
    ("count", "sum of squared deviations"): "variance",
    ("square", "x"): "square",
    ("square", "mean"): "squared mean",
    ("square", "deviation"): "squared deviation",
    ("sub", "x", "mean"): "deviation",
    ("sub", "mean square", "squared mean"): "variance",
    ("floor", "variance"): "variance",
    ("epsilon", "variance"): "safe variance",
    ("epsilon", "mean square"): "safe mean square",
    ("rsqrt", "safe variance"): "1/deviation",
    ("rsqrt", "safe mean square"): "1/size",
    ("sqrt", "safe variance"): "standard deviation",
    ("sqrt", "safe mean square"): "size",
    ("mul", "deviation", "1/deviation"): "normal",
    ("div", "deviation", "standard deviation"): "normal",
    ("mul", "x", "1/size"): "normal",
    ("div", "x", "size"): "normal",
}
#: The forms that a weight may enter before the normalisation is done.
OPEN = {"normal", "1/deviation", "1/size"}
COMMUTATIVE = {"add", "mul"}
WORDS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "max": "max", "min": "min"}
