"""Recording: from the state of a live model to the shortest steps that bring it about again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ._resolve import matches, resolve
from ._scene import Scene
from ._shorten import Shortener
from ._told import call_text
from ._tree import Layer, Parameter, State, state_of
from ._wish import Held, Wish, how
from .errors import ConflictError, NothingSelectedError, RecipeError, SelectorError, UntrainableError

if TYPE_CHECKING:
    from ._recipe import Step

_MODES: tuple[Held, ...] = ("norm", "none", "all")
_A_STEP = 12


def wish_for(steps: Iterable[Step], tree: Layer, label: str) -> Wish:
    """Resolves the steps of a recipe on a tree; an error names the step."""
    wish = Wish(tree, label)
    for place, step in enumerate(steps):
        try:
            wish.add(resolve(step.layers, tree, label), step.params, step.inference, frozen=step.do == "freeze", text=_text(step))
        except (NothingSelectedError, SelectorError, UntrainableError) as error:
            raise type(error)(f"steps[{place}]: {error}") from error
    return wish


def _text(step: Step) -> str:
    return f"apply(…): {call_text(step.do, layers=step.layers, params=step.params)}"


def state_for(wish: Wish) -> State:
    """The state that a recipe brings about: what can't be trained stays frozen, and everything else is as the steps say."""
    never = frozenset(parameter.path for layer in wish.nodes for parameter in layer.parameters if parameter.untrainable)
    return wish.request(State(frozen=never), exact=True).state


@dataclass
class _Plan:
    """Steps with what they cost a reader, and what is to be said about them."""

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def cost(self) -> int:
        return sum(_A_STEP + len(str(step.layers)) + len(step.params or "") for step in self.steps)


def record(tree: Layer, label: str) -> tuple[list[Step], list[str]]:
    """Returns the shortest steps found that make exactly the state that the tree shows, and notes for the reader.

    Raises:
        RecipeError: If nothing is frozen, or if no steps make this state.
    """
    recorder = _Recorder(tree, label)
    if not recorder.anything:
        raise RecipeError(f"Nothing is frozen in {label}, so there is nothing to record.\n  Freeze first; a recipe has at least one step.")
    plans: list[_Plan] = []
    # `~` and `-` say of a shared parameter that it is left out, which may contradict what it is; then the same without them.
    for plain in (False, True):
        plans = [plan for partly in ("only", "but", "roles") if (plan := recorder.plan(partly, plain=plain)) is not None and recorder.proves(plan)]
        if plans:
            break
    if not plans:
        raise RecipeError(
            f"The state of {label} can't be said in steps.\n"
            f"  {recorder.odd() or 'no selector picks exactly what is frozen'}\n"
            "  Freeze with unifreeze, and record again."
        )
    best = min(plans, key=lambda plan: plan.cost)
    return best.steps, best.notes


