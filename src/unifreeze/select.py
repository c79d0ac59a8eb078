"""Selectors: values that pick layers of any model, in code (``first(2) | kind("batch_norm")``) or as text (``"first:2 | kind:batch_norm"``).

A selection is a set of layers, each standing for its own arrays and its own behaviour. Whoever is picked by name, kind, type or as an object
brings everything inside it; the counting words (``first``, ``last``, ``nth``, ``before``, ``after``, ``upto``, ``between``) count *weighted* layers in the
model's order: those that own a parameter or a buffer themselves.
"""

from __future__ import annotations

import builtins
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from types import BuiltinFunctionType, FunctionType, MethodType

from ._scene import Scene, Selection, any_match, components_match
from ._tree import KINDS, Layer
from .errors import SelectorError, near

# Without ``type``: a star import must not hide Python's own.
__all__ = [
    "Selector",
    "after",
    "before",
    "between",
    "everything",
    "first",
    "kind",
    "last",
    "name",
    "nth",
    "regex",
    "upto",
    "where",
]


class Selector(ABC):
    """A value that picks layers. Combine selectors with ``|`` (or), ``&`` (and), ``-`` (but not) and ``~`` (all but)."""

    @abstractmethod
    def pick(self, scene: Scene) -> Selection:
        """Returns what is picked; raises ``NothingSelectedError`` when that is nothing."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The selector as text, which ``parse`` reads back.

        Raises:
            SelectorError: For a selector that can't be text (an object of a live model, a function).
        """

    def __str__(self) -> str:
        return self.text

    def __bool__(self) -> bool:
        raise SelectorError(f"{self!r} has no truth value.\n  Join selectors with |, & and ~ instead of or, and, not.")

    def __or__(self, other: object) -> Selector:
        return _Combined("|", self, selector(other))

    def __ror__(self, other: object) -> Selector:
        return _Combined("|", selector(other), self)

    def __and__(self, other: object) -> Selector:
        return _Combined("&", self, selector(other))

    def __rand__(self, other: object) -> Selector:
        return _Combined("&", selector(other), self)

    def __sub__(self, other: object) -> Selector:
        return _Combined("-", self, selector(other))

    def __rsub__(self, other: object) -> Selector:
        return _Combined("-", selector(other), self)

    def __invert__(self) -> Selector:
        return _AllBut(self)


@dataclass(frozen=True, repr=False)
class _Combined(Selector):
    operator: str
    left: Selector
    right: Selector

    def pick(self, scene: Scene) -> Selection:
        left, right = self.left.pick(scene), self.right.pick(scene)
        if self.operator == "|":
            layers = left.layers | right.layers
            excluded = (left.excluded | right.excluded) - layers
        elif self.operator == "&":
            layers, excluded = left.layers & right.layers, left.excluded | right.excluded
        else:
            layers, excluded = left.layers - right.layers, left.excluded | right.layers
        if not layers:
            raise scene.nothing(repr(self), "each side picks something, the whole picks nothing")
        return Selection(layers, excluded)

    def _nested(self, show: Callable[[Selector], str]) -> str:
        strength = "|&-"

        def side(part: Selector, *, right: bool) -> str:
            operator = _operator(part)
            weaker = operator and strength.index(operator) < strength.index(self.operator) + right
            return f"({show(part)})" if weaker else show(part)

        return f"{side(self.left, right=False)} {self.operator} {side(self.right, right=True)}"

    @property
    def text(self) -> str:
        return self._nested(lambda part: part.text)

    def __repr__(self) -> str:
        return self._nested(repr)


@dataclass(frozen=True, repr=False)
class _AllBut(Selector):
    inner: Selector

    def pick(self, scene: Scene) -> Selection:
        left_out = self.inner.pick(scene).layers
        layers = frozenset(node.path for node in scene.nodes) - left_out
        if not any(node.weighted and node.path in layers for node in scene.nodes):
            raise scene.nothing(repr(self), f"{self.inner!r} is the whole model already")
        return Selection(layers, left_out)

    @property
    def text(self) -> str:
        return f"~({self.inner.text})" if _operator(self.inner) else f"~{self.inner.text}"

    def __repr__(self) -> str:
        return f"~({self.inner!r})" if _operator(self.inner) else f"~{self.inner!r}"


@dataclass(frozen=True, repr=False)
class _Everything(Selector):
    def pick(self, scene: Scene) -> Selection:
        return Selection(frozenset(node.path for node in scene.nodes))

    @property
    def text(self) -> str:
        return "**"

    def __repr__(self) -> str:
        return "everything"


