"""From the text of a recipe to plain data, JSON or YAML: bounded, nothing executed, no key twice, and errors that name the place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .errors import RecipeError

LARGEST = 1 << 20
DEEPEST = 12
SAMPLE = '{"steps": [{"freeze": "backbone.*"}, {"unfreeze": "kind:batch_norm"}]}'


def contents(path: Path) -> str:
    """Reads a file of bounded size."""
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError(f"{path} is larger than a recipe may be ({LARGEST:,} bytes).\n  A glob says in a line what a list says in many.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read as a recipe.\n  {error}") from error


def plain(text: str) -> object:
    """Reads JSON where the text begins like it, YAML otherwise."""
    if len(text.encode()) > LARGEST:
        raise RecipeError(f"The recipe is larger than a recipe may be ({LARGEST:,} bytes).\n  A glob says in a line what a list says in many.")
    if text.lstrip().startswith(("{", "[")):
        return _json(text)
    if re.search(r"^(version|name|steps|phases|notes)\s*:", text, re.MULTILINE):
        return _yaml(text)
    raise RecipeError(f"{text[:80]!r} is no recipe.\n  A file is given as a path: Path({text[:80]!r})\n  JSON text reads like {SAMPLE}")


def _json(text: str) -> object:
    _check_depth(text)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecipeError(f"The recipe is no JSON: {error}.\n  It reads like {SAMPLE}") from error


def _check_depth(text: str) -> None:
    depth = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark, 0)
        if depth > DEEPEST:
            raise RecipeError(f"The recipe is nested more than {DEEPEST} deep.\n  It reads like {SAMPLE}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(keys) < LARGEST else None
    if twice is not None:
        raise RecipeError(f"{twice}: stands twice in one object.\n  Only one of them could count; take one out.")
    return dict(pairs)


def _need_yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise RecipeError("A recipe in YAML needs PyYAML, which is not installed.\n  install it with pip install 'unifreeze[yaml]', or write JSON") from None
    return yaml


def _yaml(text: str) -> object:
    yaml = _need_yaml()
    try:
        root = _bounded(yaml, text)
        return _value(yaml, root)
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe is no YAML: {error}\n  A selector that begins with * stands in quotes: freeze: '**'") from error


def _bounded(yaml: Any, text: str) -> Any:
    """Looks at the events alone before anything is built: an alias could make a small file a huge one."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(f"{where}: a recipe holds no aliases (*{event.anchor}).\n  A selector that begins with * stands in quotes: freeze: '**'")
        if getattr(event, "tag", None):
            raise RecipeError(f"{where}: a recipe holds no YAML tags ({event.tag}).\n  Plain texts, numbers, lists and objects are all that it needs.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecipeError(f"{where}: the recipe is nested more than {DEEPEST} deep.\n  It reads like {SAMPLE}")
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _value(yaml: Any, node: Any) -> object:
    if isinstance(node, yaml.MappingNode):
        return _once([(str(_value(yaml, key)), _value(yaml, value)) for key, value in node.value])
    if isinstance(node, yaml.SequenceNode):
        return [_value(yaml, item) for item in node.value]
    if node is None:
        return None
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


def to_yaml(data: dict[str, object]) -> str:
    """Writes plain data as YAML."""
    return str(_need_yaml().safe_dump(data, sort_keys=False, allow_unicode=True, width=1 << 16))
