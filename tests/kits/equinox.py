"""The kit with which the conformance suite runs on equinox: a module with its state, trained as equinox's users do."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Collection, Hashable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

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
    "clipped adamw": Recipe(optax.adamw(RATE, weight_decay=0.1), pre=optax.clip_by_global_norm(0.05)),
}


class Stem(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, key: Any) -> None:
        self.conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="ema", momentum=0.9)

    def __call__(self, x: Any, state: eqx.nn.State) -> tuple[Any, eqx.nn.State]:
        return self.norm(self.conv(x), state)


class Body(eqx.Module):
    layer_1: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    drop: eqx.nn.Dropout
    layer_2: eqx.nn.Linear
    layer_10: eqx.nn.Linear
    bn: eqx.nn.BatchNorm

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 3)
        self.layer_1 = eqx.nn.Linear(4, 6, key=keys[0])
        self.norm = eqx.nn.LayerNorm(6)
        self.drop = eqx.nn.Dropout(0.5)
        self.layer_2 = eqx.nn.Linear(6, 6, key=keys[1])
        self.layer_10 = eqx.nn.Linear(6, 6, key=keys[2])
        self.bn = eqx.nn.BatchNorm(6, axis_name="batch", mode="ema", momentum=0.9)

    def __call__(self, x: Any, state: eqx.nn.State, key: Any) -> tuple[Any, eqx.nn.State]:
        x = self.drop(self.norm(self.layer_1(x)), key=key)
        return self.bn(self.layer_10(self.layer_2(x)), state)


class Reference(eqx.Module):
    stem: Stem
    body: Body
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 3)
        self.stem, self.body, self.head = Stem(keys[0]), Body(keys[1]), eqx.nn.Linear(6, 3, key=keys[2])

    def __call__(self, x: Any, state: eqx.nn.State, key: Any) -> tuple[Any, eqx.nn.State]:
        x, state = self.stem(x, state)
        x, state = self.body(jax.nn.relu(x).mean((1, 2)), state, key)
        return self.head(x), state


class Question(eqx.Module):
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear


class Unembed(eqx.Module):
    """Projects back through an embedding's own array."""

    weight: Any


class Tied(eqx.Module):
    """An embedding whose array stands in the head, too. In a pytree these are two leaves; the loss must use one of them, and does."""

    embed: eqx.nn.Embedding
    mid: eqx.nn.Linear
    head: Unembed

    def __call__(self, token: Any, state: Any, key: Any) -> tuple[Any, Any]:
        return self.mid(self.embed(token)) @ self.head.weight.T, state


