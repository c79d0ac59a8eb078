"""What frozen parameters save where a model is trained by several processes: ``python benchmarks/distributed.py``.

Two processes on this machine (gloo) train a ResNet-18 of random weights for one step each way. Every collective that torch starts in that step is seen by a
dispatch mode, which adds up the bytes of its inputs; memory is read off the arrays themselves. All figures are of one rank.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import torchvision_cpu  # noqa: F401 - torchvision needs it beside a CPU-only torch
from unifreeze import freeze
from unifreeze.select import before, last

WAYS = {"nothing": None, "up to layer3": before("layer4"), "all but the head": ~last(1)}
MEBI = 2**20


class Traffic(TorchDispatchMode):
    """Adds up what is sent, by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            self.sent[name.removeprefix("c10d::").strip("_").removesuffix("_base")] += sum(array.nbytes for array in _inputs(name, args))
        return func(*args, **(kwargs or {}))


def _inputs(name: str, args: Any) -> list[torch.Tensor]:
    """The tensors that a collective is given; those that go in come second where it has an output of its own."""
    given = args[1] if "_base" in name else args[0]
    return [array for array in (given if isinstance(given, list | tuple) else [given]) if isinstance(array, torch.Tensor)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> Counter[str]:
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 1000, (4,))
    for _ in range(2):  # the first step sets things up
        with Traffic() as traffic:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return traffic.sent


def network(way: str) -> nn.Module:
    from torchvision.models import resnet18

    model = resnet18()
    if WAYS[way] is not None:
        freeze(model, layers=WAYS[way])
    return model


def ddp(way: str) -> dict[str, float]:
    model = network(way)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    sent = train(wrapped, optimizer)
    buckets = sum(bucket.buffer().nbytes for bucket in wrapped.reducer._get_zeros_like_grad_buckets())
    return {"sent": sent["allreduce"], "buckets": buckets, **held(model, optimizer)}


def fsdp2(way: str) -> dict[str, float]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network(way)
    mesh = init_device_mesh("cpu", (2,))
    for part in (model.layer1, model.layer2, model.layer3, model.layer4, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    sent = train(model, optimizer)
    return {"sent": sent["reduce_scatter"], "gathered": sent["allgather"], **held(model, optimizer)}


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, torch.Tensor) and value.ndim]
    return {
        "gradients": sum(own(p.grad).nbytes for p in model.parameters() if p.grad is not None),
        "state": sum(own(value).nbytes for value in state),
        "frozen state": sum(1 for p in model.parameters() if not p.requires_grad and (p.grad is not None or optimizer.state.get(p))),
    }


def own(array: torch.Tensor) -> torch.Tensor:
    return array.to_local() if hasattr(array, "to_local") else array


def run(rank: int, meeting: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = [(wrapper.__name__, way, wrapper(way)) for wrapper in (ddp, fsdp2) for way in WAYS]
    if rank == 0:
        report(found)
    torch.distributed.destroy_process_group()


def report(found: list[tuple[str, str, dict[str, float]]]) -> None:
    print(f"PyTorch {torch.__version__}, ResNet-18, AdamW, two processes; MiB of one rank, in one step\n")
    print("| wrapper | frozen | gradients sent | weights gathered | buckets | gradients kept | optimizer state | frozen parameters with either |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for wrapper, way, one in found:
        cells = [f"{one[key] / MEBI:.1f}" if key in one else "" for key in ("sent", "gathered", "buckets", "gradients", "state")]
        print(f"| {wrapper} | {way} | {' | '.join(cells)} | {one['frozen state']:.0f} |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (f"{folder}/meeting",), nprocs=2)
