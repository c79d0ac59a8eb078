"""PyTorch: real models, small and with random weights. A part is frozen, real steps of a real optimizer are taken, and bytes are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchvision_cpu  # noqa: F401 - before torchvision
from kits.torch import TorchKit, arrays, named
from unifreeze import apply, freeze, layers, summary, unfreeze
from unifreeze.errors import ConflictError
from unifreeze.select import kind, last

KIT = TorchKit()


@dataclass(frozen=True)
class Case:
    """A model, the part of it that is frozen, and how to get a loss from it.

    Attributes:
        make: Makes it.
        part: Paths of modules, of which everything is frozen.
        inputs: Makes a batch from a generator.
        learns: Whether each trainable parameter gets a gradient in each step.
    """

    make: Callable[[], nn.Module]
    part: tuple[str, ...]
    inputs: Callable[[torch.Generator], dict[str, torch.Tensor]]
    output: Callable[[Any], torch.Tensor] = lambda result: result if isinstance(result, torch.Tensor) else result[0]


def images(side: int, name: str = "x") -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    return lambda draw: {name: torch.randn(3, 3, side, side, generator=draw)}


def tokens(draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 50, (3, 7), generator=draw)}


def series(draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 6, 8, generator=draw)}


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=5, **options)

    return make


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5, **options)

    return make


def transformer(config: str, model: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes))

    return make


class Recurrent(nn.Module):
    """A stacked LSTM with dropout, and a convolution under spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = parametrizations.spectral_norm(nn.Conv1d(6, 6, 3, padding=1))
        self.rnn = nn.LSTM(8, 6, num_layers=2, dropout=0.3, batch_first=True)
        self.norm = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
        self.head = parametrizations.weight_norm(nn.Linear(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.rnn(self.mix(x))[0]
        return self.head(self.norm(states.transpose(1, 2)).mean(2))


class Attentive(nn.Module):
    """Attention whose three projections are one parameter, group and RMS norms, and a weight-normed projection."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.utils.spectral_norm(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.group = nn.GroupNorm(2, 6)
        self.norm = nn.RMSNorm(8)
        self.ff = named(inner=parametrizations.weight_norm(nn.Linear(8, 8)), act=nn.RReLU(), drop=nn.Dropout(0.3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.project(x)
        return self.head(self.ff(self.norm(self.group(self.attention(x, x, x)[0]))).mean(1))


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16}
CASES: dict[str, Case] = {
    "ResNet-18": Case(vision("resnet18"), ("conv1", "bn1", "layer1", "layer2.0"), images(32)),
    "GoogLeNet": Case(vision("googlenet", init_weights=False, aux_logits=True), ("conv1", "conv2", "inception3a", "inception4b"), images(64)),
    "MobileNetV3": Case(vision("mobilenet_v3_small"), ("features.0", "features.1", "features.4"), images(32)),
    "ViT": Case(
        timm("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, drop_path_rate=0.3, proj_drop_rate=0.2),
        ("patch_embed", "blocks.0", "blocks.1"),
        images(16),
    ),
    "ConvNeXt": Case(timm("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), drop_path_rate=0.3), ("stem", "stages.0", "stages.2"), images(32)),
    "LeViT": Case(
        timm("levit_128s", img_size=128, embed_dim=(32, 32, 32), num_heads=(2, 2, 2), depth=(1, 1, 1), key_dim=8, drop_path_rate=0.3),
        ("stem", "stages.0", "stages.1"),
        images(128),
    ),
    "BERT": Case(transformer("BertConfig", "BertForSequenceClassification", **SMALL), ("bert.embeddings", "bert.encoder.layer.0"), tokens),
    "GPT-2": Case(transformer("GPT2Config", "GPT2LMHeadModel", n_embd=16, n_layer=3, n_head=2), ("transformer.h.0", "transformer.h.2"), tokens),
    "GPT-2, tied embedding": Case(transformer("GPT2Config", "GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2), ("lm_head", "transformer.h.0"), tokens),
    "Llama": Case(
        transformer("LlamaConfig", "LlamaForCausalLM", tie_word_embeddings=True, num_key_value_heads=1, attention_dropout=0.3, **SMALL),
        ("model.embed_tokens", "model.layers.0"),
        tokens,
    ),
    "LSTM": Case(Recurrent, ("mix", "rnn", "norm"), series),
    "attention": Case(Attentive, ("project", "attention", "group", "ff"), series),
}
EVERY = pytest.mark.parametrize("name", CASES)
BOTH = pytest.mark.parametrize("how", ["norm", "all"])


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = CASES[name].make().train()
    with torch.no_grad():  # no gradient is zero by an initial value: LayerScale, a last norm of a block
        for array in model.parameters():
            array.add_(torch.empty_like(array).uniform_(0.01, 0.03))
    return model


def octets(model: nn.Module) -> dict[str, bytes]:
    return {path: array.detach().contiguous().numpy().tobytes() for path, array in arrays(model)}


def run(name: str, model: nn.Module, seed: int = 0) -> torch.Tensor:
    """One pass, with the same inputs and the same random numbers for a seed."""
    inputs = CASES[name].inputs(torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    result = model(*inputs.values()) if "x" in inputs else model(**inputs)
    return CASES[name].output(result)


def train(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    model.train()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        loss = run(name, model, 100 + step).square().mean()
        loss.backward()
        optimizer.step()


def inside(name: str, path: str) -> bool:
    """Whether an array belongs to the frozen part, by its path or by a tie."""
    tied = {"transformer.wte.weight"} if name == "GPT-2, tied embedding" else {"lm_head.weight"} if name == "Llama" else set()
    return path in tied or any(path.startswith(f"{part}.") for part in CASES[name].part)


def freeze_part(name: str, model: nn.Module, how: Any = "norm") -> Any:
    return freeze(model, layers=[model.get_submodule(part) for part in CASES[name].part], inference=how)


@EVERY
@BOTH
def test_the_frozen_part_keeps_still_and_the_rest_trains(name: str, how: Any) -> None:
    model = made(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(name, model, optimizer, 2)
    before = octets(model)
    freezing = freeze_part(name, model, how)
    train(name, model, optimizer)
    after = octets(model)
    changed = {path for path in after if after[path] != before[path]}
    assert not {path for path in changed if inside(name, path)}
    learned = {path for path, array in model.named_parameters() if array.grad is not None}
    assert learned <= changed
    assert learned == {path for path, _ in model.named_parameters() if not inside(name, path)} - unused(name)
    statistics = {path for path, _ in model.named_buffers() if path.endswith(("running_mean", "running_var", "_u")) and not inside(name, path)}
    assert statistics <= changed
    proof = freezing.verify()
    assert {path for path, _ in model.named_parameters() if inside(name, path)} <= set(proof.arrays)
    assert {path for path, array in model.named_buffers() if inside(name, path) and array.is_floating_point()} <= set(proof.arrays)


def unused(name: str) -> set[str]:
    """What no loss of ours reaches: GoogLeNet's two side exits."""
    return {path for path, _ in made(name).named_parameters() if path.startswith("aux")} if name == "GoogLeNet" else set()


@EVERY
@BOTH
def test_the_part_computes_as_at_inference(name: str, how: Any) -> None:
    """In training mode, the frozen modules give what they give in a model that is in eval mode; dropout goes on under ``"norm"``."""
    model = made(name)
    inputs: dict[str, Any] = {}
    part = model.get_submodule(CASES[name].part[0])

    def note(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        inputs["given"], inputs["made"] = (args, kwargs), result

    watch = part.register_forward_hook(note, with_kwargs=True)
    model.eval()
    plain = run(name, model).detach()
    expected = flat(inputs["made"])
    freeze_part(name, model, "all")
    assert torch.equal(run(name, model).detach(), plain), "freezing changes no output at inference"
    model.train()
    args, kwargs = inputs["given"]
    watch.remove()
    assert torch.equal(flat(part(*args, **kwargs)), expected)
    assert torch.equal(flat(part(*args, **kwargs)), expected), "and gives the same again"


def flat(result: Any) -> torch.Tensor:
    while not isinstance(result, torch.Tensor):
        result = next(iter(result.values())) if isinstance(result, dict) else result[0]
    return result.detach().clone()


@EVERY
def test_the_output_at_inference_is_the_same_before_and_after(name: str) -> None:
    model = made(name).eval()
    before = run(name, model).detach()
    freezing = freeze_part(name, model)
    assert torch.equal(run(name, model).detach(), before)
    freezing.undo()
    assert torch.equal(run(name, model).detach(), before)


@EVERY
@BOTH
def test_undo_is_exact(name: str, how: Any) -> None:
    model = made(name)
    list(model.parameters())[1].requires_grad_(False)
    before, arrays_before, keys = KIT.flags(model), octets(model), list(model.state_dict())
    freezing = freeze_part(name, model, how)
    assert list(model.state_dict()) == keys
    freezing.undo()
    after = KIT.flags(model)
    # LeViT's attention keeps a cache, whose name stands in vars() from the beginning.
    assert after == before
    assert octets(model) == arrays_before


@EVERY
def test_counts_equal_counts_by_hand(name: str) -> None:
    model = made(name)
    freeze_part(name, model)
    totals = summary(model).totals
    parameters = list(model.parameters())  # which are unique
    assert totals.parameters == sum(array.numel() for array in parameters)
    assert totals.frozen == sum(array.numel() for path, array in model.named_parameters() if inside(name, path))
    assert totals.trainable == sum(array.numel() for path, array in model.named_parameters() if not inside(name, path))
    assert totals.buffers == sum(array.numel() for array in model.buffers())
    assert sum(totals.bytes_by_dtype.values()) in {
        sum(array.nbytes for array in parameters),
        sum(array.nbytes for array in (*parameters, *model.buffers())),
    }


@EVERY
def test_an_optimizer_over_what_is_trainable_has_no_state_for_the_rest(name: str) -> None:
    model = made(name)
    freezing = freeze_part(name, model)
    optimizer = freezing.optimizer(torch.optim.AdamW, lr=1e-2, no_decay=True)
    train(name, model, optimizer, 1)
    names = {id(array): path for path, array in model.named_parameters()}
    assert {names[id(array)] for array in optimizer.state} == set(freezing.trainable) - unused(name)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=10)
    freezing = unfreeze(model)
    freezing.attach(optimizer, scheduler)
    freezing.check(optimizer)
    before = octets(model)
    train(name, model, optimizer, 1)
    scheduler.step()
    after = octets(model)
    assert {path for path, _ in model.named_parameters() if after[path] == before[path]} <= unused(name) | without_effect(model)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"Llama"}))  # which has no biases
