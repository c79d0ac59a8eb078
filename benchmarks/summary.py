"""Counts parameters beside torchinfo: ``python benchmarks/summary.py``. Both without a forward pass, in turns, in one process; the figures are ratios.

The truth is the sum of ``numel`` over unique parameters.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import torchvision_cpu  # noqa: F401

# isort: split
import torchinfo
import torchvision

from unifreeze import summary


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.act_fn, self.down_proj = nn.SiLU(), nn.Linear(inner, width, bias=False)


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = nn.RMSNorm(width), Attention(width)
        self.post_attention_layernorm, self.mlp = nn.RMSNorm(width), FeedForward(width, inner)


class Llama(nn.Module):
    """The modules of a Llama of 7 billion parameters, with its head tied to the embedding."""

    def __init__(self, depth: int = 32, width: int = 4096, inner: int = 11008, words: int = 32000) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Block(width, inner) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.embed_tokens.weight


def llama() -> nn.Module:
    with torch.device("meta"):
        return Llama()


def nested(depth: int = 20) -> nn.Module:
    """A dense layer and the rest, twenty levels deep, and a bare parameter on each."""
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(depth):
        model = nn.Sequential(nn.Linear(4, 4), model)
        model.scale = nn.Parameter(torch.ones(1))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: torchvision.models.resnet50(weights=None),
    "ViT-B/16": lambda: torchvision.models.vit_b_16(weights=None),
    "Llama, 32 layers, tied, meta": llama,
    "20 levels deep": nested,
}


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    print(f"torchinfo {torchinfo.__version__}, PyTorch {torch.__version__}; the best of the turns; the data, not the printing\n")
    print("| model | modules | torchinfo | unifreeze | times faster | true count | torchinfo's | ours |")
    print("|---|--:|--:|--:|--:|--:|---|---|")
    for name, make in MODELS.items():
        model = make()
        theirs, ours = [], []
        for _ in range(2 if name.startswith("20") else 7):
            theirs.append(seconds(lambda model=model: torchinfo.summary(model, verbose=0, depth=100)))
            ours.append(seconds(lambda model=model: summary(model)))
        truth = sum(parameter.numel() for parameter in model.parameters())
        counted = [torchinfo.summary(model, verbose=0).total_params, summary(model).totals.parameters]
        verdicts = ["right" if count == truth else f"wrong: {count:,}" for count in counted]
        modules = sum(1 for _ in model.modules())
        row = (name, modules, f"{min(theirs) * 1e3:.1f} ms", f"{min(ours) * 1e3:.1f} ms", f"{min(theirs) / min(ours):.0f}", f"{truth:,}", *verdicts)
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
