"""The Correspondence: pairs of layers, a certificate, and the proof by weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unifreeze._backend import Backend
from unifreeze._graph import Traced
from unifreeze._manager import backend_of
from unifreeze._tree import Layer
from unifreeze.errors import ArgumentError, CorrespondenceError

from . import transfer as carrying
from .match import Match, match

#: One shape, several by position, or several by name.
Shape = tuple[int, ...] | list[tuple[int, ...]] | dict[str, tuple[int, ...]] | None
#: How the model of JAX among the two computes, or a pair of functions, one for each.
Apply = Callable[..., Any]
Applies = Apply | tuple[Apply | None, Apply | None] | None


@dataclass(frozen=True, eq=False, repr=False)
class Correspondence:
    """Which layer of one model is which layer of another.

    Attributes:
        certificate: ``exact`` (the weighted graphs are equal, which has been checked edge by edge), ``exact up to the head`` (equal without the last
            dense layers), or ``prefix`` (equal from the input up to a first divergence).
        pairs: The paths of the layers that are the same, in the order of the source's computation.
        interchangeable: Groups of the source's layers that no graph can tell apart; their pairs are one choice of several.
        divergence: Where a prefix ends, in words; otherwise empty.
        unmatched: The paths of the weighted layers without a partner, of the source and of the target.
        differences: Settings that differ between partners (epsilon, momentum, stride): both paths, the setting, both values.
    """

    certificate: str
    pairs: tuple[tuple[str, str], ...]
    interchangeable: tuple[tuple[str, ...], ...]
    divergence: str
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    differences: tuple[tuple[str, str, str, object, object], ...]
    _traced: tuple[Traced, Traced]
    _match: Match

    def transfer(self) -> Any:
        """Carries the source's weights over to the target, layouts and all, and returns the target.

        What has no partner stays as it is. Settings that differ are left alone; ``differences`` names them.

        Raises:
            CorrespondenceError: If the target has no place for an array that matters. Nothing has been written then.
        """
        return carrying.transfer(*self._traced, self._match)

    def verify(self, inputs: Any) -> float:
        """Runs both models in inference, and returns the largest difference of their outputs relative to the largest output.

        Args:
            inputs: A numpy array with channels last, such as images of (batch, height, width, channels) or ids of (batch, positions); for several inputs
                a list or a dictionary of them, in the order of ``shape``.
        """
        import numpy as np

        if self.certificate != "exact":
            raise CorrespondenceError(f"Outputs can be compared where the whole models correspond.\n  here: {self.certificate}")
        arrays = list(inputs.values()) if isinstance(inputs, dict) else inputs if isinstance(inputs, list) else [inputs]
        ours, theirs = (traced.run(arrays) for traced in self._traced)
        theirs = [theirs[place] for place in self._match.outputs] if self._match.outputs else theirs
        if [one.shape for one in ours] != [one.shape for one in theirs]:
            raise CorrespondenceError(f"The outputs have other shapes.\n  {[one.shape for one in ours]} and {[one.shape for one in theirs]}")
        return max(float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(np.float32).tiny)) for a, b in zip(ours, theirs, strict=True))

    def __repr__(self) -> str:
        more = f", {len(self.interchangeable)} interchangeable groups" if self.interchangeable else ""
        return f"<Correspondence: {self.certificate}, {len(self.pairs)} pairs of layers{more}>"


def correspond(source: object, target: object, *, shape: Shape = None, apply: Applies = None) -> Correspondence:
    """Finds out which layer of one model is which of another, in whatever framework, by the dataflow of both; names play no part.

    Both models are traced in inference, without computing anything. Neither is changed.

    Args:
        source: A model whose backend can trace, such as a Keras model, also a subclassed one, a PyTorch module, also on the meta device, an nnx
            or equinox module, or a tree of arrays (linen variables, haiku parameters), with or without values.
        target: Another.
        shape: The shape of the input, channels last, such as ``(1, 224, 224, 3)``, or ``(1, 16)`` for 16 ids. For several inputs a list of shapes, or a
            dictionary by the names of the model's arguments, such as ``{"input_ids": (1, 16), "token_type_ids": (1, 16)}``; the other model takes them in
            this order. Not needed where a Keras model says it and the other takes them by position.
        apply: How a model of JAX computes its outputs from an input with channels last, ``apply(model, x)``: needed for a tree of arrays, which does not say
            it, as in ``apply=lambda variables, x: module.apply(variables, x, train=False)``; for a module, its own call if not given. If both models are of
            JAX, a pair: ``apply=(f, g)``, with ``None`` for a module's own call.

    Raises:
        CorrespondenceError: If not even the first layers are the same; the message names them.
        BackendError: If one of the models does something that can't be traced.
        ArgumentError: If ``apply`` is missing, or fits none of the models, or could be meant for either.
    """
    traced, trees = _trace(source, target, shape, apply)
    found = match(traced[0].graph, traced[1].graph)
    divergence = _divergence(traced, found)
    if not found.certificate:
        raise CorrespondenceError(f"No correspondence between these models: not even the first layers are the same.\n{divergence}")
    units = traced[0].graph.units, traced[1].graph.units
    pairs = tuple(dict.fromkeys((units[0][a].layer, units[1][b].layer) for a, b in found.pairs))
    paired = tuple({pair[side] for pair in pairs} for side in (0, 1))
    unmatched = tuple(tuple(layer.path for layer in tree.walk() if layer.weighted and layer.path not in paired[side]) for side, tree in enumerate(trees))
    return Correspondence(
        found.certificate,
        pairs,
        tuple(tuple(units[0][place].layer for place in group) for group in found.groups),
        divergence,
        (unmatched[0], unmatched[1]),
        tuple(carrying.differences(*traced, found)),
        traced,
        found,
    )


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and all(isinstance(n, int) and n > 0 for n in shape)


def _trace(source: object, target: object, shape: Shape, apply: Any) -> tuple[tuple[Traced, Traced], tuple[Layer, Layer]]:
    several = list(shape.values()) if isinstance(shape, dict) else shape if isinstance(shape, list) else [shape]
    if shape is not None and not (several and all(map(_is_shape, several))):
        raise ArgumentError(f"shape={shape!r} is no shape.\n  It reads like (1, 224, 224, 3), channels last, or is a list or a dictionary of such.")
    models = (source, target)
    backends = tuple(map(backend_of, models))
    trees = tuple(backend.layers(model) for backend, model in zip(backends, models, strict=True))
    applied = _applied(backends, apply)
    found: dict[int, Traced] = {}
    # Keras says the shape of its input, and PyTorch needs to be told.
    for side in (0, 1) if backends[0].name == "keras" else (1, 0):
        found[side] = backends[side].graph(models[side], shape, applied[side])
        inputs = found[side].graph.inputs
        shape = shape or (inputs[0] if len(inputs) == 1 else list(inputs) or None)
    return (found[0], found[1]), (trees[0], trees[1])


def _applied(backends: tuple[Backend, ...], apply: Any) -> tuple[Apply | None, Apply | None]:
    """Which function is whose."""
    able = [backend.takes_apply for backend in backends]
    names = " and ".join(backend.name for backend in backends)
    if apply is None or isinstance(apply, tuple):
        pair = (None, None) if apply is None else apply
        if len(pair) != 2 or any(one is not None and not callable(one) for one in pair):
            raise ArgumentError(
                f"apply={apply!r} is neither a function nor a pair of them.\n  It reads like apply=lambda variables, x: module.apply(variables, x)."
            )
        if any(one is not None and not takes for one, takes in zip(pair, able, strict=True)):
            raise ArgumentError(f"apply= is for models of JAX; others say themselves what they compute.\n  these: {names}")
        return pair[0], pair[1]
    if not callable(apply) or sum(able) != 1:
        facts = f"it could be meant for either of two models ({names})" if sum(able) == 2 else f"these models ({names}) say themselves what they compute"
        raise ArgumentError(f"apply={apply!r}: {facts if callable(apply) else 'it is no function'}.\n  For two models of JAX, give a pair: apply=(f, g).")
    return (apply, None) if able[0] else (None, apply)


def _divergence(traced: tuple[Traced, Traced], found: Match) -> str:
    if found.certificate in ("exact", "exact up to the head"):
        return ""
    if not any(place is not None for place in found.divergence):
        return "  every layer has a partner; what the models return is made of them in another way (a class token here, all positions there)"
    lines = []
    for side, one, place in zip(("source", "target"), traced, found.divergence, strict=True):
        unit = None if place is None else one.graph.units[place]
        lines.append(f"  first without a partner in the {side}: " + ("none, it ends" if unit is None else f"{unit.layer} ({unit.kind}, {unit.shape})"))
    return "\n".join(lines)
