"""Which engine Keras runs on, where nobody has said so."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path


def choose_backend() -> None:
    """Keras decides at its import, and falls back on TensorFlow, which may not be there."""
    if "keras" in sys.modules or "KERAS_BACKEND" in os.environ or find_spec(_configured()):
        return
    found = next((name for name in ("jax", "torch", "tensorflow") if find_spec(name)), None)
    if found:
        os.environ["KERAS_BACKEND"] = found


def _configured() -> str:
    file = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    try:
        return str(json.loads(file.read_text()).get("backend", "tensorflow"))
    except (OSError, ValueError):
        return "tensorflow"
