"""The summary of PyTorch models: output shapes without running them, what training needs, why something is frozen. The truth comes from plain PyTorch."""

from __future__ import annotations

import gc
import random
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchvision_cpu  # noqa: F401

# isort: split
import timm
import timm.optim
import torchvision
import transformers

from unifreeze import apply, errors, freeze, plot, summary, unfreeze
from unifreeze.select import first, upto

COLUMNS = ["path", "status", "dtype", "statistics", "mode", "why"]


def llama(layers: int = 2, **settings: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2} | settings
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=layers, **sizes))


def bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48))


IMAGE = (2, 3, 64, 64)
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "resnet18": (torchvision.models.resnet18, torch.zeros(IMAGE)),
    "squeezenet": (torchvision.models.squeezenet1_1, torch.zeros(IMAGE)),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), torch.zeros(IMAGE)),
    "llama": (llama, {"input_ids": torch.zeros((2, 7), dtype=torch.int64)}),
    "bert": (bert, torch.zeros((2, 7), dtype=torch.int64)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(4, 5, batch_first=True)), torch.zeros((2, 7, 4))),
}
DEEP: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    name: (lambda name=name: timm.create_model(name), torch.zeros(2, 3, 224, 224))
    for name in ("convnext_tiny", "efficientnet_b0", "swin_tiny_patch4_window7_224", "mixer_s32_224", "regnety_002", "deit_tiny_distilled_patch16_224")
} | {
    name: (lambda name=name: torchvision.models.get_model(name), torch.zeros(2, 3, 224, 224))
    for name in ("densenet121", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_16", "maxvit_t")
}


def hooked(model: nn.Module, inputs: Any) -> dict[str, tuple[int, ...]]:
    """Runs a model in inference and notes the shape of the first tensor that each module returns first, by plain hooks."""
    found: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in model.named_modules(remove_duplicate=False):

        def note(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            output = next(iter(tensors(output)), None)
            if output is not None:
                found.setdefault(name, tuple(output.shape))

        handles.append(module.register_forward_hook(note))
    model.eval()
    with torch.no_grad():
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    for handle in handles:
        handle.remove()
    return found


def tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    for one in output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ():
        yield from tensors(one)


def shapes(model: nn.Module, **given: Any) -> dict[str, tuple[int, ...]]:
    return {row.path: row.output_shape for row in summary(model, **given).rows if row.output_shape is not None}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.deep) for name in DEEP)])
def test_output_shapes_are_those_of_a_real_run(name: str) -> None:
    make, inputs = (CASES | DEEP)[name]
    model = make()
    expected = hooked(model, inputs)
    assert shapes(model.train(), inputs=inputs) == expected
    assert len(expected) > 1


def test_an_open_axis_is_open_in_what_depends_on_it() -> None:
    found = shapes(torchvision.models.resnet18(), input_shape=(None, 3, 64, 64))
    assert found["layer1"] == (None, 64, 16, 16)
    assert found["fc"] == (None, 1000)
    assert shapes(llama(), input_shape=(2, None))["model.layers.1.mlp"] == (2, None, 32)


