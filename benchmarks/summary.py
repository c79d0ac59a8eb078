"""Summaries side by side: ``nox -s bench_summary``, or ``KERAS_BACKEND=jax python benchmarks/summary.py``.

Each library reads the same model in its own documented way, without running it where it can; beside them a loop by hand that only adds up counts and
flags. All of one model take turns in one process, except nnx's tabulate, which leaves classes patched and gets a process of its own, with ours and the
loop beside it. The figures are seconds of processor time, the best of the turns, and the ratio to ours; what is right is a plain sum over unique arrays.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from unifreeze import summary

TURNS = 5
# A call that takes longer than this, in seconds, gets two turns.
LONG = 2.0


@dataclass(frozen=True)
class Case:
    """A model, and who reads it: what each calls, and how many parameters it says there are (``None``: it says so in text alone)."""

    name: str
    truth: int
    calls: dict[str, Callable[[], int | None]]


def timed(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def rows(case: Case) -> Iterator[list[str]]:
    counts = {name: call() for name, call in case.calls.items()}
    best = {name: timed(call) for name, call in case.calls.items()}
    for turn in range(TURNS - 1):
        for name, call in case.calls.items():
            if turn == 0 or best[name] < LONG:
                best[name] = min(best[name], timed(call))
    for name, count in counts.items():
        verdict = "–" if count is None else "right" if count == case.truth else f"wrong: {count:,}"
        yield [case.name, name, f"{best[name] * 1e3:.1f} ms", f"{best[name] / best[OURS]:.2f}", verdict]


OURS = "unifreeze.summary"


def ours(model: Any) -> int:
    return summary(model).totals.parameters


def printed(model: Any) -> int:
    found = summary(model)
    str(found)
    return found.totals.parameters


def torch_cases() -> Iterator[Case]:
    import torch

    import torchvision_cpu  # noqa: F401

    # isort: split
    import torchinfo
    import torchvision
    from transformers import LlamaConfig, LlamaForCausalLM

    def by_hand(model: Any) -> int:
        trainable = frozen = 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                trainable += parameter.numel()
            else:
                frozen += parameter.numel()
        return trainable + frozen

    def llama() -> Any:
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True))

    def deep(depth: int = 20) -> Any:
        model: Any = torch.nn.Linear(4, 4)
        for _ in range(depth):
            model = torch.nn.Sequential(torch.nn.Linear(4, 4), model)
            model.scale = torch.nn.Parameter(torch.ones(1))
        return model

    models = {
        "ResNet-50": torchvision.models.resnet50,
        "ViT-B/16": torchvision.models.vit_b_16,
        "Llama 7B, tied, meta": llama,
        "20 levels deep": deep,
    }
    for name, make in models.items():
        model = make()
        calls = {
            "loop by hand": lambda model=model: by_hand(model),
            OURS: lambda model=model: ours(model),
            "unifreeze.summary, printed": lambda model=model: printed(model),
            "torchinfo, without a run": lambda model=model: torchinfo.summary(model, verbose=0, depth=100).total_params,
        }
        if name == "ResNet-50":
            calls["unifreeze.summary with output shapes"] = lambda model=model: summary(model, input_shape=(1, 3, 224, 224)).totals.parameters
            calls["torchinfo with output shapes (runs the model)"] = lambda model=model: (
                torchinfo.summary(model, (1, 3, 224, 224), verbose=0, depth=100).total_params
            )
        yield Case(f"PyTorch: {name}", sum(p.numel() for p in model.parameters()), calls)


def linen_cases() -> Iterator[Case]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from clu import parameter_overview
    from jax_scale import WORDS, Llama

    model = Llama()
    shapes = jax.eval_shape(model.init, jax.random.key(0), WORDS)

    def by_hand() -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    def tabulate() -> None:
        nn.tabulate(model, jax.random.key(0), depth=4, console_kwargs={"force_terminal": False, "width": 200})(jnp.zeros((1, 8), jnp.int32))

    calls: dict[str, Callable[[], int | None]] = {
        "loop by hand": by_hand,
        OURS: lambda: ours(shapes),
        "unifreeze.summary, printed": lambda: printed(shapes),
        "clu, printed": lambda: parameter_overview.get_parameter_overview(shapes, include_stats=False) and None,
        "unifreeze.summary with output shapes, printed": lambda: str(summary(shapes, call=model, inputs=WORDS)) and None,
        "linen's tabulate, printed": tabulate,
    }
    yield Case("linen: Llama 7B, abstract", by_hand(), calls)


def keras_cases() -> Iterator[Case]:
    import keras

    model = keras.applications.EfficientNetB0(weights=None)

    def by_hand() -> int:
        trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
        return trainable + sum(math.prod(variable.shape) for layer in model.layers if not layer.trainable for variable in layer.weights)

    def theirs() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            model.summary(print_fn=lambda *_args, **_kwargs: None)

    calls: dict[str, Callable[[], int | None]] = {
        "loop by hand": by_hand,
        OURS: lambda: ours(model),
        "unifreeze.summary, printed": lambda: printed(model),
        "Keras's summary, printed": theirs,
    }
    yield Case("Keras: EfficientNet-B0", by_hand(), calls)


def nnx_cases() -> Iterator[Case]:
    import jax
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.norm, self.up, self.down = nnx.LayerNorm(64, rngs=rngs), nnx.Linear(64, 256, rngs=rngs), nnx.Linear(256, 64, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return x + self.down(jax.nn.gelu(self.up(self.norm(x))))

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.blocks, self.head = nnx.List([Block(rngs) for _ in range(12)]), nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model, x = Net(nnx.Rngs(0)), jax.ShapeDtypeStruct((2, 64), "float32")

    def by_hand() -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    calls: dict[str, Callable[[], int | None]] = {
        "loop by hand": by_hand,
        OURS: lambda: ours(model),
        "unifreeze.summary, printed": lambda: printed(model),
        "unifreeze.summary with output shapes, printed": lambda: str(summary(model, inputs=x)) and None,
        # Last: it leaves the classes of the modules patched.
        "nnx's tabulate, printed": lambda: nnx.tabulate(model, jax.numpy.zeros(x.shape), depth=3) and None,
    }
    yield Case("nnx: 12 blocks", by_hand(), calls)


ROOMS: dict[str, Callable[[], Iterable[Case]]] = {"torch": torch_cases, "linen": linen_cases, "keras": keras_cases, "nnx": nnx_cases}


def machine() -> str:
    packages = ("torch", "torchinfo", "jax", "flax", "clu", "keras")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores, {platform.machine()}, {platform.system()}."


def main() -> None:
    print(f"{machine()}\n")
    print("| model | read by | time | times ours | its count |\n|---|---|--:|--:|---|")
    for room in ROOMS:
        done = subprocess.run([sys.executable, __file__, room], check=True, stdout=subprocess.PIPE, text=True)
        for line in json.loads(done.stdout.splitlines()[-1]):
            print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    if len(sys.argv) > 1:
        print(json.dumps([line for case in ROOMS[sys.argv[1]]() for line in rows(case)]))
    else:
        main()
