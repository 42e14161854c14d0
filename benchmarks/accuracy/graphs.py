"""Graph networks on given, heuristic or predicted edges: Table 3 and Fig. 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l0sign_cuda._extras import require
from l0sign_cuda.data import Batch, GraphDataset
from l0sign_cuda.integrations.pyg import L0EdgePredictor, PredictedEdges, SIGNConv

from .loop import Ints, Outcome

KINDS = ("gcn", "cheb", "gin", "sign-conv")
HIDDEN = 32


class Graphs(NamedTuple):
    """A batch as PyTorch Geometric has it."""

    ids: Tensor  # int64 [N]
    offsets: Tensor  # int64 [b + 1]
    batch: Tensor  # int64 [N], the graph of each node
    indices: Ints  # [b], where the graphs stand in the data set

    @classmethod
    def of(cls, batch: Batch, indices: Ints) -> Graphs:
        """From the library's own batch."""
        graphs = batch.num_graphs
        offsets = batch.offsets
        if offsets is None:
            offsets = torch.arange(graphs + 1) * batch.ids.shape[1]
        graph = torch.repeat_interleave(torch.arange(graphs), offsets.diff())
        return cls(batch.ids.reshape(-1), offsets, graph, indices)


class Chain(nn.Module):
    """Heuristic edges: neighbours in the order of the file, both ways; with `loops` each node with itself."""

    def __init__(self, loops: bool) -> None:
        super().__init__()
        self.loops = loops

    def forward(self, graphs: Graphs) -> Tensor:
        nodes = torch.arange(len(graphs.ids))
        first = nodes[:-1][graphs.batch[1:] == graphs.batch[:-1]]
        alone = nodes if self.loops else nodes[:0]
        return torch.stack([torch.cat([first, first + 1, alone]), torch.cat([first + 1, first, alone])])


class AllPairs(nn.Module):
    """Every two nodes of a graph, both ways; a convolution adds a node to itself where it wants that."""

    def forward(self, graphs: Graphs) -> Tensor:
        sizes = graphs.offsets.diff()[graphs.batch]  # [N], of each node's graph
        first = torch.repeat_interleave(torch.arange(len(graphs.ids)), sizes)
        rank = torch.arange(len(first)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        second = graphs.offsets[graphs.batch[first]] + rank
        return torch.stack([first, second])[:, first != second]


class Predicted(nn.Module):
    """The library's L0 edge predictor, with edge embeddings of its own."""

    def __init__(self, num_features: int, edge_dim: int = 8) -> None:
        super().__init__()
        self.predictor = L0EdgePredictor(edge_dim, HIDDEN, num_embeddings=num_features)

    def forward(self, graphs: Graphs) -> PredictedEdges:
        return self.predictor(graphs.ids, graphs.batch, batch_size=len(graphs.indices))


class Given(nn.Module):
    """Edges that are laid down for each graph of the data set, all graphs having n nodes.

    Args:
        edges: bool [B, n (n + 1) / 2], over the pairs i <= j, row by row.
        num_nodes: n.
    """

    def __init__(self, edges: NDArray[np.bool_], num_nodes: int) -> None:
        super().__init__()
        self.edges, self.num_nodes = edges, num_nodes
        self.left, self.right = torch.triu_indices(num_nodes, num_nodes)

    def forward(self, graphs: Graphs) -> Tensor:
        graph, pair = torch.from_numpy(self.edges[graphs.indices]).nonzero(as_tuple=True)
        left, right = (graph * self.num_nodes + ends[pair] for ends in (self.left, self.right))
        apart = left != right
        return torch.stack([torch.cat([left, right[apart]]), torch.cat([right, left[apart]])])


def share_of(edges: NDArray[np.bool_], share: float, seed: int) -> NDArray[np.bool_]:
    """A random share of each graph's edges, rounded to whole edges. [B, P] -> [B, P]."""
    keys = np.random.default_rng(seed).random(edges.shape)
    keys[~edges] = 2  # behind all edges
    rank = keys.argsort(axis=1).argsort(axis=1)
    chosen: NDArray[np.bool_] = rank < np.rint(share * edges.sum(axis=1, keepdims=True))
    return chosen


class GraphModel(nn.Module):
    """Embeddings, convolutions over the edges of a source, the mean over the nodes, a linear head."""

    def __init__(self, kind: str, data: GraphDataset, dim: int, edges: nn.Module) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(data.num_features, dim)
        nn.init.normal_(self.embedding.weight, 0.0, 0.1)
        self.edges = edges
        self.convolutions = nn.ModuleList(_convolutions(kind, dim, isinstance(edges, Predicted)))
        self.head = nn.Linear(dim, 1)

    def forward(self, batch: Batch, indices: Ints) -> Outcome:
        graphs = Graphs.of(batch, indices)
        found = self.edges(graphs)
        x = self.embedding(graphs.ids)
        for at, convolution in enumerate(self.convolutions):
            x = self._convolve(convolution, torch.relu(x) if at else x, found, graphs)
        sizes = graphs.offsets.diff()
        mean = torch.zeros(len(indices), x.shape[1]).index_add(0, graphs.batch, x)
        logits = self.head(mean / sizes.clamp(min=1)[:, None]).squeeze(-1)
        if isinstance(found, Tensor):
            return Outcome(logits)
        pairs = sizes * (sizes + 1) // 2
        share = (found.l0_penalty / pairs.clamp(min=1)).mean()
        return Outcome(logits, share, int(found.num_edges.sum()), int(pairs.sum()))

    def _convolve(
        self, convolution: nn.Module, x: Tensor, found: Tensor | PredictedEdges, graphs: Graphs
    ) -> Tensor:
        index, weight = (found, None) if isinstance(found, Tensor) else (found.edge_index, found.edge_weight)
        if self.kind == "gin" and not isinstance(found, Tensor):
            return convolution(x, found.adjacency())
        if self.kind == "gin":
            return convolution(x, index)
        if self.kind == "sign-conv":
            return convolution(x, index, weight, graphs.batch, len(graphs.indices))
        return convolution(x, index, weight)


def _convolutions(kind: str, dim: int, gated: bool) -> list[nn.Module]:
    if kind == "sign-conv":
        return [SIGNConv(dim, dim, HIDDEN)]
    geometric = require("torch_geometric.nn", "pyg")
    made: list[nn.Module] = []
    for inputs, outputs in ((dim, HIDDEN), (HIDDEN, dim)):
        if kind == "gcn":
            made.append(geometric.GCNConv(inputs, outputs, add_self_loops=not gated))
        elif kind == "cheb":
            made.append(geometric.ChebConv(inputs, outputs, K=2))
        elif kind == "gin":
            network = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
            made.append(geometric.GINConv(network))
        else:
            raise ValueError(f"model: expected one of {', '.join(KINDS)}, got {kind!r}")
    return made


def make(
    kind: str, data: GraphDataset, options: Mapping[str, Any], laid: NDArray[np.bool_] | None = None
) -> GraphModel:
    """A model by name; options["edges"] is "chain", "all" or "predicted", unless edges are `laid` down."""
    if laid is not None:
        assert data.graph_size
        source: nn.Module = Given(laid, data.graph_size)
    elif options["edges"] == "predicted":
        source = Predicted(data.num_features)
    elif options["edges"] == "all":
        source = AllPairs()
    else:
        source = Chain(loops=kind == "sign-conv")
    return GraphModel(kind, data, options["embedding_dim"], source)
