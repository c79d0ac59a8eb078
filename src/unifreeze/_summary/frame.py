"""The summary as a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unifreeze.errors import BackendError

from .table import row_data

if TYPE_CHECKING:
    from .table import Summary


def frame(summary: Summary) -> Any:
    """Returns a ``pandas.DataFrame``, a line for each row.

    Raises:
        BackendError: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise BackendError("to_pandas() needs pandas, which is not installed.\n  install it with pip install pandas; to_dict() needs nothing") from None
    return pd.DataFrame([row_data(row) for row in summary.rows])
