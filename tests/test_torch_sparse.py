"""Sparse parameters and buffers, as graph networks hold their adjacency: they are read, counted by what is stored, frozen and proven like others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from unifreeze import apply, audit, freeze, guard, record, summary, unfreeze
from unifreeze.errors import BackendError, FrozenMovedError

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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lies_beside_a_sparse_tensor_in_memory_is_no_part_of_it(layout: str) -> None:
    made, memory = LAYOUTS[layout](torch.eye(8)), torch.ones(2 * 64)
    values = memory[: stored(made).numel()].view_as(stored(made))
    if layout == "coo":
        matrix = torch.sparse_coo_tensor(made._indices(), values, made.shape)
    else:
        rows = (made.crow_indices(), made.col_indices()) if layout in {"csr", "bsr"} else (made.ccol_indices(), made.row_indices())
        matrix = torch.sparse_compressed_tensor(*rows, values, made.shape, layout=made.layout)
    model = nn.Module()
    model.register_buffer("adjacency", matrix)
    model.layer = nn.Linear(2, 2)
    freezing = freeze(model)
    memory[-1] = 7
    freezing.verify()
    memory[0] = 7
    with pytest.raises(FrozenMovedError, match="adjacency"):
        freezing.verify()


def test_the_same_numbers_in_another_layout_are_another_matrix() -> None:
    matrix = torch.eye(8)
    matrix[0, 1] = 2
    model = nn.Module()
    model.register_buffer("adjacency", matrix.to_sparse_csr())
    model.layer = nn.Linear(2, 2)
    freezing = freeze(model)
    rows = model.adjacency
    model.adjacency = torch.sparse_csc_tensor(rows.crow_indices(), rows.col_indices(), rows.values(), rows.shape)  # transposed, of the same parts
    with pytest.raises(FrozenMovedError, match="adjacency"):
        freezing.verify()


ODD: dict[str, Callable[[], torch.Tensor]] = {
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged),
    "mkldnn": lambda: torch.ones(6, 3).to_mkldnn(),
    "half a byte": lambda: torch.ones(18, dtype=torch.uint8).view(torch.uint4),
    "half complex": lambda: torch.ones(18, dtype=torch.complex32),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning", "ignore:The PyTorch API of nested:UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_numpy_can_not_show_are_frozen_and_proven(kind: str) -> None:
    model = nn.Module()
    model.register_buffer("table", ODD[kind]())
    model.layer = nn.Linear(3, 2)
    freezing = freeze(model).remember(exact=True)
    assert "Buffers: 18 " in str(summary(model))
    assert freezing.digest() == freeze(model).digest()
    assert apply(model, record(model, values=True).to_json()).frozen == freezing.frozen
    if kind == "jagged":
        model.table._get_max_seqlen()  # noted at the first use; no value has moved
    freezing.verify()
    with guard(model, exact=True):
        pass
    if kind == "jagged":
        assert summary(model).to_dict()["totals"]["bytes_buffers"] == 18 * 4 + 3 * 8
        model.table.values()[0] += 1
    else:
        model.table = ODD[kind]()[:5] if kind != "mkldnn" else torch.zeros(6, 3).to_mkldnn()
    with pytest.raises(FrozenMovedError, match="table"):
        freezing.verify()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested:UserWarning")
def test_a_nested_tensor_without_a_shape_is_refused_in_plain_words() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].register_buffer("table", torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]))
    with pytest.raises(BackendError, match=r"Module at '1' has nested tensors(.|\n)*table(.|\n)*layout=torch\.jagged"):
        freeze(model, layers="0")