class Restless(nn.Module):
    """Whatever a forward pass can do to a model and to the world."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.seen: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.register_buffer("ema", torch.zeros(4))
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.rand()
        x = self.drop(self.norm(self.layer(x + torch.rand(4))))
        self.seen.append(x)
        self.cache["x"] = x
        self.last = x
        self.steps += 1
        self.ema.add_(1)
        return x


def state(model: nn.Module) -> Any:
    arrays = {name: (id(array), array.clone(), array.requires_grad) for name, array in [*model.named_parameters(), *model.named_buffers()]}
    hooks = [len(getattr(module, name)) for module in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks")]
    own = [(type(module), module.training, vars(module).get("training"), set(vars(module))) for module in model.modules()]
    worlds = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    return {name: (key, value.tolist(), flag) for name, (key, value, flag) in arrays.items()}, hooks, own, worlds


@pytest.mark.parametrize("training", [True, False])
def test_asking_for_shapes_changes_nothing(training: bool) -> None:
    model = Restless().train(training)
    model.norm.train(not training)
    freeze(model, layers="norm")
    before = state(model)
    assert shapes(model, input_shape=(2, 4))["drop"] == (2, 4)
    assert state(model) == before
    assert (model.seen, model.cache, model.steps, hasattr(model, "last")) == ([], {}, 0, False)
    assert not nn.modules.module._global_forward_hooks
    assert vars(model.norm)["training"] is not training  # a held module remembers what was asked of it


def test_a_call_that_fails_says_why_and_changes_nothing() -> None:
    model = Restless()
    before = state(model)
    with pytest.raises(errors.BackendError, match="(?s)Restless can't be run on these inputs.*inputs="):
        summary(model, input_shape=(2, 5))
    assert state(model) == before
    assert (model.seen, model.cache, model.steps) == ([], {}, 0)
    assert not nn.modules.module._global_forward_hooks


def test_a_model_that_looks_at_values_is_refused_with_the_reason() -> None:
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    with pytest.raises(errors.BackendError, match="a model that looks at values can't be run on shapes"):
        summary(nn.Sequential(nn.Linear(2, 2), Looks()), input_shape=(1, 2))


def test_shapes_of_a_model_on_the_meta_device_that_nobody_could_hold() -> None:
    with torch.device("meta"):
        model = llama(80, vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8)
    found = summary(model, input_shape=(1, 16), collapse=True)
    assert found.totals.parameters == sum(p.numel() for p in model.parameters())
    row = next(row for row in found.rows if row.repeat > 1)
    assert (row.path, row.last, row.repeat, row.output_shape) == ("model.layers.0", "model.layers.79", 80, (1, 16, 8192))
    assert all(p.device.type == "meta" for p in model.parameters())
    tracemalloc.start()
    assert summary(model).totals.parameters == found.totals.parameters
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # bytes, of a model of 141 GB


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "lion": timm.optim.Lion,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_training_needs_is_what_the_optimizer_holds_after_a_step(name: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 130)).to(dtype)
    model.tied = nn.Linear(6, 5)
    model.tied.weight = model[1].weight
    model.to(dtype)
    freeze(model, layers="3")
    optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    held = sum(value.nbytes for slots in optimizer.state.values() for value in slots.values() if isinstance(value, torch.Tensor))
    numbers = sum(isinstance(value, float) for slots in optimizer.state.values() for value in slots.values())  # Adafactor and others may keep plain numbers
    needed = summary(model, optimizer=name).training
    assert needed.state == held + 4 * numbers
    assert needed.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert name == "lion" or (Path(torch.__file__).parents[1] / needed.source).is_file()


def why(model: object) -> dict[str, str]:
    return {row.path: row.more["why"] for row in summary(model, columns=COLUMNS).rows}


def test_a_summary_says_which_call_froze_what() -> None:
    model = torchvision.models.resnet18()
    freeze(model, layers=upto("layer1"))
    second = freeze(model, layers=["layer2", "bn1"], params="bias")
    model.fc.weight.requires_grad_(False)
    told = why(model)
    assert told["conv1"] == "freeze(layers=upto('layer1'))"
    assert told["layer2.0.bn1"] == "freeze(layers=['layer2', 'bn1'], params='bias')"
    assert told["bn1"] == "freeze(layers=upto('layer1')); freeze(layers=['layer2', 'bn1'], params='bias')"
    assert told["fc"] == "by hand (no call is known)"
    assert told["layer4.0.conv1"] == ""
    second.undo()
    assert why(model)["bn1"] == "freeze(layers=upto('layer1'))"
    assert why(model)["layer2.0.bn1"] == ""
    unfreeze(model, layers="conv1")
    model.conv1.weight.requires_grad_(False)
    assert why(model)["conv1"] == "by hand (no call is known)"
    apply(model, {"steps": [{"freeze": "**"}, {"unfreeze": "fc"}]})
    assert why(model)["conv1"] == "apply(…): freeze(layers='**')"


def test_a_call_on_a_part_is_known_to_the_whole() -> None:
    model = torchvision.models.resnet18()
    freeze(model.layer3, layers=first(1))
    assert why(model)["layer3.0.conv1"] == "freeze(layers=first(1))"
    assert why(model)["layer3.0.conv2"] == ""


def test_to_know_why_keeps_no_model_alive() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(model, layers=model[0])
    shown, watch = summary(model, columns=COLUMNS), weakref.ref(model)
    del model
    gc.collect()
    assert watch() is None
    assert "freeze(layers=<Linear>)" in str(shown)


def test_how_layers_are_held_and_run() -> None:
    model = torchvision.models.resnet18().eval()
    model.layer4.train()
    freeze(model, layers="bn1")
    freeze(model, layers="layer1.0.bn1", inference="none")
    rows = {row.path: row.more for row in summary(model, columns=COLUMNS).rows}
    assert (rows["bn1"]["mode"], rows["bn1"]["statistics"], rows["bn1"]["dtype"]) == ("held (norm)", "still", "float32")
    assert (rows["layer4.0.bn1"]["mode"], rows["layer4.0.bn1"]["statistics"]) == ("train", "move")
    assert (rows["fc"]["mode"], rows["fc"]["statistics"]) == ("eval", "")
    assert rows["layer1.0.bn1"]["statistics"] == "move"


def test_rows_are_among_the_changes() -> None:
    model = nn.Sequential(nn.Embedding(10, 3))
    before = summary(model)
    freeze(model, layers="0", rows=slice(0, 4))
    assert [str(change.after) for change in before.diff(model).rows] == ["0:4"]
    assert "freeze(layers='0', rows=slice(0, 4, None))" in why(model)["0"]


def test_blocks_are_joined_only_where_they_are_equal() -> None:
    with torch.device("meta"):
        model = llama(6)
    assert [(row.path, row.last) for row in summary(model, collapse=True).rows if row.repeat > 1] == [("model.layers.0", "model.layers.5")]
    freeze(model, layers="model.layers.2.mlp")
    runs = [(row.path, row.last) for row in summary(model, collapse=True).rows if row.repeat > 1]
    assert runs == [("model.layers.0", "model.layers.1"), ("model.layers.3", "model.layers.5")]
    model.model.layers[4].mlp.up_proj = nn.Linear(32, 48, bias=False, device="meta", dtype=torch.float16)
    runs = [(row.path, row.last) for row in summary(model, collapse=True).rows if row.repeat > 1]
    assert runs == [("model.layers.0", "model.layers.1")]


def test_pandas_gets_a_line_for_each_row() -> None:
    model = torchvision.models.resnet18()
    freeze(model, layers="layer1")
    frame = summary(model, columns=["layer", "why"]).to_pandas()
    weighted = frame[(frame.status == "frozen") & (frame.kind == "conv")]
    assert list(weighted.path) == [f"layer1.{i}.conv{k}" for i in (0, 1) for k in (1, 2)]
    assert set(weighted.why) == {"freeze(layers='layer1')"}
    assert int(weighted.parameters.sum()) == sum(p.numel() for name, p in model.named_parameters() if name.startswith("layer1.") and "conv" in name)


def test_the_picture_has_a_block_for_each_layer_as_wide_as_its_share() -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.colors import to_hex

    model = torchvision.models.resnet18()
    freeze(model, layers="layer4")
    axes = plot(model)
    blocks = {(round(patch.get_x(), 6), round(patch.get_width(), 6), patch.get_y()): to_hex(patch.get_facecolor()) for patch in axes.patches}
    total = sum(p.numel() for p in model.parameters())
    fc, layer4 = (sum(p.numel() for p in part.parameters()) / total for part in (model.fc, model.layer4))
    assert blocks[round(1 - fc, 6), round(fc, 6), -2] == "#e69f00"
    assert blocks[round(1 - fc - layer4, 6), round(layer4, 6), -2] == "#0072b2"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["frozen", "trainable", "partial: some of it frozen"]
    axes.figure.canvas.draw()
    own = axes.figure.add_subplot()
    assert summary(nn.Sequential(nn.ModuleDict({"$x_$^{": nn.Linear(2, 2)}))).plot(own) is own
    axes.figure.canvas.draw()