class _Recorder:
    def __init__(self, tree: Layer, label: str) -> None:
        self.tree, self.label = tree, label
        self.scene = Scene(tree, label)
        self.nodes = self.scene.nodes
        self.shortener = Shortener(self.scene)
        self.state = state_of(self.nodes)
        self.anything = bool(self.state.inference) or any(p.path in self.state.frozen for node in self.nodes for p in _able(node))
        self.followers = self._followers()

    def _followers(self) -> set[int]:
        """Layers that own nothing but what an earlier layer owns: they follow it without being named."""
        known: set[int] = set()
        found = set()
        for i, node in enumerate(self.nodes):
            own = {id(p.array) for p in node.parameters}
            if own and own <= known and node.inference is None and how(node, "norm") is None and self._whole(node):
                found.add(i)
            known |= own
        return found

    def _whole(self, node: Layer) -> bool:
        return bool(able := _able(node)) and all(p.path in self.state.frozen for p in able)

    def _none(self, node: Layer) -> bool:
        return not any(p.path in self.state.frozen for p in _able(node))

    def odd(self) -> str:
        """The first layer that is held as no step holds one."""
        for node in self.nodes:
            if node.inference is not None and all(how(node, mode) != node.inference for mode in _MODES):
                return f"{node.path or 'the root'} is held {node.inference!r} and keeps no statistics"
        return ""

    def proves(self, plan: _Plan) -> bool:
        """Resolves the plan on the tree and compares."""
        try:
            state = state_for(wish_for(plan.steps, self.tree, self.label))
        except (NothingSelectedError, SelectorError, UntrainableError, ConflictError):
            return False
        free = {p.path for node in self.nodes for p in node.parameters if p.untrainable}
        return state.frozen - free == self.state.frozen - free and dict(state.inference) == dict(self.state.inference)

    def plan(self, partly: str, *, plain: bool) -> _Plan | None:
        """Plans whole layers first, then parameters of layers.

        Args:
            partly: What to do with a layer that is frozen in part: name ``only`` what is frozen, or all ``but`` what trains. ``roles`` names
                parameters also of layers that are frozen whole.
            plain: See ``Shortener.shortest``.
        """
        base = {i for i, node in enumerate(self.nodes) if self._is_base(i, node, partly)}
        plan = _Plan()
        try:
            self._freeze_layers(plan, base, plain=plain)
            self._narrow(plan, [i for i in base if not self._whole(self.nodes[i])], frozen=False, plain=plain)
            inside = [i for i, node in enumerate(self.nodes) if i not in base and i not in self.followers and not self._none(node)]
            self._narrow(plan, inside, frozen=True, plain=plain)
        except LookupError:
            return None
        return plan

    def _is_base(self, i: int, node: Layer, partly: str) -> bool:
        if i in self.followers:
            return False
        if node.inference is not None:
            return True
        if partly == "roles":
            return False
        return self._whole(node) if partly == "only" else not self._none(node)

    def _freeze_layers(self, plan: _Plan, base: set[int], *, plain: bool) -> None:
        from ._recipe import Step

        modes = {i: {mode for mode in _MODES if how(self.nodes[i], mode) == self.nodes[i].inference} for i in base}
        exclusive = {next(iter(found)) for found in modes.values() if len(found) == 1}
        order = [mode for mode in _MODES if mode in exclusive] or ["norm"]
        given = {i: next((mode for mode in order if mode in found), "norm") for i, found in modes.items()}
        for number, mode in enumerate(order):
            must = {i for i in base if given[i] == mode and not self._torn(i)}
            if not must:
                continue
            later = {i for i in base if given[i] in order[number + 1 :]}
            free = {i for i in range(len(self.nodes)) if i in later or self._harmless(i, mode, base)}
            self._add(plan, Step("freeze", inference=mode), must, set(range(len(self.nodes))) - must - free, plain=plain)

    def _torn(self, i: int) -> bool:
        """A container that reads as held like its own statistics because a part of it is not held wholly."""
        node = self.nodes[i]
        return not node.weighted and node.inference is None

    def _harmless(self, i: int, mode: Held, base: set[int]) -> bool:
        node = self.nodes[i]
        if i in self.followers or (i in base and how(node, mode) == node.inference):
            return True
        torn = mode == "all" and any(self.nodes[j].inference != "all" for j in range(i + 1, self.scene.ends[i]))
        after = how(node, "norm") if torn else how(node, mode)
        return (not _able(node) or self._whole(node)) and after == node.inference

    def _narrow(self, plan: _Plan, places: list[int], *, frozen: bool, plain: bool) -> None:
        """Adds the steps for parameters of layers: what is to be frozen of them, or what is to train."""
        from ._recipe import Step

        wanted = {i: [p for p in _able(self.nodes[i]) if (p.path in self.state.frozen) == frozen] for i in places}
        rest = {p.path for found in wanted.values() for p in found}
        for pattern in self._patterns(wanted, frozen=frozen):
            picked = {i: [p for p in _able(node) if matches(pattern, p)] for i, node in enumerate(self.nodes)}
            must = {i for i in wanted if any(p.path in rest for p in picked[i]) and all((p.path in self.state.frozen) == frozen for p in picked[i])}
            if not must:
                continue
            never = {i for i, found in picked.items() if i not in must and not self._may(i, found, frozen=frozen)}
            self._add(plan, Step("freeze" if frozen else "unfreeze", params=pattern), must, never, plain=plain)
            rest -= {p.path for i in must for p in picked[i]}
        if rest:
            raise LookupError(min(rest))

    def _may(self, i: int, found: list[Parameter], *, frozen: bool) -> bool:
        """Whether a narrow step may also reach a layer."""
        if not frozen:
            return all(p.path not in self.state.frozen for p in found)
        node = self.nodes[i]
        if not node.parameters:
            return True
        return all(p.path in self.state.frozen for p in found) and (not self._whole(node) or how(node, "norm") == node.inference)

    def _patterns(self, wanted: dict[int, list[Parameter]], *, frozen: bool) -> list[str]:
        """Roles where a role is frozen or trained as a whole, most frequent first; then names."""
        count: dict[str, int] = {}
        whole = all(len(found) == len(_able(self.nodes[i])) for i, found in wanted.items())
        for i, found in wanted.items():
            for p in found:
                alike = [q for q in _able(self.nodes[i]) if matches(p.role, q)]
                pattern = p.role if all((q.path in self.state.frozen) == frozen for q in alike) else p.name
                count[pattern] = count.get(pattern, 0) + 1
        return (["*"] if whole else []) + sorted(count, key=lambda pattern: (-count[pattern], pattern))

    def _add(self, plan: _Plan, step: Step, must: set[int], never: set[int], *, plain: bool) -> None:
        found = self.shortener.shortest(_number(must), _number(never), plain=plain)
        place = len(plan.steps)
        if found.counted:
            plan.notes.append(f"steps[{place}] relies on {found.counted}, a name that the framework counted up: another build may have another")
        elif found.listed:
            plan.notes.append(f"steps[{place}] lists {found.listed} parts: no shorter selector picks exactly these")
        plan.steps.append(replace(step, layers=found.text))


def _able(node: Layer) -> list[Parameter]:
    return [parameter for parameter in node.parameters if not parameter.untrainable]


def _number(places: set[int]) -> int:
    marks = bytearray(max(places, default=0) // 8 + 1)
    for place in places:
        marks[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(marks, "little")
