"""The shortest selector for a set of layers: a small grammar of candidates with a cost, each tried on the tree before it is believed."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ._scene import Scene
from ._tree import KINDS, Layer
from .errors import NothingSelectedError, SelectorError
from .select import parse, quoted

# How much more than its letters a word costs a reader: a place in a row says less than a name, and a framework's class less than a kind.
_FEW, _COUNT, _PLACE, _TYPE, _CLASSES, _STAR = 3, 20, 8, 8, 10, 2
_TRIES = 60
#: From how many parts on a selector is a list rather than a rule.
LONG = 5

Bits = int
Option = tuple[int, str]


@dataclass(frozen=True)
class Atom:
    """One word of the grammar and the places that it picks, as the bits of a whole number."""

    cost: int
    text: str
    mask: Bits


@dataclass(frozen=True)
class Shortest:
    """The text found.

    Attributes:
        text: The selector.
        listed: How many parts it lists, where no rule was found; 0 for a rule.
        counted: A name in it that the framework counted up and another build may not have, or empty.
    """

    text: str
    listed: int = 0
    counted: str = ""


class Shortener:
    """Finds selectors for sets of a model's layers. A set is a number: bit i is the layer at place i of ``scene.nodes``.

    Everything but the last check is arithmetic on such numbers, so that ten thousand layers cost little.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self.nodes = scene, scene.nodes
        self.place = {node.path: i for i, node in enumerate(self.nodes)}
        self.ordered = not any(node.lost_order for node in self.nodes)
        self._masks: dict[int, Bits] = {}
        self._picked: dict[str, Bits] = {}
        self._marks: dict[int, Option | None] = {}

    def shortest(self, must: Bits, never: Bits, *, plain: bool = False) -> Shortest:
        """Returns the cheapest selector that picks all of ``must`` and nothing of ``never``.

        Args:
            must: What it must pick.
            never: What it must not pick; what is in neither is free.
            plain: Without ``~`` and ``-``, which say of a shared parameter that it is left out.

        Raises:
            LookupError: If nothing in the grammar picks the set.
        """
        rules = [*self._simple(must, never, plain=plain), *self._joined(must, never, plain=plain)]
        listed = self._cover(must, never)
        for cost, text in sorted(set(rules))[:_TRIES]:
            if listed is not None and cost >= listed[0]:
                break
            if self._fits(text, must, never):
                return Shortest(text)
        if listed is not None and self._fits(listed[1], must, never):
            return Shortest(listed[1], listed[2] if listed[2] >= LONG else 0)
        return self._by_path(must, never)

    def _fits(self, text: str, must: Bits, never: Bits) -> bool:
        if text not in self._picked:
            try:
                self._picked[text] = self._bits(self.place[path] for path in parse(text).pick(self.scene).layers)
            except (NothingSelectedError, SelectorError):
                self._picked[text] = 0
        picked = self._picked[text]
        return not (must & ~picked or picked & never)

    # Words that stand alone.

    def _simple(self, must: Bits, never: Bits, *, plain: bool) -> list[Option]:
        """Selectors of one word, as they are and as all but another."""
        found = [*self._words(must, never)]
        if not plain and never:
            found += [(cost + 1, f"~{text}") for cost, text in self._words(never, must)]
        return found

    def _words(self, must: Bits, never: Bits) -> Iterator[Option]:
        if not must:
            return
        if not never:
            yield 1, "**"
        yield from ((atom.cost, atom.text) for atom in self.rules if not must & ~atom.mask and not atom.mask & never)
        yield from self._whole(must, never)
        if self.ordered:
            yield from self._stretches(must, never)

    def _whole(self, must: Bits, never: Bits) -> Iterator[Option]:
        """One layer with everything inside it."""
        place = _lowest(must)
        while place >= 0:
            mask = self.mask(place)
            if mask & never:
                return
            if not must & ~mask and (mark := self.mark(place)):
                yield mark
            place = self.parents[place]

    def _stretches(self, must: Bits, never: Bits) -> Iterator[Option]:
        """Everything before, after, up to or between."""
        low, high = _lowest(must), _highest(must)
        below, above = _highest(never & ((1 << low) - 1)), _lowest(never >> (high + 1) << (high + 1)) if never >> (high + 1) else len(self.nodes)
        if never & ((1 << (high + 1)) - (1 << low)):
            return
        ahead = [self._cheapest(self._starting(high, above)), self._cheapest(self._ending(low, high, above))]
        behind = self._cheapest(self._closing(below, low))
        if below < 0:
            yield from self._counted("first", sum(place <= high for place in self.scene.weighted))
            yield from ((mark[0] + len(word), f"{word}{mark[1]}") for word, mark in zip(("before:", "upto:"), ahead, strict=True) if mark)
        if above == len(self.nodes):
            yield from self._counted("last", sum(place >= low for place in self.scene.weighted))
            yield from [(behind[0] + 6, f"after:{behind[1]}")] if behind else []
        if below >= 0 and above < len(self.nodes):
            yield from self._between(behind or self._nth(below), ahead[0] or self._nth(above))

    def _counted(self, word: str, number: int) -> Iterator[Option]:
        if number:
            text = f"{word}:{number}"
            yield len(text) + (0 if number <= _FEW else _COUNT), text

    def _between(self, start: Option | None, stop: Option | None) -> Iterator[Option]:
        if start and stop:
            yield start[0] + stop[0] + 9, f"between:{start[1]},{stop[1]}"

    def _nth(self, place: int) -> Option | None:
        """A weighted layer by its number, as a mark."""
        number = self.numbers.get(place)
        return None if number is None else (_PLACE + _COUNT, f"(nth:{number})")

    def _starting(self, high: int, above: int) -> Iterable[int]:
        return range(min(above, len(self.nodes) - 1), max(high, above - 64), -1)

    def _ending(self, low: int, high: int, above: int) -> Iterable[int]:
        """The layers with which a stretch may end: the last one, what holds it, and weightless ones after it."""
        del low
        place = high
        while place > 0 and self.scene.ends[place] <= above:
            yield place
            place = self.parents[place]
        yield from (later for later in range(high + 1, min(above, high + 64)) if self.scene.ends[later] <= above)

    def _closing(self, below: int, low: int) -> Iterable[int]:
        """The layers after which a stretch may begin."""
        place = below
        while place > 0 and self.scene.ends[place] <= low:
            yield place
            place = self.parents[place]
        yield from (later for later in range(max(below + 1, low - 64), low) if self.scene.ends[later] <= low)

    def _cheapest(self, places: Iterable[int]) -> Option | None:
        return min((mark for place in places if (mark := self.mark(place))), default=None)

    def mark(self, place: int) -> Option | None:
        """How to point at one layer by a name that its author gave, or ``None``."""
        if place not in self._marks:
            self._marks[place] = self._find_mark(self.nodes[place])
        return self._marks[place]

    def _find_mark(self, node: Layer) -> Option | None:
        if not node.path or node.auto_named:
            return None
        found = [(len(quoted(node.path)), quoted(node.path))] if "*" not in self.lasting(node) and not re.search(r"[*?\[]", node.path) else []
        if self.named[node.name] == 1 and node.name != node.path:
            found.append((len(node.name) + 5 + _STAR, f"name:{quoted(node.name)}"))
        pattern = ".".join(self.lasting(node))
        if not found and self.shapes[pattern] == 1 and "*" in pattern:
            found.append((len(pattern) + _STAR, quoted(pattern)))
        return min(found, default=None)

    # Words that stand for many layers.

    @cached_property
    def rules(self) -> list[Atom]:
        """Kinds, types, and names that several layers bear."""
        found: dict[str, list[int]] = {}
        costs: dict[str, int] = {}
        parents: dict[type, list[str]] = {}
        kinds = {node.kind for node in self.nodes} & set(KINDS)
        norms = "kind:*_norm" if sum(fnmatchcase(kind, "*_norm") for kind in kinds) > 1 else ""
        for place, node in enumerate(self.nodes):
            words = [(f"kind:{node.kind}", 0)] if node.kind in kinds else []
            words += [(norms, 0)] if norms and fnmatchcase(node.kind, "*_norm") else []
            native = type(node.native)
            types = parents.setdefault(native, [] if node.native is None else [parent.__name__ for parent in native.__mro__])
            words += [(f"type:{quoted(word)}", _TYPE) for word in {node.type, *types} & self.types]
            words += [(f"name:{quoted(node.name)}", _STAR)] if self.named[node.name] > 1 and node.path and not node.auto_named else []
            for text, more in words:
                found.setdefault(text, []).append(place)
                costs[text] = len(text) + more
        common = sorted(found, key=lambda text: (text.startswith("name:"), -len(found[text])))[:200]
        return [Atom(costs[text], text, self._union(found[text])) for text in common]

    @cached_property
    def types(self) -> set[str]:
        return {node.type for node in self.nodes}

    @cached_property
    def named(self) -> Counter[str]:
        """How many layers bear a name."""
        return Counter(node.name for node in self.nodes if node.path)

    @cached_property
    def shapes(self) -> Counter[str]:
        """How many paths read alike once names that the framework counted up are left open."""
        return Counter(".".join(self.lasting(node)) for node in self.nodes if node.path)

    @cached_property
    def parents(self) -> list[int]:
        parents = [-1] * len(self.nodes)
        for place, node in enumerate(self.nodes):
            for child in node.children:
                parents[self.place[child.path]] = place
        return parents

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The number of each weighted layer, as ``nth`` counts."""
        return {place: number for number, place in enumerate(self.scene.weighted)}

    @cached_property
    def _open(self) -> dict[str, str]:
        """For each path its pattern, names that the framework counted up left open."""
        opened: dict[str, str] = {"": ""}
        for place, node in enumerate(self.nodes[1:], 1):
            above = self.nodes[self.parents[place]].path
            own = node.path[len(above) + 1 :] if above else node.path
            opened[node.path] = f"{opened[above]}.{'*' if node.auto_named else own}".lstrip(".")
        return opened

    def lasting(self, node: Layer) -> list[str]:
        return self._open[node.path].split(".")

    @cached_property
    def stems(self) -> set[str]:
        """What the names that the framework counted up begin with."""
        return {re.sub(r"\d+$", "", node.name) for node in self.nodes if node.auto_named}

    # Two words joined.

    def _joined(self, must: Bits, never: Bits, *, plain: bool) -> Iterator[Option]:
        for atom in [*self.rules, *self.rooms]:
            yield from self._with(atom, must, never, plain=plain, inner=lambda m, n: self._simple(m, n, plain=plain))
        if len(self.nodes) <= 2000:
            small = [atom for atom in self.rules if atom.text.startswith("kind:")][:10] + self.rooms[:8]
            for atom in small:
                yield from self._with(atom, must, never, plain=plain, inner=lambda m, n: self._twice(small, m, n, plain=plain))

    def _twice(self, atoms: list[Atom], must: Bits, never: Bits, *, plain: bool) -> list[Option]:
        pairs = [pair for atom in atoms for pair in self._with(atom, must, never, plain=plain, inner=self._stretched)]
        return [(cost + 2, f"({text})") for cost, text in pairs]

    def _stretched(self, must: Bits, never: Bits) -> list[Option]:
        return [*self._words(must, never)]

    def _with(self, atom: Atom, must: Bits, never: Bits, *, plain: bool, inner: Callable[[Bits, Bits], Iterable[Option]]) -> Iterator[Option]:
        """The ways to say a set with this word and one more."""
        if atom.mask & must and not atom.mask & never and must & ~atom.mask:
            yield from ((atom.cost + 3 + cost, f"{text} | {atom.text}") for cost, text in _best(inner(must & ~atom.mask, never)))
        if not must & ~atom.mask and never & atom.mask:
            yield from ((atom.cost + 3 + cost, f"{atom.text} & {text}") for cost, text in _best(inner(must, never & atom.mask)))
            if not plain:
                yield from ((atom.cost + 3 + cost, f"{atom.text} - {text}") for cost, text in _best(inner(never & atom.mask, must)))
        if not plain and not must & atom.mask and never & atom.mask:
            yield from ((atom.cost + 3 + cost, f"{text} - {atom.text}") for cost, text in _best(inner(must, never & ~atom.mask)))

    @cached_property
    def rooms(self) -> list[Atom]:
        """The containers near the root, largest first."""
        places = [i for i, node in enumerate(self.nodes) if node.children and node.path and node.path.count(".") < 3]
        chosen = sorted(places, key=lambda i: i - self.scene.ends[i])[:40]
        return [Atom(mark[0], mark[1], self.mask(i)) for i in chosen if (mark := self.mark(i))]

    # A list.

    def _cover(self, must: Bits, never: Bits) -> tuple[int, str, int] | None:
        """A greedy cover by words that pick nothing wrong: cost, text, and the number of parts."""
        rest, chosen = must, []
        heap = [(-_worth(atom, rest), i, atom) for i, atom in enumerate(self._clean(must, never))]
        heapq.heapify(heap)
        while rest and heap:
            _, i, atom = heapq.heappop(heap)
            worth = _worth(atom, rest)
            if heap and worth < -heap[0][0]:
                if worth:
                    heapq.heappush(heap, (-worth, i, atom))
                continue
            if worth:
                chosen.append(atom)
                rest &= ~atom.mask
        chosen = _needed(chosen, must)
        places = [self.numbers[i] for i in _ones(rest) if i in self.numbers] if self.ordered else []
        if rest & ~self._bits(self.scene.weighted[number] for number in places):
            return None
        parts = [atom.text for atom in sorted(chosen, key=lambda atom: _lowest(atom.mask))]
        if places:
            parts.append(f"nth:{','.join(map(str, places))}")
        cost = sum(atom.cost + 3 for atom in chosen) + _PLACE * len(places) + (4 if places else 0)
        return cost, " | ".join(parts), len(chosen) + len(places)

    def _clean(self, must: Bits, never: Bits) -> list[Atom]:
        """Every word that picks something of the set and nothing wrong."""
        bad, good = _Sums(never, len(self.nodes)), _Sums(must, len(self.nodes))
        found = [atom for atom in self.rules if atom.mask & must and not atom.mask & never]
        wholes = [i for i in range(len(self.nodes)) if good.any(i, self.scene.ends[i]) and not bad.any(i, self.scene.ends[i])]
        inside = set(wholes)
        tops = [i for i in wholes if self.parents[i] not in inside and not self.mask(i) & never]
        found += [Atom(mark[0], mark[1], self.mask(i)) for i in tops if (mark := self.mark(i))]
        found += self._runs(must, never) if self.ordered else []
        return found + self._globs(wholes, good, bad, never)

    def _runs(self, must: Bits, never: Bits) -> list[Atom]:
        """The stretches without a gap, each as one word."""
        runs: list[Bits] = []
        current = 0
        for place in _ones(must | never):
            if must >> place & 1:
                current |= 1 << place
            elif current:
                runs.append(current)
                current = 0
        runs += [current] if current else []
        if len(runs) > 40:
            return []
        options = [(run, min(self._stretches(run, never), default=None)) for run in runs]
        return [Atom(option[0], option[1], run) for run, option in options if option and run.bit_count() > 1]

    def _globs(self, wholes: list[int], good: _Sums, bad: _Sums, never: Bits) -> list[Atom]:
        """The globs that match several layers and nothing wrong."""
        inside = set(wholes)
        found: dict[str, list[int]] = {}
        soiled: set[str] = set()
        for i, node in enumerate(self.nodes):
            if not node.path or node.auto_named:
                continue
            clean = i in inside or not bad.any(i, self.scene.ends[i])
            for pattern in self._patterns(node):
                if clean:
                    found.setdefault(pattern, []).append(i)
                else:
                    soiled.add(pattern)
        kept = [(text, places) for text, places in found.items() if text not in soiled and len(places) > 1]
        kept = [(text, places) for text, places in kept if any(good.any(i, self.scene.ends[i]) for i in places)]
        atoms = [Atom(len(text) + _STAR + text.count("[") * _CLASSES, quoted(text), self._union(places)) for text, places in kept]
        return [atom for atom in (*atoms, *self._classes(kept)) if not atom.mask & never]

    def _classes(self, kept: list[tuple[str, list[int]]]) -> Iterator[Atom]:
        """``block1_*`` and ``block2_*`` as ``block[12]_*``."""
        alike: dict[tuple[str, str], dict[str, list[int]]] = {}
        for text, places in kept:
            match = re.fullmatch(r"(.*?\D|)(\d)(\D*)", text)
            if match:
                alike.setdefault((match[1], match[3]), {})[match[2]] = places
        for (start, end), digits in alike.items():
            if len(digits) > 1:
                text = f"{start}[{_digits(sorted(digits))}]{end}"
                yield Atom(len(text) + _STAR + _CLASSES, quoted(text), self._union(i for places in digits.values() for i in places))

    def _patterns(self, node: Layer) -> set[str]:
        """Globs that this layer matches and that others may match, too."""
        parts = self.lasting(node)
        *above, last = parts
        found = {".".join("*" if part.isdigit() else part for part in parts)}
        if len(parts) > 1:
            found.add(f"**.{parts[-2]}.{last}" if parts[-2] != "*" else f"**.{last}")
        cuts = {match.end() for match in re.finditer(r"_|\D(?=\d)|\d(?=\D)", last)} - {len(last)}
        for start in {last[:cut] for cut in sorted(cuts)[:6]}:
            if not any(stem.startswith(start) or start.startswith(stem) for stem in self.stems):
                found.add(".".join([*above, f"{start}*"]))
        if "_" in last and not self.stems:
            found.add(".".join([*above, f"*_{last.rpartition('_')[2]}"]))
        return {pattern for pattern in found if not re.search(r"[?\[]", pattern)}

    def _by_path(self, must: Bits, never: Bits) -> Shortest:
        """Path by path, also where a name was counted up."""
        chosen = list(_ones(must))
        counted = next((self.nodes[i].path for i in chosen if "*" in self.lasting(self.nodes[i])), "")
        parts = ["**" if not self.nodes[i].path else quoted(self.nodes[i].path) for i in chosen]
        text = " | ".join(dict.fromkeys(parts))
        if not self._fits(text, must, never):
            raise LookupError(text)
        return Shortest(text, len(parts), counted)

    # Sets as numbers.

    def mask(self, place: int) -> Bits:
        """A layer with everything inside it, at each of its places."""
        if place not in self._masks:
            self._masks[place] = 0
            for i in self.scene.everywhere([place]):
                self._masks[place] |= (1 << self.scene.ends[i]) - (1 << i)
        return self._masks[place]

    def _union(self, places: Iterable[int]) -> Bits:
        whole = 0
        for place in places:
            whole |= self.mask(place)
        return whole

    def _bits(self, places: Iterable[int]) -> Bits:
        marks = bytearray(len(self.nodes) // 8 + 1)
        for place in places:
            marks[place >> 3] |= 1 << (place & 7)
        return int.from_bytes(marks, "little")


class _Sums:
    """Says in no time whether a set has anything in a range of places."""

    def __init__(self, bits: Bits, length: int) -> None:
        self.sums = [0]
        for digit in format(bits, f"0{length}b")[::-1]:
            self.sums.append(self.sums[-1] + (digit == "1"))

    def any(self, start: int, stop: int) -> bool:
        return self.sums[stop] > self.sums[start]


def _worth(atom: Atom, rest: Bits) -> float:
    return (atom.mask & rest).bit_count() / (atom.cost + 3)


def _needed(chosen: list[Atom], must: Bits) -> list[Atom]:
    """Leaves out what the others pick already, the dearest first."""
    kept = list(chosen)
    for atom in sorted(chosen, key=lambda atom: -atom.cost) if len(chosen) <= 200 else ():
        others = 0
        for other in kept:
            others |= 0 if other is atom else other.mask
        if not must & ~others:
            kept.remove(atom)
    return kept


def _best(options: Iterable[Option]) -> list[Option]:
    return heapq.nsmallest(3, options)


def _lowest(bits: Bits) -> int:
    return (bits & -bits).bit_length() - 1


def _highest(bits: Bits) -> int:
    return bits.bit_length() - 1


def _ones(bits: Bits) -> Iterator[int]:
    return (i for i, digit in enumerate(bin(bits)[:1:-1]) if digit == "1")


def _digits(digits: list[str]) -> str:
    whole = "".join(digits)
    return f"{digits[0]}-{digits[-1]}" if len(digits) > 2 and whole in "0123456789" else whole
