"""Summaries of models that nobody here could hold: ``python benchmarks/summary_scale.py torch`` and ``… jax``, each in a process of its own.

Llama of 7, 70 and 405 billion parameters, after the sizes in Touvron et al. (2023) and Dubey et al. (2024): transformers' on the meta device, and a linen
twin under ``jax.eval_shape``. Then 100,000 layers, for how the cost grows. Seconds of processor time; memory is what the process grew by at its peak after
the frameworks were imported, the model itself among it. Every count is checked against a plain sum.
"""

from __future__ import annotations

import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from unifreeze import summary

SIZES: dict[str, dict[str, int]] = {
    "7B": {"layers": 32, "width": 4096, "inner": 11008, "words": 32000, "heads": 32, "groups": 32},
    "70B": {"layers": 80, "width": 8192, "inner": 28672, "words": 32000, "heads": 64, "groups": 8},
    "405B": {"layers": 126, "width": 16384, "inner": 53248, "words": 128256, "heads": 128, "groups": 8},
}
LENGTHS = (1_000, 10_000, 100_000)


def torch_models() -> Iterable[tuple[str, Callable[[], Any], dict[str, Any]]]:
    import torch

    import torchvision_cpu  # noqa: F401

    # isort: split
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(size: dict[str, int]) -> Any:
        names = {"layers": "num_hidden_layers", "width": "hidden_size", "inner": "intermediate_size", "words": "vocab_size"}
        names |= {"heads": "num_attention_heads", "groups": "num_key_value_heads"}
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig(**{names[key]: value for key, value in size.items()}))

    def chain(length: int) -> Any:
        with torch.device("meta"):
            return torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(length)))

    yield from ((f"Llama {name}, transformers, meta", partial(make, size), {"input_shape": (1, 2048)}) for name, size in SIZES.items())
    yield from ((f"{length:,} layers", partial(chain, length), {}) for length in LENGTHS)


def jax_models() -> Iterable[tuple[str, Callable[[], Any], dict[str, Any]]]:
    import jax
    import jax.numpy as jnp
    from jax_scale import Llama

    def module(size: dict[str, int]) -> Any:
        return Llama(depth=size["layers"], **{key: value for key, value in size.items() if key != "layers"})

    def make(size: dict[str, int]) -> Any:
        return jax.eval_shape(module(size).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))

    def chain(length: int) -> Any:
        return {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((4,), jnp.float32)} for i in range(length)}

    for name, size in SIZES.items():
        yield f"Llama {name}, linen, eval_shape", partial(make, size), {"call": module(size), "inputs": jax.ShapeDtypeStruct((1, 2048), jnp.int32)}
    yield from ((f"{length:,} layers", partial(chain, length), {}) for length in LENGTHS)


def count(model: Any) -> int:
    if hasattr(model, "parameters"):
        return sum({id(p): p.numel() for p in model.parameters()}.values())
    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(which: str) -> None:
    models = {"torch": torch_models, "jax": jax_models}[which]()
    print("| model | parameters | layers | summary | as text, collapsed | with output shapes | page | memory |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    costs: dict[int, float] = {}
    start = 0.0
    for name, make, inputs in models:
        start = start or peak()
        model = make()
        seconds, found = min((timed(lambda model=model: summary(model)) for _ in range(3)), key=lambda pair: pair[0])
        assert found.totals.parameters == count(model)
        text, _ = timed(lambda model=model: str(summary(model, collapse=True)))
        shapes = f"{timed(lambda model=model, inputs=inputs: summary(model, **inputs))[0]:.1f} s" if inputs else "–"
        page, made = timed(found.to_html)
        cells = [name, f"{found.totals.parameters:,}", f"{found.layers:,}", f"{seconds:.3f} s", f"{text:.2f} s", shapes]
        print("| " + " | ".join([*cells, f"{page:.2f} s, {len(made) / 1e6:.1f} MB", f"{peak() - start:.0f} MB"]) + " |", flush=True)
        if not inputs:
            costs[found.layers - 1] = seconds
    (short, fast), *_, (long, slow) = costs.items()
    print(f"\nFrom {short:,} to {long:,} layers, cost grows as layers to the power of {math.log(slow / fast) / math.log(long / short):.2f}.")


if __name__ == "__main__":
    main(sys.argv[1])
