"""Summary: what a model is made of and what of it is frozen; data first, rendering apart."""

from .rows import LayerStatus, Row, Totals
from .table import Summary
from .training import Training

__all__ = ["LayerStatus", "Row", "Summary", "Totals", "Training"]
