"""fastai: ``Learner.freeze`` with a splitter, in its own loop and with its own optimizer."""

from __future__ import annotations

import tempfile
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import params
from scenario import DECAY, RATE, SIZE, Moved, Row, data, features, network, state, stuck
from torch import nn


class Live(Callback):
    """Looks at the model at the end of an epoch's training, in the mode it has there."""

    def after_train(self) -> None:
        self.learn.seen = features(self.model)


def learner(*callbacks: Any, train_bn: bool, decay: float = DECAY) -> Learner:
    loaders = DataLoaders(DataLoader(data(), bs=SIZE), DataLoader(data(), bs=SIZE))
    return Learner(
        loaders,
        network(),
        loss_func=nn.CrossEntropyLoss(),
        lr=RATE,
        splitter=lambda model: [params(model.backbone), params(model.head)],
        cbs=[Live(), *callbacks],
        train_bn=train_bn,
        wd=decay,
        path=tempfile.mkdtemp(),
    )


def measure(way: str, remark: str, *callbacks: Any, train_bn: bool, decay: float = DECAY) -> Row:
    learn = learner(*callbacks, train_bn=train_bn, decay=decay)
    before = state(learn.model)
    with learn.no_bar(), learn.no_logging():
        learn.freeze()
        learn.fit(2)
        still, live = state(learn.model), learn.seen
        learn.unfreeze()
        learn.fit(2)
    return Row(way, Moved.between(before, still), live, middle(*callbacks, train_bn=train_bn, decay=decay), stuck(still, state(learn.model)), remark)


def middle(*callbacks: Any, train_bn: bool, decay: float) -> float:
    learn = learner(*callbacks, train_bn=train_bn, decay=decay)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.freeze()
        before = state(learn.model)
        learn.fit(1)
    return Moved.between(before, state(learn.model)).weights


def rows() -> list[Row]:
    return [
        measure(
            "fastai: `learn.freeze()`",
            "That norms of a frozen group train on is meant so (`train_bn=True`). Weights that were trained before go on decaying.",
            train_bn=True,
        ),
        measure(
            "fastai: `Learner(…, train_bn=False, wd=0, cbs=BnFreeze)`, `learn.freeze()`",
            "The settings that help; weight decay is off for the head, too.",
            BnFreeze(),
            train_bn=False,
            decay=0.0,
        ),
    ]
