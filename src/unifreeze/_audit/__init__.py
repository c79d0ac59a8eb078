"""The audit: is it really frozen? Rules over the tree here; those of one framework in its backend; further ones in plugins."""

from .report import Report
from .verb import audit

__all__ = ["Report", "audit"]
