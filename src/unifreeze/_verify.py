"""Comparing arrays with what was kept of them, and gathering the facts that tell why one moved."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ._backend import Backend
from ._moves import Clue, Moved, difference, elsewhere, judge, same
from ._rows import Rows
from ._tree import STATELESS, Inference, Layer, Parameter, unique

_NO_VALUES = "has no values now (an abstract, deleted or donated array)"
_AGAIN = "is trainable again; a flag was changed by hand, or undo() or another call unfroze it"
_MEANT = "freeze it again; or, if it is meant to train, verify what unfreeze(model, …) returns"


@dataclass(frozen=True, slots=True)
class Proof:
    """What ``verify`` found still: every array it compared.

    Attributes:
        label: The model.
        arrays: Paths of the arrays that were compared.
        nbytes: Their size in bytes.
        exact: Whether they were compared with copies, and not with fingerprints alone.
    """

    label: str
    arrays: tuple[str, ...]
    nbytes: int
    exact: bool = False

    def __str__(self) -> str:
        with_copies = " with copies" if self.exact else ""
        return f"{self.label}: {len(self.arrays)} frozen arrays ({self.nbytes:,} bytes) compared{with_copies}, none moved"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of arrays that shall not move.

    Attributes:
        prints: The mark or fingerprint of each by its path; ``None`` where it had no values.
        rows: For each of which some rows alone shall not move, which.
        copies: Copies of the values, where they were asked for.
        ids: The identity of each array, where arrays are changed in place.
        gradients: What gradient was left on an array then (``Clue.gradient``), which a training loop may have cleared since.
        flags: Whether the model shows what is frozen, so that flags are compared, too.
    """

    prints: Mapping[str, Hashable]
    rows: Mapping[str, Rows] = field(default_factory=dict)
    copies: Mapping[str, Any] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)
    gradients: Mapping[str, str] = field(default_factory=dict)
    flags: bool = True

    @property
    def known(self) -> list[str]:
        """Paths of what can be compared."""
        return [path for path, value in self.prints.items() if value is not None]

    def proof(self, label: str, tree: Layer) -> Proof:
        """What there is to say when none moved."""
        sizes = {parameter.path: _nbytes(parameter, self.rows.get(parameter.path)) for parameter in tree.arrays() if parameter.path in self.prints}
        return Proof(label, tuple(self.known), sum(sizes[path] for path in self.known), bool(self.copies))


def still(layers: list[Layer], inference: Mapping[str, Inference]) -> list[Parameter]:
    """Returns the buffers that are promised to stay still, of layers that are held."""
    held = (b for layer in layers if layer.path in inference for b in layer.buffers if b.role not in STATELESS or inference[layer.path] == "all")
    return unique(held)


def fingerprint(backend: Backend, array: object, rows: Rows | None) -> Hashable:
    """The fingerprint of an array, or of these rows of it."""
    return backend.fingerprint(array if rows is None else backend.take(array, rows))


def fingerprints(backend: Backend, arrays: Mapping[str, object], rows: Mapping[str, Rows]) -> dict[str, Hashable]:
    """The fingerprint of each array by its path, or of its rows; asked for together, which is faster in most frameworks."""
    return dict(zip(arrays, backend.fingerprints(_taken(backend, arrays, rows)), strict=True))


def marks(backend: Backend, arrays: Mapping[str, object], rows: Mapping[str, Rows], like: Mapping[str, Hashable] | None = None) -> dict[str, Hashable]:
    """What this process compares the arrays by later: a mark of each, or of its rows, by its path; taken in the way of those that it is compared with."""
    if not backend.in_place:  # the Freezing of a pytree also makes its digests and records of them
        return fingerprints(backend, arrays, rows)
    return dict(zip(arrays, backend.marks(_taken(backend, arrays, rows), [like[path] for path in arrays] if like else ()), strict=True))


def _taken(backend: Backend, arrays: Mapping[str, object], rows: Mapping[str, Rows]) -> list[object]:
    return [backend.take(array, rows[path]) if path in rows else array for path, array in arrays.items()] if rows else [*arrays.values()]


