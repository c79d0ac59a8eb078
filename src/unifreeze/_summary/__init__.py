"""Summary: what a model is made of and what of it is frozen; data first, rendering apart."""

from typing import TYPE_CHECKING

from .rows import LayerStatus, Row, Totals
from .table import Summary
from .training import Training

if TYPE_CHECKING:
    from .diff import Change, Difference

__all__ = ["Change", "Difference", "LayerStatus", "Row", "Summary", "Totals", "Training"]
