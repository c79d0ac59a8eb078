"""The kit with which the conformance suite runs on flax.nnx."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from unifreeze import Freezing
from unifreeze.testing import RATE, Arrays, Kit, Trainer

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "adam": optax.adam(RATE),
    "adamw": optax.adamw(RATE, weight_decay=0.1),
    "rmsprop": optax.rmsprop(RATE),
    "lion": optax.lion(RATE, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(RATE, weight_decay=0.1)),
    "accumulated": optax.MultiSteps(optax.adam(RATE), 2),
}


class Stem(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Body(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer_1 = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layer_2 = nnx.Linear(6, 6, rngs=rngs)
        self.layer_10 = nnx.Linear(6, 6, rngs=rngs)
        self.bn = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.layer_10(self.layer_2(self.drop(self.norm(self.layer_1(x))))))


class Reference(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = Stem(rngs)
        self.body = Body(rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.body(nnx.relu(self.stem(x)).mean((1, 2))))


class Question(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(100, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(self.out(nnx.relu(self.hidden(x))))


class Unembed(nnx.Module):
    """Projects back through an embedding's own array."""

    def __init__(self, embedding: nnx.Param) -> None:
        self.embedding = embedding

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.embedding[...].T


class Tied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.mid = nnx.Linear(6, 6, rngs=rngs)
        self.head = Unembed(self.embed.embedding)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.mid(self.embed(x)))


def _loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((model(x) - y) ** 2)


