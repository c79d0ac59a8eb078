"""One interface for freezing layers and summarising parameters in any deep-learning framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, select
    from ._api import apply, freeze, layers, record, summary, unfreeze
    from ._audit import Report, audit
    from ._finding import Finding
    from ._freezing import Freezing
    from ._guard import Guard, guard
    from ._manager import backends
    from ._port import Correspondence, KerasView, Ported, correspond, keras_view, port
    from ._recipe import Phase, Recipe, Step
    from ._record import Record
    from ._summary import Summary
    from ._verify import Proof
    from .errors import UnifreezeError, UnifreezeWarning

__all__ = [
    "Correspondence",
    "Finding",
    "Freezing",
    "Guard",
    "KerasView",
    "Phase",
    "Ported",
    "Proof",
    "Recipe",
    "Record",
    "Report",
    "Step",
    "Summary",
    "UnifreezeError",
    "UnifreezeWarning",
    "apply",
    "audit",
    "backends",
    "correspond",
    "errors",
    "freeze",
    "guard",
    "keras_view",
    "layers",
    "port",
    "record",
    "select",
    "summary",
    "unfreeze",
]

_ROOMS = {
    "_api": ("apply", "freeze", "layers", "record", "summary", "unfreeze"),
    "_audit": ("Report", "audit"),
    "_finding": ("Finding",),
    "_freezing": ("Freezing",),
    "_guard": ("Guard", "guard"),
    "_manager": ("backends",),
    "_port": ("Correspondence", "KerasView", "Ported", "correspond", "keras_view", "port"),
    "_recipe": ("Phase", "Recipe", "Step"),
    "_record": ("Record",),
    "_summary": ("Summary",),
    "_verify": ("Proof",),
    "errors": ("UnifreezeError", "UnifreezeWarning"),
}


def __getattr__(name: str) -> Any:
    """Loads a room when its first name is asked for (PEP 562), so that ``import unifreeze`` costs a library that only might freeze next to nothing."""
    for room, names in _ROOMS.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{room}"), name)
            return value
    if name in {"errors", "select"}:
        return import_module(f"{__name__}.{name}")
    hint = "" if name.startswith("_") else import_module(f"{__name__}.errors").near(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{f'; {hint}' if hint else ''}")


def __dir__() -> list[str]:
    return __all__
