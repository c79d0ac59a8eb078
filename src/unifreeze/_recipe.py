"""Recipe: named, ordered steps of freezing, as plain data that fits any model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

from ._recipe_text import SAMPLE, contents, plain, to_yaml
from ._tree import KINDS
from .errors import RecipeError, near
from .select import Selector, kinds_in, selector

VERSION = 1

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
class Phase:
    """What changes from an epoch or a step of training on. Kept and checked; ``unifreeze.apply`` brings about the first state alone.

    Attributes:
        steps: Steps on top of what is frozen by then.
        epoch: The epoch from which on it holds, or ``None``.
        step: The optimizer step from which on it holds, or ``None``; a phase has one of the two.
        learning_rate: Factors of the learning rate, by the text form of a selector.
        name: What to call it.
    """

    steps: tuple[Step, ...] = ()
    epoch: int | None = None
    step: int | None = None
    learning_rate: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        moments = [moment for moment in (self.epoch, self.step) if moment is not None]
        if len(moments) != 1 or not isinstance(moments[0], int) or isinstance(moments[0], bool) or moments[0] < 0:
            raise RecipeError("A phase begins at an epoch or at a step, a whole number from 0.\n  Give one of the two.")
        wrong = [rate for rate in self.learning_rate.values() if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < inf]
        if wrong:
            raise RecipeError(f"learning_rate: a factor is a number from 0, not {wrong[0]!r}.")

    def to_dict(self) -> dict[str, object]:
        """Returns the phase as plain data."""
        told: dict[str, object] = {"name": self.name} if self.name else {}
        told |= {"epoch": self.epoch} if self.epoch is not None else {"step": self.step}
        if self.steps:
            told["steps"] = [step.to_dict() for step in self.steps]
        return told | ({"learning_rate": dict(self.learning_rate)} if self.learning_rate else {})


@dataclass(frozen=True, slots=True)
class Recipe:
    """Ordered steps of freezing; ``unifreeze.apply`` makes a model's state exactly what they say.

    Attributes:
        steps: The steps, applied in order to a model with nothing frozen.
        name: What to call it.
        phases: What changes later in training, kept for what drives it.
        notes: What whoever reads it should know, such as that a step lists layers one by one.

    Example:
        >>> recipe = Recipe.read({"name": "bitfit", "steps": [{"freeze": "**"}, {"unfreeze": "**", "params": "bias"}]})
        >>> recipe.steps[1]
        Step(do='unfreeze', layers='**', params='bias', inference='norm')
    """

    steps: tuple[Step, ...]
    name: str = ""
    notes: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()

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
        from ._recording import record

        backend, tree = read(model)
        steps, notes = record(tree, label_of(tree, backend))
        return cls(tuple(steps), name, notes=tuple(notes))

    @classmethod
    def read(cls, source: Recipe | Mapping[str, object] | str | os.PathLike[str]) -> Self | Recipe:
        """Reads a recipe from its dictionary form, its JSON or YAML text, or a file given as a ``Path``. Nothing in it is executed.

        Raises:
            RecipeError: If it does not have the form of a recipe; the message names the place.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, os.PathLike):
            return cls.read(contents(Path(source)))
        if isinstance(source, str):
            source = plain(source)  # type: ignore[assignment]
        form = _form(source)
        return cls(
            tuple(_step(f"steps[{i}]", step) for i, step in enumerate(form.steps)),
            form.name,
            tuple(form.notes),
            tuple(_phase(f"phases[{i}]", phase) for i, phase in enumerate(form.phases)),
        )

    def to_dict(self) -> dict[str, object]:
        """Returns the recipe as plain data, which ``read`` takes back."""
        told: dict[str, object] = {"version": VERSION, "name": self.name, "steps": [step.to_dict() for step in self.steps]}
        if self.phases:
            told["phases"] = [phase.to_dict() for phase in self.phases]
        return told | ({"notes": list(self.notes)} if self.notes else {})

    def to_json(self) -> str:
        """Returns the recipe as JSON text, which ``read`` takes back."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_yaml(self) -> str:
        """Returns the recipe as YAML text, which ``read`` takes back. Needs PyYAML: ``pip install 'unifreeze[yaml]'``."""
        return to_yaml(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recipe to a file: YAML where its name ends in ``.yaml`` or ``.yml``, else JSON."""
        target = Path(path)
        target.write_text(self.to_yaml() if target.suffix in {".yaml", ".yml"} else self.to_json() + "\n", encoding="utf-8")

    def to_python(self) -> str:
        """Returns the steps as the calls that they are, for a model with nothing frozen; each phase is a function, to be called when its time comes.

        >>> recipe = Recipe.read({"steps": [{"freeze": "~head"}], "phases": [{"epoch": 3, "steps": [{"unfreeze": "body", "params": "bias"}]}]})
        >>> print(recipe.to_python())
        from unifreeze import freeze, unfreeze
        <BLANKLINE>
        freezing = freeze(model, layers='~head')
        <BLANKLINE>
        <BLANKLINE>
        def from_epoch_3(freezing):
            freezing = unfreeze(freezing, layers='body', params='bias')
            return freezing
        """
        verbs = ", ".join(sorted({step.do for step in (*self.steps, *(step for phase in self.phases for step in phase.steps))}))
        calls = [_call(step, "freezing" if i else "model") for i, step in enumerate(self.steps)]
        return "\n".join([f"from unifreeze import {verbs}", "", *calls, *(line for phase in self.phases for line in _function(phase))])


def _call(step: Step, subject: str) -> str:
    return f"freezing = {step.do}({', '.join((subject, *_arguments(step)))})"


