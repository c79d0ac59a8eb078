"""What can go wrong, in the words of the person who asked.

Every message says first what is wrong, then the facts, then the repair. A call that raises one of these has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class UnifreezeError(Exception):
    """The parent of every error that unifreeze raises on purpose."""


class UnknownModelError(UnifreezeError, TypeError):
    """No backend speaks for this object."""


class SelectorError(UnifreezeError, ValueError):
    """A selector that can't be understood, such as a bare integer or a text with a syntax error."""


class NothingSelectedError(UnifreezeError, LookupError):
    """A selector, or one of its parts, that picks no layer or no parameter of this model."""


class ConflictError(UnifreezeError, ValueError):
    """Two layers share a parameter and are asked to have different statuses."""


class UntrainableError(UnifreezeError, ValueError):
    """Only parameters that can't be trained, such as int8 weights, were asked to train."""


class UnbuiltModelError(UnifreezeError, ValueError):
    """A model, or a part of it, that has no parameters yet because it has not been built."""


class ArgumentError(UnifreezeError, TypeError):
    """A keyword or a value that the called verb does not know."""


class RecipeError(UnifreezeError, ValueError):
    """A recipe that can't be read, or that does not fit the model."""


class FrozenMovedError(UnifreezeError, AssertionError):
    """Something that was promised to stay still has moved.

    Attributes:
        moves: For each broken promise: what, by how much where that is known, the likely cause and its repair.
    """

    def __init__(self, message: str, moves: Iterable[Any] = ()) -> None:
        super().__init__(message)
        self.moves: tuple[Any, ...] = tuple(moves)


class CorrespondenceError(UnifreezeError, ValueError):
    """Two models of which nothing, or not enough, is the same; or a freeze that can't be carried from one to the other."""


class BackendError(UnifreezeError, RuntimeError):
    """A backend that is missing, broken, or asked for something that its framework can't do."""


class UnifreezeWarning(UserWarning):
    """Something that is allowed and is seldom meant."""


def near(word: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Returns ``"did you mean 'a' or 'b'?"``, or an empty string when nothing known is near.

    >>> near("encodr.*", ["encoder.*", "head"])
    "did you mean 'encoder.*'?"
    """
    import difflib

    found = difflib.get_close_matches(word, list(known), n=limit, cutoff=0.6)
    return f"did you mean {' or '.join(repr(name) for name in found)}?" if found else ""
