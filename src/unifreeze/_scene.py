"""The scene: a tree laid out for selecting, every layer with its place in the model's order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ._tree import Layer
from .errors import NothingSelectedError, SelectorError


@dataclass(frozen=True)
class Selection:
    """What a selector picked: paths of layers, and those that it left out by name (``~x``, ``… - x``)."""

    layers: frozenset[str]
    excluded: frozenset[str] = frozenset()


class Scene:
    """A tree laid out for selecting: every layer with its place in the model's order."""

    def __init__(self, tree: Layer, label: str) -> None:
        self.tree = tree
        self.label = label
        self.nodes = list(tree.walk())

    @cached_property
    def ends(self) -> list[int]:
        """For each node the place just behind its subtree."""
        place = {id(node): i for i, node in enumerate(self.nodes)}
        ends = [0] * len(self.nodes)
        for i in range(len(self.nodes) - 1, -1, -1):
            children = self.nodes[i].children
            ends[i] = ends[place[id(children[-1])]] if children else i + 1
        return ends

    @cached_property
    def by_object(self) -> dict[int, list[int]]:
        """The places of each of the framework's own layers; a shared layer has several."""
        places: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            if node.native is not None:
                places.setdefault(id(node.native), []).append(i)
        return places

    @cached_property
    def weighted(self) -> list[int]:
        """The places of the weighted layers, a shared one at its first place only."""
        seen: set[int] = set()
        places = []
        for i, node in enumerate(self.nodes):
            if node.weighted and (node.native is None or id(node.native) not in seen):
                seen.add(id(node.native))
                places.append(i)
        return places

    def everywhere(self, places: Iterable[int]) -> set[int]:
        """These places, and every other place of a layer that is shared."""
        return {j for i in places for j in ((i,) if self.nodes[i].native is None else self.by_object[id(self.nodes[i].native)])}

    def subtree(self, places: Iterable[int]) -> frozenset[str]:
        """The paths of these layers and of everything inside them."""
        return frozenset(self.nodes[j].path for i in self.everywhere(places) for j in range(i, self.ends[i]))

    def stretch(self, weighted: Iterable[int], start: int, stop: int) -> frozenset[str]:
        """The given weighted layers, with the weightless ones from ``start`` to ``stop`` that hold none but these."""
        chosen = self.everywhere(weighted)
        others = sorted(set(self.weighted) - chosen)
        picked = {self.nodes[i].path for i in chosen}
        k = 0
        for i in range(start, stop):
            while k < len(others) and others[k] < i:
                k += 1
            if not self.nodes[i].weighted and not (k < len(others) and others[k] < self.ends[i]):
                picked.add(self.nodes[i].path)
        return frozenset(picked)

    def places(self, paths: frozenset[str]) -> list[int]:
        return [i for i, node in enumerate(self.nodes) if node.path in paths]

    def need_order(self, asking: str) -> None:
        """Refuses to count where the order of the layers has been lost."""
        for node in self.nodes:
            if node.lost_order:
                raise SelectorError(
                    f"{asking} counts layers in the model's order, and {node.path or self.label} has lost it.\n"
                    f"  {node.lost_order}\n"
                    "  Pick the layers by name, such as 'Conv_*', or by kind, such as kind('conv')."
                )

    @cached_property
    def stacks(self) -> list[int]:
        """The places of the outermost stacked layers."""
        found: list[int] = []
        for i, node in enumerate(self.nodes):
            if node.stack and not (found and i < self.ends[found[-1]]):
                found.append(i)
        return found

    def need_unstacked(self, asking: str, places: Iterable[int], *, whole: bool) -> None:
        """Refuses to count layers that lie in one stack, and to part a stack; with ``whole``, one that is picked as a whole is fine."""
        picked = set(places) if self.stacks else set()
        for root in self.stacks:
            inside = {i for i in self.weighted if root <= i < self.ends[root]}
            if inside & picked and not (whole and inside <= picked):
                what = self._stack(root)
                raise SelectorError(
                    f"{asking} goes by the order of single layers, and some of them lie in a stack.\n  {what[0]}\n  {what[1]}\n"
                    "  Or pick parts of it by name, which goes by no order, and is right as well if this is no stack."
                )

    def _stack(self, place: int) -> tuple[str, str]:
        """What a stack is, and what to do about it."""
        node = self.nodes[place]
        whole = f"layers={node.path!r} freezes all {node.stack}" if node.path else f"without layers=, all {node.stack} are frozen"
        return (
            f"{node.path or self.label} is a stack of {node.stack} layers: each of its arrays holds a slice for every layer, and is frozen as a whole",
            f"{whole}; to freeze some of them, keep two stacks ({{'frozen': first slices, 'rest': the others}}) and run one after the other",
        )

    def nothing(self, asking: str, *hints: str) -> NothingSelectedError:
        children = self.tree.children or (self.tree,)
        shown = [f"{child.path or child.type} ({sum(len(node.parameters) for node in child.walk())})" for child in children[:8]]
        rest = f", … and {len(children) - 8} more" if len(children) > 8 else ""
        facts = f"its layers (with parameters): {', '.join(shown)}{rest}"
        if any(map(str.isdigit, asking)) or r"\d" in asking:
            hints = (*hints, *(line for place in self.stacks[:2] for line in self._stack(place)))
        repairs = [hint for hint in hints if hint] or ["layers(model) lists them with their paths; * stands for a part of one component, ** for any number"]
        return NothingSelectedError("\n  ".join([f"{asking} matches no layer of {self.label}.", facts, *repairs]))


def components_match(pattern: list[str], parts: list[str]) -> bool:
    """Matches a glob against a path, component by component."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(components_match(pattern[1:], parts[i:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and components_match(pattern[1:], parts[1:])


def any_match(pattern: str, paths: Iterable[str]) -> bool:
    components = pattern.split(".")
    return any(components_match(components, path.split(".")) for path in paths)