@dataclass(frozen=True, repr=False)
class _Matching(Selector):
    """The layers that a test on one layer picks, with everything inside them."""

    word: str
    pattern: str

    def matches(self, layer: Layer) -> bool:
        raise NotImplementedError

    def hints(self, scene: Scene) -> tuple[str, ...]:  # noqa: ARG002 - those that override it need the scene
        """What to add to the error when nothing matches."""
        return ()

    def pick(self, scene: Scene) -> Selection:
        places = [i for i, node in enumerate(scene.nodes) if self.matches(node)]
        if not places:
            raise scene.nothing(repr(self), *self.hints(scene))
        return Selection(scene.subtree(places))

    @property
    def text(self) -> str:
        return f"{self.word}:{quoted(self.pattern)}"

    def __repr__(self) -> str:
        return f"{self.word}({self.pattern!r})"


class _Glob(_Matching):
    @cached_property
    def components(self) -> list[str]:
        return self.pattern.split(".")

    def matches(self, layer: Layer) -> bool:
        return components_match(self.components, layer.path.split(".") if layer.path else [])

    def hints(self, scene: Scene) -> tuple[str, ...]:
        ways: tuple[Callable[[str], str], ...] = (str, str.lower)  # as it is written; then whatever its case
        for spelt, word in product(ways, ("type", "kind")):
            meant = next((name for name in sorted({getattr(node, word) for node in scene.nodes}) if spelt(name) == spelt(self.pattern)), None)
            if meant is not None:
                return (f"it names a {word}: layers='{word}:{meant}' picks by {word}",)
        paths = [node.path for node in scene.nodes if node.path]
        suggestions = [pattern for pattern in (_respelt(self.components, paths), f"**.{self.pattern}") if pattern and any_match(pattern, paths)]
        if suggestions:
            return (f"did you mean {' or '.join(map(repr, suggestions))}?",)
        if any_match(self.pattern, [parameter.path for parameter in scene.tree.arrays()]):
            return (f"it names a parameter: params={self.pattern!r} picks parameters",)
        return (near(self.pattern, paths),)

    @property
    def text(self) -> str:
        return quoted(self.pattern)

    def __repr__(self) -> str:
        return repr(self.pattern)


class _Name(_Matching):
    def matches(self, layer: Layer) -> bool:
        return bool(layer.path) and self.pattern in {layer.path, layer.name}

    def hints(self, scene: Scene) -> tuple[str, ...]:
        return (near(self.pattern, {node.name for node in scene.nodes if node.path}),)


class _Regex(_Matching):
    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def matches(self, layer: Layer) -> bool:
        return bool(layer.path) and self.compiled.fullmatch(layer.path) is not None

    def hints(self, scene: Scene) -> tuple[str, ...]:
        partly = next((node.path for node in scene.nodes if node.path and self.compiled.search(node.path)), None)
        return (f"it must match a whole path; it matches a part of {partly!r}",) if partly else ()

    @property
    def text(self) -> str:
        plain = re.fullmatch(r'[^\s"(),]+', self.pattern)
        return f"re:{self.pattern if plain else json.dumps(self.pattern, ensure_ascii=False)}"

    def __repr__(self) -> str:
        return f"regex({self.pattern!r})"


class _Kind(_Matching):
    def matches(self, layer: Layer) -> bool:
        return fnmatchcase(layer.kind, self.pattern)

    def hints(self, scene: Scene) -> tuple[str, ...]:
        here = sorted({node.kind for node in scene.nodes if node.weighted})
        known = any(fnmatchcase(word, self.pattern) for word in (*KINDS, *here))
        unknown = "" if known else f"{self.pattern!r} is no kind that we know; {near(self.pattern, {*KINDS, *here}) or 'kinds: ' + ', '.join(KINDS)}"
        return (unknown, f"kinds of its weighted layers: {', '.join(here)}")


class _TypeName(_Matching):
    def matches(self, layer: Layer) -> bool:
        parents = () if layer.native is None else builtins.type(layer.native).__mro__
        return layer.type == self.pattern or any(parent.__name__ == self.pattern for parent in parents)

    def hints(self, scene: Scene) -> tuple[str, ...]:
        return (near(self.pattern, {node.type for node in scene.nodes}),)


