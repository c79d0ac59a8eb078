"""The wish: what one call or recipe asks for, path by path, made into a request once sharing is resolved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ._backend import Request
from ._resolve import resolve_parameters
from ._rows import Rows
from ._scene import Selection
from ._told import Told
from ._tree import STATELESS, Inference, Layer, Parameter, State, state_of
from .errors import ConflictError, NothingSelectedError, UntrainableError

Held = Literal["norm", "all", "none"]
# What of a parameter is frozen: all of it, nothing of it, or some rows.
Part = bool | Rows


class Wish:
    """Collects what is asked for, and changes nothing."""

    def __init__(self, tree: Layer, label: str) -> None:
        self.tree, self.label = tree, label
        self.nodes = list(tree.walk())
        self.before = state_of(self.nodes)
        self.picked: set[str] = set()
        self.skipped: dict[str, str] = {}
        self._asked: dict[str, Part] = {}
        self._left_out: set[str] = set()
        self._held: dict[str, Inference | None] = {}
        self.told: list[Told] = []

    def add(
        self, selection: Selection, params: object, inference: Held, *, frozen: bool, within: Callable[[Parameter], Rows] | None = None, text: str = ""
    ) -> None:
        """Adds that the selected layers, or some of their parameters, or (``within``) some rows of these, shall be frozen or trainable.

        Raises:
            NothingSelectedError: If nothing would come of it.
            UntrainableError: If all that is to be trained can't be.
        """
        layers = [layer for layer in self.nodes if layer.path in selection.layers]
        chosen = [parameter for layer in layers for parameter in layer.parameters]
        if params is not None:
            chosen = resolve_parameters(params, layers, self.label)
        if not frozen:
            chosen = self._trainable(chosen)
        asked = {parameter.path: frozen if within is None else self._part(parameter, within(parameter), frozen=frozen) for parameter in chosen}
        self._asked |= asked
        if selection.excluded:
            self._left_out |= {p.path for layer in self.nodes if layer.path in selection.excluded for p in layer.parameters}
        self._left_out -= self._asked.keys()
        whole = layers if params is None and within is None else [layer for layer in layers if frozen and layer.parameters and self._all_frozen(layer)]
        self._held |= {layer.path: how(layer, inference if frozen else "none") for layer in whole}
        self.picked |= selection.layers
        self.told.append(Told(text, frozen, frozenset(asked), selection.layers))
        if not any(layer.weighted for layer in layers) and not any(self._held[layer.path] or layer.inference for layer in whole):
            if not any(layer.weighted for layer in self.nodes):
                raise NothingSelectedError(f"{self.label} has no parameters and no buffers, so there is nothing to freeze.\n  Is it the model that you meant?")
            raise NothingSelectedError(
                f"The selector picks only layers without parameters or buffers of {self.label}.\n"
                f"  picked: {', '.join(layer.path for layer in layers[:5])}\n"
                "  Only inference='all' does anything to such layers."
            )

    def _trainable(self, chosen: list[Parameter]) -> list[Parameter]:
        self.skipped |= {parameter.path: parameter.untrainable for parameter in chosen if parameter.untrainable}
        able = [parameter for parameter in chosen if not parameter.untrainable]
        if chosen and not able:
            reasons = "\n".join(f"  {parameter.path}: {parameter.untrainable}" for parameter in chosen[:5])
            raise UntrainableError(
                f"None of the picked parameters of {self.label} can be trained.\n{reasons}\n  Pick others, or convert them to floating point first."
            )
        return able

    def _part(self, parameter: Parameter, rows: Rows, *, frozen: bool) -> Part:
        every = Rows(((0, parameter.shape[0]),))
        now = self._asked.get(parameter.path, _part_now(parameter))
        still = now if isinstance(now, Rows) else every if now else Rows(())
        then = still | rows if frozen else still - rows
        return then if 0 < len(then) < len(every) else then == every

    def _all_frozen(self, layer: Layer) -> bool:
        return all(self._asked.get(p.path, _part_now(p)) is True for p in layer.parameters)

    def request(self, base: State, *, exact: bool = False) -> Request:
        """Returns what to ask the backend for: the wish, on top of ``base``.

        Args:
            base: What stays where the wish says nothing.
            exact: Whether the request is about the whole model, so that ``base`` is brought about too.

        Raises:
            ConflictError: If two statuses were asked for one shared parameter.
        """
        settled = self._settled()
        frozen = {path for path in base.frozen if settled.get(path, True) is True} | {path for path, part in settled.items() if part is True}
        rows = {path: some for path, some in base.rows.items() if path not in settled}
        rows |= {path: some for path, some in settled.items() if isinstance(some, Rows)}
        held = self._without_torn_containers({**base.inference, **self._held})
        inference = {path: how for path, how in held.items() if how is not None}
        parameters = {p.path for layer in self.nodes for p in layer.parameters} if exact else settled.keys()
        torn = {path for path, how in base.inference.items() if held[path] != how}
        layers = {layer.path for layer in self.nodes} if exact else self._held.keys() | torn
        return Request(self.tree, State(frozenset(frozen), inference, rows), frozenset(parameters), frozenset(layers))

    def _without_torn_containers(self, held: dict[str, Inference | None]) -> dict[str, Inference | None]:
        """A container runs wholly as at inference only if everything in it does: what it hands down would reach the layers that train."""
        whole: dict[str, bool] = {}
        for layer in reversed(self.nodes) if "all" in held.values() else ():
            whole[layer.path] = held.get(layer.path) == "all" and all(whole[child.path] for child in layer.children)
            if held.get(layer.path) == "all" and not whole[layer.path]:
                held[layer.path] = how(layer, "norm")
        return held

    def _settled(self) -> dict[str, Part]:
        """Gives every path of a shared parameter the status that was asked for one of them."""
        settled = dict(self._asked)
        for aliases in _shared(self.nodes):
            asked = {path: self._asked[path] for path in aliases if path in self._asked}
            if asked:
                self._agree(asked | {path: part for path, part in aliases.items() if path in self._left_out and path not in asked})
                settled |= dict.fromkeys(aliases, next(iter(asked.values())))
        return settled

    def _agree(self, parts: dict[str, Part]) -> None:
        if len(set(parts.values())) > 1:
            first, *_, other = sorted(parts, key=lambda path: (parts[path] is False, parts[path] is not True))
            raise ConflictError(
                f"{first} and {other} of {self.label} are the same array and can't have different statuses.\n"
                f"  {first} would be {_word(parts[first])}, {other} {_word(parts[other])}\n"
                "  Pick both or neither; one that is not mentioned follows the other."
            )


def _shared(nodes: list[Layer]) -> list[dict[str, Part]]:
    """For each parameter that several paths reach: what of it is frozen now, by path."""
    every = [parameter for layer in nodes for parameter in layer.parameters]
    if len({id(parameter.array) for parameter in every}) == len(every):
        return []
    first: dict[int, Parameter] = {}
    groups: dict[int, dict[str, Part]] = {}
    for parameter in every:
        found = first.setdefault(id(parameter.array), parameter)
        if found is not parameter:
            group = groups.setdefault(id(parameter.array), {found.path: _part_now(found)})
            group[parameter.path] = _part_now(parameter)
    return list(groups.values())


def _part_now(parameter: Parameter) -> Part:
    return parameter.status == "frozen" if parameter.rows is None else parameter.rows


def _word(part: Part) -> str:
    return f"frozen in rows {part}" if isinstance(part, Rows) else "frozen" if part else "trainable"


def how(layer: Layer, inference: Held) -> Inference | None:
    """How a picked layer is held: under ``"norm"`` only what keeps statistics or other state needs holding."""
    if inference == "all":
        return "all"
    keeps_state = layer.hidden_state or any(buffer.role not in STATELESS for buffer in layer.buffers)
    return "norm" if inference == "norm" and keeps_state else None
