"""Wakes the backend whose framework is awake, and asks who speaks for a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from os import PathLike
from threading import RLock
from typing import TYPE_CHECKING

from ._backend import Backend
from ._tree import Layer
from .errors import BackendError, UnknownModelError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import pluggy

    from ._finding import Finding

_GROUP = "unifreeze"
_EXTRAS = {"flax.nnx": "flax"}
_lock = RLock()


@cache
def _manager() -> pluggy.PluginManager:
    # Here, not above: with what it imports, pluggy is most of what `import unifreeze` would cost.
    import pluggy

    from .plugin import Hooks

    manager = pluggy.PluginManager(_GROUP)
    manager.add_hookspecs(Hooks)
    return manager


@cache
def _known() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=_GROUP)}


def _wake() -> dict[str, Exception]:
    """Loads the backend of every framework that the program has imported by now, and returns what could not be loaded.

    A framework that is only another's engine (JAX under Keras) may lack what its own backend needs, and a stranger's backend may be broken; neither may
    stop the one that is asked for.
    """
    manager = _manager()
    failed: dict[str, Exception] = {}
    for name, point in _known().items():
        if name in sys.modules and not manager.has_plugin(name):
            try:
                manager.register(point.load(), name=name)
                manager.check_pending()
            except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises
                failed[name] = error
                if manager.has_plugin(name):
                    manager.unregister(name=name)
    return failed


def backend_of(model: object) -> Backend:
    """Returns the backend that speaks for ``model``.

    Raises:
        UnknownModelError: If none does; the message says which frameworks are awake and how to get others.
        BackendError: If none does and a backend could not be loaded, or if a plugin answers with something that is no backend.
    """
    with _lock:
        failed = _wake()
        found = _manager().hook.unifreeze_backend(model=model)
    if found is None and failed:
        reasons = [f"  {name}: {_reason(name, error)}" for name, error in failed.items()]
        raise BackendError("\n".join([f"No backend speaks for {type(model).__qualname__}, and some could not be loaded.", *reasons]))
    if found is None:
        raise UnknownModelError(_unknown(model))
    if not isinstance(found, Backend):
        raise BackendError(f"A plugin answered unifreeze_backend with {found!r}, which is no Backend.\n  A hook that does not know a model returns None.")
    return found


def read(model: object) -> tuple[Backend, Layer]:
    """The backend, and the model's tree with everything that is frozen now."""
    from ._freezing import Freezing

    if isinstance(model, Freezing):
        return model._backend, model._read()
    backend = backend_of(model)
    backend.adopt(Freezing)
    return backend, backend.layers(model)


def further_findings(model: object, tree: Layer, optimizers: tuple[object, ...]) -> list[Finding]:
    """What the rules of plugins find in a model."""
    with _lock:
        found = _manager().hook.unifreeze_audit(model=model, tree=tree, optimizers=optimizers)
    return [one for answer in found for one in answer or ()]


def _reason(name: str, error: Exception) -> str:
    return f"{error}; {_install(name)}" if isinstance(error, ImportError) else f"its plugin {_known()[name].value} is broken: {type(error).__name__}: {error}"


def _unknown(model: object) -> str:
    shown = f"The class {model.__module__}.{model.__qualname__}" if isinstance(model, type) else f"{type(model).__module__}.{type(model).__qualname__}"
    awake = [info.name for info in backends() if info.awake]
    lines = [f"{shown} is no model that a backend speaks for.", f"  awake backends: {', '.join(awake) or 'none'}", *_hint(model, awake)]
    asleep = [info for info in backends() if not info.installed]
    if asleep:
        lines.append("  other backends: " + "; ".join(f"{info.name}: {info.install}" for info in asleep))
    return "\n".join(lines)


def _hint(model: object, awake: list[str]) -> Iterator[str]:
    """What was probably meant, told by names alone, so that no framework is imported for an error."""
    homes = {parent.__module__.partition(".")[0] for parent in type(model).__mro__}
    parents = {f"{parent.__module__}.{parent.__qualname__}" for parent in type(model).__mro__}
    if isinstance(model, type):
        yield f"  it is a class: give an instance, {model.__name__}(…)."
    elif isinstance(model, str | PathLike):
        yield "  it is a name or a path: load the model, and give the model itself."
    elif "flax.linen.module.Module" in parents or "haiku" in homes:
        yield "  its parameters live outside of it: give what its init returned, variables = module.init(key, x); freeze(variables, …)."
    elif isinstance(model, Mapping) and any(type(value).__module__.partition(".")[0] == "torch" for value in model.values()):
        yield "  a state dict holds no layers: give the module that it belongs to."
    elif isinstance(model, Mapping | list | tuple):
        empty = "it is empty" if not model else "its leaves are no JAX arrays" if "jax" in awake else "a tree of arrays belongs to JAX: import jax first"
        yield f"  {empty}; a tree for the jax backend holds at least one floating-point array. A part of a model is chosen by layers=: freeze(model, layers=…)."
    elif isinstance(model, Iterator):
        yield "  it hands things out one by one, as model.parameters() does: give the model, and what is picked of it as params= or layers=."
    elif homes & {"torch", "keras", "optax"}:
        yield "  give the model, and pick a part of it by layers= or params=: freeze(model, layers=…)."


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A backend that is known here.

    Attributes:
        name: Import name of the package whose models it speaks for.
        provider: The module that holds the backend.
        installed: Whether that package can be imported.
        awake: Whether the program has imported it, so that its models are accepted now.
        version: The package's version, or empty.
        install: How to install it, as a sentence.
    """

    name: str
    provider: str
    installed: bool
    awake: bool
    version: str
    install: str


def backends() -> list[BackendInfo]:
    """Lists the backends, what is installed and awake, and how to install the rest. Imports no framework.

    >>> from unifreeze import backends
    >>> [info.name for info in backends() if info.name == "torch"]
    ['torch']
    """
    return [
        BackendInfo(
            name=name,
            provider=point.value,
            installed=_installed(name),
            awake=name in sys.modules,
            version=_version(name),
            install=_install(name),
        )
        for name, point in sorted(_known().items())
    ]


def _install(name: str) -> str:
    point = _known().get(name)
    ours = point is None or point.dist is None or point.dist.name == "unifreeze"
    package = f"'unifreeze[{_EXTRAS.get(name, name)}]'" if ours else name.partition(".")[0]
    return f"install it with pip install {package}"


def _installed(name: str) -> bool:
    root = name.partition(".")[0]
    return root in sys.modules or find_spec(root) is not None


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    root = name.partition(".")[0]
    for distribution in [root, *packages_distributions().get(root, ())] if _installed(name) else []:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""