def test_bias_only_training(name: str) -> None:
    model = made(name)
    freeze(model)
    freezing = unfreeze(model, params="bias")
    optimizer = freezing.optimizer(torch.optim.Adam, lr=1e-2)
    before = octets(model)
    train(name, model, optimizer, 3)
    after = octets(model)
    changed = {path for path in after if after[path] != before[path]}
    assert changed | without_effect(model) == set(freezing.trainable) - unused(name) | without_effect(model)
    freezing.verify()


def without_effect(model: nn.Module) -> set[str]:
    """The bias of a key moves all that a softmax compares by the same amount; whether rounding gives it a gradient is chance."""
    return {path for path, _ in model.named_parameters() if path.endswith("key.bias")}


# What only some of them have.


@pytest.mark.parametrize(("name", "embedding"), [("GPT-2", "transformer.wte"), ("Llama", "model.embed_tokens")])
def test_a_tied_head_is_one_parameter_under_two_names(name: str, embedding: str) -> None:
    model = made(name)
    assert model.get_parameter("lm_head.weight") is model.get_parameter(f"{embedding}.weight"), "this model is no longer tied"
    flags = KIT.flags(model)
    for selector in (~last(1), ~kind("embedding")):
        with pytest.raises(ConflictError, match=rf"(?s)(?=.*{embedding}\.weight)(?=.*lm_head\.weight)"):
            freeze(model, layers=selector)
    with pytest.raises(ConflictError, match=r"lm_head"):
        apply(model, {"steps": [{"freeze": "~last:1"}]})
    assert KIT.flags(model) == flags
    for through in (embedding, "lm_head"):
        before = octets(model)
        with freeze(model, layers=through) as freezing:
            assert freezing.frozen == (f"{embedding}.weight",)
            assert summary(model).totals.frozen == 50 * 16
            assert summary(model).totals.parameters == sum(array.numel() for array in model.parameters())
            train(name, model, torch.optim.AdamW(model.parameters(), lr=1e-2), 2)
            assert octets(model)["lm_head.weight"] == before["lm_head.weight"]
            freezing.verify()
        assert model.get_parameter("lm_head.weight").requires_grad
        assert model.get_parameter("lm_head.weight") is model.get_parameter(f"{embedding}.weight")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BERT", ["bert.embeddings.word_embeddings", "classifier"]),
        ("Llama", ["model.embed_tokens", "lm_head"]),
        ("GPT-2", ["transformer.wte", "lm_head"]),
        ("ResNet-18", ["conv1", "fc"]),
        ("GoogLeNet", ["conv1.conv", "fc"]),
        ("LSTM", ["mix", "head"]),
    ],
)
def test_counting_words_count_what_has_weights(name: str, expected: list[str]) -> None:
    """Tables of positions and frequencies, which transformers keep in buffers that are not saved, make no layer weighted."""
    model = made(name)
    assert [layers(model, word)[0].path for word in ("first:1", "last:1")] == expected
    assert layers(model, "last:2")[0].path in {"bert.pooler.dense", "model.norm", "transformer.ln_f", "layer4.1.bn2", "aux2.fc2", "norm"}


@pytest.mark.parametrize("how", ["norm", "all"])
def test_dropout_in_attention_obeys_the_rule(how: Any) -> None:
    """Llama asks ``self.training`` of its attention, LSTM of itself; timm's drop-path is a module."""
    for name in ("Llama", "LSTM", "ViT", "attention"):
        model = made(name)
        freeze(model, inference=how)
        outputs = [run(name, model, 0).detach()]
        torch.manual_seed(1)
        inputs = CASES[name].inputs(torch.Generator().manual_seed(0))
        outputs.append(CASES[name].output(model(*inputs.values()) if "x" in inputs else model(**inputs)).detach())
        assert torch.equal(*outputs) == (how == "all"), name
