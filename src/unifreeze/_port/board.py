"""The board behind a view: a flag for each layer of one model, wired to the parameters of another."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from unifreeze._backend import Backend, Request
from unifreeze._freezing import Freezing, bring_about, describe, label_of
from unifreeze._tree import Inference, Layer, Parameter, State, state_of, unique, with_state
from unifreeze._undoing import after_later_ones
from unifreeze._wish import how
from unifreeze.errors import CorrespondenceError

from .correspondence import Correspondence

#: A layer of the model that lends the names: its identity, or its path where it has none.
Key = int | str


def key_of(node: Layer) -> Key:
    """What a layer's flag goes by."""
    return node.path if node.native is None else id(node.native)


@dataclass(frozen=True)
class Wires:
    """Which flags decide what.

    Attributes:
        parameters: For each parameter of the model, the layers that must all be set before it is frozen.
        layers: For each layer of the model that is held at inference, alike.
        arrays: For each flag, the paths of the model's arrays behind it.
        names: What the layers are called.
        homeless: Layers with parameters behind which there is nothing, with their names.
    """

    parameters: Mapping[str, frozenset[Key]]
    layers: Mapping[str, frozenset[Key]]
    arrays: Mapping[Key, tuple[str, ...]]
    names: Mapping[Key, str]
    homeless: Mapping[Key, str] = field(default_factory=dict)

    @classmethod
    def own(cls, tree: Layer) -> Wires:
        """Each layer decides of itself."""
        nodes = list(tree.walk())
        arrays = {key_of(node): tuple(p.path for p in (*node.parameters, *node.buffers)) for node in nodes}
        return cls(
            {p.path: frozenset({key_of(node)}) for node in nodes for p in node.parameters},
            {node.path: frozenset({key_of(node)}) for node in nodes},
            arrays,
            {key_of(node): node.path for node in nodes},
        )

    @classmethod
    def along(cls, found: Correspondence, names: Layer, tree: Layer) -> Wires:
        """The layers of the one model decide of their partners in the other; those that no graph can tell apart decide together."""
        keys = {node.path: key_of(node) for node in names.walk()}
        units = found._traced[0].graph.units, found._traced[1].graph.units
        together = {place: group for group in found._match.groups for place in group}
        parameters: dict[str, set[Key]] = {}
        layers: dict[str, set[Key]] = {}
        arrays: dict[Key, dict[str, None]] = {}
        for a, b in found._match.pairs:
            deciding = {keys[units[0][place].layer] for place in together.get(a, (a,))}
            layers.setdefault(units[1][b].layer, set()).update(deciding)
            for weight in units[1][b].weights.values():
                parameters.setdefault(weight.path, set()).update(deciding)
                arrays.setdefault(keys[units[0][a].layer], {})[weight.path] = None
        known = {p.path for node in tree.walk() for p in node.parameters}
        homeless = {key_of(node): node.path for node in names.walk() if node.parameters and key_of(node) not in arrays}
        return cls(
            {path: frozenset(of) for path, of in parameters.items() if path in known},
            {path: frozenset(of) for path, of in layers.items()},
            {key: tuple(paths) for key, paths in arrays.items()},
            {key: path for path, key in keys.items()},
            homeless,
        )


