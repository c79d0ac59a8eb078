"""A finding of an audit, and the list of codes that unifreeze's own rules give. Every code has its section in the docs (``docs/audit.md``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from .errors import ArgumentError

#: ``error``: something frozen moves, or something trainable does not train. ``warning``: it may. ``note``: worth knowing.
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

#: The severity of each of our codes. Hundreds: optimizers, layers, sharing, wrappers, Keras's flags, what the user says against what happens.
CODES: Mapping[str, Severity] = MappingProxyType(
    {
        "UF101": "error",  # frozen, and a gradient is left on it
        "UF102": "error",  # frozen, a gradient of zeros is left on it, and its optimizer decays
        "UF103": "error",  # frozen, a gradient of zeros is left on it, and its optimizer keeps moments for it
        "UF104": "note",  # frozen, in an optimizer, and without a gradient
        "UF105": "error",  # frozen, and LBFGS remembers steps with it
        "UF110": "warning",  # trainable and in no optimizer
        "UF111": "error",  # trainable and in more than one
        "UF112": "error",  # an optimizer that holds nothing of the model
        "UF201": "error",  # frozen, and its statistics move in training mode
        "UF202": "warning",  # the same, where the mode is not to be seen
        "UF203": "note",  # frozen, and dropout is active inside
        "UF204": "error",  # trainable, and no gradient reaches it
        "UF301": "error",  # one array, two statuses
        "UF302": "error",  # frozen, and shares its memory with what trains
        "UF401": "error",  # DDP does not average what was unfrozen
        "UF402": "error",  # DDP waits for what was frozen
        "UF403": "warning",  # more frozen sets than torch.compile keeps graphs for
        "UF501": "error",  # flags changed after compile
        "UF502": "error",  # the model's own flag masks flags inside
        "UF503": "error",  # a layer's flag says frozen, and its weights train
        "UF601": "error",  # frozen, and the optax chain moves it by its gradient
        "UF602": "error",  # frozen, and the optax chain moves it without a gradient
        "UF603": "error",  # trainable, and the optax chain does not move it
        "UF604": "error",  # the wrong way round
        "UF605": "note",  # the optax chain could not be run
        "UF606": "warning",  # what was said to train is not what trains
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        code: Such as ``UF101``; its section in the docs has an example.
        severity: ``error``, ``warning`` or ``note``.
        paths: The parameters or layers that it concerns; empty for the model as a whole.
        why: What is wrong, as a sentence.
        repair: What to do about it.
    """

    code: str
    severity: Severity
    paths: tuple[str, ...]
    why: str
    repair: str

    @classmethod
    def of(cls, code: str, paths: Iterable[str], why: str, repair: str) -> Self:
        """A finding of one of our own codes."""
        return cls(code, CODES[code], tuple(paths), why, repair)

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ArgumentError(f"severity={self.severity!r} of finding {self.code} is unknown.\n  it is {', '.join(SEVERITIES)}")

    @property
    def page(self) -> str:
        """The page of the docs, and the place in it."""
        return f"audit.md#{self.code.lower()}"

    def shown(self, limit: int = 4) -> str:
        """The first paths, as a sentence has them."""
        return ", ".join(self.paths[:limit]) + (f" and {len(self.paths) - limit} more" if len(self.paths) > limit else "")

    def __str__(self) -> str:
        where = f" {self.shown()}:" if self.paths else ""
        return f"{self.code} ({self.severity}){where} {self.why}; {self.repair}"
