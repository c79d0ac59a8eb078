"""What moved although it was promised to stay, by how much, and the likely cause with its repair. Pure functions over facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from ._rows import Rows
from ._tree import Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Why a promise was broken, in a word.
Cause = Literal[
    "flag",  # it is trainable again
    "replaced",  # its layer was replaced, converted, or loaded by assignment
    "wrapped",  # the same array stands at another path
    "gradient",  # a gradient was left on it
    "decay",  # every element was multiplied by one number
    "moments",  # an optimizer keeps state for it
    "optimizer",  # an optimizer holds it
    "statistics",  # its layer ran in training mode
    "state",  # another buffer was written to
    "held",  # its layer is no longer held at inference
    "added",  # put into a frozen part after the freeze
    "no values",  # abstract, deleted or donated
    "backend",  # what the backend objects to
    "unknown",
]


@dataclass(frozen=True, slots=True)
class Clue:
    """What a framework's own objects tell of one frozen array that has moved: facts alone, which the core judges.

    Attributes:
        gradient: Whether a gradient is left on it: ``some``, ``zero`` (an array of zeros, which momentum and decay need no more than), or empty.
        optimizer: The class of an optimizer that holds it, or empty.
        moments: Whether that optimizer keeps state for it.
        decay: The weight decay of that optimizer.
        left_out: Whether a mask of the optimizer leaves it out, so that its raw gradient may be handed on as the update.
    """

    gradient: str = ""
    optimizer: str = ""
    moments: bool = False
    decay: float = 0.0
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much an array moved; known where copies were kept.

    Attributes:
        largest: The largest absolute change of an element.
        relative: The Euclidean norm of the change over that of the array before; ``inf`` where that was zero.
        elements: How many elements changed, counted by their bytes.
        size: How many there are.
        factor: The number that every element was multiplied by, where one explains the change to 5 % of its norm; else ``None``.
    """

    largest: float
    relative: float
    elements: int
    size: int
    factor: float | None = None

    def __str__(self) -> str:
        by = f"by {self.relative:.3g} of its norm" if isfinite(self.relative) else "away from zeros"
        return f"{by} (at most {self.largest:.3g}, in {self.elements:,} of {self.size:,} elements)"


@dataclass(frozen=True, slots=True)
class Moved:
    """A promise that is broken.

    Attributes:
        path: The parameter, buffer or layer.
        cause: The likely cause in a word, such as ``decay``; ``unknown`` where the facts tell none.
        why: What is wrong, as a sentence.
        repair: What to do about it; may be empty.
        difference: By how much it moved, where copies were kept.
    """

    path: str
    cause: Cause
    why: str
    repair: str = ""
    difference: Difference | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.why}" + (f"; {self.repair}" if self.repair else "")


def same(before: NDArray[Any], now: NDArray[Any]) -> bool:
    """Whether two arrays are equal byte by byte, so that -0.0 is not 0.0 and a NaN is itself."""
    import numpy as np

    if before.shape != now.shape or before.dtype != now.dtype:
        return False
    return np.array_equal(np.ascontiguousarray(before).reshape(-1).view(np.uint8), np.ascontiguousarray(now).reshape(-1).view(np.uint8))


def difference(before: NDArray[Any], now: NDArray[Any]) -> Difference | None:
    """Says by how much an array moved; ``None`` where its shape is another now.

    The factor is the least-squares one, ⟨now, before⟩ / ⟨before, before⟩: what decoupled weight decay, and L2 decay without a gradient, multiply by.
    """
    import numpy as np

    if before.shape != now.shape or not before.size:
        return None
    before, now = np.ascontiguousarray(before).reshape(-1), np.ascontiguousarray(now).reshape(-1)
    changed = before.view(np.uint8) != now.view(np.uint8) if before.dtype == now.dtype else before != now
    elements = int(np.count_nonzero(changed.reshape(before.size, -1).any(axis=1)))
    wide = np.complex128 if np.iscomplexobj(before) else np.float64
    old, new = before.astype(wide), now.astype(wide)
    with np.errstate(all="ignore"):
        change, norm = new - old, float(np.linalg.norm(old))
        size = float(np.linalg.norm(change))
        factor = float(np.vdot(old, new).real / np.vdot(old, old).real) if norm else 0.0
        alike = 0 < factor < 1 and before.size > 1 and float(np.linalg.norm(new - factor * old)) <= 0.05 * size
        return Difference(float(np.abs(change).max()), size / norm if norm else float("inf"), elements, before.size, factor if alike else None)