class Board:
    """The flags, and what they have done to the model.

    A model that carries its state is changed at once. A pytree can't carry any: there the flags wait for ``freezing``.
    """

    def __init__(self, backend: Backend, model: Any, tree: Layer, wires: Wires, known: Mapping[str, Hashable] = MappingProxyType({})) -> None:
        self.backend, self.model, self.wires, self._known = backend, model, wires, known
        self.label = label_of(tree, backend)
        self._state = self._first = state_of(list(tree.walk()))
        self._parameters, self._layers = _behind(wires.parameters), _behind(wires.layers)
        self._off = self._already_off()
        self._masked = False
        self._undo = ExitStack()

    def _already_off(self) -> set[Key]:
        off = {key for key, paths in self._parameters.items() if all(path in self._first.frozen for path in paths)}
        bare = self._layers.keys() - self._parameters.keys()
        return off | {key for key in bare if all(path in self._first.inference for path in self._layers[key])}

    def trains(self, key: Key) -> bool:
        """Whether a layer's flag is up, or what it decides of waits for others to be set as well."""
        return key not in self._off or not all(self._still(path) for path in self._parameters.get(key, ()))

    @property
    def masked(self) -> bool:
        """Whether the flag of the whole model is down, which in Keras outweighs those of the layers inside."""
        return self._masked

    def _still(self, path: str) -> bool:
        return self._masked or self.wires.parameters[path] <= self._off

    def turn(self, keys: Iterable[Key], *, on: bool, whole: bool = False) -> None:
        """Sets flags, and freezes or unfreezes what they decide of. If it raises, nothing has changed.

        Args:
            keys: The layers.
            on: Whether they shall train.
            whole: Whether this is the flag of the model itself.
        """
        keys = set(keys)
        homeless = [name for key, name in self.wires.homeless.items() if key in keys]
        if homeless and not on:
            raise CorrespondenceError(
                f"{homeless[0]} has no partner in {self.label}, so freezing it would freeze nothing.\n"
                f"  without a partner: {', '.join(homeless[:5])}{' …' if len(homeless) > 5 else ''}\n  Leave it out of the loop."
            )
        before = self._off, self._masked
        self._off = self._off - keys if on else self._off | keys
        self._masked = not on if whole else self._masked
        touched = self.wires.parameters if whole else {path for key in keys for path in self._parameters.get(key, ())}
        try:
            self._bring_about(set(touched), {path for key in keys for path in self._layers.get(key, ())})
        except BaseException:
            self._off, self._masked = before
            raise

    def _bring_about(self, parameters: set[str], layers: set[str]) -> None:
        tree = self._tree()
        nodes = {node.path: node for node in tree.walk()}
        arrays = {p.path: id(p.array) for node in nodes.values() for p in node.parameters}
        still = {arrays[path] for path in parameters if self._still(path)}
        every = {arrays[path] for path in parameters}
        now = state_of(list(nodes.values()))
        frozen = {path for path, array in arrays.items() if array in still or (path in now.frozen and array not in every)}
        inference = {**now.inference, **{path: self._hold(nodes[path]) for path in layers}}
        rows = {path: some for path, some in now.rows.items() if arrays[path] not in every}
        state = State(frozenset(frozen), {path: mode for path, mode in inference.items() if mode}, rows)
        if (state.frozen, state.inference, state.rows) == (now.frozen, now.inference, now.rows):
            return
        request = Request(tree, state, frozenset(path for path, array in arrays.items() if array in every), frozenset(layers))
        if self.backend.in_place:
            applied = self.backend.apply(self.model, request)
            self._undo.callback(after_later_ones(self.model, applied.undo, request))
        self._state = state

    def _hold(self, node: Layer) -> Inference | None:
        return (node.inference or how(node, "norm")) if self.wires.layers[node.path] <= self._off else None

    def _tree(self) -> Layer:
        tree = self.backend.layers(self.model)
        return tree if self.backend.in_place else with_state(tree, self._state)

    def arrays(self, keys: Iterable[Key]) -> list[Parameter]:
        """The model's arrays behind these flags as they are now, each once."""
        known = {p.path: p for p in self._tree().arrays()}
        return unique(known[path] for key in keys for path in self.wires.arrays.get(key, ()))

    def freezing(self) -> Freezing:
        """What is frozen now, with what this framework's training code needs."""
        self._refuse_torn()
        tree = self._tree()
        nodes = list(tree.walk())
        picked = [node.path for node in nodes if node.path in self.wires.layers and self.wires.layers[node.path] <= self._off and node.weighted]
        if not self.backend.in_place:
            every = frozenset(p.path for node in nodes for p in node.parameters)
            request = Request(tree, self._state, every, frozenset(node.path for node in nodes))
            return bring_about(self.backend, self.model, request, picked=picked, known=self._known)
        applied = self.backend.apply(self.model, Request(tree, state_of(nodes), frozenset(), frozenset()))
        return describe(self.backend, self.model, tree, self._first, picked=picked, undo=self.undo, tools=applied.tools)

    def undo(self) -> None:
        """Takes back all that was set, flags and all."""
        self._undo.close()
        self._off, self._masked = self._already_off(), False

    def _refuse_torn(self) -> None:
        for path, keys in self.wires.parameters.items():
            if keys & self._off and not keys <= self._off and not self._masked:
                raise CorrespondenceError(
                    f"{path} is decided by several layers together, of which only some are set.\n"
                    "  No graph can tell these layers apart, or the model keeps them in one parameter.\n"
                    f"  Set all of them or none: {', '.join(self.wires.names.get(key, str(key)) for key in keys)}."
                )


def _behind(wires: Mapping[str, frozenset[Key]]) -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for path, keys in wires.items():
        for key in keys:
            found.setdefault(key, []).append(path)
    return found
