"""The kit for PyTorch."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unifreeze import Freezing
from unifreeze.testing import RATE, Arrays, Kit, Trainer

Optimizers = Mapping[str, Callable[[list[nn.Parameter]], list[torch.optim.Optimizer]]]


def one(cls: Any, **options: Any) -> Callable[[list[nn.Parameter]], list[torch.optim.Optimizer]]:
    return lambda parameters: [cls(parameters, lr=RATE, **options)]


def muon(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for matrices and AdamW for the rest, as everyone uses it."""
    matrices, rest = [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]
    return [torch.optim.Muon(matrices, lr=RATE), torch.optim.AdamW(rest, lr=RATE)]


optim = torch.optim
OPTIMIZERS: Optimizers = {
    "sgd": one(optim.SGD),
    "momentum": one(optim.SGD, momentum=0.9),
    "adam": one(optim.Adam),
    "adamw": one(optim.AdamW, weight_decay=0.1),
    "nadam": one(optim.NAdam),
    "rmsprop": one(optim.RMSprop, momentum=0.9),
    "adagrad": one(optim.Adagrad),
    "fused adamw": one(optim.AdamW, weight_decay=0.1, fused=True),
    "foreach adamw": one(optim.AdamW, weight_decay=0.1, foreach=True),
    "muon": muon,
    "lbfgs": one(optim.LBFGS, max_iter=2),
    # The same under the other habits of training loops.
    "momentum, gradients zeroed": one(optim.SGD, momentum=0.9, weight_decay=0.1),
    "adamw, gradients zeroed": one(optim.AdamW, weight_decay=0.1),
    "adam, gradients kept": one(optim.Adam),
    "adam, clipped": one(optim.Adam),
    "adamw, accumulating": one(optim.AdamW, weight_decay=0.1),
}


class TorchTrainer(Trainer):
    """The loop that everyone writes, over all parameters of the model."""

    def __init__(self, model: nn.Module, optimizer: str, frozen: Collection[str], held: Collection[str]) -> None:
        self.model, self.habit, self.count = model, optimizer, 0
        self.held = [bare(model).get_submodule(path) for path in held]
        named = dict(bare(model).named_parameters())
        for path in frozen:
            named[path].requires_grad_(False)
        self.parameters = [array for path, array in named.items() if path not in frozen]
        self.optimizers = OPTIMIZERS[optimizer](self.parameters)

    def step(self) -> None:
        self.count += 1
        self.model.train()
        for module in self.held:
            module.eval()
        rounds = 2 if "accumulating" in self.habit else 1
        for place in range(rounds):
            for optimizer in self.optimizers:
                optimizer.step(lambda place=place: self._gradients(place)) if self.habit == "lbfgs" else None
            if self.habit != "lbfgs":
                self._gradients(place)
        if "clipped" in self.habit:
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        if self.habit != "lbfgs":
            for optimizer in self.optimizers:
                optimizer.step()

    def _gradients(self, place: int) -> torch.Tensor:
        seed = 100 * self.count + place
        if place == 0:
            self._zero()
        inputs, targets = batch(bare(self.model), seed)
        torch.manual_seed(seed)
        loss = nn.functional.cross_entropy(self.model(inputs), targets)
        loss.backward()
        return loss.detach()

    def _zero(self) -> None:
        if "kept" in self.habit:  # zeroes what it finds trainable, and nothing else
            for array in self.model.parameters():
                if array.requires_grad and array.grad is not None:
                    array.grad.zero_()
        for optimizer in self.optimizers if "kept" not in self.habit else ():
            optimizer.zero_grad(set_to_none="zeroed" not in self.habit)

    def follow(self, freezing: Freezing) -> None:
        for optimizer in self.optimizers:
            freezing.attach(optimizer, others=[other for other in self.optimizers if other is not optimizer])

    def slots(self) -> Collection[str]:
        kept = {id(array) for optimizer in self.optimizers for array, state in optimizer.state.items() if state}
        return [path for path, array in bare(self.model).named_parameters() if id(array) in kept]

    def gradients(self) -> Collection[str]:
        return [path for path, array in bare(self.model).named_parameters() if array.grad is not None]


