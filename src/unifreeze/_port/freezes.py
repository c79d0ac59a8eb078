"""Freezing in one model exactly what is frozen in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unifreeze._freezing import Freezing, bring_about, label_of
from unifreeze._graph import Weight
from unifreeze._manager import backend_of
from unifreeze._recipe import Recipe
from unifreeze._resolve import resolve
from unifreeze._tree import Layer, Parameter, State, state_of
from unifreeze._wish import Wish
from unifreeze.errors import CorrespondenceError

from .correspondence import Applies, Correspondence, Shape, correspond


@dataclass(frozen=True, slots=True)
class Ported:
    """What came of ``port``.

    Attributes:
        freezing: The ``Freezing`` of the target.
        correspondence: How the layers were found.
        frozen: The numbers of frozen elements, of the source and of the target.
        notes: Why these numbers differ, and what could not be carried, layer by layer.
    """

    freezing: Freezing
    correspondence: Correspondence
    frozen: tuple[int, int]
    notes: tuple[str, ...]


def port(recipe: Any, source: object, target: object, *, shape: Shape = None, apply: Applies = None) -> Ported:
    """Freezes in the target exactly the parameters that correspond to those that a recipe freezes in the source.

    The source is not changed. Whatever of the target is not to be frozen is trainable afterwards.

    Args:
        recipe: A recipe, as ``unifreeze.apply`` takes it, in the words of the source; or ``None`` for what is frozen in the source now.
        source: The model that the recipe is written for.
        target: The model to freeze.
        shape: As in ``correspond``.
        apply: As in ``correspond``.

    Raises:
        CorrespondenceError: If something frozen has no partner, or the freeze parts layers that no graph can tell apart. Nothing has changed then.
    """
    wanted, tree = _wanted(recipe, source)
    found = correspond(source, target, shape=shape, apply=apply)
    roles, notes = _carried(found, wanted, tree)
    backend = backend_of(target)
    other = backend.layers(target)
    wish = Wish(other, label_of(other, backend))
    held = _held(found, wanted)
    for inference in ("norm", "none"):
        frozen = [layer for layer in other.walk() if any(p.path in roles for p in layer.parameters) and (layer.path in held) == (inference == "norm")]
        paths = {p.path for layer in frozen for p in layer.parameters if p.path in roles}
        if paths:
            wish.add(resolve([layer.path for layer in frozen], other, wish.label), _among(paths), "norm" if inference == "norm" else "none", frozen=True)
    never = frozenset(p.path for layer in wish.nodes for p in layer.parameters if p.untrainable)
    freezing = bring_about(backend, target, wish.request(State(frozen=never), exact=True), picked=sorted(wish.picked))
    counts = _elements(tree, wanted.frozen), _elements(other, frozenset(freezing.frozen))
    return Ported(freezing, found, counts, tuple(notes))


def _among(paths: set[str]) -> Any:
    return lambda parameter: parameter.path in paths


def _wanted(recipe: Any, source: object) -> tuple[State, Layer]:
    """The state that the recipe asks for in the source, and the source's tree; the source itself is left alone."""
    backend = backend_of(source)
    tree = backend.layers(source)
    if recipe is None:
        return state_of(list(tree.walk())), tree
    wish = Wish(tree, label_of(tree, backend))
    for step in Recipe.read(recipe).steps:
        wish.add(resolve(step.layers, tree, wish.label), step.params, step.inference, frozen=step.do == "freeze")
    return wish.request(State(), exact=True).state, tree


def _carried(found: Correspondence, wanted: State, tree: Layer) -> tuple[set[str], list[str]]:
    """The target's parameters to freeze, and notes on what exists on one side only."""
    units = found._traced[0].graph.units, found._traced[1].graph.units
    _refuse_torn_groups(found, wanted)
    covered: set[str] = set()
    votes: dict[str, list[tuple[Weight, str, bool]]] = {}
    notes: list[str] = []
    parameters = {p.path: p for layer in tree.walk() for p in layer.parameters}
    for a, b in found._match.pairs:
        ours, theirs = units[0][a], units[1][b]
        states = {role: weight.path in wanted.frozen for role, weight in ours.weights.items() if weight.path in parameters}
        covered |= {weight.path for weight in ours.weights.values()}
        for role, weight in theirs.weights.items():
            votes.setdefault(weight.path, []).append((weight, ours.layer, states.get(role, bool(states) and all(states.values()))))
        for role in sorted(ours.weights.keys() ^ theirs.weights.keys()):
            if any(states.values()):
                side, layer = ("source", ours.layer) if role in ours.weights else ("target", theirs.layer)
                notes.append(f"{ours.layer} = {theirs.layer}: only the {side}'s {layer} has a {role}")
    _refuse_homeless(found, [parameters[path] for path in sorted(wanted.frozen - covered) if path in parameters])
    return {path for path, given in votes.items() if _agreed(path, given)}, notes


def _agreed(path: str, votes: list[tuple[Weight, str, bool]]) -> bool:
    """Whether a parameter is to be frozen; where several layers of the source lie fused in it, all of them must say so."""
    frozen = [layer for _, layer, state in votes if state]
    rest = [layer for _, layer, state in votes if not state]
    whole = votes[0][0].shape[-1]
    if frozen and not rest and votes[0][0].take and sum(len(weight.take) for weight, _, _ in votes) < whole:
        rest = ["what has no partner"]
    if frozen and rest and votes[0][0].take:
        raise CorrespondenceError(
            f"{path} of the target holds several layers of the source in one array, and only some of them are frozen.\n"
            f"  frozen: {', '.join(frozen)}\n  not frozen: {', '.join(rest)}\n  Freeze all of them or none."
        )
    return bool(frozen)


def _refuse_torn_groups(found: Correspondence, wanted: State) -> None:
    units = found._traced[0].graph.units
    for group in found._match.groups:
        states = {tuple(sorted((role, weight.path in wanted.frozen) for role, weight in units[place].weights.items())) for place in group}
        if len(states) > 1:
            raise CorrespondenceError(
                "The freeze parts layers that no graph can tell apart, so it would be a guess which of the target's are meant.\n"
                f"  interchangeable: {', '.join(units[place].layer for place in group)}\n  Freeze all of them or none."
            )


def _refuse_homeless(found: Correspondence, lost: list[Parameter]) -> None:
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise CorrespondenceError(
            f"{len(lost)} of the frozen parameters have no partner in the target.\n"
            f"  {', '.join(parameter.path for parameter in lost[:3])}{more}\n"
            f"  the correspondence is {found.certificate}\n{found.divergence}".rstrip()
        )


def _held(found: Correspondence, wanted: State) -> set[str]:
    return {theirs for ours, theirs in found.pairs if ours in wanted.inference}


def _elements(tree: Layer, frozen: frozenset[str]) -> int:
    arrays = {id(p.array): p.size for layer in tree.walk() for p in layer.parameters if p.path in frozen}
    return sum(arrays.values())
