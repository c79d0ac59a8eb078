"""The kit with which the conformance suite runs on toynet."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import numpy as np

import toynet as tn
from unifreeze import Freezing
from unifreeze.testing import RATE, Arrays, Kit, Trainer


class ToynetTrainer(Trainer):
    """Fits made targets with least squares."""

    def __init__(self, model: tn.Layer, optimizer: str, frozen: Collection[str], held: Collection[str]) -> None:
        self.model, self.count = model, 0
        self.variables = {path: variable for path, variable in _variables(model).items() if path.rpartition(".")[2] not in {"mean", "variance"}}
        self.still = [self.variables[path] for path in frozen]
        self.held = [_part(model, path) for path in held]
        settings: dict[str, dict[str, Any]] = {"sgd": {}, "momentum": {"momentum": 0.9}, "adam": {"adam": True}, "adamw": {"adam": True, "decay": 0.1}}
        self.optimizer = tn.Optimizer([v for v in self.variables.values() if v not in self.still], RATE, **settings[optimizer])

    def step(self) -> None:
        rng = np.random.default_rng(100 + self.count)
        self.count += 1
        self.model.train()
        for layer in self.held:
            layer.training = False
        x = rng.integers(11, size=8) if hasattr(self.model, "embed") else _images(rng)
        y, pull = self.model.forward(x, rng)
        pull(2 * (y - rng.normal(size=y.shape)) / y.size)
        self.seen = {path for path, variable in self.variables.items() if variable.gradient is not None}
        self.optimizer.step()

    def slots(self) -> Collection[str]:
        return [path for path, variable in self.variables.items() if id(variable) in self.optimizer.slots]

    def gradients(self) -> Collection[str]:
        return self.seen


class ToynetKit(Kit):
    """What the suite needs of toynet."""

    name = "toynet"
    types = {"dense": tn.Dense}

    def reference(self) -> tn.Layer:
        rng = np.random.default_rng(0)
        return tn.Chain(
            stem=tn.Chain(conv=tn.Conv(3, 4, rng), norm=tn.BatchNorm(4, rng)),
            relu=tn.Relu(),
            pool=tn.Pool(),
            body=tn.Chain(
                layer_1=tn.Dense(4, 6, rng),
                norm=tn.LayerNorm(6, rng),
                drop=tn.Dropout(0.5),
                layer_2=tn.Dense(6, 6, rng),
                layer_10=tn.Dense(6, 6, rng),
                bn=tn.BatchNorm(6, rng),
            ),
            head=tn.Dense(6, 3, rng),
        )

    def question(self) -> tn.Layer:
        rng = np.random.default_rng(0)
        return tn.Chain(hidden=tn.Dense(100, 32, rng), out=tn.Dense(32, 10, rng), relu=tn.Relu())

    def tied(self) -> tn.Layer:
        rng = np.random.default_rng(0)
        embed = tn.Embedding(11, 6, rng)
        return tn.Chain(embed=embed, mid=tn.Dense(6, 6, rng), head=tn.Unembedding(embed.table))

    def chain(self, length: int) -> tn.Layer:
        rng = np.random.default_rng(0)
        return tn.Chain(**{f"layer_{i}": tn.Dense(1, 1, rng) for i in range(length)})

    def part(self, model: tn.Layer, path: str) -> Any:
        return _part(model, path)

    def trainer(
        self, model: tn.Layer, optimizer: str, freezing: Freezing | None = None, frozen: Collection[str] = (), held: Collection[str] = ()
    ) -> ToynetTrainer:
        return ToynetTrainer(model, optimizer, frozen, held)

    def values(self, model: tn.Layer) -> Arrays:
        return {path: variable.value.copy() for path, variable in _variables(model).items()}

    def disturb(self, model: tn.Layer, path: str) -> tn.Layer:
        value = _variables(model)[path].value
        value.flat[-1] = np.nextafter(value.flat[-1], np.float32(9))
        return model

    def forward(self, model: tn.Layer, seed: int, *, training: bool, freezing: Freezing | None = None) -> Any:
        model.train(training)
        return model.forward(_images(np.random.default_rng(seed)), np.random.default_rng())[0]

    def flags(self, model: tn.Layer) -> Hashable:
        layers = tuple((type(layer), layer.pinned, layer.training) for layer in model.walk())
        return layers, tuple((path, id(v), v.trainable) for path, v in _variables(model).items())

    def freeze_by_hand(self, model: tn.Layer, path: str) -> None:
        _variables(model)[path].trainable = False

    def lasting(self, model: tn.Layer) -> Mapping[str, Any]:
        return {"train()": model.train(), "deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}


def _images(rng: np.random.Generator) -> Any:
    return rng.normal(size=(8, 8, 8, 3)).astype(np.float32)


def _variables(model: tn.Layer, path: str = "") -> dict[str, tn.Variable]:
    found = {f"{path}{name}": variable for name, variable in model.variables().items()}
    for name, child in model.children().items():
        found |= _variables(child, f"{path}{name}.")
    return found


def _part(model: tn.Layer, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model
