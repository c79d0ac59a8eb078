"""Freezing in one model exactly what is frozen in another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, Literal

from unifreeze._backend import Request
from unifreeze._freezing import Freezing, bring_about, label_of
from unifreeze._graph import Unit, Weight
from unifreeze._manager import read
from unifreeze._recipe import Recipe
from unifreeze._recording import wish_for
from unifreeze._tree import Inference, Layer, Parameter, State, state_of, unique
from unifreeze._wish import how
from unifreeze.errors import CorrespondenceError

from .correspondence import Applies, Correspondence, Shape, correspond
from .depth import unsettled
from .report import Lone, Ported


def port(recipe: Any, source: object, target: object, *, shape: Shape = None, partly: bool = False, apply: Applies = None) -> Ported:
    """Freezes in the target exactly the parameters that correspond to those that a recipe freezes in the source.

    The source is not changed. Whatever of the target is not to be frozen is trainable afterwards. Layers that are held at inference in the source, such as
    frozen batch normalisations, are held in the target.

    Args:
        recipe: A recipe, as ``unifreeze.apply`` takes it, in the words of the source; or ``None`` for what is frozen in the source now.
        source: The model that the recipe is written for, or its ``Freezing``.
        target: The model to freeze.
        shape: As in ``correspond``.
        partly: Leaves trainable, and names in ``Ported.notes``, what is frozen in the source and has no certain partner, instead of refusing. Where the
            models part ways, the whole run of repeated layers is left, so that what is ported ends with the last stage that both have.
        apply: As in ``correspond``, for models of JAX.

    Raises:
        CorrespondenceError: If something frozen has no partner or no certain one, if the freeze parts layers that no graph can tell apart, or if it covers a
            parameter of the target by halves. Nothing has changed then.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import port
        >>> build = lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3))
        >>> port({"steps": [{"freeze": "first:1"}]}, build(), build(), shape=(1, 9, 9, 3)).freezing.frozen
        ('0.weight', '0.bias')
    """
    wanted, tree, notes = _wanted(recipe, source)
    found = correspond(_bare(source), _bare(target), shape=shape, apply=apply)
    backend, other = read(target)
    carrier = _Carrier(found, wanted, tree, other, partly=partly)
    state = carrier.state()
    every = frozenset(p.path for layer in other.walk() for p in layer.parameters)
    request = Request(other, state, every, frozenset(layer.path for layer in other.walk()))
    picked = [layer.path for layer in other.walk() if any(p.path in state.frozen for p in layer.parameters)]
    freezing = bring_about(backend, _bare(target), request, picked=picked)
    counts = _elements(tree, wanted.frozen), _elements(other, frozenset(freezing.frozen))
    labels = label_of(tree, read(source)[0]), label_of(other, backend)
    return Ported(freezing, found, counts, (*notes, *carrier.notes()), tuple(carrier.lone), labels)


def _bare(model: Any) -> Any:
    return model.model if isinstance(model, Freezing) else model


def _wanted(recipe: Any, source: object) -> tuple[State, Layer, list[str]]:
    """The state that the recipe asks for in the source, the source's tree, and what of the recipe is not carried; the source itself is left alone."""
    backend, tree = read(source)
    if recipe is None:
        return _whole(state_of(list(tree.walk()))), tree, []
    told = Recipe.read(recipe)
    state = wish_for(told.steps, tree, label_of(tree, backend)).request(State(), exact=True).state
    phases = [f"{len(told.phases)} phases of the recipe were not ported: the first state alone was"] if told.phases else []
    return _whole(state), tree, phases


def _whole(state: State) -> State:
    if state.rows:
        raise CorrespondenceError(
            f"Rows of {next(iter(state.rows))} are frozen in the source, and a freeze by rows can't be ported.\n"
            "  Freeze the parameter whole, or freeze rows in the target by unifreeze.freeze(…, rows=…)."
        )
    return state


