"""Which layer of one model is which of another, with its proof; and freezing in one what is frozen in the other."""

from __future__ import annotations

from .correspondence import Correspondence, correspond
from .freezes import port
from .report import Lone, Ported
from .view import KerasView, keras_view

__all__ = ["Correspondence", "KerasView", "Lone", "Ported", "correspond", "keras_view", "port"]
