"""Record: what is frozen in one model, as plain data that the same model built again takes back, whatever its layers are called then."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from ._backend import Request
from ._digest import own, short
from ._rows import Rows
from ._tree import Inference, Layer, Parameter, State
from .errors import RecipeError

_SAMPLE = '{"layers": [{"at": "0", "path": "stem", "type": "Dense", "shapes": [[4, 3], [3]], "frozen": [0, 1]}]}'
_KEYS = {"at", "path", "type", "shapes", "frozen", "rows", "held", "names", "notes", "values"}
# Which way of making digests of values these are; another one's can't be compared.
_DIGESTS = 1
_HEADER = 100_000_000  # what safetensors itself takes at most


@dataclass(frozen=True, slots=True)
class Entry:
    """One layer of a record.

    Attributes:
        at: Where it stands: its number among its siblings, below the number of the layer above, from the root down, such as ``3.0.1``.
        path: Its path.
        type: The framework's own class name.
        shapes: The shape of each of its own parameters, in their order.
        frozen: Which of them are frozen, by their place.
        held: How the layer is held at inference, or ``None``.
        notes: What else the backend keeps of a parameter, by its place.
        rows: The frozen rows of parameters of which only some are, by their place.
        values: Digests of what shall not move of its arrays, by their own name, where they were asked for.
        names: The own name of each parameter. JAX sorts the keys of a dict, so they may come back in another order.
    """

    at: str
    path: str
    type: str
    shapes: tuple[tuple[int, ...], ...]
    frozen: tuple[int, ...] = ()
    held: Inference | None = None
    notes: Mapping[int, object] = field(default_factory=dict)
    rows: Mapping[int, Rows] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Returns the entry as plain data."""
        words: dict[str, object] = {"at": self.at, "path": self.path, "type": self.type, "shapes": list(map(list, self.shapes)), "frozen": list(self.frozen)}
        if self.names:
            words["names"] = list(self.names)
        if self.held is not None:
            words["held"] = self.held
        if self.notes:
            words["notes"] = {str(place): note for place, note in self.notes.items()}
        if self.rows:
            words["rows"] = {str(place): list(map(list, rows.spans)) for place, rows in self.rows.items()}
        if self.values:
            words["values"] = dict(self.values)
        return words

    def laid_out(self, names: tuple[str, ...]) -> Entry:
        """Returns the entry with the parameters in this order, if they have these names."""
        if self.names == names or sorted(self.names) != sorted(names) or len(set(names)) < len(names):
            return self
        place = {old: names.index(name) for old, name in enumerate(self.names)}
        shapes = tuple(self.shapes[self.names.index(name)] for name in names)
        frozen = tuple(sorted(place[old] for old in self.frozen))
        notes = {place[old]: note for old, note in self.notes.items()}
        rows = {place[old]: some for old, some in self.rows.items()}
        return replace(self, names=names, shapes=shapes, frozen=frozen, notes=notes, rows=rows)

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'} ({self.type}) with {_shown(self.shapes)}"


