"""SIGNConv and the L0 edge predictor among PyTorch Geometric's own layers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import ChebConv, GCNConv, GINConv, MessagePassing, Sequential, global_mean_pool

from l0sign_cuda import L0SIGNLayer
from l0sign_cuda.integrations.pyg import L0EdgePredictor, SIGNConv

SIZES = (4, 1, 6, 3)
FEATURES = 20


def make_batch(dtype: torch.dtype = torch.float64, columns: int = 5) -> Any:
    """Graphs of random edges, as PyG's loader joins them."""
    graphs = []
    for n in SIZES:
        edges = torch.randint(n, (2, 3 * n))
        graphs.append(
            Data(
                x=torch.randn(n, columns, dtype=dtype),
                edge_index=edges,
                edge_weight=torch.rand(edges.shape[1], dtype=dtype) + 0.1,
                ids=torch.randint(FEATURES, (n,)),
                y=torch.randn(1, dtype=dtype),
            )
        )
    return next(iter(DataLoader(graphs, batch_size=len(graphs))))


class ByMessages(MessagePassing):
    """SIGNConv as PyG would do it: one message a edge, in memory."""

    def __init__(self, network: nn.Module, aggr: str) -> None:
        super().__init__(aggr)
        self.network = network

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x, weight=weight)

    def message(self, x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        return weight[:, None] * self.network(x_i * x_j)


# -------------------- SIGNConv


@pytest.mark.parametrize("aggr", ["mean", "neighbor_mean", "sum"])
@pytest.mark.parametrize("channels", [(5, 5), (5, 2), (5, 9)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_sign_conv_is_its_messages(
    weighted: bool, channels: tuple[int, int], aggr: str, backend: str
) -> None:
    batch = make_batch()
    conv = SIGNConv(*channels, 7, aggr, backend=backend).double()
    x = batch.x.requires_grad_()
    weight = batch.edge_weight.requires_grad_() if weighted else None
    out = conv(x, batch.edge_index, weight, batch.batch)
    assert out.shape == (sum(SIZES), channels[1])
    known = weight if weighted else torch.ones(batch.edge_index.shape[1], dtype=torch.float64)
    expected = ByMessages(conv.message, "mean" if aggr == "neighbor_mean" else "add")(
        x, batch.edge_index, known
    )
    if aggr == "mean":
        expected = expected / torch.tensor(SIZES)[batch.batch, None]
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    inputs = [x, *conv.parameters(), *([weight] if weighted else [])]
    incoming = torch.randn_like(out)
    for got, wanted in zip(
        torch.autograd.grad(out, inputs, incoming),
        torch.autograd.grad(expected, inputs, incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_sign_conv_knows_its_derivatives() -> None:
    batch, conv = make_batch(columns=2), SIGNConv(2, 3, 4).double()
    x, weight = batch.x.requires_grad_(), batch.edge_weight.requires_grad_()
    torch.autograd.gradcheck(lambda x, w: conv(x, batch.edge_index, w, batch.batch), (x, weight))


def test_without_batch_there_is_one_graph() -> None:
    batch, conv = make_batch(), SIGNConv(5, 5).double()
    alone = conv(batch.x, batch.edge_index)
    torch.testing.assert_close(alone, conv(batch.x, batch.edge_index, batch=torch.zeros_like(batch.batch)))
    sizes = torch.tensor(SIZES)[batch.batch, None]
    torch.testing.assert_close(alone * sum(SIZES) / sizes, conv(batch.x, batch.edge_index, batch=batch.batch))
    # Graphs without nodes, in the middle and at the end.
    spread = torch.tensor([0, 2, 3, 5])[batch.batch]
    torch.testing.assert_close(
        conv(batch.x, batch.edge_index, batch=spread, batch_size=7),
        conv(batch.x, batch.edge_index, batch=batch.batch),
    )


def test_sign_conv_in_a_sequential_of_pyg() -> None:
    batch = make_batch(torch.float32)
    model = Sequential(
        "x, edge_index, edge_weight, batch",
        [
            (SIGNConv(5, 8), "x, edge_index, edge_weight, batch -> x"),
            nn.ReLU(),
            (SIGNConv(8, 3), "x, edge_index, edge_weight, batch -> x"),
            (global_mean_pool, "x, batch -> x"),
        ],
    )
    out = model(batch.x, batch.edge_index, batch.edge_weight, batch.batch)
    assert out.shape == (4, 3)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "SIGNConv(5, 8, aggr='mean')" in repr(model)


# -------------------- the edge predictor


def paired(**options: Any) -> tuple[L0SIGNLayer, L0EdgePredictor, SIGNConv]:
    """An L0-SIGN layer, and predictor and convolution with its weights."""
    layer = L0SIGNLayer(5, 7, 3, 6, **options).double()
    predictor, conv = L0EdgePredictor(3, 6).double(), SIGNConv(5, 5, 7, layer.aggr).double()
    predictor.edge.load_state_dict(layer.edge.state_dict())
    conv.message.load_state_dict(layer.message.state_dict())
    return layer, predictor, conv


@pytest.mark.parametrize("aggr", ["mean", "neighbor_mean", "sum"])
@pytest.mark.parametrize("training", [False, True])
def test_predictor_and_sign_conv_are_the_l0_sign_layer(training: bool, aggr: str) -> None:
    layer, predictor, conv = paired(aggr=aggr)
    for module in (layer, predictor):
        module.train(training)
    batch, e = make_batch(), (3 * torch.randn(sum(SIZES), 3, dtype=torch.float64)).requires_grad_()
    offsets = torch.tensor([0, *torch.tensor(SIZES).cumsum(0)])
    expected = layer(batch.x, e, offsets, seed=5)
    edges = predictor(e, batch.batch, seed=5)
    assert torch.equal(edges.num_edges, expected.num_edges)
    if training:
        assert 0 < int(edges.num_edges.sum()) < sum(n * (n + 1) // 2 for n in SIZES)
    torch.testing.assert_close(edges.l0_penalty, expected.l0_penalty, rtol=1e-12, atol=0)
    out = conv(batch.x, edges.edge_index, edges.edge_weight, batch.batch)
    torch.testing.assert_close(out, expected.nodes, rtol=1e-9, atol=1e-12)
    incoming = torch.randn_like(out)
    got = torch.autograd.grad(
        (out * incoming).sum() + edges.l0_penalty.sum(), [e, *predictor.edge.parameters()]
    )
    wanted = torch.autograd.grad(
        (expected.nodes * incoming).sum() + expected.l0_penalty.sum(), [e, *layer.edge.parameters()]
    )
    for first, second in zip(got, wanted, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("self_loops", [False, True])
def test_edges_go_both_ways_within_a_graph(self_loops: bool) -> None:
    batch = make_batch()
    predictor = L0EdgePredictor(4, num_embeddings=FEATURES, self_loops=self_loops).eval()
    edges = predictor(batch.ids, batch.batch)
    source, target = edges.edge_index
    assert torch.equal(batch.batch[source], batch.batch[target])
    weights = {
        (i, j): w for i, j, w in zip(*edges.edge_index.tolist(), edges.edge_weight.tolist(), strict=True)
    }
    assert len(weights) == len(source)
    assert all(weights[j, i] == weight for (i, j), weight in weights.items())
    assert any(i == j for i, j in weights) == self_loops
    # Gates start open.
    pairs = [n * (n + 1) // 2 if self_loops else n * (n - 1) // 2 for n in SIZES]
    assert edges.num_edges.tolist() == pairs and (edges.edge_weight > 0).all()
    penalty = edges.l0_penalty.tolist()
    assert all(0.5 * count <= value <= count for count, value in zip(pairs, penalty, strict=True))


def gin(channels: int) -> GINConv:
    return GINConv(nn.Sequential(nn.Linear(channels, 6), nn.ReLU(), nn.Linear(6, 4)))


@pytest.mark.parametrize("kind", ["gcn", "cheb", "gin", "sign"])
def test_gradients_flow_through_pygs_convolutions(kind: str) -> None:
    batch, predictor = make_batch(torch.float32), L0EdgePredictor(4, num_embeddings=FEATURES)
    edges = predictor(batch.ids, batch.batch, seed=3)
    if kind == "gcn":
        conv = GCNConv(5, 4, add_self_loops=False)
        out = conv(batch.x, edges.edge_index, edges.edge_weight)
    elif kind == "cheb":
        conv = ChebConv(5, 4, K=2)
        out = conv(batch.x, edges.edge_index, edges.edge_weight, batch.batch)
    elif kind == "gin":
        conv = gin(5)
        out = conv(batch.x, edges.adjacency())
    else:
        conv = SIGNConv(5, 4)
        out = conv(batch.x, edges.edge_index, edges.edge_weight, batch.batch)
    loss = (global_mean_pool(out, batch.batch).mean(1) - batch.y).square().mean()
    loss.backward()
    for name, parameter in [*predictor.named_parameters(), *conv.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gin_adds_up_gated_neighbours() -> None:
    batch, predictor = make_batch(torch.float32), L0EdgePredictor(4, num_embeddings=FEATURES)
    edges = predictor(batch.ids, batch.batch, seed=3)
    source, target = edges.edge_index
    matrix = torch.zeros(sum(SIZES), sum(SIZES)).index_put((target, source), edges.edge_weight)
    conv = gin(5)
    out = conv(batch.x, edges.adjacency())
    torch.testing.assert_close(out, conv.nn((1 + conv.eps) * batch.x + matrix @ batch.x))


def test_the_documented_path_warns_of_nothing() -> None:
    """In a process of its own: torch says once a process that CSR is in beta state."""
    program = (
        "import torch, warnings; from torch_geometric.nn import GINConv;"
        "from l0sign_cuda.integrations.pyg import L0EdgePredictor; warnings.simplefilter('error');"
        "edges = L0EdgePredictor(4)(torch.ones(3, 4));"
        "GINConv(torch.nn.Linear(5, 2))(torch.ones(3, 5), edges.adjacency()).sum().backward()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_gate_that_is_nan_shows() -> None:
    predictor = L0EdgePredictor(4, num_embeddings=FEATURES).eval()
    with torch.no_grad():
        predictor.embedding.weight[3] = torch.nan
    edges = predictor(torch.tensor([3, 1, 2]))
    told = [tuple(edge) for edge in edges.edge_index[:, edges.edge_weight.isnan()].T.tolist()]
    assert sorted(told) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert edges.num_edges.tolist() == [6] and edges.l0_penalty.isnan().all()


def test_closed_edges_leave_isolated_nodes_and_no_nan() -> None:
    batch, predictor = make_batch(torch.float32), L0EdgePredictor(4, num_embeddings=FEATURES)
    with torch.no_grad():
        predictor.edge.out.bias.fill_(-100)
    edges = predictor(batch.ids, batch.batch)
    assert edges.edge_index.shape == (2, 0) and edges.num_edges.tolist() == [0] * 4
    conv = GCNConv(5, 4, add_self_loops=False)
    out = conv(batch.x, edges.edge_index, edges.edge_weight)
    (out.square().sum() + edges.l0_penalty.sum()).backward()
    assert out.abs().max() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in predictor.parameters())


def test_the_penalty_alone_closes_the_edges() -> None:
    batch, predictor = make_batch(), L0EdgePredictor(4, num_embeddings=FEATURES)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.1)
    before = int(predictor.eval()(batch.ids, batch.batch).num_edges.sum())
    predictor.train()
    for _ in range(60):
        optimizer.zero_grad()
        predictor(batch.ids, batch.batch).l0_penalty.mean().backward()
        optimizer.step()
    assert before > 0 and int(predictor.eval()(batch.ids, batch.batch).num_edges.sum()) == 0


def test_draws_follow_torchs_seed_and_evaluation_does_not() -> None:
    batch, predictor = make_batch(), L0EdgePredictor(4, num_embeddings=FEATURES)

    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return predictor(batch.ids, batch.batch).edge_weight

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
    predictor.eval()
    assert torch.equal(weights(1), weights(2))


def test_nothing_at_all() -> None:
    nothing, none = torch.zeros(0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)
    predictor, conv = L0EdgePredictor(4, num_embeddings=FEATURES), SIGNConv(5, 3)
    edges = predictor(nothing, nothing)
    assert edges.edge_index.shape == (2, 0) and edges.l0_penalty.shape == (0,)
    assert conv(torch.zeros(0, 5), none, batch=nothing).shape == (0, 3)
    assert predictor(nothing, nothing, batch_size=2).l0_penalty.tolist() == [0, 0]


def test_what_does_not_fit_is_refused_by_name() -> None:
    x, edges, batch = torch.zeros(3, 5), torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0, 0, 1])
    conv, by_id, by_row = SIGNConv(5, 3), L0EdgePredictor(4, num_embeddings=FEATURES), L0EdgePredictor(4)
    for error, message, call in (
        (ValueError, r"x: expected shape \[N, 5\], got shape \[3, 4\]", lambda: conv(x[:, :4], edges)),
        (TypeError, "edge_index: expected a tensor", lambda: conv(x, None)),
        (TypeError, "x: expected a tensor, got tuple", lambda: conv((x, x), edges)),
        (
            ValueError,
            "edges within one graph",
            lambda: conv(x, edges + torch.tensor([[0], [2]]), batch=batch),
        ),
        (ValueError, "batch: expected numbers that never fall", lambda: conv(x, edges, batch=batch.flip(0))),
        (ValueError, r"batch: expected int64 \[3\]", lambda: conv(x, edges, batch=batch[:2])),
        (IndexError, "batch_size = 1", lambda: conv(x, edges, batch=batch, batch_size=1)),
        (ValueError, "batch_size: expected None or 1 without batch", lambda: conv(x, edges, batch_size=2)),
        (ValueError, "batch_size: expected an integer", lambda: conv(x, edges, batch=batch, batch_size=2.0)),
        (ValueError, "batch_size: expected an integer", lambda: conv(x, edges, batch_size=True)),
        (ValueError, "batch_size: expected .* got -1", lambda: conv(x, edges, batch=batch, batch_size=-1)),
        (TypeError, "seed: expected", lambda: by_row.eval()(x[:, :4], seed="x")),
        (ValueError, "x: expected int64 ids", lambda: by_id(x)),
        (IndexError, r"x: expected values in 0\.\.19", lambda: by_id(batch + 19)),
        (ValueError, r"x: expected shape \[N, 4\]", lambda: by_row(x)),
        (ValueError, "aggr: expected one of", lambda: SIGNConv(5, 3, aggr="add")),
        (ValueError, "out_channels: expected an integer", lambda: SIGNConv(5, 0)),
        (ValueError, "limits: expected", lambda: L0EdgePredictor(4, limits=(0, 1))),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_compiler_need_not_know_the_number_of_graphs() -> None:
    conv, edges = SIGNConv(5, 3), torch.zeros(2, 1, dtype=torch.int64)
    compiled = torch.compile(conv, backend="eager", dynamic=True, fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for n in (2, 3, 4, 5):
        x, batch = torch.randn(n, 5), torch.arange(n)
        torch.testing.assert_close(
            compiled(x, edges, batch=batch, batch_size=n), conv(x, edges, batch=batch, batch_size=n)
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