@functools.lru_cache(maxsize=64)
def loop(optimizer: str, freezing: Freezing | None, frozen: frozenset[str], held: tuple[str, ...]) -> tuple[Any, Any]:
    """The optimizer and the step. A Freezing is hashable and equal by content, so equal ones share a step."""
    tx, pre = OPTIMIZERS[optimizer]
    if freezing is not None:
        tx = freezing.optimizer(tx, pre=pre)
    elif pre is not None:
        tx = optax.chain(pre, tx)

    def loss(model: Any, state: Any, x: Any, y: Any, keys: Any) -> Any:
        outputs, state = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(x, state, keys)
        return jnp.mean((outputs - y) ** 2), state

    @eqx.filter_jit
    def step(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        (_, state), grads = freezing.value_and_grad(loss, has_aux=True)(model, state, *batch)
        updates, opt_state = tx.update(grads, opt_state, model)
        return freezing.apply_updates(model, updates), state, opt_state, grads

    @eqx.filter_jit
    def step_by_hand(model: Any, state: Any, opt_state: Any, *batch: Any) -> Any:
        trainable, rest = eqx.partition(model, still(model, frozen))

        def of_trainable(trainable: Any) -> Any:
            return loss(inferring(eqx.combine(trainable, rest), held), state, *batch)

        (_, state), grads = eqx.filter_value_and_grad(of_trainable, has_aux=True)(trainable)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return eqx.apply_updates(model, updates), state, opt_state, grads

    return tx, step_by_hand if freezing is None else step


def still(model: Any, frozen: Collection[str]) -> Any:
    """The mask of what trains, as ``eqx.partition`` wants it."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: eqx.is_inexact_array(leaf) and dotted(keys) not in frozen, model)


def inferring(model: Any, held: Collection[str]) -> Any:
    for path in held:
        model = eqx.tree_at(lambda tree, path=path: part(tree, path).inference, model, replace=True)
    return model


class EquinoxTrainer(Trainer):
    """A step as equinox's documentation writes it; with a freezing, its verbs take the place of ``eqx.filter_value_and_grad`` and of the optimizer."""

    def __init__(self, model: Any, optimizer: str, freezing: Freezing | None, frozen: Collection[str], held: Collection[str]) -> None:
        self.model, self.optimizer, self.count = model, optimizer, 0
        self.tx, self.run = loop(optimizer, freezing, frozenset(frozen), tuple(held))
        module, _ = parted(model)
        self.state = self.tx.init(eqx.filter(module, still(module, frozen)) if freezing is None else module)
        self.seen: set[str] = set()

    def step(self) -> None:
        rng = np.random.default_rng(100 + self.count)
        module, state = parted(self.model)
        tokens = isinstance(module, Tied)
        x = rng.integers(11, size=8) if tokens else images(rng)
        y = rng.normal(size=(8, 11 if tokens else 3)).astype(np.float32)
        keys = jax.random.split(jax.random.key(self.count), 8)
        module, state, self.state, grads = self.run(module, state, self.state, x, y, keys)
        self.model = module if tokens else (module, state)
        self.count += 1
        self.seen = {dotted(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(grads)[0]}

    def follow(self, freezing: Freezing) -> None:
        self.tx, self.run = loop(self.optimizer, freezing, frozenset(), ())
        self.state = freezing.carry(self.tx, self.state, parted(self.model)[0])

    def slots(self) -> Collection[str]:
        names = set(arrays(parted(self.model)[0]))
        paths = [dotted(keys).split(".") for keys, _ in jax.tree_util.tree_flatten_with_path(self.state)[0]]
        return {".".join(path[i:]) for path in paths for i in range(len(path))} & names

    def gradients(self) -> Collection[str]:
        return self.seen


class EquinoxKit(Kit):
    """What the suite needs of equinox."""

    name = "equinox"
    optimizers = tuple(OPTIMIZERS)
    types = {"dense": eqx.nn.Linear}

    def reference(self) -> Any:
        return stirred(*eqx.nn.make_with_state(Reference)(jax.random.key(0)))

    def question(self) -> Any:
        return Question(eqx.nn.Linear(100, 32, key=jax.random.key(0)), eqx.nn.Linear(32, 10, key=jax.random.key(1)))

    def tied(self) -> Any:
        embed = eqx.nn.Embedding(11, 6, key=jax.random.key(0))
        return Tied(embed, eqx.nn.Linear(6, 6, key=jax.random.key(1)), Unembed(embed.weight))

    def chain(self, length: int) -> Any:
        layer = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        return eqx.nn.Sequential([jax.tree.map(jnp.array, layer) for _ in range(length)])

    def part(self, model: Any, path: str) -> Any:
        return part(parted(model)[0], path)

    def trainer(self, model: Any, optimizer: str, freezing: Freezing | None = None, frozen: Collection[str] = (), held: Collection[str] = ()) -> EquinoxTrainer:
        return EquinoxTrainer(model, optimizer, freezing, frozen, held)

    def values(self, model: Any) -> Arrays:
        module, state = parted(model)
        found = {path: np.array(leaf) for path, leaf in arrays(module).items()}
        for path in ("stem.norm", "body.bn") if state is not None else ():
            norm = part(module, path)
            mean, var = state.get(norm.ema_state_index)
            first = state.get(norm.ema_first_time_index)
            found |= {f"{path}.mean": np.array(mean), f"{path}.var": np.array(var), f"{path}.ema_first_time": np.array(first)}
        return found

    def disturb(self, model: Any, path: str) -> Any:
        module, state = parted(model)
        owner, _, name = path.rpartition(".")
        value = np.array(self.values(model)[path])
        value = jnp.asarray(~value if value.dtype == bool else nudged(value))
        norm = part(module, owner)
        if name == "ema_first_time":
            return module, copied(state).set(norm.ema_first_time_index, value)
        if name in {"mean", "var"}:
            mean, var = state.get(norm.ema_state_index)
            return module, copied(state).set(norm.ema_state_index, (value, var) if name == "mean" else (mean, value))
        return eqx.tree_at(lambda tree: part(tree, path), module, value), state

    def forward(self, model: Any, seed: int, *, training: bool, freezing: Freezing | None = None) -> Any:
        module, state = parted(model)

        def run(module: Any, x: Any, keys: Any) -> Any:
            return jax.vmap(module, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(x, copied(state), keys)[0]

        run = run if freezing is None else freezing.hold(run)
        keys = jax.random.split(jax.random.key(np.random.default_rng().integers(1 << 30)), 8)
        return np.asarray(run(eqx.nn.inference_mode(module, not training), images(np.random.default_rng(seed)), keys))

    def flags(self, model: Any) -> Hashable:
        return type(model), tuple((keys, id(leaf)) for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0])

    def freeze_by_hand(self, model: Any, path: str) -> None:
        raise NotImplementedError

    def lasting(self, model: Any) -> Mapping[str, Any]:
        module, state = model
        return {
            "tree.map": jax.tree.map(lambda leaf: leaf, model),
            "jit": eqx.filter_jit(lambda one: one)(model),
            "inference_mode": (eqx.nn.inference_mode(eqx.nn.inference_mode(module), value=False), state),
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.loads(pickle.dumps(model)),
            "partition and combine": (eqx.combine(*eqx.partition(module, eqx.is_array)), state),
        }


def images(rng: np.random.Generator) -> Any:
    return rng.normal(size=(8, 3, 8, 8)).astype(np.float32)


def parted(model: Any) -> tuple[Any, Any]:
    return model if isinstance(model, tuple) else (model, None)


def part(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = getattr(tree, name)
    return tree


def dotted(keys: Any) -> str:
    return ".".join(str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", "")))) for key in keys)


def arrays(module: Any) -> dict[str, Any]:
    return {dotted(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(module)[0] if eqx.is_array(leaf)}


def copied(state: Any) -> Any:
    """A State of its own: ``set`` makes the old one invalid."""
    return jax.tree.map(lambda leaf: leaf, state)


def nudged(value: Any) -> Any:
    value.flat[-1] = np.nextafter(value.flat[-1], np.float32(9))
    return value


def stirred(module: Any, state: Any) -> tuple[Any, Any]:
    """No weight is zero; statistics are drawn, since those of a BatchNorm in its mode "ema" are whatever lay in memory until it sees a batch."""
    rng = np.random.default_rng(0)

    def noise(leaf: Any, *, signed: bool = True) -> Any:
        if not eqx.is_inexact_array(leaf):
            return jnp.array(False) if eqx.is_array(leaf) else leaf
        drawn = rng.uniform(0.1, 0.4, leaf.shape).astype(np.float32)
        return leaf + drawn * rng.choice([-1, 1], leaf.shape).astype(np.float32) if signed else jnp.asarray(drawn)

    return jax.tree.map(noise, module), jax.tree.map(functools.partial(noise, signed=False), state)
