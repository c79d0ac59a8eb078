"""What only Keras can get wrong: flags of layers that say one thing while the variables, or what was compiled, do another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import keras

from unifreeze.plugin import ArgumentError, Finding, Layer

from . import functions, pin, tree

_FREEZE = "freeze(model, layers=…) sets every flag that counts"


def modes(root: Layer) -> dict[str, Literal["training", "still"]]:
    """``fit`` runs everything in training mode, but for what is pinned, which the tree shows; a dropout of rate 0 does nothing."""
    return {layer.path: "still" if getattr(layer.native, "rate", None) == 0 else "training" for layer in root.walk()}


def known(given: Any) -> Any:
    """Returns what was given, if it is an optimizer.

    Raises:
        ArgumentError: Otherwise.
    """
    if isinstance(given, keras.optimizers.Optimizer):
        return given
    repair = "The one that the model was compiled with is looked at in any case; leave optimizer= out, or give it as you made it: keras.optimizers.Adam()."
    raise ArgumentError(f"optimizer= is an optimizer of Keras, or a list of several.\n  given: {type(given).__name__}\n  {repair}")


def findings(model: Any, root: Layer, optimizers: tuple[Any, ...]) -> Iterator[Finding]:
    """Asks every rule of Keras's."""
    ours = {id(p.array) for layer in root.walk() for p in layer.parameters}
    for optimizer in optimizers:
        if optimizer.built and ours.isdisjoint(map(id, optimizer._trainable_variables)):
            why = f"the {type(optimizer).__name__} was built for no variable of this model: it was made for another one, or for a copy"
            yield Finding.of("UF112", (), why, "make one for this model, and let its first step build it")
    yield from _masked(model, root)
    yield from _leaking(root)
    for layer in root.walk():
        if isinstance(layer.native, keras.Model):
            yield from _compiled(layer.native, root)


def _compiled(model: Any, root: Layer) -> Iterator[Finding]:
    """The lists of variables that an optimizer and compiled functions were made with, against the flags as they are now."""
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or not optimizer.built:
        return
    paths = {id(p.array): p.path for layer in root.walk() for p in layer.parameters}
    made, now = {id(v) for v in optimizer._trainable_variables}, {id(v) for v in model.trainable_variables}
    odd = [path for key, path in paths.items() if (key in made) != (key in now)]
    if odd:
        engine = keras.backend.backend()
        does = {"tensorflow": "TensorFlow ignores it", "jax": "JAX raises, or mixes weights up", "torch": "PyTorch freezes, and raises on what is unfrozen"}
        since = "training had been compiled" if functions.in_use(model) else "its optimizer had been built"
        why = f"its flag was changed after {since}: {does.get(engine, 'what happens depends on the engine')}"
        yield Finding.of("UF501", odd, why, "freeze(model, …) takes effect at once and keeps the optimizer; by hand: model.compile(…) with a new one")


def _masked(model: Any, root: Layer) -> Iterator[Finding]:
    inside = [p.path for layer in root.walk() for p in layer.parameters if tree.trains(p.array)]
    if not model.trainable and inside:
        why = f"the flag of {model.name!r} itself is off and masks flags inside that say trainable: nothing of it trains"
        yield Finding.of("UF502", inside, why, "model.trainable = True before the flags inside are set; or unfreeze(model, layers=…)")


def _leaking(root: Layer) -> Iterator[Finding]:
    """The outermost layers whose own flag is off while something in them trains."""
    pending = [root]
    while pending:
        layer = pending.pop()
        alive = [p.path for inner in layer.walk() for p in inner.parameters if p.status == "trainable"]
        if not layer.native._trainable and alive and not pin.by_flag(layer.native):  # type: ignore[attr-defined]
            shown = layer.path or "the model"
            why = f"the flag of {shown} ({layer.type}) says frozen, and weights in it train: a flag given to the constructor, or set before it was built, leaks"
            yield Finding.of("UF503", alive, why, _FREEZE)
        elif alive:
            pending.extend(reversed(layer.children))