def _function(phase: Phase) -> list[str]:
    moment = f"epoch_{phase.epoch}" if phase.epoch is not None else f"step_{phase.step}"
    rates = [f"    # learning rate of {layers!r}: {rate} times the base rate" for layers, rate in phase.learning_rate.items()]
    return ["", "", f"def from_{moment}(freezing):", *(f"    {_call(step, 'freezing')}" for step in phase.steps), *rates, "    return freezing"]


def _arguments(step: Step) -> list[str]:
    """The whole model goes without saying: to freeze it so is meant, and does not warn."""
    words = step.to_dict()
    return [f"{'layers' if key == step.do else key}={value!r}" for key, value in words.items() if (key, value) != (step.do, "**")]


def _form(source: object) -> Any:
    """Validates the outer form by its schema, and says where it fails."""
    import msgspec

    if not isinstance(source, Mapping) or not isinstance(source.get("steps"), list | tuple) or not source["steps"]:
        raise RecipeError(f"A recipe is an object with a list of steps.\n  It reads like {SAMPLE}")
    version = source.get("version", VERSION)
    if version != VERSION or isinstance(version, bool):
        raise RecipeError(
            f"version: {version!r} of the recipe format is unknown.\n"
            f"  this unifreeze reads version {VERSION}\n  A newer one may read it: pip install -U unifreeze"
        )
    keys = ("version", "name", "steps", "phases", "notes")
    for key in source.keys() - set(keys):
        raise RecipeError(f"{key}: unknown key of a recipe.\n  it has: {', '.join(keys)}\n  {near(str(key), keys)}".rstrip())
    types = [("version", int, VERSION), ("name", str, ""), ("steps", list[Any], []), ("phases", list[Any], []), ("notes", list[str], [])]
    schema = msgspec.defstruct("RecipeForm", types, forbid_unknown_fields=True)
    try:
        return msgspec.convert(dict(source), schema)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise RecipeError(f"{place.strip('`').removeprefix('$.') or 'recipe'}: {what}.\n  It reads like {SAMPLE}") from error


def _phase(place: str, source: object) -> Phase:
    if isinstance(source, Phase):
        return source
    if not isinstance(source, Mapping):
        raise RecipeError(f"{place}: a phase is an object such as {{'epoch': 3, 'steps': […]}}, not {source!r}.")
    keys = ("name", "epoch", "step", "steps", "learning_rate")
    for key in source.keys() - set(keys):
        raise RecipeError(f"{place}.{key}: unknown key.\n  a phase has: {', '.join(keys)}\n  {near(str(key), keys)}".rstrip())
    steps, rates = source.get("steps", []), source.get("learning_rate", {})
    if not isinstance(steps, list | tuple):
        raise RecipeError(f"{place}.steps: a list of steps, not {steps!r}.")
    if not isinstance(rates, Mapping):
        raise RecipeError(f"{place}.learning_rate: factors by layers, such as {{'backbone.**': 0.1}}, not {rates!r}.")
    for layers in rates:
        _check_layers(f"{place}.learning_rate", layers)
    try:
        made = tuple(_step(f"{place}.steps[{i}]", step) for i, step in enumerate(steps))
        return Phase(made, source.get("epoch"), source.get("step"), dict(rates), str(source.get("name", "")))
    except RecipeError as error:
        raise error if str(error).startswith(place) else RecipeError(f"{place}: {error}") from error


def _check_layers(place: str, layers: object) -> None:
    if not isinstance(layers, str | Selector):
        raise RecipeError(f"{place}: layers are the text form of a selector such as 'first:2', not {layers!r}.")
    try:
        words = kinds_in(selector(layers))
    except ValueError as error:
        raise RecipeError(f"{place}: {error}") from error
    for word in words:
        if not any(fnmatchcase(kind, word) for kind in KINDS):
            hint = near(word, KINDS, limit=1) or f"\n  kinds: {', '.join(KINDS)}"
            raise RecipeError(f"{place}: unknown kind {word!r}, {hint}")


def _step(place: str, source: object) -> Step:
    if isinstance(source, Step):
        return source
    if not isinstance(source, Mapping):
        raise RecipeError(f"{place}: a step is an object such as {{'freeze': 'backbone.*'}}, not {source!r}.")
    if "do" in source:
        source, long = _shortened(place, source), True
    else:
        long = False
    for key in source.keys() - set(_KEYS):
        raise RecipeError(f"{place}.{key}: unknown key.\n  a step has: {', '.join(_KEYS)}\n  {near(str(key), _KEYS)}".rstrip())
    verbs = [verb for verb in ("freeze", "unfreeze") if verb in source]
    if len(verbs) != 1:
        raise RecipeError(f"{place}: a step says either freeze or unfreeze, and which layers.\n  it has: {', '.join(map(str, source)) or 'nothing'}")
    layers, params, inference = source[verbs[0]], source.get("params"), source.get("inference", "norm")
    _check_layers(f"{place}.{'layers' if long else verbs[0]}", layers)
    if params is not None and not isinstance(params, str):
        raise RecipeError(f"{place}.params: a role or a glob such as 'bias', not {params!r}.")
    try:
        return Step("freeze" if verbs[0] == "freeze" else "unfreeze", layers, params, inference)  # type: ignore[arg-type]
    except RecipeError as error:
        raise RecipeError(f"{place}.inference: {error}") from error


def _shortened(place: str, source: Mapping[str, object]) -> dict[str, object]:
    """``{"do": "freeze", "layers": "stem"}`` as ``{"freeze": "stem"}``."""
    do, rest = source["do"], {key: value for key, value in source.items() if key not in {"do", "layers"}}
    if do not in ("freeze", "unfreeze"):
        raise RecipeError(f"{place}.do: {do!r} is no step.\n  a step freezes or unfreezes\n  {near(str(do), ['freeze', 'unfreeze'])}".rstrip())
    return {str(do): source.get("layers", "**"), **rest}