@dataclass(frozen=True, repr=False)
class _Class(Selector):
    wanted: builtins.type

    def pick(self, scene: Scene) -> Selection:
        places = [i for i, node in enumerate(scene.nodes) if isinstance(node.native, self.wanted)]
        if not places:
            raise scene.nothing(repr(self), near(self.wanted.__name__, {node.type for node in scene.nodes}))
        return Selection(scene.subtree(places))

    @property
    def text(self) -> str:
        return f"type:{quoted(self.wanted.__name__)}"

    def __repr__(self) -> str:
        return f"type({self.wanted.__name__})"


@dataclass(frozen=True, repr=False, eq=False)
class _Object(Selector):
    wanted: object

    def pick(self, scene: Scene) -> Selection:
        places = scene.by_object.get(id(self.wanted)) or self._all_of_its_own(scene)
        if places:
            return Selection(scene.subtree(places))
        if any(parameter.array is self.wanted for parameter in scene.tree.arrays()):
            raise scene.nothing(repr(self), "it is a parameter: give it as params=")
        raise scene.nothing(
            f"{self!r} is an object that",
            "an object is found by identity; it belongs to another model, or it was replaced or copied since",
        )

    def _all_of_its_own(self, scene: Scene) -> list[int]:
        """The places of what a container holds that is not itself of the model: a slice of a torch ModuleList is a new one, ``dict.values()`` a view."""
        inside = list(self.wanted) if isinstance(self.wanted, Iterable) and not hasattr(self.wanted, "shape") else []
        found = [scene.by_object.get(id(one)) for one in inside]
        return [place for places in found if places for place in places] if all(found) else []

    @property
    def text(self) -> str:
        raise SelectorError(f"{self!r} is an object of a live model and has no text form.\n  Use its path or name instead.")

    def __repr__(self) -> str:
        label = getattr(self.wanted, "name", None)
        return f"<{builtins.type(self.wanted).__name__}{f' {label!r}' if isinstance(label, str) else ''}>"


@dataclass(frozen=True, repr=False)
class _Where(Selector):
    predicate: Callable[[Layer], bool]

    def pick(self, scene: Scene) -> Selection:
        places = [i for i, node in enumerate(scene.nodes) if self.predicate(node)]
        if not places:
            raise scene.nothing(repr(self))
        return Selection(scene.subtree(places))

    @property
    def text(self) -> str:
        raise SelectorError(f"{self!r} is a function and has no text form.\n  Use names, globs, kinds or counting words instead.")

    def __repr__(self) -> str:
        return f"where({getattr(self.predicate, '__name__', self.predicate)})"


@dataclass(frozen=True, repr=False)
class _Counted(Selector):
    """``first``, ``last`` and ``nth``."""

    word: str
    numbers: tuple[int, ...]

    def pick(self, scene: Scene) -> Selection:
        scene.need_order(repr(self))
        weighted, end = scene.weighted, len(scene.nodes)
        needed = max(abs(n) if n < 0 or self.word != "nth" else n + 1 for n in self.numbers)
        if needed > len(weighted):
            raise scene.nothing(f"{self!r} asks for {needed} weighted layers and", f"{scene.label} has {len(weighted)} that own parameters or buffers")
        if self.word == "nth":
            passed = [i for n in self.numbers for i in (weighted[n:] if n < 0 else weighted[: n + 1])]
            scene.need_unstacked(repr(self), passed, whole=False)
            return Selection(frozenset(scene.nodes[weighted[n]].path for n in self.numbers))
        chosen = weighted[: self.numbers[0]] if self.word == "first" else weighted[-self.numbers[0] :]
        scene.need_unstacked(repr(self), chosen, whole=False)
        return Selection(scene.stretch(chosen, *((0, chosen[-1]) if self.word == "first" else (chosen[0], end))))

    @property
    def text(self) -> str:
        return f"{self.word}:{','.join(map(str, self.numbers))}"

    def __repr__(self) -> str:
        return f"{self.word}({', '.join(map(str, self.numbers))})"


