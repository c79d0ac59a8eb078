"""The same scenario in each library, through its own documented call: ``nox -s peers``, which makes an environment with all of them."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

import torch

import torchvision_cpu  # noqa: F401 - torchvision needs it beside a CPU-only torch

PEERS = ("torch", "lightning", "finetuning-scheduler", "fastai", "timm", "peft")


def main() -> None:
    import by_hand
    import with_fastai
    import with_lightning
    import with_peft
    import with_timm

    torch.set_num_threads(1)
    found = [row for module in (by_hand, with_lightning, with_fastai, with_timm, with_peft) for row in module.rows()]
    print(", ".join(f"{peer} {version(peer)}" for peer in PEERS), end=".\n\n")
    heads = ("way of freezing", "weights", "BatchNorm's scale and bias", "statistics, 2d", "statistics, 1d", "training mode against inference")
    print("|", " | ".join((*heads, "weights, frozen in mid-training", "never train again", "remark")), "|")
    print("|---|" + "--:|" * 7 + "---|")
    for row in found:
        moved = row.moved
        figures = (moved.weights, moved.affine, moved.statistics_2d, moved.statistics_1d, row.features, row.middle)
        print("|", " | ".join((row.way, *map(shown, figures), row.stuck, row.remark)), "|")


def shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.1%}" if figure >= 5e-4 else f"{figure:.0e}" if figure else "0"


if __name__ == "__main__":
    main()
