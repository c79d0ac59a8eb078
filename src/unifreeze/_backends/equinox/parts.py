"""What a module is made of."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import equinox as eqx
from jax.tree_util import GetAttrKey

from unifreeze._backends.jax import tree


@cache
def _keys(kind: Any) -> tuple[tuple[str, GetAttrKey], ...]:
    """The fields that JAX sees."""
    return tuple((one.name, GetAttrKey(one.name)) for one in fields(kind) if not one.metadata.get("static", False))


def entries(node: Any) -> list[tuple[Any, Any]] | None:
    """The keys and members of a container, or ``None`` for a leaf. Modules are read past their ``__getattribute__``, which takes most of the time."""
    if not issubclass(type(node), eqx.Module):
        return tree.entries(node)
    kind: Any = type(node)
    own = object.__getattribute__(node, "__dict__")
    return [(key, own[name]) for name, key in _keys(kind) if name in own]
