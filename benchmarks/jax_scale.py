"""Freezing and summarising models that nobody here could hold, beside clu and linen's tabulate: ``python benchmarks/jax_scale.py``.

The models are shapes (``jax.eval_shape``). linen models of 7 and 405 billion parameters are read by all three, a plain tree of 100,000 arrays by those that
read trees. linen's table traces the model to count it; neither clu nor linen knows what is frozen. Every figure is measured in this run, in seconds of
processor time, the best of the turns; the memory is what the process grew by at its peak. How fast the machine is just then, its first line says. Needs
``clu`` beside flax.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from clu import parameter_overview

from unifreeze import freeze, summary

WORDS = jax.ShapeDtypeStruct((1, 8), jnp.int32)


class Attention(nn.Module):
    width: int
    heads: int
    groups: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        size = self.width // self.heads
        q = nn.Dense(self.width, use_bias=False, name="q_proj")(x)
        k, v = (nn.Dense(self.groups * size, use_bias=False, name=name)(x) for name in ("k_proj", "v_proj"))
        k, v = (jnp.repeat(one, self.heads // self.groups, -1) for one in (k, v))
        return nn.Dense(self.width, use_bias=False, name="o_proj")(jax.nn.softmax(q * k) * v)


class Block(nn.Module):
    width: int
    inner: int
    heads: int
    groups: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = x + Attention(self.width, self.heads, self.groups, name="self_attn")(nn.RMSNorm(name="input_layernorm")(x))
        y = nn.RMSNorm(name="post_attention_layernorm")(x)
        gate, up = (nn.Dense(self.inner, use_bias=False, name=name)(y) for name in ("gate_proj", "up_proj"))
        return x + nn.Dense(self.width, use_bias=False, name="down_proj")(nn.silu(gate) * up)


class Llama(nn.Module):
    """The layers of a Llama. The attention is a stand-in: only its parameters count here."""

    depth: int = 32
    width: int = 4096
    inner: int = 11008
    words: int = 32000
    heads: int = 32
    groups: int = 32

    @nn.compact
    def __call__(self, words: Any) -> Any:
        x = nn.Embed(self.words, self.width, name="embed_tokens")(words)
        for i in range(self.depth):
            x = Block(self.width, self.inner, self.heads, self.groups, name=f"layers_{i}")(x)
        return nn.Dense(self.words, use_bias=False, name="lm_head")(nn.RMSNorm(name="norm")(x))


def wide(arrays: int = 100_000) -> Any:
    """So many arrays, in layers of two."""

    def shape(*axes: int) -> Any:
        return jax.ShapeDtypeStruct(axes, jnp.float32)

    return {f"layer_{i}": {"kernel": shape(4, 4), "bias": shape(4)} for i in range(arrays // 2)}


def best(call: Callable[[], Any], turns: int = 5) -> float:
    taken = []
    for _ in range(turns):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def ours(tree: Any, layers: str) -> tuple[int, int]:
    totals = summary(freeze(tree, layers=layers)).totals
    return totals.parameters, totals.frozen


def row(name: str, tree: Any, layers: str, others: dict[str, str]) -> None:
    before = peak()
    one, both, alone = best(lambda: freeze(tree, layers=layers)), best(lambda: ours(tree, layers)), best(lambda: str(summary(tree)), 1)
    total, frozen = ours(tree, layers)
    assert total == count(tree)
    assert 0 < frozen < total
    cells = [name, f"{total:,}", f"{len(jax.tree.leaves(tree)):,}", f"{one:.2f}", f"{both:.2f}", f"{alone:.2f}", *others.values(), f"{peak() - before:.0f} MB"]
    print("| " + " | ".join(cells) + " |", flush=True)


def counted() -> int:
    """A yardstick: what plain Python takes to count to ten million."""
    total = 0
    for i in range(10_000_000):
        total += i
    return total


def linen(name: str, model: Llama, layers: str) -> None:
    shapes = jax.eval_shape(model.init, jax.random.key(0), WORDS)
    clu = best(lambda: parameter_overview.get_parameter_overview(shapes, include_stats=False))
    table = best(lambda: nn.tabulate(model, jax.random.key(0), depth=3, console_kwargs={"force_terminal": False, "width": 200})(WORDS), 1)
    row(name, shapes, layers, {"clu": f"{clu:.2f}", "linen": f"{table:.2f}"})


def main() -> None:
    logging.disable(logging.WARNING)
    print(f"JAX {jax.__version__}; ten million additions in Python take {best(counted, 3):.2f} s here\n")
    print("| model | parameters | arrays | freeze | freeze + summary | the table as text | clu, as text | linen's tabulate | memory grew by |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    linen("linen, 7 billion", Llama(), "layers_[0-9]")
    linen("linen, 405 billion", Llama(126, 16384, 53248, 128256, 128, 8), "layers_1??")
    shapes = wide()
    clu = best(lambda: parameter_overview.get_parameter_overview(shapes, include_stats=False), 1)
    row("plain, 100,000 arrays", shapes, "layer_1*", {"clu": f"{clu:.2f}", "linen": "–"})


if __name__ == "__main__":
    main()