class TorchKit(Kit):
    """What the suite needs of PyTorch."""

    name = "torch"
    optimizers = tuple(OPTIMIZERS)
    types: Mapping[str, type] = {"dense": nn.Linear, "conv": nn.Conv2d}

    def reference(self) -> nn.Module:
        body = named(
            layer_1=nn.Linear(4, 6),
            norm=nn.LayerNorm(6),
            drop=nn.Dropout(0.5),
            layer_2=nn.Linear(6, 6),
            layer_10=nn.Linear(6, 6),
            bn=nn.BatchNorm1d(6),
        )
        stem = named(conv=nn.Conv2d(3, 4, 3, padding=1), norm=nn.BatchNorm2d(4))
        return drawn(named(stem=stem, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), body=body, head=nn.Linear(6, 3)))

    def question(self) -> nn.Module:
        return nn.Sequential(nn.Linear(100, 32), nn.Linear(32, 10), nn.Softmax(dim=1))

    def tied(self) -> nn.Module:
        model = named(embed=nn.Embedding(11, 6), mid=nn.Linear(6, 6), head=nn.Linear(6, 11, bias=False))
        model.head.weight = model.embed.weight
        return drawn(model)

    def chain(self, length: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(1, 1) for _ in range(length)))

    def part(self, model: nn.Module, path: str) -> nn.Module:
        return model.get_submodule(path)

    def trainer(
        self, model: nn.Module, optimizer: str, freezing: Freezing | None = None, frozen: Collection[str] = (), held: Collection[str] = ()
    ) -> TorchTrainer:
        return TorchTrainer(model, optimizer, frozen, held)

    def values(self, model: nn.Module) -> Arrays:
        return {path: array.detach().cpu().numpy().copy() for path, array in arrays(bare(model))}

    def disturb(self, model: nn.Module, path: str) -> nn.Module:
        value = dict(arrays(model))[path].detach().view(-1)
        if value.is_floating_point():
            value[-1] = torch.nextafter(value[-1], torch.full_like(value[-1], 9))
        else:
            value[-1] += 1
        return model

    def forward(self, model: nn.Module, seed: int, *, training: bool, freezing: Freezing | None = None) -> NDArray[np.float32]:
        model.train(training)
        with torch.no_grad():
            return model(batch(model, seed)[0]).cpu().numpy()

    def flags(self, model: nn.Module) -> Hashable:
        modules = tuple((path, id(module), type(module), module.training, tuple(vars(module)), hooks(module)) for path, module in model.named_modules())
        return modules, tuple((path, id(array), array.requires_grad, id(array.grad) if array.grad is not None else None) for path, array in arrays(model))

    def freeze_by_hand(self, model: nn.Module, path: str) -> None:
        model.get_parameter(path).requires_grad_(False)

    def lasting(self, model: nn.Module) -> Mapping[str, nn.Module]:
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        survivors = {
            "deepcopy": copy.deepcopy(model),
            "deepcopy of a deepcopy": copy.deepcopy(copy.deepcopy(model)),
            "pickle": pickle.loads(pickle.dumps(model)),
            "torch.save and torch.load": torch.load(saved, weights_only=False),
            "double() and float()": copy.deepcopy(model).double().float(),
            "fx": torch.fx.symbolic_trace(copy.deepcopy(model)),
            "torch.compile": torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True),
            "train()": model.train(),
            "eval() and train()": model.eval().train(),
        }
        model.load_state_dict(model.state_dict(), strict=True)
        survivors["state_dict and back"] = model
        for module in model.modules():  # as Lightning does round every validation
            module.training = True
        return survivors | {"an assignment to training": model}


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def drawn(model: nn.Module) -> nn.Module:
    """Draws every array anew: no weight is zero, and statistics are away from zero and one."""
    draw = torch.Generator().manual_seed(0)
    for path, array in arrays(model):
        if array.is_floating_point():
            values = torch.rand(array.shape, generator=draw) + 0.5
            sign = torch.rand(array.shape, generator=draw).sub(0.5).sign() if "running_var" not in path else 1
            array.data.copy_(values * sign * (0.5 if array.ndim > 1 else 1))
    return model


def batch(model: nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    if hasattr(model, "embed"):
        tokens = torch.randint(0, 11, (8,), generator=draw).to(device)
        return tokens, (tokens + 1) % 11
    return torch.randn(8, 3, 8, 8, generator=draw).to(device), torch.randint(0, 3, (8,), generator=draw).to(device)


def bare(model: nn.Module) -> nn.Module:
    return getattr(model, "_orig_mod", model)


def arrays(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def hooks(module: nn.Module) -> tuple[int, ...]:
    return tuple(len(value) for name, value in vars(module).items() if name.endswith("hooks"))