def copies(backend: Backend, arrays: Mapping[str, object], rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Copies of arrays, of those that have values."""
    made = {path: backend.values(backend.take(array, rows[path]) if path in rows else array) for path, array in arrays.items()}
    return {path: copy for path, copy in made.items() if copy is not None}


def broken(backend: Backend, model: object, tree: Layer, kept: Kept, optimizer: object = None) -> list[Moved]:
    """Compares every array with what was kept of it, and says of each that moved by how much and why.

    The framework's own objects are asked for clues only once something has moved.
    """
    now = {parameter.path: parameter for parameter in tree.arrays()}
    clues: Callable[[], Mapping[str, Clue]] = cache(lambda: backend.clues(model, tree, optimizer))
    flagged = {path: _flag(now[path], kept) if path in now and kept.flags else None for path in kept.known}
    there = {path: now[path].array for path, flag in flagged.items() if path in now and flag is None}
    prints = marks(backend, there, kept.rows, kept.prints)
    found = []
    for path, flag in flagged.items():
        fact = flag or (_move(backend, now[path], kept, now, clues, print_now=prints[path]) if path in now else _gone(path, kept, now))
        if fact is not None:
            found.append(fact)
    return found


def _gone(path: str, kept: Kept, now: Mapping[str, Parameter]) -> Moved:
    there = elsewhere(kept.ids.get(path, 0), now)
    if there:
        return Moved(path, "wrapped", f"is gone; its array is at {there} now, so its layer was wrapped or moved", "freeze again, so that paths agree")
    return Moved(path, "replaced", "is gone; was its layer replaced? Freeze again to cover the new one")


def _flag(parameter: Parameter, kept: Kept) -> Moved | None:
    """What is wrong before any value is read."""
    rows = kept.rows.get(parameter.path)
    if rows is not None and parameter.status == "trainable" and len(rows - (parameter.rows or Rows(()))):
        return Moved(
            parameter.path, "flag", f"rows {rows} are trainable again; was the parameter replaced, or did undo() or another call unfreeze them?", _MEANT
        )
    if rows is None and parameter.status == "trainable":
        replaced = parameter.path in kept.ids and kept.ids[parameter.path] != id(parameter.array)
        also = "; it is another array than it was: its layer was replaced or converted" if replaced else ""
        return Moved(parameter.path, "replaced" if replaced else "flag", _AGAIN + also, "freeze again" if replaced else _MEANT)
    return None


def _move(
    backend: Backend, parameter: Parameter, kept: Kept, now: Mapping[str, Parameter], clues: Callable[[], Mapping[str, Clue]], *, print_now: Hashable
) -> Moved | None:
    path, rows, copy = parameter.path, kept.rows.get(parameter.path), kept.copies.get(parameter.path)
    if print_now is None:
        return Moved(path, "no values", _NO_VALUES)
    if copy is None and print_now == kept.prints[path]:
        return None
    values = None if copy is None else backend.values(parameter.array if rows is None else backend.take(parameter.array, rows))
    if print_now == kept.prints[path] and (copy is None or values is None or same(copy, values)):
        return None
    found = None if copy is None or values is None else difference(copy, values)
    clue = clues().get(path, Clue())
    clue = replace(clue, gradient=clue.gradient or kept.gradients.get(path, ""))
    return judge(parameter, rows, found, clue, replaced=_replaced(parameter, kept, now))


def _replaced(parameter: Parameter, kept: Kept, now: Mapping[str, Parameter]) -> bool:
    """Whether the array, or another one of its layer, is another object than it was."""
    if parameter.path in kept.ids:
        return kept.ids[parameter.path] != id(parameter.array)
    above = parameter.path.rpartition(".")[0]
    siblings = [path for path in kept.ids if path.rpartition(".")[0] == above]
    return any(path not in now or kept.ids[path] != id(now[path].array) for path in siblings)


def _nbytes(parameter: Parameter, rows: Rows | None) -> int:
    return parameter.nbytes if rows is None else parameter.nbytes // parameter.shape[0] * len(rows)
