"""The verb: reads the model, asks every rule, and sorts what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from unifreeze._backend import Backend
from unifreeze._finding import SEVERITIES, Finding
from unifreeze._freezing import Freezing, label_of
from unifreeze._manager import further_findings, read
from unifreeze._said import as_said
from unifreeze._tree import Layer
from unifreeze.errors import ArgumentError, BackendError

from . import rules
from .report import Report


def audit(model: object, optimizer: object = None, *, trainable: object = None, ignore: Iterable[str] = ()) -> Report:
    """Looks for what is frozen in name only: by flags, by optimizers, by statistics. For models frozen by hand, and by unifreeze.

    It changes nothing: no flag, no mode, no byte, no random number, no state of an optimizer.

    Args:
        model: A model of any framework, or a ``Freezing``.
        optimizer: What trains it: a ``torch`` or Keras optimizer or several, an optax transformation, an ``nnx.Optimizer``. The optimizer that a Keras model
            was compiled with is looked at in any case. An optax transformation is run for a few steps on made gradients, on copies.
        trainable: What you mean to train, as in ``guard``: a ``Freezing``, a selector, and for JAX a mask of what trains, labels, or a filter. A pytree does
            not carry it; elsewhere it is compared with what the model's flags say.
        ignore: Codes to leave out, such as ``"UF104"``.

    Returns:
        A ``Report``: ``print`` it; ``report.ok`` says whether there is neither an error nor a warning.

    Raises:
        ArgumentError: If ``optimizer`` is none, or ``ignore`` has no codes.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import audit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
        >>> for part in model[:2]:
        ...     _ = part.requires_grad_(False)
        >>> print(audit(model))
        Sequential (torch): 1 error (the model)
        UF201 error  1
            Its parameters are frozen and its statistics go on moving: it runs in training mode.
            Freeze it with unifreeze, which holds it at inference, or keep it in inference mode in every step.
    """
    backend, tree = read(model)
    label = label_of(tree, backend)
    subject = model.model if isinstance(model, Freezing) else model
    given = tuple(backend.optimizer(one) for one in _several(optimizer))
    said = as_said(backend, subject, tree, trainable)
    shown = tree if (backend.in_place and backend.has_flags) or isinstance(model, Freezing) else said
    skip = _codes(ignore)
    found = [one for one in _found(backend, subject, shown, said if trainable is not None else None, given) if one.code not in skip]
    found = [one for one in map(_beside(found), found) if one is not None]
    unsaid = trainable is None and not (backend.in_place and backend.has_flags) and all(p.status != "frozen" for p in shown.arrays())
    checked = ("the model", *(f"its {type(one).__name__}" for one in given), *(["what is said to train"] if trainable is not None else []))
    checked += ("all of it as trainable, since trainable= says nothing else",) if unsaid else ()
    return Report(label, tuple(sorted(found, key=lambda one: (SEVERITIES.index(one.severity), one.code))), checked)


def _found(backend: Backend, model: Any, tree: Layer, said: Layer | None, optimizers: tuple[Any, ...]) -> Iterator[Finding]:
    yield from rules.of_tree(backend, model, tree)
    yield from rules.of_optimizers(backend, model, tree, optimizers)
    yield from rules.of_what_is_said(tree, said) if said is not None else ()
    yield from backend.audit(model, tree, optimizers)
    for one in further_findings(model, tree, optimizers):
        if not isinstance(one, Finding):
            raise BackendError(f"A plugin answered unifreeze_audit with {one!r}, which is no Finding.")
        yield one


def _beside(found: list[Finding]) -> Callable[[Finding], Finding | None]:
    """Takes from a note that an optimizer passes over something what an error says moves; ``None`` if nothing is left."""
    wrong = {path for one in found if one.severity == "error" for path in one.paths}

    def left(one: Finding) -> Finding | None:
        if one.code != "UF104":
            return one
        paths = tuple(path for path in one.paths if path not in wrong)
        return replace(one, paths=paths) if paths else None

    return left


def _several(optimizer: object) -> tuple[Any, ...]:
    if optimizer is None:
        return ()
    return tuple(optimizer) if isinstance(optimizer, list | set) or type(optimizer) is tuple else (optimizer,)


def _codes(ignore: Iterable[str]) -> set[str]:
    codes = {ignore} if isinstance(ignore, str) else set(ignore)
    wrong = [code for code in codes if not isinstance(code, str) or not code[-1:].isdigit() or not code[:1].isalpha()]
    if wrong:
        raise ArgumentError(f"ignore= takes codes such as 'UF104'.\n  given: {wrong[0]!r}")
    return codes
