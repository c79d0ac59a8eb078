"""What two processes do together in tests/test_torch_distributed.py. Both run the same function, each on its own half of the data."""

from __future__ import annotations

import datetime as dt
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kits.torch import TorchKit, arrays
from unifreeze import freeze, unfreeze
from unifreeze.errors import BackendError

Values = dict[str, bytes]
OPTIMIZER = {"lr": 0.1, "weight_decay": 0.1}


def serve(rank: int, meeting: str, pipe: Connection) -> None:
    """Runs what the parent names, until it names nothing."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=dt.timedelta(seconds=60))
    while (asked := pipe.recv()) is not None:
        name, arguments = asked
        try:
            pipe.send((True, globals()[name](*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


def network() -> nn.Module:
    """The reference without dropout, so that ranks differ in nothing but their data."""
    model = TorchKit().reference()
    model.body.drop = nn.Identity()
    return model


def train(run: nn.Module, optimizer: torch.optim.Optimizer, seeds: range, *, held: tuple[nn.Module, ...] = ()) -> None:
    for seed in seeds:
        run.train()
        for module in held:
            module.eval()
        draw = torch.Generator().manual_seed(2 * seed + dist.get_rank())
        images, labels = torch.randn(8, 3, 8, 8, generator=draw), torch.randint(0, 3, (8,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(images), labels).backward()
        optimizer.step()


def values(model: nn.Module) -> Values:
    """Every array of this rank as bytes; a sharded one in full."""
    return {path: _whole(array).contiguous().view(-1).view(torch.uint8).numpy().tobytes() for path, array in arrays(model)}


def _whole(array: torch.Tensor) -> torch.Tensor:
    return (array.full_tensor() if hasattr(array, "full_tensor") else array).detach()


def spread(model: nn.Module) -> float:
    """How far this rank's parameters are from the first rank's."""
    far = 0.0
    for array in model.parameters():
        first = array.detach().clone()
        dist.broadcast(first, 0)
        far = max(far, float((first - array.detach()).abs().max()))
    return far


def refused(call: Callable[..., Any], *given: Any, **how: Any) -> str:
    """What the error says. The call must have left every flag alone."""
    flags = [parameter.requires_grad for parameter in given[0].parameters()]
    try:
        call(*given, **how)
    except BackendError as error:
        assert [parameter.requires_grad for parameter in given[0].parameters()] == flags
        return str(error)
    raise AssertionError("nothing was raised")


# DistributedDataParallel.


def naive_unfreezing() -> float:
    """What torch does by itself: unfrozen by hand after wrapping."""
    model = network()
    model.stem.requires_grad_(False)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **OPTIMIZER)
    train(ddp, optimizer, range(2))
    assert spread(model) == 0
    model.stem.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.stem.parameters())})
    train(ddp, optimizer, range(2, 5))
    return spread(model)


def frozen_before_wrapping() -> tuple[float, Values, Values]:
    model = network()
    before = values(model)
    freezing = freeze(model, layers="stem")
    ddp = DistributedDataParallel(model)
    train(ddp, freezing.optimizer(torch.optim.AdamW, **OPTIMIZER), range(4))
    freezing.verify()
    return spread(model), before, values(model)


def unfrozen_after_wrapping(given: str, by_hand: bool) -> tuple[str, float]:
    """Through the wrapper the call is refused; through what is in it, or a part of that, the wrapper's next training pass. Frozen again, it trains on."""
    model = network()
    if by_hand:
        model.stem.requires_grad_(False)
    else:
        freeze(model, layers="stem")
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **OPTIMIZER)
    train(ddp, optimizer, range(2))
    if given == "wrapper":
        said = refused(unfreeze, ddp, layers="stem")
    else:
        unfrozen = unfreeze(model, layers="stem") if given == "module" else unfreeze(model.stem)
        said = refused_pass(ddp, unfrozen.attach(optimizer) if given == "module" else optimizer)
        freeze(model, layers="stem")
    train(ddp, optimizer, range(2, 4))
    return said, spread(model)