@dataclass(frozen=True, repr=False)
class _Placed(Selector):
    """``before``, ``after``, ``upto`` and ``between``."""

    word: str
    marks: tuple[Selector, ...]

    def pick(self, scene: Scene) -> Selection:
        scene.need_order(repr(self))
        marked = [scene.places(mark.pick(scene).layers) for mark in self.marks]
        if self.word == "after":
            start, stop = marked[0][-1] + 1, len(scene.nodes)
        elif self.word == "between":
            start, stop = marked[0][-1] + 1, marked[1][0]
        else:
            start, stop = 0, marked[0][0]
        picked = scene.stretch([i for i in scene.weighted if start <= i < stop], start, stop)
        if self.word == "upto":
            picked |= {scene.nodes[i].path for i in marked[0]}
        scene.need_unstacked(repr(self), scene.places(picked), whole=True)
        if not any(node.weighted and node.path in picked for node in scene.nodes):
            raise scene.nothing(repr(self), "there is no weighted layer there; the order is that of layers(model)")
        return Selection(picked)

    @property
    def text(self) -> str:
        def single(mark: Selector) -> str:
            return f"({mark.text})" if _operator(mark) or _takes_commas(mark) else mark.text

        return f"{self.word}:{','.join(map(single, self.marks))}"

    def __repr__(self) -> str:
        return f"{self.word}({', '.join(map(repr, self.marks))})"


everything: Selector = _Everything()
"""Every layer of the model, the root included. As text: ``**``."""


def first(n: int) -> Selector:
    """Picks the first ``n`` weighted layers, in the model's order, with the weightless layers between them.

    >>> str(first(2) | kind("batch_norm"))
    'first:2 | kind:batch_norm'
    """
    return _Counted("first", (_count("first", n),))


def last(n: int) -> Selector:
    """Picks the last ``n`` weighted layers."""
    return _Counted("last", (_count("last", n),))


def nth(*places: int) -> Selector:
    """Picks weighted layers by place, from 0, or from -1 backwards: ``nth(0)`` is ``first(1)``, ``nth(-1)`` is ``last(1)``."""
    if not places or not all(isinstance(n, int) and not isinstance(n, bool) for n in places):
        raise SelectorError(f"nth() takes one or more whole numbers, not {places!r}.")
    return _Counted("nth", places)


def before(mark: object) -> Selector:
    """Picks every layer that stands before the first layer picked by ``mark``, such as ``before("block5_conv1")``."""
    return _Placed("before", (selector(mark),))


def after(mark: object) -> Selector:
    """Picks every layer that stands after the last layer picked by ``mark``."""
    return _Placed("after", (selector(mark),))


def upto(mark: object) -> Selector:
    """Picks every layer before ``mark``, and ``mark`` itself."""
    return _Placed("upto", (selector(mark),))


def between(start: object, stop: object) -> Selector:
    """Picks what stands after ``start`` and before ``stop``, without the two."""
    return _Placed("between", (selector(start), selector(stop)))


def name(exact: str) -> Selector:
    """Picks the layers with exactly this name, at any depth, or exactly this path. Nothing in it is a wildcard."""
    return _Name("name", _word("name", exact))


def regex(pattern: str) -> Selector:
    """Picks the layers whose whole path matches a regular expression."""
    if isinstance(pattern, re.Pattern):
        raise SelectorError(f"regex() takes the expression as text.\n  Give regex({pattern.pattern!r}); flags go inside, as in '(?i)conv'.")
    try:
        re.compile(_word("regex", pattern))
    except re.error as error:
        raise SelectorError(f"regex({pattern!r}) is no regular expression: {error}.") from error
    return _Regex("re", pattern)


def kind(word: str) -> Selector:
    """Picks layers by what they do, the same in every framework: ``kind("conv")``; a glob such as ``kind("*_norm")`` is allowed."""
    return _Kind("kind", _word("kind", word))


def type(wanted: str | builtins.type) -> Selector:
    """Picks layers by the framework's own type: a class, or the name of one. Subclasses count."""
    return _Class(wanted) if isinstance(wanted, builtins.type) else _TypeName("type", _word("type", wanted))


def where(predicate: Callable[[Layer], bool]) -> Selector:
    """Picks the layers for which a function of the ``Layer`` is true, such as ``where(lambda layer: "attn" in layer.path)``."""
    if not callable(predicate):
        raise SelectorError(f"where({predicate!r}) has nothing to call.\n  where() takes a function of a Layer: where(lambda layer: layer.kind == 'conv').")
    return _Where(predicate)


