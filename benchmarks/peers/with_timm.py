"""timm: ``timm.utils.freeze``, in the user's own loop."""

from __future__ import annotations

from scenario import Moved, Row, adamw, epoch, features, network, state, stuck
from timm.utils import freeze, unfreeze


def rows() -> list[Row]:
    model = network()
    before, optimizer = state(model), adamw(model.parameters())
    freeze(model, ["backbone"])
    for _ in range(2):
        epoch(model, optimizer)
    still, live = state(model), features(model)
    unfreeze(model, ["backbone"])
    for _ in range(2):
        epoch(model, optimizer)
    remark = "Knows `BatchNorm2d` alone, and replaces it. Unfreezing makes new parameters, which the live optimizer does not hold: make a new one."
    return [Row('timm: `freeze(model, ["backbone"])`', Moved.between(before, still), live, middle(), stuck(still, state(model)), remark)]


def middle() -> float:
    model = network()
    optimizer = adamw(model.parameters())
    epoch(model, optimizer, to_none=False)
    freeze(model, ["backbone"])
    before = state(model)
    epoch(model, optimizer, to_none=False)
    return Moved.between(before, state(model)).weights