def refused_pass(ddp: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    before = values(ddp.module)
    try:
        train(ddp, optimizer, range(1))
    except BackendError as error:
        assert values(ddp.module) == before
        return str(error)
    raise AssertionError("nothing was raised")


def undone_after_wrapping(given: str) -> tuple[str, float]:
    """``undo()`` unfreezes, too."""
    model = network()
    wrapped = nn.Sequential(model)
    freezing = freeze(wrapped if given == "round it" else model, layers="0.stem" if given == "round it" else "stem")
    ddp = DistributedDataParallel(model)
    if given == "round it":  # what was frozen holds the wrapper by now
        wrapped[0] = ddp
    optimizer = freezing.optimizer(torch.optim.AdamW, **OPTIMIZER)
    if given == "round it":
        said = ""
        try:
            freezing.undo()
        except BackendError as error:
            said = str(error)
    else:
        freezing.undo()
        said = refused_pass(ddp, optimizer)
        freeze(model, layers="stem")
    train(ddp, optimizer, range(3))
    return said, spread(model)


def unfrozen_and_wrapped_again() -> tuple[float, Values, Values]:
    """As the error says."""
    model = DistributedDataParallel(network_with_frozen_stem())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **OPTIMIZER)
    train(model, optimizer, range(2))
    bare = model.module
    before = values(bare)
    unfreeze(bare, layers="stem").attach(optimizer)
    model = DistributedDataParallel(bare)
    train(model, optimizer, range(2, 5))
    return spread(bare), before, values(bare)


def network_with_frozen_stem() -> nn.Module:
    model = network()
    freeze(model, layers="stem")
    return model


def wrapped_for_change() -> tuple[list[float], Values, Values, Values]:
    """Wrapped while all is trainable, with find_unused_parameters: may be frozen and unfrozen at will."""
    model = network()
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER)
    train(ddp, optimizer, range(2))
    freeze(ddp, layers="stem").attach(optimizer)
    first, far = values(model), [spread(model)]
    train(ddp, optimizer, range(2, 4))
    second = values(model)
    far.append(spread(model))
    unfreeze(model, layers="stem").attach(optimizer)
    train(ddp, optimizer, range(4, 7))
    return [*far, spread(model)], first, second, values(model)


def frozen_after_wrapping(given: str) -> tuple[str, float]:
    model = network()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER)
    train(ddp, optimizer, range(2))
    if given == "wrapper":
        said = refused(freeze, ddp, layers="stem")
    else:
        with freeze(model, layers="stem"):
            said = refused_pass(ddp, optimizer)
    train(ddp, optimizer, range(2, 4))
    return said, spread(model)


def some_rows() -> tuple[float, Values, Values]:
    """Rows may be frozen after wrapping: their parameter keeps its gradient."""
    model = network()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER)
    train(ddp, optimizer, range(2))
    freezing = freeze(ddp, layers="body.layer_2", params="kernel", rows=slice(0, 4))
    before = values(model)
    train(ddp, optimizer, range(2, 5))
    freezing.verify()
    freezing.undo()
    after = values(model)
    train(ddp, optimizer, range(5, 7))
    assert values(model)["body.layer_2.weight"][:96] != after["body.layer_2.weight"][:96]
    return spread(model), before, after


# FSDP2.


def sharded(order: str, ours: bool, fresh: bool) -> list[Values]:
    """The same run with unifreeze and by hand: frozen stem, then everything. Returns each rank's arrays after either part.

    Args:
        order: ``freeze, shard`` or ``shard, freeze``.
        ours: Whether unifreeze freezes; else ``requires_grad_`` and ``eval()`` do.
        fresh: Whether the second part begins with a new optimizer; else the old one takes up what is new.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    if order == "freeze, shard":
        _freeze(model, ours)
    mesh = init_device_mesh("cpu", (2,))
    for part in (model.stem.norm, model.body, model):
        fully_shard(part, mesh=mesh)
    if order == "shard, freeze":
        _freeze(model, ours)
    seen = [values(model)]
    frozen = () if ours else (model.stem.norm,)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **OPTIMIZER)
    train(model, optimizer, range(3), held=frozen)
    seen.append(values(model))
    unfrozen = unfreeze(model, layers="stem") if ours else model.stem.requires_grad_(True)
    if fresh:
        optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER)
    elif ours:
        unfrozen.attach(optimizer)
    else:
        optimizer.add_param_group({"params": list(model.stem.parameters())})
    train(model, optimizer, range(3, 6))
    return [*seen, values(model)]


def _freeze(model: nn.Module, ours: bool) -> None:
    if ours:
        freeze(model, layers="stem")
    else:
        model.stem.requires_grad_(False)


def sharded_and_verified() -> str:
    """``verify()`` reads each rank's shard, and finds what moved in it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from unifreeze.errors import FrozenMovedError

    model = fully_shard(network(), mesh=init_device_mesh("cpu", (2,)))
    freezing = freeze(model, layers="stem")
    freezing.verify()
    with torch.no_grad():
        model.stem.conv.weight.mul_(1.5)
    try:
        freezing.verify()
    except FrozenMovedError as error:
        return str(error)
    return ""


def sharded_rows() -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return refused(freeze, fully_shard(network(), mesh=init_device_mesh("cpu", (2,))), layers="head", params="kernel", rows=[0])