def selector(value: object) -> Selector:
    """Makes a selector of whatever a user may give as ``layers=``.

    Raises:
        SelectorError: For integers and slices, empty lists, and texts that can't be read.
    """
    if isinstance(value, Selector):
        return value
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, builtins.type):
        return _Class(value)
    if isinstance(value, FunctionType | MethodType | BuiltinFunctionType):
        if value.__module__ == __name__:
            raise SelectorError(f"layers={value.__name__} is the word without its call.\n  Call it, as in first(2), kind('conv') or before('head').")
        return _Where(value)
    if isinstance(value, bool | int | slice | range) or _is_integer(value):
        raise SelectorError(
            f"layers={value!r} is ambiguous: Keras counts input and activation layers, PyTorch and JAX do not.\n"
            "  first(2), last(1) and nth(0) count weighted layers in every framework;\n"
            "  model.layers[:2] gives the framework's own layers."
        )
    return _Union(value, tuple(value)) if isinstance(value, list | tuple | set | frozenset | Iterator) else _Object(value)


@dataclass(frozen=True, repr=False, eq=False)
class _Union(Selector):
    """A list of anything that selects, or one of the model's own lists (a pytree has such layers)."""

    source: object
    values: tuple[object, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SelectorError("An empty list selects nothing.\n  To freeze the whole model, leave layers= out; to undo, use unfreeze or .undo().")

    @cached_property
    def parts(self) -> tuple[Selector, ...]:
        return tuple(selector(value) for value in self.values)

    def pick(self, scene: Scene) -> Selection:
        if id(self.source) in scene.by_object:
            return _Object(self.source).pick(scene)
        picked = [part.pick(scene) for part in self.parts]
        layers = frozenset().union(*(one.layers for one in picked))
        return Selection(layers, frozenset().union(*(one.excluded for one in picked)) - layers)

    @property
    def text(self) -> str:
        return " | ".join(part.text for part in self.parts)

    def __repr__(self) -> str:
        shown = ", ".join(repr(part) for part in self.parts[:4])
        return f"[{shown}{', …' if len(self.parts) > 4 else ''}]"


def kinds_in(part: Selector) -> list[str]:
    """Every word that a selector gives to ``kind``."""
    if isinstance(part, _Kind):
        return [part.pattern]
    inner: tuple[Selector, ...] = ()
    if isinstance(part, _Combined):
        inner = (part.left, part.right)
    elif isinstance(part, _AllBut):
        inner = (part.inner,)
    elif isinstance(part, _Placed):
        inner = part.marks
    elif isinstance(part, _Union):
        inner = part.parts
    return [word for one in inner for word in kinds_in(one)]


def _takes_commas(mark: Selector) -> bool:
    """Whether a comma behind the selector's text would be read as a part of it."""
    if isinstance(mark, _AllBut):
        return _takes_commas(mark.inner)
    return isinstance(mark, _Placed | _Regex) or (isinstance(mark, _Counted) and mark.word == "nth")


def _operator(part: Selector) -> str:
    """The operator that a selector's text shows at its top, or nothing."""
    if isinstance(part, _Union):
        return "|" if len(part.parts) > 1 else _operator(part.parts[0])
    return part.operator if isinstance(part, _Combined) else ""


# The text form. Operators bind as in Python: ~ first, then -, then &, then |.

_PREFIXES = ("first", "last", "nth", "before", "after", "upto", "between", "name", "re", "kind", "type")
_TOKEN = re.compile(r'\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<mark>[|&()~,])|(?P<minus>-(?=\s))|(?P<word>[^\s|&()~,":][^\s|&(),":]*)|(?P<colon>:))')


def parse(text: str) -> Selector:
    """Reads a selector from its text form.

    A bare word is a glob over whole path components (``*`` is one component or a part of one, ``**`` any number). Words with a prefix are the
    functions of this module: ``first:2``, ``kind:conv``, ``before:mixed7``, ``between:a,b``, ``name:x``, ``type:Conv2d``, ``re:…``. Join them with
    ``|``, ``&``, ``-``, ``~`` and parentheses; put a name with other characters in double quotes.

    Raises:
        SelectorError: If the text can't be read; it shows where.

    >>> parse("stem.* | (kind:conv - last:1)")
    'stem.*' | kind('conv') - last(1)
    """
    reader = _Reader(text)
    chosen = reader.union()
    if reader.here():
        raise reader.error(f"does not expect {reader.here()!r} here")
    return chosen


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def error(self, what: str) -> SelectorError:
        return SelectorError(f"The selector {self.text!r} {what}.\n  {self.text}\n  {' ' * self.at}^\n  Put a name with spaces or operators in double quotes.")

    def here(self) -> str:
        return self.text[self.at :].strip()

    def take(self, *wanted: str) -> bool:
        match = _TOKEN.match(self.text, self.at)
        if match and (match["mark"] or match["minus"]) in wanted:
            self.at = match.end()
            return True
        return False

    def union(self) -> Selector:
        chosen = self.meet()
        while self.take("|"):
            chosen = chosen | self.meet()
        return chosen

    def meet(self) -> Selector:
        chosen = self.difference()
        while self.take("&"):
            chosen = chosen & self.difference()
        return chosen

    def difference(self) -> Selector:
        chosen = self.single()
        while self.take("-"):
            chosen = chosen - self.single()
        return chosen

    def single(self) -> Selector:
        if self.take("~"):
            return ~self.single()
        if self.take("("):
            chosen = self.union()
            if not self.take(")"):
                raise self.error("needs a closing ')'")
            return chosen
        word, quoted = self.word()
        follows = _TOKEN.match(self.text, self.at)
        if not quoted and follows and follows["colon"]:
            self.at = follows.end()
            return self.prefixed(word)
        return everything if word == "**" else _Glob("glob", word)

    def word(self) -> tuple[str, bool]:
        match = _TOKEN.match(self.text, self.at)
        if not match or not (match["word"] or match["quoted"]):
            raise self.error("needs a name, a glob or a word such as first:2 here" if self.here() else "ends too early" if self.text.strip() else "is empty")
        quoted = match["quoted"]
        try:
            word = json.loads(quoted, strict=False) if quoted else match["word"]
        except ValueError as error:
            raise self.error(f"has a quoted text that JSON does not read: {error}") from None
        self.at = match.end()
        return word, bool(quoted)

    def prefixed(self, prefix: str) -> Selector:
        if prefix in {"first", "last", "nth"}:
            numbers = [self.number(prefix)]
            while prefix == "nth" and self.take(","):
                numbers.append(self.number(prefix))
            return nth(*numbers) if prefix == "nth" else first(numbers[0]) if prefix == "first" else last(numbers[0])
        if prefix in {"before", "after", "upto"}:
            return _Placed(prefix, (self.single(),))
        if prefix == "between":
            start = self.single()
            if not self.take(","):
                raise self.error("needs two marks, as in between:a,b")
            return between(start, self.single())
        if prefix == "re":
            return regex(self.expression())
        if prefix in {"name", "kind", "type"}:
            return {"name": name, "kind": kind, "type": type}[prefix](self.word()[0])
        raise self.error(f"has the unknown word {prefix + ':'!r}; {near(prefix, _PREFIXES) or 'known are ' + ', '.join(f'{p}:' for p in _PREFIXES)}")

    def number(self, prefix: str) -> int:
        word, _ = self.word()
        try:
            return int(word)
        except ValueError:
            raise self.error(f"needs a whole number after {prefix}:") from None

    def expression(self) -> str:
        """A regular expression: quoted, or up to the next blank or unmatched ')', so that it may hold '|' and '('."""
        if self.text[self.at : self.at + 1] == '"':
            return self.word()[0]
        start, depth = self.at, 0
        while self.at < len(self.text) and not self.text[self.at].isspace():
            depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
            if depth < 0:
                break
            self.at += 1
        return self.text[start : self.at]


def quoted(pattern: str) -> str:
    """Returns a glob or a name as the text form has it: in quotes where it needs them."""
    match = _TOKEN.fullmatch(pattern)
    return pattern if match and match["word"] and pattern != "-" and not pattern[0].isspace() else json.dumps(pattern, ensure_ascii=False)


def _word(function: str, word: object) -> str:
    if isinstance(word, str) and word:
        return word
    if isinstance(word, builtins.type):
        repair = f"a class goes into type(): type({word.__name__})"
    elif function == "type":
        repair = "one of the model's own layers is a selector itself: give it as layers="
    else:
        repair = {"kind": "such as kind('conv')", "name": "such as name('head')"}.get(function, "such as regex(r'block\\d+')")
    raise SelectorError(f"{function}() takes a text, not {word!r}.\n  {repair}")


def _count(word: str, n: int) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise SelectorError(f"{word}({n!r}) counts nothing.\n  {word}() takes a whole number from 1.")
    return n


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__") and not getattr(value, "shape", ())


def _respelt(components: list[str], paths: list[str]) -> str:
    """The pattern with each unknown plain component replaced by the nearest known name."""
    known = {part for path in paths for part in path.split(".")}
    spelt = []
    for component in components:
        plain = not re.search(r"[*?\[]", component) and component not in known
        found = near(component, known, limit=1).split("'")[1:2] if plain else []
        spelt.append(found[0] if found else component)
    return ".".join(spelt) if spelt != components else ""
