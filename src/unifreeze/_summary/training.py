"""What training a model will need besides its own arrays: gradients, and the state of a named optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from unifreeze._slots import Slots
from unifreeze._tree import Layer, Parameter, unique


@dataclass(frozen=True, slots=True)
class Training:
    """Bytes that training needs besides the model.

    Attributes:
        optimizer: The optimizer's name.
        gradients: Bytes of the gradients: one array like it for each trainable parameter; one with frozen rows has a whole one.
        state: Bytes of the optimizer's state once it has taken a step.
        formula: How the state was computed.
        source: Where the formula stands.
    """

    optimizer: str
    gradients: int
    state: int
    formula: str
    source: str


def needs(optimizer: str, slots: Slots, tree: Layer) -> Training:
    """Adds up what the trainable parameters of a tree need, a shared one once."""
    trained = [parameter for parameter in unique(p for layer in tree.walk() for p in layer.parameters) if parameter.status == "trainable"]
    state = sum(_bytes(slots, parameter) for parameter in trained) + (slots.once if trained else 0)
    return Training(optimizer, sum(parameter.nbytes for parameter in trained), state, slots.formula, slots.source)


def _bytes(slots: Slots, parameter: Parameter) -> int:
    width = parameter.nbytes // parameter.size if parameter.size else 0
    return slots.elements(parameter.shape) * width + slots.each
