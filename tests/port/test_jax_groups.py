"""What is unfrozen late in JAX trains as what ``add_param_group`` adds in PyTorch: the two side by side, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from unifreeze import freeze, unfreeze

NAMES = ("stem", "body", "head")
X = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
BEFORE, AFTER = 20, 15


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"stem": (5, 6), "body": (6, 6), "head": (6, 3)}
    return {name: rng.normal(0, 0.5, shapes[name]).astype(np.float32) for name in NAMES}


RULES: dict[str, tuple[Callable[[], Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "adam": (lambda: optax.adam(1e-2), lambda params: torch.optim.Adam(params, lr=1e-2)),
    "adamw": (lambda: optax.adamw(1e-2, weight_decay=0.1), lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)),
    "sgd": (lambda: optax.sgd(1e-2, momentum=0.9), lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9)),
}


def in_torch(make: Callable[[Any], torch.optim.Optimizer]) -> dict[str, np.ndarray]:
    params = {name: torch.tensor(value, requires_grad=name == "head") for name, value in start().items()}
    optimizer = make([params["head"]])
    for step in range(BEFORE + AFTER):
        if step == BEFORE:
            params["body"].requires_grad_(True)
            optimizer.add_param_group({"params": [params["body"]]})
        x = torch.tensor(X)
        for name in NAMES:
            x = torch.tanh(x @ params[name])
        optimizer.zero_grad()
        ((x - 2.0) ** 2).mean().backward()
        optimizer.step()
    return {name: value.detach().numpy() for name, value in params.items()}


def loss(params: Any) -> Any:
    x = X
    for name in NAMES:
        x = jnp.tanh(x @ params[name]["w"])
    return jnp.mean((x - 2.0) ** 2)


def in_jax(rule: Callable[[], Any], *, carry: bool = True) -> dict[str, np.ndarray]:
    params = {name: {"w": jnp.asarray(value)} for name, value in start().items()}
    early = freeze(params, layers=["stem", "body"])
    params, state = trained(early, rule, params, early.optimizer(rule()).init(params), BEFORE)
    late = unfreeze(early, layers="body")
    tx = late.optimizer(rule())
    params, _ = trained(late, rule, params, late.carry(tx, state, params) if carry else tx.init(params), AFTER)
    return {name: np.asarray(leaf["w"]) for name, leaf in params.items()}


def trained(freezing: Any, rule: Callable[[], Any], params: Any, state: Any, steps: int) -> Any:
    tx = freezing.optimizer(rule())

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(freezing.grad(loss)(params), state, params)
        return freezing.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("name", list(RULES))
def test_what_is_unfrozen_late_trains_as_an_added_group(name: str) -> None:
    ours, theirs = in_jax(RULES[name][0]), in_torch(RULES[name][1])
    for part in NAMES:
        np.testing.assert_allclose(ours[part], theirs[part], rtol=0, atol=1e-5)
    assert ours["stem"].tobytes() == start()["stem"].tobytes()
    assert np.abs(ours["body"] - start()["body"]).max() > 1e-2
    fresh = in_jax(RULES[name][0], carry=False)
    assert max(np.abs(fresh[part] - theirs[part]).max() for part in NAMES) > 1e-4, "an optimizer begun anew would do as well: this test shows nothing"
