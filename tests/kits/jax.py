"""The kit for JAX pytrees: a linen model's variables, trained as linen's users do."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Collection, Hashable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from flax.core import FrozenDict
from flax.core import freeze as to_frozen_dict
from numpy.typing import NDArray

from unifreeze import Freezing
from unifreeze.testing import RATE, Arrays, Kit, Trainer


class Recipe(NamedTuple):
    """An optimizer, and what runs before it over all gradients."""

    tx: Any
    pre: Any = None


OPTIMIZERS: Mapping[str, Recipe] = {
    "sgd": Recipe(optax.sgd(RATE)),
    "momentum": Recipe(optax.sgd(RATE, momentum=0.9)),
    "adam": Recipe(optax.adam(RATE)),
    "adamw": Recipe(optax.adamw(RATE, weight_decay=0.1)),
    "muon": Recipe(optax.contrib.muon(RATE, weight_decay=0.1)),
    "clipped adamw": Recipe(optax.adamw(RATE, weight_decay=0.1), pre=optax.clip_by_global_norm(0.05)),
    "accumulating adamw": Recipe(optax.MultiSteps(optax.adamw(RATE, weight_decay=0.1), 2).gradient_transformation()),
}


class Stem(nn.Module):
    held: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Conv(4, (3, 3), name="conv")(x)
        return nn.BatchNorm(use_running_average=not train or "stem.norm" in self.held, name="norm")(x)


class Body(nn.Module):
    held: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.LayerNorm(name="norm")(nn.Dense(6, name="layer_1")(x))
        x = nn.Dropout(0.5, name="drop")(x, deterministic=not train)
        x = nn.Dense(6, name="layer_10")(nn.Dense(6, name="layer_2")(x))
        return nn.BatchNorm(name="bn")(x, use_running_average=not train or "body.bn" in self.held)


class Reference(nn.Module):
    """The reference model. ``held`` is for the loops that freeze by hand: these layers normalise as at inference."""

    held: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.relu(Stem(self.held, name="stem")(x, train=train)).mean((1, 2))
        return nn.Dense(3, name="head")(Body(self.held, name="body")(x, train=train))


class JaxTrainer(Trainer):
    """A jitted step in optax's own words; with a freezing, its verbs take the place of jax.value_and_grad and of the optimizer."""

    def __init__(self, variables: Any, optimizer: str, freezing: Freezing | None, frozen: Collection[str], held: Collection[str]) -> None:
        self.model, self.optimizer, self.count = variables, optimizer, 0
        self.tx, self.run = loop(optimizer, freezing, frozenset(frozen), tuple(held), "embed" in variables["params"])
        self.state = self.tx.init(apart(variables["params"], frozenset(frozen))[0])
        self.seen: set[str] = set()

    def step(self) -> None:
        rng = np.random.default_rng(100 + self.count)
        inputs = rng.integers(11, size=8) if "embed" in self.model["params"] else images(rng)
        self.model, self.state, grads = self.run(self.model, self.state, inputs, rng.normal(size=3), jax.random.key(self.count))
        self.count += 1
        self.seen = set(flattened(grads))

    def follow(self, freezing: Freezing) -> None:
        self.tx, self.run = loop(self.optimizer, freezing, frozenset(), (), "embed" in self.model["params"])
        self.state = freezing.carry(self.tx, self.state, self.model["params"])

    def slots(self) -> Collection[str]:
        paths = jax.tree_util.tree_flatten_with_path(self.state)[0]
        found = {".".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey)) for path, _ in paths}
        return found - {""}

    def gradients(self) -> Collection[str]:
        return self.seen


