"""Coming from PyTorch by hand, timm, Lightning, fastai and PEFT: what the page says one writes leaves the same parameters trainable."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import torchvision_cpu  # noqa: F401 - before torchvision, which timm imports
from kits.coming import rows, run


class Adapted(nn.Module):
    """A dense layer with what PEFT puts beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 8)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})


def build(*, adapted: bool = False) -> nn.Sequential:
    parts = {"conv1": nn.Conv2d(3, 4, 3), "bn1": nn.BatchNorm2d(4), "conv2": nn.Conv2d(4, 8, 3), "bn2": nn.BatchNorm2d(8), "norm": nn.LayerNorm(8)}
    backbone = nn.Sequential(OrderedDict(parts | ({"attention": Adapted()} if adapted else {})))
    return nn.Sequential(OrderedDict(backbone=backbone, pool=nn.Flatten(), head=nn.Linear(8, 2)))


def trainable(model: nn.Module) -> set[str]:
    return {path for path, array in model.named_parameters() if array.requires_grad}


@pytest.mark.parametrize(("wrote", "write"), [*rows("PyTorch by hand"), *rows("timm")])
def test_both_sides_leave_the_same_trainable(wrote: str, write: str) -> None:
    import timm.utils

    theirs, ours = build(), build()
    run(wrote, model=theirs, nn=nn, timm=timm)
    run(write, model=ours, nn=nn)
    assert trainable(ours) == trainable(theirs) != trainable(build())


NORMS = {"backbone.bn1", "backbone.bn2"}
LORA = {"backbone.attention.lora_A.default", "backbone.attention.lora_B.default"}
BASE = {"backbone.conv1", "backbone.conv2", "backbone.bn1", "backbone.bn2", "backbone.norm", "backbone.attention.base_layer", "head"}
#: The modules whose parameters train after what was written, as tests/peers sees it happen in each library.
TRAINS: dict[str, set[str]] = {
    "module.freeze()": set(),
    "BaseFinetuning.freeze(model.backbone)": {*NORMS, "head"},
    "BaseFinetuning.freeze(model.backbone, train_bn=False)": {"head"},
    "BaseFinetuning.freeze(model); BaseFinetuning.make_trainable(model.head)": {*NORMS, "head"},
    "learn.freeze()": {*NORMS, "backbone.norm", "head"},
    "learn.freeze(); learn.unfreeze()": {"backbone", "head"},
    "learn = Learner(model, splitter=splitter, train_bn=False); learn.freeze()": {"head"},
    "learn.freeze_to(1)": {*NORMS, "backbone.conv2", "backbone.norm", "head"},
    "get_peft_model(model, LoraConfig(…))": LORA,
    'get_peft_model(model, LoraConfig(…, modules_to_save=["head"]))': {*LORA, "head"},
    'get_peft_model(model, LoraConfig(…, bias="all"))': {*LORA, *(f"{path}.bias" for path in BASE)},
    "get_peft_model(model, LNTuningConfig(…))": {"backbone.norm"},
}


@pytest.mark.parametrize(("wrote", "write"), [*rows("Lightning"), *rows("fastai"), *rows("PEFT")])
def test_what_one_writes_leaves_trainable_what_the_library_does(wrote: str, write: str) -> None:
    model = build(adapted="peft" in wrote)
    run(write, model=model)
    expected = TRAINS[wrote]
    assert trainable(model) == {path for path, _ in model.named_parameters() if any(path == part or path.startswith(f"{part}.") for part in expected)}


def test_attach_takes_the_place_of_add_param_group() -> None:
    model = build()
    optimizer = run("made = freeze(model, layers='backbone').optimizer(SGD, lr=0.1)", model=model, SGD=torch.optim.SGD)["made"]
    run('unfreeze(model, layers="backbone").attach(optimizer)', model=model, optimizer=optimizer)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
