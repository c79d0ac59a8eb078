"""What it costs to prove that nothing moved: ``python benchmarks/verify.py [rounds]``, in an environment with PyTorch, Keras or JAX. Prints a row for it.

On a network whose frozen part holds most of the weights: taking the fingerprints (a ``guard`` on entry, and again on exit), keeping copies as well (exact
mode), a plain copy of the same arrays, and one training step (batch 8). All take turns in one process; the figures are medians: of processor time on the
CPU, of the time until the device is done on a GPU, which PyTorch, JAX and Keras use where they find one (``JAX_PLATFORMS=cpu`` keeps JAX off it).
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from unifreeze import freeze

WIDTH, DEPTH, BATCH = 1024, 8, 8
Case = tuple[str, Callable[[], Any], Callable[[], Any], Callable[[], Any], Callable[[], Any], float]
ON_GPU = " on a GPU"


def in_torch() -> Case:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    device, done = ("cuda", torch.cuda.synchronize) if torch.cuda.is_available() else ("cpu", lambda: None)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)), nn.Linear(WIDTH, 10)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(BATCH, WIDTH, device=device)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        done()

    step()
    freezing = freeze(model, layers="~last:1")
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    size = sum(array.nbytes for array in frozen) / 1e6
    exact = freezing.remember(exact=True)
    copy = lambda: ([array.detach().clone() for array in frozen], done())  # noqa: E731
    return f"PyTorch {torch.__version__}{ON_GPU * (device != 'cpu')}", freezing.verify, exact.verify, copy, step, size


def in_keras() -> Case:
    import keras
    import numpy as np

    layers = [keras.layers.Dense(WIDTH) for _ in range(DEPTH)]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers, keras.layers.Dense(10)])
    model.compile(keras.optimizers.AdamW(), "mse")
    x, y = np.ones((BATCH, WIDTH), "float32"), np.ones((BATCH, 10), "float32")
    freezing = freeze(model, layers="~last:1")
    frozen = [variable for layer in layers for variable in layer.weights]
    model.train_on_batch(x, y)
    size = sum(int(np.prod(variable.shape)) for variable in frozen) * 4 / 1e6
    exact = freezing.remember(exact=True)
    copy = lambda: [np.array(keras.ops.convert_to_numpy(variable)) for variable in frozen]  # noqa: E731
    far = ON_GPU * any(word in str(frozen[0].value.device).lower() for word in ("cuda", "gpu"))
    return f"Keras {keras.__version__} on {keras.backend.backend()}{far}", freezing.verify, exact.verify, copy, lambda: model.train_on_batch(x, y), size


def in_jax() -> Case:
    import jax
    import jax.numpy as jnp
    import optax

    params = {f"layer_{i}": {"kernel": jax.random.normal(jax.random.key(i), (WIDTH, 10 if i == DEPTH else WIDTH)) / 32} for i in range(DEPTH + 1)}
    freezing = freeze(params, layers=[f"layer_{i}" for i in range(DEPTH)])
    tx, x = freezing.optimizer(optax.adamw(1e-3)), jnp.ones((BATCH, WIDTH))

    def loss(p: Any) -> Any:
        y = x
        for i in range(DEPTH + 1):
            y = y @ p[f"layer_{i}"]["kernel"]
        return jnp.mean(y**2)

    @jax.jit
    def train(p: Any, state: Any) -> Any:
        _, grads = freezing.value_and_grad(loss)(p)
        updates, state = tx.update(grads, state, p)
        return freezing.apply_updates(p, updates), state

    state = tx.init(params)
    frozen = [params[f"layer_{i}"]["kernel"] for i in range(DEPTH)]
    exact = freezing.remember(params, exact=True)
    copy = lambda: jax.block_until_ready([jnp.copy(array) for array in frozen])  # noqa: E731
    size = sum(array.nbytes for array in frozen) / 1e6
    step = lambda: jax.block_until_ready(train(params, state))  # noqa: E731
    return f"JAX {jax.__version__}{ON_GPU * (jax.default_backend() != 'cpu')}", lambda: freezing.verify(params), lambda: exact.verify(params), copy, step, size


def measured(calls: list[Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> list[float]:
    found: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for times, call in zip(found, calls, strict=True):
            start = clock()
            call()
            times.append(clock() - start)
    return [median(times) for times in found]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for library, make in {"keras": in_keras, "torch": in_torch, "jax": in_jax}.items():
        if importlib.util.find_spec(library) and (library == "keras" or not importlib.util.find_spec("keras")):
            name, cheap, exact, copy, step, size = make()
            times = measured([cheap, exact, copy, step], rounds, time.perf_counter if name.endswith(ON_GPU) else time.process_time)
            cells = " | ".join(f"{seconds * 1e3:.1f} ms" for seconds in times)
            print(f"| {name} | {size:.0f} MB | {cells} | {times[0] / times[3]:.2f} | {times[0] / times[2]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
