"""Recipe: named, ordered steps of freezing, as plain data that fits any model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from .errors import RecipeError, near
from .select import Selector, selector

_HELD = ("norm", "all", "none")
_KEYS = ("freeze", "unfreeze", "params", "inference")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a recipe.

    Attributes:
        do: ``freeze`` or ``unfreeze``.
        layers: The text form of a selector, or a selector; ``**`` is the whole model.
        params: Role or glob that narrows to some parameters, or ``None``.
        inference: As in ``unifreeze.freeze``.
    """

    do: Literal["freeze", "unfreeze"]
    layers: str | Selector = "**"
    params: str | None = None
    inference: Literal["norm", "all", "none"] = "norm"

    def __post_init__(self) -> None:
        if self.do not in ("freeze", "unfreeze"):
            raise RecipeError(f"{self.do!r} is no step.\n  a step freezes or unfreezes\n  {near(str(self.do), ['freeze', 'unfreeze'])}".rstrip())
        if self.inference not in _HELD:
            raise RecipeError(f"inference={self.inference!r} is unknown.\n  it is {', '.join(_HELD)}\n  {near(str(self.inference), _HELD)}".rstrip())
        if self.do == "unfreeze" and self.inference != "norm":
            raise RecipeError("An unfreeze lets go of statistics and modes, so it takes no inference.\n  Leave it out.")

    def to_dict(self) -> dict[str, str]:
        """Returns the step as plain data.

        Raises:
            SelectorError: If the selector has no text form.
        """
        words: dict[str, str] = {self.do: self.layers if isinstance(self.layers, str) else self.layers.text}
        if self.params is not None:
            words["params"] = self.params
        if self.do == "freeze" and self.inference != "norm":
            words["inference"] = self.inference
        return words


@dataclass(frozen=True, slots=True)
class Recipe:
    """Ordered steps of freezing; ``unifreeze.apply`` makes a model's state exactly what they say.

    Attributes:
        steps: The steps, applied in order to a model with nothing frozen.
        name: What to call it.
        notes: What whoever reads it should know, such as that a step lists layers one by one.

    Example:
        >>> recipe = Recipe.read({"name": "bitfit", "steps": [{"freeze": "**"}, {"unfreeze": "**", "params": "bias"}]})
        >>> recipe.steps[1]
        Step(do='unfreeze', layers='**', params='bias', inference='norm')
    """

    steps: tuple[Step, ...]
    name: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [step for step in self.steps if not isinstance(step, Step)]
        if wrong:
            raise RecipeError(f"Recipe(…) takes Steps, not {wrong[0]!r}.\n  Recipe.read reads dictionaries and JSON.")

    @classmethod
    def record(cls, model: object, name: str = "") -> Recipe:
        """Reads any live model, or a ``Freezing``, and writes the shortest steps that freeze exactly the same on a fresh one.

        Names that a framework counts up (``dense_3``) are not used, for the next build has others. Where no rule picks the layers, they are listed, and
        ``notes`` says so.

        Raises:
            RecipeError: If nothing is frozen, or in a way that no steps make.

        Example:
            >>> import pytest; torch = pytest.importorskip("torch")
            >>> from unifreeze import Recipe, freeze
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            >>> Recipe.record(freeze(model, layers=[model[0]])).steps
            (Step(do='freeze', layers='0', params=None, inference='norm'),)
        """
        from ._freezing import label_of
        from ._manager import read
        from ._record import record

        backend, tree = read(model)
        steps, notes = record(tree, label_of(tree, backend))
        return cls(tuple(steps), name, notes=tuple(notes))

    @classmethod
    def read(cls, source: Recipe | Mapping[str, object] | str | os.PathLike[str]) -> Self | Recipe:
        """Reads a recipe from its dictionary form, its JSON text, or a JSON file given as a ``Path``. Nothing in it is executed.

        Raises:
            RecipeError: If it does not have the form of a recipe; the message names the place.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, os.PathLike):
            return cls.read(_contents(Path(source)))
        if isinstance(source, str):
            if not source.lstrip().startswith(("{", "[")):
                raise RecipeError(f"{source[:80]!r} is no recipe.\n  A file is given as a path: Path({source[:80]!r})\n  JSON text reads like {_SAMPLE}")
            try:
                return cls.read(json.loads(source))
            except json.JSONDecodeError as error:
                raise RecipeError(f"The recipe is no JSON: {error}.\n  It reads like {_SAMPLE}") from error
        steps = source.get("steps") if isinstance(source, Mapping) else None
        if not isinstance(source, Mapping) or not isinstance(steps, list | tuple) or not steps:
            raise RecipeError(f"A recipe is an object with a list of steps.\n  It reads like {_SAMPLE}")
        for key in source.keys() - {"name", "steps"}:
            raise RecipeError(f"{key}: unknown key of a recipe.\n  it has: name, steps\n  {near(str(key), ['name', 'steps'])}".rstrip())
        return cls(tuple(_step(f"steps[{i}]", step) for i, step in enumerate(steps)), str(source.get("name", "")))

    def to_dict(self) -> dict[str, object]:
        """Returns the recipe as plain data, which ``read`` takes back."""
        return {"name": self.name, "steps": [step.to_dict() for step in self.steps]}

    def to_json(self) -> str:
        """Returns the recipe as JSON text, which ``read`` takes back."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


_LARGEST = 1 << 20


def _contents(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise RecipeError(f"{path} is larger than a recipe may be ({_LARGEST:,} bytes).\n  A glob says in a line what a list says in many.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read as a recipe.\n  {error}") from error


_SAMPLE = '{"steps": [{"freeze": "backbone.*"}, {"unfreeze": "kind:batch_norm"}]}'


def _step(place: str, source: object) -> Step:
    if isinstance(source, Step):
        return source
    if not isinstance(source, Mapping):
        raise RecipeError(f"{place}: a step is an object such as {{'freeze': 'backbone.*'}}, not {source!r}.")
    for key in source.keys() - set(_KEYS):
        raise RecipeError(f"{place}.{key}: unknown key.\n  a step has: {', '.join(_KEYS)}\n  {near(str(key), _KEYS)}".rstrip())
    verbs = [verb for verb in ("freeze", "unfreeze") if verb in source]
    if len(verbs) != 1:
        raise RecipeError(f"{place}: a step says either freeze or unfreeze, and which layers.\n  it has: {', '.join(map(str, source)) or 'nothing'}")
    layers, params, inference = source[verbs[0]], source.get("params"), source.get("inference", "norm")
    if not isinstance(layers, str | Selector):
        raise RecipeError(f"{place}.{verbs[0]}: layers are the text form of a selector such as 'first:2', not {layers!r}.")
    try:
        selector(layers)
    except ValueError as error:
        raise RecipeError(f"{place}.{verbs[0]}: {error}") from error
    if params is not None and not isinstance(params, str):
        raise RecipeError(f"{place}.params: a role or a glob such as 'bias', not {params!r}.")
    try:
        return Step("freeze" if verbs[0] == "freeze" else "unfreeze", layers, params, inference)
    except RecipeError as error:
        raise RecipeError(f"{place}.inference: {error}") from error
