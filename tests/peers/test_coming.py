"""Coming from Lightning, fastai and PEFT: what the page says one writes leaves the same parameters trainable as the library itself; ``nox -s peers``."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import torchvision_cpu  # noqa: F401 - before torchvision, which fastai imports

# isort: split
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import params
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from peft import LNTuningConfig, LoraConfig, get_peft_model

from kits.coming import rows, run


def build() -> nn.Sequential:
    parts = {"conv1": nn.Conv2d(3, 4, 3), "bn1": nn.BatchNorm2d(4), "conv2": nn.Conv2d(4, 8, 3), "bn2": nn.BatchNorm2d(8), "norm": nn.LayerNorm(8)}
    backbone = nn.Sequential(OrderedDict({**parts, "dense": nn.Linear(8, 8)}))
    return nn.Sequential(OrderedDict(backbone=backbone, pool=nn.Flatten(), head=nn.Linear(8, 2)))


def trainable(model: nn.Module) -> set[str]:
    return {path for path, array in model.named_parameters() if array.requires_grad}


class Module(LightningModule):
    """The same layers, in Lightning's own module."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.pool, self.head = model.backbone, model.pool, model.head


@pytest.mark.parametrize(("wrote", "write"), rows("Lightning"))
def test_lightning_leaves_the_same_trainable(wrote: str, write: str) -> None:
    theirs, ours = build(), build()
    run(wrote, model=theirs, module=Module(theirs), BaseFinetuning=BaseFinetuning)
    run(write, model=ours)
    assert trainable(ours) == trainable(theirs) != trainable(build())


def splitter(model: nn.Sequential) -> list[list[nn.Parameter]]:
    return [params(model.backbone[:2]), params(model.backbone[2:]), params(model.head)]


def learner(model: nn.Module, splitter: Callable[..., Any] = splitter, **words: bool) -> Learner:
    data = TensorDataset(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
    loaders = DataLoaders(DataLoader(data, bs=2), DataLoader(data, bs=2))
    return Learner(loaders, model, loss_func=nn.CrossEntropyLoss(), splitter=splitter, path=tempfile.mkdtemp(), **words)


@pytest.mark.parametrize(("wrote", "write"), rows("fastai"))
def test_fastai_leaves_the_same_trainable(wrote: str, write: str) -> None:
    theirs, ours = build(), build()
    run(wrote, learn=learner(theirs, train_bn="train_bn=False" not in wrote), Learner=learner, splitter=splitter, model=theirs)
    run(write, model=ours)
    assert trainable(ours) == trainable(theirs)


@pytest.mark.parametrize(("wrote", "write"), rows("PEFT"))
def test_peft_leaves_the_same_trainable(wrote: str, write: str) -> None:
    names = {"get_peft_model": get_peft_model, "LoraConfig": LoraConfig, "LNTuningConfig": LNTuningConfig}
    where = {"Lora": 'target_modules=["backbone.dense"]', "LNTu": 'target_modules=["backbone.norm"]'}[wrote.removeprefix("get_peft_model(model, ")[:4]]
    theirs = run(f"made = {wrote.replace('…', where)}", model=build(), **names)["made"]
    # Ours chooses what trains in a model that PEFT has put adapters into, and needs no second copy of a layer for it.
    model = build()
    ours = get_peft_model(model, LoraConfig(target_modules=["backbone.dense"])).base_model.model if "Lora" in wrote else model
    ours.requires_grad_(True)
    run(write, model=ours)
    assert trainable(ours) == {own(path) for path in trainable(theirs.base_model.model)} != set()


def own(path: str) -> str:
    """The path of a parameter of which PEFT trains a copy."""
    return path.replace(".modules_to_save.default", "").replace(".ln_tuning_layers.default", "")