def judge(parameter: Parameter, rows: Rows | None, found: Difference | None, clue: Clue, *, replaced: bool) -> Moved:
    """Names the likely cause of a move, from what is known of the array; the surest fact first."""
    how = f"rows {rows} moved" if rows else "moved"
    if found is not None:
        how += f" {found}"
    cause, why, repair = _statistics(parameter) if parameter.status == "buffer" and not replaced else _training(found, clue, replaced=replaced)
    return Moved(parameter.path, cause, f"{how} ({why})", repair, found)


def _statistics(buffer: Parameter) -> tuple[Cause, str, str]:
    if buffer.role in {"mean", "variance", "count"}:
        repair = "freeze its layer with unifreeze, which holds it at inference, or keep it in inference mode in every step"
        return "statistics", "statistics or other state: its layer ran in training mode and updated its statistics", repair
    why = "statistics or other state: its layer wrote to it; or was its layer replaced or converted?"
    return "state", why, "freeze its layer with unifreeze, which holds it"


def _training(found: Difference | None, clue: Clue, *, replaced: bool) -> tuple[Cause, str, str]:
    holder = clue.optimizer or "an optimizer"
    if replaced:
        return "replaced", "it is another array than it was: its layer was replaced, converted, or loaded by assignment", "freeze again to cover the new one"
    if found is not None and found.factor is not None:
        decays = f"; {clue.optimizer} decays by {clue.decay:g}" if clue.decay and clue.optimizer else ""
        left = ", and it has a gradient of zeros, which is enough for that" if clue.gradient == "zero" else ""
        why = f"every element was multiplied by {found.factor:.8g}, as weight decay outside of what is trainable does{decays}{left}"
        return "decay", why, "decay only what is trainable: an optimizer from freezing.optimizer(…), or over the trainable parameters alone"
    if clue.gradient:
        stale = "a gradient was left on it" if clue.gradient == "some" else "a gradient of zeros was left on it, which is enough for momentum and decay"
        return "gradient", f"{stale}, and {holder} applied it", "freeze(model, …) drops it; by hand, clear it when you freeze: parameter.grad = None"
    return _held(clue, holder)


def _held(clue: Clue, holder: str) -> tuple[Cause, str, str]:
    """What the optimizer alone tells."""
    if clue.moments:
        repair = "make it for what is trainable now: freezing.optimizer(…), freezing.attach(optimizer), or freezing.carry(…)"
        return "moments", f"{holder} keeps moments for it, from another plan than this one", repair
    if clue.optimizer:
        return "optimizer", f"{holder} still trains it", "make the optimizer for what is trainable: freezing.optimizer(…) or freezing.attach(optimizer)"
    if clue.left_out:
        why = "a mask of the optimizer leaves it out, and optax.masked hands on the raw gradient of what it leaves out as the update"
        return "gradient", why, "make it for what is trainable: freezing.optimizer(…), or optax.partition with optax.set_to_zero() for the rest"
    repair = "look for what writes to it: an optimizer that was made before the freeze, a load, an update of your own; optimizer=… may tell more"
    return "unknown", "nothing tells by what", repair


def explain(moves: list[Moved], label: str, *, exact: bool) -> str:
    """The message of a ``FrozenMovedError``."""
    shown = [f"  {one}" for one in moves[:10]]
    rest = [f"  … and {len(moves) - 10} more"] if len(moves) > 10 else []
    vague = not exact and any(one.cause in {"gradient", "moments", "optimizer", "unknown", "statistics", "state"} for one in moves)
    hint = (
        ["  By how much, and a surer cause: keep copies before training: freezing = freezing.remember(exact=True), or guard(model, exact=True)."]
        if vague
        else []
    )
    return "\n".join([f"{len(moves)} of the promises made for {label} are broken.", *shown, *rest, *hint])


def elsewhere(identity: int, arrays: Mapping[str, Parameter]) -> str:
    """The path at which an array stands now that is no longer where it was, or empty."""
    return next((path for path, parameter in arrays.items() if id(parameter.array) == identity), "")
