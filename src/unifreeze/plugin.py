"""The door for whoever writes a backend: everything that a backend may import stands here.

A backend turns a model into plain data (``layers``) and can set what is frozen (``apply``). It is found through an entry point of the group
``unifreeze`` whose name is the import name of the package that makes the models; the backend is loaded once that package is imported. See
"Writing a backend" in the docs for a whole one in a hundred lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import lru_cache

import pluggy

from . import _flow as flow
from ._backend import Applied, Backend, Request
from ._checksum import FACTOR, folded, folded_bytes, spread, weights, width
from ._finding import Finding, Severity
from ._graph import Graph, Source, Sources, Traced, Unit, Weight, concatenated, merged
from ._inputs import Inputs, Shape, Spec
from ._mark import Mark, mark
from ._moves import Clue
from ._rows import Rows
from ._slots import Slots, named, times
from ._tracing import Tracing
from ._tree import KINDS, Inference, Layer, Parameter, State, Status, natural, with_state
from .errors import ArgumentError, BackendError, UnbuiltModelError, UnifreezeError, UnifreezeWarning

__all__ = [
    "FACTOR",
    "KINDS",
    "Applied",
    "ArgumentError",
    "Backend",
    "BackendError",
    "Clue",
    "ExitStack",
    "Finding",
    "Graph",
    "Inference",
    "Inputs",
    "Layer",
    "Mark",
    "Parameter",
    "Request",
    "Rows",
    "Severity",
    "Shape",
    "Slots",
    "Source",
    "Sources",
    "Spec",
    "State",
    "Status",
    "Traced",
    "Tracing",
    "UnbuiltModelError",
    "UnifreezeError",
    "UnifreezeWarning",
    "Unit",
    "Weight",
    "concatenated",
    "flow",
    "folded",
    "folded_bytes",
    "hookimpl",
    "hookspec",
    "mark",
    "merged",
    "named",
    "natural",
    "role",
    "spread",
    "times",
    "weights",
    "width",
    "with_state",
]

hookspec = pluggy.HookspecMarker("unifreeze")
hookimpl = pluggy.HookimplMarker("unifreeze")

_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}


class Hooks:
    """The hooks that unifreeze calls. An entry point's object implements them."""

    @hookspec(firstresult=True)
    def unifreeze_backend(self, model: object) -> Backend | None:
        """Returns the backend that speaks for ``model``, or ``None``. Never ``False``, which would count as an answer."""

    @hookspec
    def unifreeze_audit(self, model: object, tree: Layer, optimizers: tuple[object, ...]) -> Iterable[Finding] | None:
        """Returns what a further rule finds in ``model``, or ``None``. Every plugin that is awake is asked about every model.

        The codes are the plugin's own: letters that tell whose they are, and a number.
        """


@lru_cache(1 << 12)
def role(kind: str, name: str) -> str:
    """Returns the field's name for a parameter, from its layer's kind and its own name.

    >>> role("batch_norm", "weight"), role("conv", "weight"), role("batch_norm", "beta"), role("dense", "b")
    ('scale', 'kernel', 'bias', 'bias')
    """
    plain = name.lower()
    if plain in {"bias", "beta", "b", "offset"} or "bias" in plain:
        return "bias"
    if kind in _NORMS and plain in {"weight", "gamma", "scale", "w"}:
        return "scale"
    if kind == "embedding" and plain in {"weight", "embedding", "embeddings", "w"}:
        return "embedding"
    if "recurrent_kernel" in plain or plain.startswith("weight_hh"):
        return "recurrent_kernel"
    if plain in {"weight", "kernel", "w", "in_proj_weight"} or plain.startswith("weight_ih"):
        return "kernel"
    return name
