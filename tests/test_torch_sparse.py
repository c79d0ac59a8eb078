"""Sparse parameters and buffers, as graph networks hold their adjacency: they are read, counted by what is stored, frozen and proven like others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from unifreeze import apply, audit, freeze, guard, record, summary, unfreeze
from unifreeze.errors import FrozenMovedError

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
    "bsr": lambda dense: dense.to_sparse_bsr((2, 2)),
    "bsc": lambda dense: dense.to_sparse_bsc((2, 2)),
}
STORED = {"coo": 2 * 8 * 8 + 8 * 4, "csr": 9 * 8 + 8 * 8 + 8 * 4, "csc": 9 * 8 + 8 * 8 + 8 * 4, "bsr": 5 * 8 + 4 * 8 + 16 * 4, "bsc": 5 * 8 + 4 * 8 + 16 * 4}

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")


class Graph(nn.Module):
    """A layer on a graph: what arrives at a node is mixed by a sparse matrix, which is learned or given."""

    def __init__(self, layout: str, *, learned: bool) -> None:
        super().__init__()
        matrix = LAYOUTS[layout](torch.eye(8))
        self.mixed = nn.Parameter(matrix) if learned else None
        self.register_buffer("adjacency", None if learned else matrix)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        matrix = self.adjacency if self.mixed is None else self.mixed
        matrix = matrix.to_dense() if matrix.layout is torch.sparse_bsc else matrix  # which PyTorch can't multiply by on a CPU
        return self.head(self.norm(matrix @ nodes))


def train(model: Graph) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()


def stored(matrix: torch.Tensor) -> torch.Tensor:
    return (matrix._values() if matrix.layout is torch.sparse_coo else matrix.values()).detach()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_parameter_is_frozen_and_proven(layout: str) -> None:
    model = Graph(layout, learned=True)
    before = stored(model.mixed).clone()
    freezing = freeze(model, params="mixed")
    assert freezing.frozen == ("mixed",)
    assert not model.mixed.requires_grad
    assert summary(model).to_dict()["totals"]["bytes_frozen"] == STORED[layout]
    assert apply(Graph(layout, learned=True), record(model, values=True).to_json()).frozen == freezing.frozen
    with guard(model):
        train(model)
    assert torch.equal(stored(model.mixed), before)
    freezing.verify()
    stored(model.mixed)[0] *= 2
    with pytest.raises(FrozenMovedError, match="mixed"):
        freezing.verify()
    assert unfreeze(model, params="mixed").trainable[0] == "mixed"
    assert model.mixed.requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_buffer_is_part_of_what_is_promised(layout: str) -> None:
    model = Graph(layout, learned=False)
    freezing = freeze(model, layers="norm", inference="all")
    assert summary(model).to_dict()["totals"]["bytes_buffers"] == STORED[layout] + 2 * 12 + 8
    before, head = stored(model.adjacency).clone(), model.head.weight.detach().clone()
    train(model)
    assert torch.equal(stored(model.adjacency), before)
    assert not torch.equal(model.head.weight, head)
    freezing.verify()
    whole = freeze(model)
    stored(model.adjacency)[0] *= 2
    with pytest.raises(FrozenMovedError, match="adjacency"):
        whole.verify()
    assert audit(model).ok