class _Carrier:
    """Carries a state along the pairs of a correspondence, and keeps account of what could not be."""

    def __init__(self, found: Correspondence, wanted: State, tree: Layer, other: Layer, *, partly: bool) -> None:
        self.found, self.wanted, self.partly = found, wanted, partly
        self.tree, self.other = tree, other
        self.units = found._traced[0].graph.units, found._traced[1].graph.units
        self.ours = {p.path: p for layer in tree.walk() for p in layer.parameters}
        self.theirs = {p.path: p for layer in other.walk() for p in layer.parameters}
        self.lone: list[Lone] = []
        self._told: set[tuple[str, str, tuple[int, ...]]] = set()
        self.left: list[str] = []
        self.unused: list[str] = []

    def state(self) -> State:
        """The state that the target shall be in."""
        self._refuse_torn_groups()
        pairs = self._certain_pairs()
        votes: dict[str, list[tuple[Weight, bool, str]]] = {}
        for a, b in pairs:
            self._compare(self.units[0][a], self.units[1][b])
            for weight, still in self._statuses(self.units[0][a], self.units[1][b]):
                votes.setdefault(weight.path, []).append((weight, still, self.units[0][a].layer))
        frozen = {path for path, given in votes.items() if _agreed(path, given)} | {path for path, p in self.theirs.items() if p.untrainable}
        arrays = {id(self.theirs[path].array) for path in frozen}
        return State(frozenset(path for path, p in self.theirs.items() if id(p.array) in arrays), self._held(pairs))

    def _statuses(self, ours: Unit, theirs: Unit) -> Iterator[tuple[Weight, bool]]:
        """For each parameter of the target's unit, whether it is to be frozen: as its like, and one without a like as the layer is altogether."""
        states = self._states(ours)
        whole = all(states.values()) if states else ours.layer in self.wanted.inference
        yield from ((weight, states.get(role, whole)) for role, weight in theirs.weights.items() if weight.path in self.theirs)

    def _states(self, unit: Unit) -> dict[str, bool]:
        return {role: weight.path in self.wanted.frozen for role, weight in unit.weights.items() if weight.path in self.ours}

    def _compare(self, ours: Unit, theirs: Unit) -> None:
        """Keeps account of frozen parameters that only one side of a pair has."""
        states = self._states(ours)
        for role in sorted(ours.weights.keys() - theirs.weights.keys()):
            if states.get(role):
                self._alone("source", ours, theirs, role)
        still = {weight.path for weight, on in self._statuses(ours, theirs) if on}
        for role in sorted(theirs.weights.keys() - ours.weights.keys()):
            if theirs.weights[role].path in still:
                self._alone("target", ours, theirs, role)

    def _alone(self, side: Literal["source", "target"], ours: Unit, theirs: Unit, role: str) -> None:
        weight = (ours if side == "source" else theirs).weights[role]
        if (side, weight.path, weight.take) not in self._told:
            self._told.add((side, weight.path, weight.take))
            self.lone.append(Lone(side, ours.layer, theirs.layer, role, prod(weight.seen)))

    def _certain_pairs(self) -> list[tuple[int, int]]:
        """The pairs to go by, once all that is frozen has one."""
        pairs = list(self.found._match.pairs)
        graphs = self.found._traced[0].graph, self.found._traced[1].graph
        open_ended, stage = unsettled(*graphs, dict(pairs)) if self.found.certificate == "prefix" else (set(), set())
        doubtful = [p for place in sorted(open_ended) for p in self._frozen(self.units[0][place])]
        homeless = self._homeless(pairs)
        if (doubtful or homeless) and not self.partly:
            self._refuse(homeless, doubtful)
        if not (doubtful or homeless):
            return pairs
        self.left = list(dict.fromkeys(p.path for p in (*(q for place in sorted(stage) for q in self._frozen(self.units[0][place])), *homeless)))
        return [(a, b) for a, b in pairs if a not in stage]

    def _frozen(self, unit: Unit) -> list[Parameter]:
        return [self.ours[weight.path] for weight in unit.weights.values() if weight.path in self.wanted.frozen and weight.path in self.ours]

    def _homeless(self, pairs: Iterable[tuple[int, int]]) -> list[Parameter]:
        """What is frozen, takes part in the computation, and has no partner."""
        covered = {weight.path for a, _ in pairs for weight in self.units[0][a].weights.values()}
        used = {weight.path for unit in self.units[0] for weight in unit.weights.values()}
        arrays = {id(self.ours[path].array) for path in used if path in self.ours}
        frozen = unique(p for path, p in self.ours.items() if path in self.wanted.frozen and not p.untrainable)
        self.unused = [p.path for p in frozen if id(p.array) not in arrays]
        known = {id(self.ours[path].array) for path in covered if path in self.ours}
        return [p for p in frozen if id(p.array) in arrays - known]

    def _refuse(self, homeless: list[Parameter], doubtful: list[Parameter]) -> None:
        lost = homeless or doubtful
        what = "have no partner in the target" if homeless else "are of a kind that the models repeat another number of times before they part ways"
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise CorrespondenceError(
            f"{len(lost)} of the frozen parameters {what}.\n"
            f"  {', '.join(parameter.path for parameter in lost[:3])}{more}\n"
            f"  the correspondence is {self.found.certificate}\n{self.found.divergence}".rstrip()
            + "\n  Freeze less, or port(…, partly=True) leaves these trainable and says so."
        )

    def _refuse_torn_groups(self) -> None:
        for group in self.found._match.groups:
            if len({tuple(sorted(self._states(self.units[0][place]).items())) for place in group}) > 1:
                raise CorrespondenceError(
                    "The freeze parts layers that no graph can tell apart, so it would be a guess which of the target's are meant.\n"
                    f"  interchangeable: {', '.join(self.units[0][place].layer for place in group)}\n  Freeze all of them or none."
                )

    def _held(self, pairs: list[tuple[int, int]]) -> dict[str, Inference]:
        """How the target's layers are held: as their partners are, where they keep something that could move."""
        modes = {self.units[1][b].layer: self.wanted.inference[self.units[0][a].layer] for a, b in pairs if self.units[0][a].layer in self.wanted.inference}
        layers = {layer.path: layer for layer in self.other.walk()}
        held = {path: how(layers[path], mode) for path, mode in modes.items()}
        return {path: mode for path, mode in held.items() if mode}

    def notes(self) -> Iterator[str]:
        """What the reader should know, layer by layer."""
        yield from (str(one) for one in self.lone)
        yield from (f"{path}: frozen in the source, and has no certain partner in the target; left out" for path in self.left)
        yield from (f"{path}: frozen in the source, where inference does not use it; nothing in the target corresponds" for path in self.unused)
        yield from (f"{path}: only in the target, left trainable" for path in self.found.unmatched[1])
        weighted = {layer.path for layer in self.tree.walk() if layer.weighted}
        loose = [path or "the model" for path, mode in self.wanted.inference.items() if mode == "all" and path not in weighted]
        if loose:
            yield f"{len(loose)} layers without weights, such as {loose[0]}, run as at inference in the source; in the target they follow the model's mode"


def _agreed(path: str, votes: list[tuple[Weight, bool, str]]) -> bool:
    """Whether a parameter of the target is to be frozen; where several of the source lie fused in it, all of them must say so."""
    frozen, rest = ([layer for _, still, layer in votes if still == side] for side in (True, False))
    taken = {place for weight, _, _ in votes for place in weight.take}
    if votes[0][0].take and len(taken) < votes[0][0].shape[-1]:
        rest.append("a part without a partner")
    if frozen and rest:
        raise CorrespondenceError(
            f"{path} is one parameter of the target and several of the source, and the freeze covers it by halves.\n"
            f"  {frozen[0]} is frozen, {rest[0]} is trainable\n  Freeze all of them or none."
        )
    return bool(frozen)


def _elements(tree: Layer, frozen: frozenset[str]) -> int:
    arrays = {id(p.array): p.size for layer in tree.walk() for p in layer.parameters if p.path in frozen}
    return sum(arrays.values())