@nnx.jit
def _step(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> nnx.State:
    """What every nnx tutorial writes."""
    gradients = nnx.grad(_loss)(model, x, y)
    optimizer.update(model, gradients)
    return gradients


def _step_by_hand(wrt: Any) -> Any:
    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> nnx.State:
        gradients = nnx.grad(_loss, argnums=nnx.DiffState(0, wrt))(model, x, y)
        optimizer.update(model, gradients)
        return gradients

    return step


class NnxTrainer(Trainer):
    """Fits made targets with least squares."""

    def __init__(self, model: nnx.Module, optimizer: str, frozen: Collection[str], held: Collection[str]) -> None:
        self.model, self.count = model, 0
        self.held = [_part(model, path) for path in held]
        still = nnx.filterlib.PathIn(*(tuple(path.split(".")) for path in frozen))
        wrt = nnx.All(nnx.Param, nnx.Not(still)) if frozen else nnx.Param
        self.take = _step_by_hand(wrt) if frozen else _step
        self.optimizer = nnx.Optimizer(model, OPTIMIZERS[optimizer], wrt=wrt)
        self.seen: Collection[str] = ()

    def step(self) -> None:
        rng = np.random.default_rng(100 + self.count)
        self.count += 1
        self.model.train()
        for layer in self.held:
            layer.use_running_average = True
        tokens = hasattr(self.model, "embed")
        x = rng.integers(11, size=8) if tokens else _images(rng)
        y = rng.normal(size=(8, 11 if tokens else 3)).astype(np.float32)
        self.seen = _dotted(self.take(self.model, self.optimizer, x, y))

    def follow(self, freezing: Freezing) -> None:
        freezing.attach(self.optimizer)

    def slots(self) -> Collection[str]:
        parts = jax.tree.leaves(self.optimizer.opt_state, is_leaf=lambda part: isinstance(part, nnx.State))
        return {path for part in parts if isinstance(part, nnx.State) for path in _dotted(part)}

    def gradients(self) -> Collection[str]:
        return self.seen


class NnxKit(Kit):
    """What the suite needs of flax.nnx."""

    name = "nnx"
    optimizers = tuple(OPTIMIZERS)
    types = {"dense": nnx.Linear}

    def reference(self) -> nnx.Module:
        return _stirred(Reference(nnx.Rngs(0)))

    def question(self) -> nnx.Module:
        return Question(nnx.Rngs(0))

    def tied(self) -> nnx.Module:
        return _stirred(Tied(nnx.Rngs(0)))

    def chain(self, length: int) -> nnx.Module:
        rngs = nnx.Rngs(0)
        return nnx.Sequential(*(nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=rngs) for _ in range(length)))

    def part(self, model: nnx.Module, path: str) -> Any:
        return _part(model, path)

    def trainer(
        self, model: nnx.Module, optimizer: str, freezing: Freezing | None = None, frozen: Collection[str] = (), held: Collection[str] = ()
    ) -> NnxTrainer:
        return NnxTrainer(model, optimizer, frozen, held)

    def values(self, model: nnx.Module) -> Arrays:
        return {path: np.array(variable[...]) for path, variable in _variables(model) if not isinstance(variable, nnx.RngState)}

    def disturb(self, model: nnx.Module, path: str) -> nnx.Module:
        variable = dict(_variables(model))[path]
        value = np.array(variable[...])
        value.flat[-1] = np.nextafter(value.flat[-1], np.float32(9))
        variable[...] = jnp.asarray(value)
        return model

    def forward(self, model: nnx.Module, seed: int, *, training: bool, freezing: Freezing | None = None) -> Any:
        (model.train if training else model.eval)()
        return np.array(model(_images(np.random.default_rng(seed))))

    def flags(self, model: nnx.Module) -> Hashable:
        switches = ("use_running_average", "deterministic")
        modules = tuple((path, id(module), type(module), *(getattr(module, name, None) for name in switches)) for path, module in nnx.iter_modules(model))
        return modules, tuple((path, id(variable), type(variable), repr(variable.get_metadata())) for path, variable in _variables(model))

    def freeze_by_hand(self, model: nnx.Module, path: str) -> None:
        raise NotImplementedError

    def lasting(self, model: nnx.Module) -> Mapping[str, Any]:
        assigned = nnx.clone(model)
        for _, module in nnx.iter_modules(assigned):
            if isinstance(module, nnx.BatchNorm):
                module.use_running_average = False
        loaded = nnx.clone(model)
        nnx.update(loaded, nnx.state(self.reference()))
        return {
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.loads(pickle.dumps(model)),
            "clone": nnx.clone(model),
            "split and merge": nnx.merge(*nnx.split(model)),
            "split by type and merge": nnx.merge(*nnx.split(model, nnx.Param, nnx.BatchStat, ...)),
            "pickled graphdef": nnx.merge(*pickle.loads(pickle.dumps(nnx.split(model)))),
            "through jit": nnx.jit(lambda one: one)(model),
            "tree.map": jax.tree.map(lambda leaf: leaf, model),
            "view": nnx.view(model, use_running_average=False),
            "assigned switch": assigned,
            "loaded values": loaded,
            "eval() and train()": _switched(nnx.clone(model)),
            "train()": _switched(model),
        }


def _switched(model: nnx.Module) -> nnx.Module:
    model.eval()
    model.train()
    return model


def _images(rng: np.random.Generator) -> Any:
    return rng.normal(size=(8, 8, 8, 3)).astype(np.float32)


def _stirred(model: nnx.Module) -> nnx.Module:
    """No weight is zero, and no statistic is what it starts from."""
    rng = np.random.default_rng(0)
    for path, variable in _variables(model):
        if not isinstance(variable, nnx.RngState):
            noise = rng.uniform(0.1, 0.4, size=variable.shape) * (1 if path.endswith("var") else rng.choice([-1, 1], size=variable.shape))
            variable[...] = variable[...] + noise.astype(np.float32)
    return model


def _variables(node: Any, path: str = "") -> Iterator[tuple[str, nnx.Variable]]:
    for name, value in vars(node).items():
        if isinstance(value, nnx.Variable):
            yield f"{path}{name}", value
        elif isinstance(value, nnx.Pytree):
            yield from _variables(value, f"{path}{name}.")


def _dotted(state: nnx.State) -> set[str]:
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


def _part(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model
