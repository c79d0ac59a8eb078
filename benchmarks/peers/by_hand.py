"""What people do without a library, and unifreeze."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scenario import Moved, Network, Row, adamw, epoch, features, network, state, stuck

from unifreeze import freeze, unfreeze

Freeze = Callable[[Network], Any]


def measure(way: str, remark: str, freezing: Freeze, thawing: Freeze, *, attach: bool) -> Row:
    model = network()
    before = state(model)
    made = freezing(model)
    optimizer = adamw([p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        epoch(model, optimizer)
    still = state(model)
    live = features(model)
    freed = thawing(model)
    if attach:
        freed.attach(optimizer)
    else:
        optimizer.add_param_group({"params": list(model.backbone.parameters())})
    for _ in range(2):
        epoch(model, optimizer)
    del made
    return Row(way, Moved.between(before, still), live, middle(freezing, attach=attach), stuck(still, state(model)), remark)


def middle(freezing: Freeze, *, attach: bool) -> float:
    model = network()
    optimizer = adamw(model.parameters())
    epoch(model, optimizer, to_none=False)
    made = freezing(model)
    if attach:
        made.attach(optimizer)
    before = state(model)
    epoch(model, optimizer, to_none=False)
    return Moved.between(before, state(model)).weights


def rows() -> list[Row]:
    def by_flags(model: Network) -> torch.nn.Module:
        return model.backbone.requires_grad_(False)

    return [
        measure(
            "by hand: `requires_grad_(False)`",
            "Gradients that are zeroed and not dropped (`set_to_none=False`) let momentum and decay go on; statistics need `.eval()` after each `train()`.",
            by_flags,
            lambda model: model.backbone.requires_grad_(True),
            attach=False,
        ),
        measure(
            '**unifreeze**: `freeze(model, layers="backbone")`',
            "",
            lambda model: freeze(model, layers="backbone"),
            lambda model: unfreeze(model, layers="backbone"),
            attach=True,
        ),
    ]
