"""One interface for freezing layers and summarising parameters in any deep-learning framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, select
    from ._api import apply, freeze, layers, plot, record, summary, unfreeze
    from ._freezing import Freezing, Proof
    from ._manager import backends
    from ._port import Correspondence, Ported, correspond, port
    from ._recipe import Phase, Recipe, Step
    from ._record import Record
    from ._summary import Summary
    from .errors import UnifreezeError, UnifreezeWarning

__all__ = [
    "Correspondence",
    "Freezing",
    "Phase",
    "Ported",
    "Proof",
    "Recipe",
    "Record",
    "Step",
    "Summary",
    "UnifreezeError",
    "UnifreezeWarning",
    "apply",
    "backends",
    "correspond",
    "errors",
    "freeze",
    "layers",
    "plot",
    "port",
    "record",
    "select",
    "summary",
    "unfreeze",
]

_ROOMS = {"_api": ("apply", "freeze", "layers", "plot", "record", "summary", "unfreeze"), "_freezing": ("Freezing", "Proof"), "_manager": ("backends",)} | {
    "_recipe": ("Phase", "Recipe", "Step"),
    "_record": ("Record",),
    "_port": ("Correspondence", "Ported", "correspond", "port"),
    "_summary": ("Summary",),
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
