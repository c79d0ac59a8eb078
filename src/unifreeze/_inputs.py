"""What a model is called with, where its output shapes are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ArgumentError

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """An input of which only the shape is known.

    Attributes:
        shape: Its shape.
        whole: Whether it holds whole numbers, such as the numbers of words, rather than floating-point ones.
    """

    shape: tuple[int, ...]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of a call: arrays of the framework, ``Spec``, and whatever else the model takes.

    Attributes:
        args: The positional ones.
        kwargs: The ones with a name.
        call: What computes, where the model itself can't be called: a linen module, for its variables.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    call: object = None

    def mapped(self, change: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, each changed, also inside lists, tuples and dicts."""
        return tuple(_mapped(one, change) for one in self.args), {name: _mapped(one, change) for name, one in self.kwargs.items()}


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) in {list, tuple}:
        return type(value)(_mapped(one, change) for one in value)
    if type(value) is dict:
        return {key: _mapped(one, change) for key, one in value.items()}
    return change(value)


def given(inputs: object, call: object) -> Inputs:
    """Reads ``inputs=``: a tuple or list holds positional arguments, a dict named ones, anything else is the only one."""
    if isinstance(inputs, Mapping):
        return Inputs((), dict(inputs), call)
    return Inputs(tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,), {}, call)


def shaped(shape: object, call: object, *, free: int, whole: bool) -> Inputs:
    """Reads ``input_shape=``: one shape, several in a list, or named ones in a dict; ``free`` stands in for ``None``.

    Raises:
        ArgumentError: If it is none of these.
    """

    def spec(one: object) -> Spec:
        if not _is_shape(one):
            raise ArgumentError(
                f"input_shape={shape!r} is no shape.\n"
                "  It is a tuple of whole numbers and None, such as (1, 3, 224, 224); several in a list; named ones in a dict."
            )
        return Spec(tuple(free if axis is None else axis for axis in one), whole)  # type: ignore[attr-defined]

    if isinstance(shape, Mapping):
        return Inputs((), {str(name): spec(one) for name, one in shape.items()}, call)
    if _is_shape(shape):
        return Inputs((spec(shape),), {}, call)
    return Inputs(tuple(spec(one) for one in (shape if isinstance(shape, list | tuple) else [shape])), {}, call)


def has_free_axes(shape: object) -> bool:
    """Whether an ``input_shape`` leaves an axis open."""
    return None in _axes(shape)


def _axes(shape: object) -> Iterator[object]:
    for one in shape.values() if isinstance(shape, Mapping) else shape if isinstance(shape, list | tuple) else ():
        if isinstance(one, list | tuple):
            yield from one
        else:
            yield one


def _is_shape(value: object) -> bool:
    """An empty list is no shape of a number, but a forgotten argument."""
    return isinstance(value, list | tuple) and bool(value) and all(axis is None or (type(axis) is int and axis >= 0) for axis in value)
