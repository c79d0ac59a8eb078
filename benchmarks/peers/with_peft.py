"""PEFT: LoRA on the backbone's dense layer and ``modules_to_save`` for the head, in the user's own loop."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model
from scenario import Moved, Row, adamw, epoch, features, network, state, stuck


def rows() -> list[Row]:
    before = state(network())
    model = get_peft_model(network(), LoraConfig(r=4, target_modules=["backbone.fc"], modules_to_save=["head"]))
    optimizer = adamw([p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        epoch(model, optimizer)
    still, live = state(model), features(model)
    base = model.unload()
    trainable = [p for p in base.parameters() if p.requires_grad]
    thawed = state(base)
    optimizer = adamw(trainable)
    for _ in range(2):
        epoch(base, optimizer)
    remark = "No setting keeps the base's statistics: put its norms in eval mode after each `train()`. `unload()` leaves the base frozen."
    way = 'PEFT: `LoraConfig(target_modules=["backbone.fc"], modules_to_save=["head"])`'
    return [Row(way, Moved.between(before, still), live, None, stuck(thawed, state(base)), remark)]
