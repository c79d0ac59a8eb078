"""Which layer of one model is which of another, with its proof; and freezing in one what is frozen in the other."""

from __future__ import annotations

from .correspondence import Correspondence, correspond
from .freezes import Ported, port

__all__ = ["Correspondence", "Ported", "correspond", "port"]
