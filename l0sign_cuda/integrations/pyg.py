"""SIGN and the L0 edge predictor in PyTorch Geometric's conventions.

Graphs are given as PyG's loaders give them: node rows [N, ...] of all graphs, ``edge_index`` int64 [2, E]
(source, target), and ``batch`` int64 [N], the graph of each node, never falling; None is one graph. The
modules stand between PyG's own; they need no PyG themselves (the extra ``pyg`` installs it).

>>> predictor, conv = L0EdgePredictor(8, num_embeddings=5000), GCNConv(16, 16, add_self_loops=False)
>>> edges = predictor(data.ids, data.batch)
>>> x = conv(x, edges.edge_index, edges.edge_weight)
>>> loss = task_loss + l0_weight * edges.l0_penalty.mean()
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks, functional
from ..layers import PairNetwork
from ..reference import Network, node_graphs
from ..rows import accumulated

__all__ = ["L0EdgePredictor", "PredictedEdges", "SIGNConv"]


class SIGNConv(nn.Module):
    """Pairwise interactions over given edges (SIGN, Eq. 4): x'_i = c_i sum_j w_ji MLP(x_i * x_j).

    The perceptron in -> hidden -> out sees the element-wise product of an edge's two nodes. It runs in the
    library's fused operator; where in_channels and out_channels differ, rows and weights are filled with
    zeros to the larger of both.

    Args:
        in_channels: columns of x.
        out_channels: columns of the result.
        hidden_channels: hidden units of the perceptron.
        aggr: c_i: "mean" is 1/n with the n nodes of the graph, as in the paper: pass ``batch`` with several
            graphs, which without it are one graph of all N nodes, and divided by N. "neighbor_mean" is one
            over the edges into i of positive weight, PyG's "mean"; "sum" 1, PyG's "add".
        backend: None, "auto", "fused" or "reference"; see :mod:`l0sign_cuda.functional`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 32,
        aggr: str = "mean",
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.hidden_channels = _checks.positive(
            in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels
        )
        _checks.aggregation(aggr)
        _checks.backend(backend)
        self.aggr = aggr
        self.backend = backend
        self.message = PairNetwork(self.in_channels, self.hidden_channels, self.out_channels)

    def reset_parameters(self) -> None:
        """Torch's defaults."""
        self.message.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: [N, in_channels].
            edge_index: int64 [2, E], (source, target); an edge stays within one graph.
            edge_weight: [E], differentiable; None: 1.
            batch: int64 [N], never falling; None: one graph. Nothing in edge_index tells that there are
                several: with aggr="mean" a batch of them without it is divided by N, not by their sizes.
            batch_size: the number of graphs; None: the last number in batch and one, which waits for a GPU.

        Returns:
            [N, out_channels].

        Raises:
            ValueError, IndexError, TypeError: as :func:`l0sign_cuda.functional.sign`, and for batch.
        """
        _checks.tensor("x", x)
        if x.dim() != 2 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected shape [N, {self.in_channels}], got shape {list(x.shape)}")
        _checks.tensor("edge_index", edge_index)
        width = max(self.in_channels, self.out_channels)
        out = functional.sign(
            F.pad(x, (0, width - self.in_channels)),
            self._square(width),
            _offsets(batch, x, batch_size),
            edge_index=edge_index,
            edge_weight=edge_weight,
            aggr=self.aggr,
            backend=self.backend,
        )
        return out[:, : self.out_channels]

    def _square(self, width: int) -> Network:
        """The perceptron as one from ``width`` columns to as many; what is added is zero."""
        hidden_weight, hidden_bias, out_weight, out_bias = self.message.weights()
        more = width - self.out_channels
        return (
            F.pad(hidden_weight, (0, width - self.in_channels)),
            hidden_bias,
            F.pad(out_weight, (0, 0, 0, more)),
            F.pad(out_bias, (0, more)),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, aggr={self.aggr!r})"


class PredictedEdges(NamedTuple):
    """The open edges of a batch of B graphs, and what they cost."""

    edge_index: Tensor
    """int64 [2, E], (source, target): a pair of different nodes both ways, a self-pair once"""
    edge_weight: Tensor
    """[E], the gates in (0, 1], differentiable"""
    l0_penalty: Tensor
    """[B], the sum over unordered pairs of the probability that their edge is open"""
    num_edges: Tensor
    """int64 [B], the number of open unordered pairs"""
    num_nodes: int
    """N"""

    def adjacency(self) -> Tensor:
        """The edges as a sparse CSR matrix [N, N], row = target, whose values are the gates, differentiable.

        For a convolution that takes no ``edge_weight``: ``GINConv(mlp)(x, edges.adjacency())`` adds up
        gate * x_j over the neighbours. With ``edge_index`` alone it would not see the gates, and the
        predictor would learn from its penalty only.
        """
        size = (self.num_nodes, self.num_nodes)
        matrix = torch.sparse_coo_tensor(
            self.edge_index.flip(0), self.edge_weight, size, check_invariants=False
        )
        with warnings.catch_warnings():
            # It says that CSR is in beta state; what is used of it here is tested.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            return matrix.coalesce().to_sparse_csr()


class L0EdgePredictor(nn.Module):
    """Predicts which pairs of a graph's nodes have an edge, with hard concrete gates (L0-SIGN's F_ep).

    A pair's logit is MLP(e_i * e_j), and its gate is drawn in training mode (from ``seed`` or else from
    torch's default generator), deterministic in evaluation mode. Edges whose gate is 0 are left out: no layer
    sees them, and their logit learns from the penalty. Put it in front of any convolution:

    - GCNConv, ChebConv and others that take one: pass ``edge_weight``. GCNConv adds self-loops of weight 1
      where there is none; ``add_self_loops=False`` leaves that to the gates. ChebConv drops self-loops.
    - GINConv takes none: pass ``edges.adjacency()`` in place of edge_index.
    - SIGNConv: pass ``edge_weight`` and ``batch``; with the same weights this is :class:`L0SIGNLayer`.

    In training with Adam give the parameters of ``.edge`` a tenth of the learning rate and no weight decay,
    as :func:`l0sign_cuda.fit` does: at the full rate the penalty closes all edges, or they open for good,
    before the other layers have learned.

    Args:
        edge_channels: b, columns of the edge embeddings e.
        hidden_channels: hidden units of the perceptron.
        num_embeddings: J, to look e up by feature id 0..J-1; None: e is given.
        self_loops: whether a node's pair with itself may have an edge, as in the paper.
        temperature: beta of the gates.
        limits: (gamma, zeta) of the gates, gamma < 0 and zeta > 1.
        backend: None, "auto", "fused" or "reference"; see :mod:`l0sign_cuda.functional`.
    """

    def __init__(
        self,
        edge_channels: int,
        hidden_channels: int = 32,
        num_embeddings: int | None = None,
        *,
        self_loops: bool = True,
        temperature: float = 2 / 3,
        limits: tuple[float, float] = (-0.1, 1.1),
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.edge_channels, self.hidden_channels = _checks.positive(
            edge_channels=edge_channels, hidden_channels=hidden_channels
        )
        if num_embeddings is not None:
            (num_embeddings,) = _checks.positive(num_embeddings=num_embeddings)
        self.temperature, *stretch = _checks.gate_options(temperature, limits)
        _checks.backend(backend)
        self.limits = (stretch[0], stretch[1])
        self.self_loops = self_loops
        self.backend = backend
        self.embedding = None if num_embeddings is None else nn.Embedding(num_embeddings, self.edge_channels)
        self.edge = PairNetwork(self.edge_channels, self.hidden_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As L0SIGN's: embeddings N(0.2, 0.01), output weights raised by 0.2, so that gates start open."""
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, 0.2, 0.01)
        self.edge.reset_parameters()
        with torch.no_grad():
            self.edge.out.weight.add_(0.2)

    def forward(
        self,
        x: Tensor,
        batch: Tensor | None = None,
        *,
        batch_size: int | None = None,
        seed: int | Tensor | None = None,
    ) -> PredictedEdges:
        """Predict the edges of each graph's complete graph.

        Args:
            x: int64 ids [N] with num_embeddings, else e, [N, edge_channels].
            batch: int64 [N], never falling; None: one graph.
            batch_size: the number of graphs; None: the last number in batch and one.
            seed: an integer or an int64 tensor of one element, for training mode.

        Returns:
            PredictedEdges. Its number of edges depends on the gates, so that a GPU is waited for.

        Raises:
            IndexError: ids out of range.
            ValueError, TypeError: anything else that does not fit, by name.
        """
        e = self._edge_nodes(x)
        offsets = _offsets(batch, x, batch_size)
        seed = _checks.seed(seed, e.device)
        if not self.training:
            seed = None
        elif seed is None:
            seed = torch.randint(2**63 - 1, (1,), device=e.device)
        pairs, gates, logits = functional.pair_gates(
            e,
            self.edge.weights(),
            offsets,
            seed=seed,
            temperature=self.temperature,
            limits=self.limits,
            backend=self.backend,
        )
        if not self.self_loops:
            apart = pairs[0] != pairs[1]
            pairs, gates, logits = pairs[:, apart], gates[apart], logits[apart]
        gamma, zeta = self.limits
        wide = accumulated(logits)
        probability = torch.sigmoid(wide - self.temperature * math.log(-gamma / zeta))  # P(gate > 0)
        graph = node_graphs(offsets, x.shape[0])[pairs[0]]
        graphs, is_open = offsets.shape[0] - 1, gates != 0  # a NaN shows
        # Over millions of pairs a sum in float32 drifts.
        l0 = torch.zeros(graphs, dtype=torch.float64, device=e.device).index_add(
            0, graph, probability.double()
        )
        num_edges = torch.zeros_like(offsets[1:]).index_add(0, graph, is_open.long())
        pairs, gates = pairs[:, is_open], gates[is_open]
        apart = pairs[0] != pairs[1]
        return PredictedEdges(
            torch.cat([pairs, pairs.flip(0)[:, apart]], 1),
            torch.cat([gates, gates[apart]]),
            l0.to(wide.dtype),
            num_edges,
            x.shape[0],
        )

    def _edge_nodes(self, x: Tensor) -> Tensor:
        _checks.tensor("x", x)
        if self.embedding is None:
            if x.dim() != 2 or x.shape[1] != self.edge_channels:
                raise ValueError(f"x: expected shape [N, {self.edge_channels}], got shape {list(x.shape)}")
            return x
        if x.dim() != 1 or x.dtype != torch.int64:
            raise ValueError(f"x: expected int64 ids [N], got {x.dtype} of shape {list(x.shape)}")
        if _checks.readable(x) and x.numel():
            _checks.in_range("x", x.numpy(), self.embedding.num_embeddings, "num_embeddings")
        return self.embedding(x)

    def extra_repr(self) -> str:
        """What print() shows beside the modules."""
        return f"self_loops={self.self_loops}, temperature={self.temperature:.4g}, limits={self.limits}"