@dataclass(frozen=True, slots=True)
class Record:
    """What is frozen in a model, layer by layer: a sidecar for a saved model. ``unifreeze.record`` takes one, ``unifreeze.apply`` brings it about.

    It fits the same architecture, in another process, on another backend of Keras, or built a second time under other automatic names. A recipe fits other
    models as well.

    Attributes:
        model: What the model is called, such as ``Sequential (torch)``.
        layers: An entry for every weighted layer and every layer that is held.

    Example:
        >>> record = Record.read({"layers": [{"at": "0", "path": "stem", "type": "Dense", "shapes": [[4, 3], [3]], "frozen": [0, 1]}]})
        >>> print(record.layers[0])
        stem (Dense) with (4, 3), (3,)
    """

    model: str
    layers: tuple[Entry, ...]

    @classmethod
    def of(cls, tree: Layer, label: str, notes: Mapping[str, object], prints: Mapping[str, Hashable] = MappingProxyType({})) -> Self:
        """Reads a record off a tree, with what the backend notes by parameter path, and with digests of these fingerprints."""
        return cls(label, tuple(_entry(at, layer, notes, prints) for at, layer in _placed(tree) if layer.weighted or layer.inference is not None))

    @classmethod
    def read(cls, source: Record | Mapping[str, object] | str | os.PathLike[str]) -> Self | Record:
        """Reads a record from its dictionary form, its JSON text, its ``metadata``, or a file given as a ``Path``. Nothing in it is executed.

        Raises:
            RecipeError: If it does not have the form of a record; the message names the place.
        """
        if isinstance(source, Record):
            return source
        found = plain(source)
        entries = found.get("layers") if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or not isinstance(entries, list | tuple) or found.keys() - {"model", "layers", "values"}:
            raise RecipeError(f"A record is an object with a list of layers, as unifreeze.record(model).to_json() writes it.\n  It reads like {_SAMPLE}")
        if found.get("values", _DIGESTS) != _DIGESTS:
            entries = [{key: word for key, word in entry.items() if key != "values"} if isinstance(entry, Mapping) else entry for entry in entries]
        return cls(str(found.get("model", "")), tuple(_read(f"layers[{i}]", entry) for i, entry in enumerate(entries)))

    def to_dict(self) -> dict[str, object]:
        """Returns the record as plain data, which ``read`` and ``apply`` take back."""
        return {"model": self.model, **self._digests(), "layers": [entry.to_dict() for entry in self.layers]}

    def _digests(self) -> dict[str, int]:
        return {"values": _DIGESTS} if any(entry.values for entry in self.layers) else {}

    def to_json(self) -> str:
        """Returns the record as JSON text, a line for each layer."""
        lines = ",\n  ".join(json.dumps(entry.to_dict(), ensure_ascii=False) for entry in self.layers)
        head = json.dumps({"model": self.model, **self._digests()}, ensure_ascii=False)[:-1]
        return f'{head}, "layers": [\n  {lines}\n]}}\n'

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the record to a JSON file, beside the saved model."""
        Path(file).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Record:
        """Reads a record from a JSON file, or from the metadata of a ``.safetensors`` file.

        Raises:
            RecipeError: If there is none.
        """
        return cls.read(Path(file))

    @property
    def metadata(self) -> dict[str, str]:
        """The record as metadata for a safetensors file: ``save_file(tensors, "model.safetensors", metadata=record(model).metadata)``."""
        return {"unifreeze": json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))}

    def request(self, tree: Layer, label: str) -> Request:
        """Returns what to ask the backend for, so that ``tree`` comes to be as recorded.

        Raises:
            RecipeError: If it is another architecture; the message names the first layer that differs.
        """
        found = self._matched(list(_placed(tree)), label)
        frozen = {layer.parameters[place].path for entry, layer in found for place in entry.frozen}
        nodes = list(tree.walk())
        frozen |= {parameter.path for layer in nodes for parameter in layer.parameters if parameter.untrainable}
        held = {layer.path: entry.held for entry, layer in found if entry.held is not None}
        notes = {layer.parameters[place].path: note for entry, layer in found for place, note in entry.notes.items()}
        rows = {layer.parameters[place].path: some for entry, layer in found for place, some in entry.rows.items()}
        every = frozenset(parameter.path for layer in nodes for parameter in layer.parameters)
        return Request(tree, State(frozenset(frozen), held, rows), every, frozenset(layer.path for layer in nodes), notes)

    def differing(self, tree: Layer, label: str, print_of: Callable[[Parameter, Rows | None], Hashable]) -> Iterator[str]:
        """Yields the paths whose values are not those that were recorded; those without values are different, too.

        Args:
            tree: The model.
            label: What it is called.
            print_of: What makes a fingerprint of an array, or of these rows of it.
        """
        for entry, layer in self._matched(list(_placed(tree)), label):
            arrays = {own(layer, array): (place, array) for place, array in enumerate((*layer.parameters, *layer.buffers))}
            for name, value in entry.values.items():
                place, array = arrays.get(name, (-1, None))
                if array is None or short(print_of(array, entry.rows.get(place))) != value:
                    yield f"{layer.path}.{name}".lstrip(".")

    def _matched(self, placed: list[tuple[str, Layer]], label: str) -> list[tuple[Entry, Layer]]:
        """Finds each entry's layer by its path where all paths are there, and otherwise by its place, which automatic names don't change."""
        wrong: tuple[Entry, Layer | None] | None
        by_path = {layer.path: layer for _, layer in placed}
        by_place = dict(placed)
        weighted = {layer.path for layer in by_path.values() if layer.weighted}
        if weighted <= {entry.path for entry in self.layers} <= by_path.keys():
            found = [(entry.laid_out(_names(by_path[entry.path])), by_path[entry.path]) for entry in self.layers]
            wrong = next(((entry, layer) for entry, layer in found if _shapes(layer) != entry.shapes), None)
        else:
            pairs = [(entry, by_place.get(entry.at)) for entry in self.layers]
            wrong = next(((entry, layer) for entry, layer in pairs if layer is None or not _alike(entry, layer)), None)
            found = [(entry, layer) for entry, layer in pairs if layer is not None]
        missed = weighted - {layer.path for _, layer in found}
        if wrong is None and not missed:
            return found
        if wrong is not None:
            there = "nothing" if wrong[1] is None else f"{wrong[1].path or 'the model itself'} ({wrong[1].type}) with {_shown(_shapes(wrong[1]))}"
            first = f"  the record has {wrong[0]}\n  the model has {there} there"
        else:
            first = f"  the model has {min(missed)}, of which the record knows nothing"
        raise RecipeError(
            f"This record of {self.model or 'a model'} does not fit {label}; nothing was changed.\n{first}\n"
            "  A record fits the same architecture only. What fits others is a recipe: apply(model, {'steps': [{'freeze': 'backbone.*'}]})."
        )


def plain(source: object) -> object:
    """Reads JSON text, a JSON file, or metadata of a safetensors file as ``safe_open(…).metadata()`` gives it; anything else is given back as it is."""
    if isinstance(source, Mapping) and isinstance(source.get("unifreeze"), str):
        source = source["unifreeze"]
    if isinstance(source, os.PathLike):
        try:
            source = _metadata(Path(source)) if Path(source).suffix == ".safetensors" else Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return source
    if isinstance(source, str):
        try:
            return json.loads(source)
        except json.JSONDecodeError:
            return source
    return source


def _metadata(file: Path) -> str:
    """The record in the header of a safetensors file: the length of the header in eight bytes, the header as JSON (github.com/huggingface/safetensors)."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(min(length, _HEADER))
    try:
        header = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{file.name} has no header of a safetensors file; was it written to the end?\n  {error}") from error
    found = header.get("__metadata__", {}).get("unifreeze") if isinstance(header, dict) else None
    if found is None:
        raise RecipeError(f"{file.name} has no record in its metadata.\n  Save it with one: save_file(tensors, file, metadata=record(model).metadata).")
    return str(found)


