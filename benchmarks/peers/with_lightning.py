"""Lightning: ``BackboneFinetuning``, ``BaseFinetuning.freeze``, and finetuning-scheduler, in the trainer's own loop."""

from __future__ import annotations

import logging
import tempfile
import warnings
from typing import Any

import torch
from finetuning_scheduler import FinetuningScheduler
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from scenario import SIZE, Arrays, Moved, Row, adamw, data, features, network, state, stuck
from torch import nn
from torch.utils.data import DataLoader

for name in ("lightning.pytorch", "finetuning_scheduler", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Model(LightningModule):
    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        model = network()
        self.backbone, self.head, self.whole = model.backbone, model.head, whole

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Over the head, as the documentation of ``BackboneFinetuning`` shows: the callback adds the backbone."""
        return adamw(self.parameters() if self.whole else self.head.parameters())


class Watch(Callback):
    """Notes the backbone at the end of each epoch, in the mode that training has there."""

    def __init__(self) -> None:
        self.states: list[Arrays] = []
        self.live: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(state(pl_module))
        self.live.append(features(pl_module))


class WithoutNorms(BaseFinetuning):
    """As the documentation of ``BaseFinetuning`` shows, with the setting that freezes norms, too. Freezes at one epoch and unfreezes at another."""

    def __init__(self, freeze_at: int, unfreeze_at: int) -> None:
        super().__init__()
        self.freeze_at, self.unfreeze_at = freeze_at, unfreeze_at

    def freeze_before_training(self, pl_module: Any) -> None:
        if self.freeze_at == 0:
            self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == self.freeze_at > 0:
            self.freeze(pl_module.backbone, train_bn=False)
        if epoch == self.unfreeze_at:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


def fit(callback: Callback, *, whole: bool = False, epochs: int = 4) -> tuple[Arrays, Watch]:
    model, watch = Model(whole=whole), Watch()
    before = state(model)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        scheduled = isinstance(callback, FinetuningScheduler)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[callback, watch],
            logger=False,
            enable_checkpointing=scheduled,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(model, DataLoader(data(), batch_size=SIZE))
    return before, watch


def measure(way: str, remark: str, callback: Callback, middle: float | None, *, whole: bool = False) -> Row:
    before, watch = fit(callback, whole=whole)
    return Row(way, Moved.between(before, watch.states[1]), watch.live[1], middle, stuck(watch.states[1], watch.states[3]), remark)


def frozen_in_the_middle() -> float:
    _, watch = fit(WithoutNorms(1, 9), whole=True, epochs=2)
    return Moved.between(watch.states[0], watch.states[1]).weights


def schedule(*, keep: bool) -> FinetuningScheduler:
    phases = {0: {"params": [r"head\..*"], "max_transition_epoch": 2}, 1: {"params": [r"backbone\..*"], "lr": 1e-3, "max_transition_epoch": 4}}
    return FinetuningScheduler(ft_schedule=phases, epoch_transitions_only=True, restore_best=False, frozen_bn_track_running_stats=keep)


def rows() -> list[Row]:
    return [
        measure(
            "Lightning: `BackboneFinetuning(unfreeze_backbone_at_epoch=2)`",
            "Norms stay trainable while the backbone is frozen (not in this optimizer, which holds the head); the callback has no setting for it.",
            BackboneFinetuning(unfreeze_backbone_at_epoch=2),
            None,
        ),
        measure(
            "Lightning: `BaseFinetuning.freeze(backbone, train_bn=False)`",
            "The setting that keeps the statistics; norms then compute with each batch's own (`track_running_stats=False`), not as at inference.",
            WithoutNorms(0, 2),
            frozen_in_the_middle(),
        ),
        measure(
            "finetuning-scheduler: `FinetuningScheduler(ft_schedule=…)`",
            "Thaws only.",
            schedule(keep=True),
            None,
            whole=True,
        ),
        measure(
            "finetuning-scheduler: `FinetuningScheduler(…, frozen_bn_track_running_stats=False)`",
            "The setting that keeps the statistics; as in Lightning, norms then compute with each batch's own.",
            schedule(keep=False),
            None,
            whole=True,
        ),
    ]