def _offsets(batch: Tensor | None, x: Tensor, batch_size: int | None) -> Tensor:
    """Offsets int64 [B+1] of the graphs that ``batch`` [N] puts the rows of ``x`` [N, ...] into."""
    rows = x.shape[0]
    if batch_size is not None:
        (batch_size,) = _checks.not_negative(batch_size=batch_size)
    if batch is None:
        if batch_size not in (None, 1):
            raise ValueError(f"batch_size: expected None or 1 without batch, got {batch_size}")
        return torch.tensor([0, rows], device=x.device)
    _checks.tensor("batch", batch)
    if batch.dtype != torch.int64 or batch.shape != (rows,) or batch.device != x.device:
        raise ValueError(
            f"batch: expected int64 [{rows}] on {x.device}, got {batch.dtype} {list(batch.shape)} on"
            f" {batch.device}"
        )
    if batch_size is None:
        batch_size = int(batch[-1]) + 1 if rows else 0
    if _checks.readable(batch) and rows:
        if bool((batch.diff() < 0).any()):
            raise ValueError(
                "batch: expected numbers that never fall (the nodes of a graph side by side, as PyG's loaders"
                " lay them), got some that do"
            )
        _checks.in_range("batch", batch.numpy(), batch_size, "batch_size")
    return torch.searchsorted(batch, torch.arange(batch_size + 1, device=x.device))