def is_record(source: object) -> bool:
    """Whether this looks like a record rather than a recipe."""
    found = plain(source)
    return isinstance(found, Record) or (isinstance(found, Mapping) and "layers" in found and "steps" not in found)


def _placed(tree: Layer) -> Iterator[tuple[str, Layer]]:
    pending = [("", tree)]
    while pending:
        at, layer = pending.pop()
        yield at, layer
        pending.extend((f"{at}.{place}".lstrip("."), child) for place, child in reversed(list(enumerate(layer.children))))


def _entry(at: str, layer: Layer, notes: Mapping[str, object], prints: Mapping[str, Hashable]) -> Entry:
    parameters = list(enumerate(layer.parameters))
    frozen = tuple(place for place, parameter in parameters if parameter.status == "frozen")
    rows = {place: parameter.rows for place, parameter in parameters if parameter.rows is not None}
    noted = {place: notes[parameter.path] for place, parameter in parameters if parameter.path in notes}
    kept = (array for array in (*layer.parameters, *layer.buffers) if prints.get(array.path) is not None)
    values = {own(layer, array): short(prints[array.path]) for array in kept}
    return Entry(at, layer.path, layer.type, _shapes(layer), frozen, layer.inference, noted, rows, values, _names(layer))


def _names(layer: Layer) -> tuple[str, ...]:
    return tuple(own(layer, parameter) for parameter in layer.parameters)


def _shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(parameter.shape) for parameter in layer.parameters)


def _alike(entry: Entry, layer: Layer) -> bool:
    """Whether a layer at the same place may be the same one: automatic names differ in their numbers alone."""
    return entry.type == layer.type and entry.shapes == _shapes(layer) and _unnumbered(entry.path) == _unnumbered(layer.path)


def _unnumbered(path: str) -> str:
    return ".".join(re.sub(r"(_\d+)+$", "", part) for part in path.split("."))


def _shown(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(map(str, shapes)) or "no parameters"


def _read(place: str, source: object) -> Entry:
    if not isinstance(source, Mapping) or source.keys() - _KEYS or not {"at", "path", "type", "shapes"} <= source.keys():
        raise RecipeError(f"{place}: an entry of a record has {', '.join(sorted(_KEYS))}.\n  It reads like {_SAMPLE}")
    words: Mapping[str, Any] = source
    try:
        shapes = tuple(tuple(map(int, shape)) for shape in words["shapes"])
        frozen = tuple(map(int, words.get("frozen", ())))
        notes = {int(key): note for key, note in words.get("notes", {}).items()}
        rows = {int(key): Rows(tuple((int(start), int(stop)) for start, stop in spans)) for key, spans in words.get("rows", {}).items()}
        values = {str(name): str(value) for name, value in words.get("values", {}).items()}
        names = tuple(map(str, words.get("names", ())))
    except (TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{place}: shapes are lists of numbers, frozen a list of places, notes go by place ({error}).\n  It reads like {_SAMPLE}") from error
    if (
        any(not 0 <= one < len(shapes) for one in (*frozen, *notes, *rows))
        or words.get("held") not in (None, "norm", "all")
        or len(names) not in {0, len(shapes)}
    ):
        raise RecipeError(f"{place}: frozen and notes count the shapes, from 0; held is 'norm' or 'all'.\n  {dict(words)}")
    return Entry(str(words["at"]), str(words["path"]), str(words["type"]), shapes, frozen, words.get("held"), notes, rows, values, names)
