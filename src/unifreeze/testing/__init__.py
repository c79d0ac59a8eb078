"""The door for whoever proves a backend: supply a ``Kit``, and ``class TestMine(Conformance): kit = MyKit()`` runs the whole suite with pytest."""

from .conformance import Conformance
from .kit import RATE, REFERENCE, TIED, Arrays, Kit, LayerSpec, Trainer

__all__ = ["RATE", "REFERENCE", "TIED", "Arrays", "Conformance", "Kit", "LayerSpec", "Trainer"]