@functools.lru_cache(maxsize=64)
def loop(optimizer: str, freezing: Freezing | None, frozen: frozenset[str], held: tuple[str, ...], tied: bool) -> tuple[Any, Any]:
    """The optimizer and the jitted step. A Freezing is hashable and equal by content, so equal ones share a step."""
    tx, pre = OPTIMIZERS[optimizer]
    if freezing is not None:
        tx = freezing.optimizer(tx, pre=pre)
    elif pre is not None:
        tx = optax.chain(pre, tx)

    def loss(params: Any, fixed: Any, inputs: Any, targets: Any, key: Any) -> Any:
        params = together(params, fixed["params"])
        if tied:
            hidden = params["embed"]["embedding"][inputs] @ params["mid"]["kernel"] + params["mid"]["bias"]
            return jnp.mean((hidden @ params["head"]["embedding"].T - targets.sum()) ** 2), {}
        outputs, news = Reference(held).apply({**fixed, "params": params}, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return jnp.mean((outputs - targets) ** 2), news

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # most of the suite's time is XLA's
    def step(variables: Any, state: Any, *batch: Any) -> Any:
        trainable, rest = apart(variables["params"], frozen)
        value_and_grad = jax.value_and_grad if freezing is None else freezing.value_and_grad
        (_, news), grads = value_and_grad(loss, has_aux=True)(trainable, {**variables, "params": rest}, *batch)
        updates, state = tx.update(grads, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        return {**variables, "params": together(trainable, rest), **news}, state, grads

    return tx, step


class JaxKit(Kit):
    """What the suite needs of JAX."""

    name = "jax"
    optimizers = tuple(OPTIMIZERS)
    gaps = {"all_keeps_a_frozen_dropout_still": "a dropout owns no arrays, so it is no part of linen's variables and can't be picked; hold the layer above it"}

    def reference(self) -> Any:
        return filled(Reference().init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False))

    def question(self) -> Any:
        return filled({"hidden": dense(100, 32), "out": dense(32, 10)})

    def tied(self) -> Any:
        variables = filled({"params": {"embed": {"embedding": np.zeros((11, 6))}, "mid": dense(6, 6), "head": {}}})
        variables["params"]["head"]["embedding"] = variables["params"]["embed"]["embedding"]
        return variables

    def chain(self, length: int) -> Any:
        return filled({f"layer_{i}": dense(1, 1) for i in range(length)})

    def part(self, model: Any, path: str) -> Any:
        return functools.reduce(lambda tree, name: tree[name], path.split("."), model["params"])

    def trainer(self, model: Any, optimizer: str, freezing: Freezing | None = None, frozen: Collection[str] = (), held: Collection[str] = ()) -> JaxTrainer:
        return JaxTrainer(model, optimizer, freezing, frozen, held)

    def values(self, model: Any) -> Arrays:
        return {path: np.array(leaf) for shelf in model.values() for path, leaf in flattened(shelf).items()}

    def disturb(self, model: Any, path: str) -> Any:
        value = np.array(self.values(model)[path])
        value.flat[-1] = np.nextafter(value.flat[-1], np.float32(9))
        return {shelf: replaced(tree, path, jnp.asarray(value)) for shelf, tree in model.items()}

    def forward(self, model: Any, seed: int, *, training: bool, freezing: Freezing | None = None) -> NDArray[np.float32]:
        def run(variables: Any, x: Any, key: Any) -> Any:
            return Reference().apply(variables, x, train=training, mutable=["batch_stats"], rngs={"dropout": key})[0]

        run = run if freezing is None else freezing.hold(run)
        return np.asarray(run(model, images(np.random.default_rng(seed)), jax.random.key(np.random.default_rng().integers(1 << 30))))

    def flags(self, model: Any) -> Hashable:
        return type(model), tuple((keys, id(leaf)) for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0]), tuple(flattened(model))

    def freeze_by_hand(self, model: Any, path: str) -> None:
        raise NotImplementedError

    def lasting(self, model: Any) -> Mapping[str, Any]:
        return {
            "tree_map": jax.tree.map(lambda x: x, model),
            "jit": jax.jit(lambda x: x)(model),
            "FrozenDict": to_frozen_dict(model),
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.loads(pickle.dumps(model)),
            "msgpack": serialization.from_bytes(model, serialization.to_bytes(model)),
        }


def images(rng: np.random.Generator) -> Any:
    return rng.normal(size=(8, 8, 8, 3)).astype(np.float32)


def dense(inputs: int, outputs: int) -> dict[str, Any]:
    return {"kernel": np.zeros((inputs, outputs)), "bias": np.zeros(outputs)}


def filled(tree: Any, rng: np.random.Generator | None = None) -> Any:
    """Gives every array of a tree random values away from zero and one; the order of its keys stays."""
    rng = np.random.default_rng(0) if rng is None else rng
    if isinstance(tree, dict):
        return {name: filled(child, rng) for name, child in tree.items()}
    return jnp.asarray(rng.uniform(0.2, 0.8, tree.shape) * (rng.choice([-1, 1], tree.shape) if len(tree.shape) > 1 else 1), jnp.float32)


def flattened(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | FrozenDict):
        return {name: leaf for key, child in tree.items() for name, leaf in flattened(child, f"{path}.{key}" if path else key).items()}
    return {} if tree is None else {path: tree}


def replaced(tree: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    if not isinstance(tree, dict) or name not in tree:
        return tree
    return {**tree, name: replaced(tree[name], rest, value) if rest else value}


def apart(tree: Any, frozen: Collection[str], path: str = "") -> tuple[Any, Any]:
    """Parts a tree by hand; ``None`` stands in the other's places."""
    if isinstance(tree, dict | FrozenDict):
        halves = {name: apart(child, frozen, f"{path}.{name}" if path else name) for name, child in tree.items()}
        return {name: half[0] for name, half in halves.items()}, {name: half[1] for name, half in halves.items()}
    return (None, tree) if path in frozen else (tree, None)


def together(trainable: Any, frozen: Any) -> Any:
    return jax.tree.map(lambda ours, theirs: theirs if ours is None else ours, trainable, frozen, is_leaf=lambda leaf: leaf is None)
