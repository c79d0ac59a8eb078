"""The rules that hold in every framework: pure functions over the tree, and over what a backend tells of optimizers and modes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from unifreeze._backend import Backend
from unifreeze._finding import Finding
from unifreeze._moves import Clue
from unifreeze._tree import Layer, Parameter, unique, wholes

_HOLD = "freeze it with unifreeze, which holds it at inference, or keep it in inference mode in every step"
_ANEW = "freeze(model, …) drops it; by hand, clear it when you freeze: parameter.grad = None"
_STATISTICS = {"mean", "variance", "count"}


def of_tree(backend: Backend, model: Any, tree: Layer) -> Iterator[Finding]:
    """What the tree alone shows: statistics and dropout of frozen parts, arrays with two statuses, and what gets no gradient."""
    nodes = list(tree.walk())
    frozen, modes = {path for path, whole in wholes(tree).items() if whole}, backend.modes(model, tree)
    loose = [layer for layer in nodes if layer.path in frozen and layer.inference is None and modes.get(layer.path) != "still"]
    keep = [layer for layer in loose if any(map(_moves, layer.buffers))]
    moving, unseen = ([layer.path for layer in keep if (modes.get(layer.path) == "training") == seen] for seen in (True, False))
    yield from _one("UF201", moving, "its parameters are frozen and its statistics go on moving: it runs in training mode", _HOLD)
    yield from _one("UF202", unseen, "its parameters are frozen, and its statistics move in every step that runs it in training mode", _HOLD)
    active = [layer.path for layer in loose if backend.draws(layer)]
    whole = "for outputs that are to be kept or compared, freeze(model, layers=…, inference='all')"
    yield from _one("UF203", active, "dropout or noise stays active in a frozen part, so that its outputs differ from call to call", whole)
    for path, why in backend.objections(model):
        yield Finding.of("UF204", (path,), why, "see to it that a gradient reaches it, or freeze it")
    yield from _tied(nodes)


def _moves(buffer: Parameter) -> bool:
    """Whether training mode writes to it: statistics, and the vector of spectral normalisation, whatever a framework puts before its ``u``."""
    return buffer.role in _STATISTICS or re.split("[/_]", buffer.role)[-1] == "u"


def _tied(nodes: list[Layer]) -> Iterator[Finding]:
    statuses: dict[int, list[Parameter]] = {}
    for layer in nodes:
        for parameter in layer.parameters:
            statuses.setdefault(id(parameter.array), []).append(parameter)
    for shared in statuses.values():
        if len({parameter.status for parameter in shared}) > 1:
            said = ", ".join(f"{parameter.path} is {parameter.status}" for parameter in shared[:3])
            yield Finding.of("UF301", (p.path for p in shared), f"these are one array and have two statuses: {said}", "give both the same status")


def of_optimizers(backend: Backend, model: Any, tree: Layer, optimizers: tuple[Any, ...]) -> Iterator[Finding]:
    """What the optimizers hold, against what is frozen and what trains."""
    parameters = unique(parameter for layer in tree.walk() for parameter in layer.parameters)
    told = (backend.clues(model, tree, optimizer, living=False) for optimizer in optimizers or (None,))
    asked = [{path: clue for path, clue in clues.items() if not clue.left_out} for clues in told]
    frozen = [(p.path, clues[p.path]) for clues in asked for p in parameters if p.status == "frozen" and p.rows is None and p.path in clues]
    given = bool(optimizers)

    def those(fits: Callable[[Clue], bool]) -> list[str]:
        return list(dict.fromkeys(path for path, clue in frozen if fits(clue) and (clue.optimizer or not given)))

    by = _named(clue for _, clue in frozen)
    yield from _one("UF101", those(lambda c: c.gradient == "some"), f"it is frozen, and a gradient is left on it, which {by} applies at its next step", _ANEW)
    decays = those(lambda c: c.gradient == "zero" and bool(c.decay))
    yield from _one("UF102", decays, f"it is frozen, a gradient of zeros is left on it, and {by} decays: it shrinks at every step", _ANEW)
    carried = those(lambda c: c.gradient == "zero" and c.moments)
    yield from _one("UF103", carried, f"it is frozen, a gradient of zeros is left on it, and {by} keeps moments for it: it coasts on", _ANEW)
    idle = those(lambda c: bool(c.optimizer) and not c.gradient)
    said = f"it is frozen and in {by}, which passes over what has no gradient{_and_keeps(frozen)}"
    yield from _one("UF104", idle, said, "nothing, or make the optimizer from what is trainable: freezing.optimizer(…)")
    yield from _of_trainable(parameters, asked if given else [])


def _of_trainable(parameters: list[Parameter], asked: list[dict[str, Clue]]) -> Iterator[Finding]:
    times = {p.path: sum(bool(clues.get(p.path, Clue()).optimizer) for clues in asked) for p in parameters if p.status == "trainable"}
    known = bool(asked) and any(clue.optimizer for clues in asked for clue in clues.values()) and all(p in clues for clues in asked for p in times)
    if known:
        left = [path for path, count in times.items() if not count]
        yield from _one("UF110", left, "it is trainable and in no optimizer, so it does not train", "freezing.attach(optimizer) adds it; or freeze it")
        twice = [path for path, count in times.items() if count > 1]
        yield from _one("UF111", twice, "it is in more than one optimizer, and each takes a step", "leave it in one of them")


def of_what_is_said(tree: Layer, said: Layer) -> Iterator[Finding]:
    """What the user says trains, against what the model or its Freezing says."""
    meant = {parameter.path: parameter.status for layer in said.walk() for parameter in layer.parameters}
    here = {p.path: p.status for layer in tree.walk() for p in layer.parameters if not p.untrainable}
    odd = [path for path, status in here.items() if meant.get(path, status) != status]
    if odd and len(odd) == len(here) > 1:
        why = "what trains is frozen, and what is frozen trains: trainable= is the wrong way round"
        yield Finding.of("UF604", odd, why, "it names what trains: turn it round, ~selector, or jax.tree.map(operator.not_, mask)")
    elif odd:
        why = f"it is said to be {meant[odd[0]]}, and is {here[odd[0]]}"
        yield Finding.of("UF606", odd, why, "freeze(model, layers=…) or unfreeze, or mend what is said")


def _one(code: str, paths: list[str], why: str, repair: str) -> Iterator[Finding]:
    if paths:
        yield Finding.of(code, paths, why, repair)


def _named(clues: Iterable[Clue]) -> str:
    return next((clue.optimizer for clue in clues if clue.optimizer), "an optimizer that holds it")


def _and_keeps(frozen: list[tuple[str, Clue]]) -> str:
    facts: Mapping[str, bool] = {"decays": any(c.decay for _, c in frozen), "keeps moments for it": any(c.moments for _, c in frozen)}
    said = " and ".join(fact for fact, true in facts.items() if true)
    return f"; it {said}" if said else ""
