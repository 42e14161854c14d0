"""Ways to train and use the whole model: lookup, gated layer, pooling, head, loss, optimizer.

All begin from the weights of one L0SIGN, and minimise the same loss: cross entropy with the penalty on open
edges. Graphs are of one size. python_tests/test_benchmarks.py holds them to the same predictions.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l0sign_cuda import L0SIGN
from l0sign_cuda.data import Batch, GraphDataset
from l0sign_cuda.optim import RowAdagrad, RowAdam
from l0sign_cuda.reference import Network

from .contestants import Relu, dense_layer, gated_message_passing, repaired_relu

OPTIMIZERS = ("adagrad", "adam")
_LEARNING_RATES = {"adagrad": 0.2, "adam": 0.01}
_WEIGHT_DECAY = 1e-5
_L0_WEIGHT = 3.6e-4

Optimizer = Callable[..., torch.optim.Optimizer]


class Model(ABC):
    """One way to compute the model, which it trains in place.

    Args:
        model: the weights, and how the model behaves: training or evaluation.
        graph_size: n, of every graph.
    """

    name: ClassVar[str]
    optimizers: ClassVar[dict[str, Optimizer]] = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}

    def __init__(self, model: L0SIGN, graph_size: int) -> None:
        self.model = model

    def use_optimizer(self, name: str, learning_rate: float | None = None) -> None:
        """Train by this optimizer from now on, at its usual rate or another; it begins without state."""
        lr = _LEARNING_RATES[name] if learning_rate is None else learning_rate
        self.optimizer = self.optimizers[name](self.model.parameters(), lr=lr, weight_decay=_WEIGHT_DECAY)

    def batches(self, data: GraphDataset, batch_size: int) -> Iterator[Any]:
        """Shuffled batches without end, each collated when it is asked for; all of full size."""
        whole = len(data) // batch_size * batch_size
        for epoch in itertools.count():
            order = np.random.default_rng(epoch).permutation(len(data))[:whole]
            yield from data.iter_batches(order, batch_size)

    def collated(self, data: GraphDataset) -> Any:
        """All samples as one batch, in their order."""
        return data.batch(np.arange(len(data)))

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch."""

    @abstractmethod
    def logits(self, batch: Any) -> Tensor:
        """The predictions of a batch."""

    def risk(self, logits: Tensor, l0: Tensor, labels: Tensor) -> Tensor:
        """The loss in torch's own operations."""
        return F.binary_cross_entropy_with_logits(logits, labels) + _L0_WEIGHT * l0.mean()

    def backward(self, batch: Any) -> None:
        """The gradients of all weights."""
        self.model.zero_grad(set_to_none=True)
        self.loss(batch).backward()

    def step(self, batch: Any) -> None:
        """A whole training step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(batch).backward()
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, batch: Any) -> Tensor:
        return self.logits(batch)


class Fused(Model):
    """This library, with torch's optimizers."""

    name = "fused"
    sparse: ClassVar[bool] = False

    def __init__(self, model: L0SIGN, graph_size: int) -> None:
        super().__init__(model, graph_size)
        model.sparse = self.sparse

    def loss(self, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return self.model.risk(
            batch.ids, batch.labels, batch.offsets, batch.values, l0_weight=_L0_WEIGHT
        ).risk

    def logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(batch.ids, batch.offsets, batch.values).logits
        return logits


class Rows(Fused):
    """This library, with sparse gradients and optimizers that touch the batch's rows only."""

    name = "fused, row-wise"
    optimizers: ClassVar[dict[str, Optimizer]] = {"adagrad": RowAdagrad, "adam": RowAdam}
    sparse = True


class Official(Model):
    """torch's embeddings and PyG's message passing; PyG's loader collates batches from a list of graphs."""

    name = "official"

    def __init__(self, model: L0SIGN, graph_size: int) -> None:
        super().__init__(model, graph_size)
        self.passing = gated_message_passing()

    def batches(self, data: GraphDataset, batch_size: int) -> Iterator[Any]:
        from torch_geometric.loader import DataLoader

        loader = DataLoader(_graphs(data), batch_size, shuffle=True, drop_last=True)
        while True:
            yield from loader

    def collated(self, data: GraphDataset) -> Any:
        from torch_geometric.data import Batch as Graphs

        return Graphs.from_data_list(_graphs(data))

    def outputs(self, batch: Any, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """(logits [B], the sum of the probabilities of open edges [B])."""
        from torch_geometric.nn import global_mean_pool

        node_table, edge_table, message, edge = _weights(self.model)
        x, e = F.embedding(batch.x, node_table), F.embedding(batch.x, edge_table)
        nodes, l0 = self.passing(x, e, batch.edge_index, batch.batch, batch.num_graphs, message, edge, noise)
        pooled = global_mean_pool(nodes, batch.batch, batch.num_graphs)
        return self.model.head(pooled).squeeze(-1), l0

    def loss(self, batch: Any) -> Tensor:
        return self.risk(*self.outputs(batch, torch.rand(batch.edge_index.shape[1])), batch.y)

    def logits(self, batch: Any) -> Tensor:
        return self.outputs(batch, None)[0]


def _graphs(data: GraphDataset) -> list[Any]:
    """A PyG graph for each sample, its pairs listed; all samples share the list."""
    from torch_geometric.data import Data

    whole = data.batch(np.arange(len(data)))
    size = whole.ids.shape[1]
    pairs = torch.triu_indices(size, size)
    assert whole.labels is not None
    return [
        Data(x=x, edge_index=pairs, y=y, num_nodes=size)
        for x, y in zip(whole.ids, whole.labels.split(1), strict=True)
    ]


class Eager(Model):
    """Dense batched PyTorch over the upper triangle of pairs, on this library's batches."""

    name = "eager"

    def __init__(self, model: L0SIGN, graph_size: int) -> None:
        super().__init__(model, graph_size)
        i, j = torch.triu_indices(graph_size, graph_size)
        self.pairs = i, j, (i != j).float().unsqueeze(-1), torch.tensor(float(graph_size))
        self.function = self.make_function()

    def relu(self) -> Relu:
        return torch.relu

    def make_function(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return dense_model

    def outputs(self, ids: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """(logits [B], the sum of the probabilities of open edges [B])."""
        head = self.model.head.weight, self.model.head.bias
        return self.function(ids, *_weights(self.model), head, noise, *self.pairs, self.relu())

    def loss(self, batch: Batch) -> Tensor:
        noise = torch.rand(batch.num_graphs, len(self.pairs[0]))
        assert batch.labels is not None
        return self.risk(*self.outputs(batch.ids, noise), batch.labels)

    def logits(self, batch: Batch) -> Tensor:
        return self.outputs(batch.ids, None)[0]


def dense_model(
    ids: Tensor,
    node_table: Tensor,
    edge_table: Tensor,
    message: Network,
    edge: Network,
    head: tuple[Tensor, Tensor],
    noise: Tensor | None,
    i: Tensor,
    j: Tensor,
    other: Tensor,
    n: Tensor,
    relu: Relu,
) -> tuple[Tensor, Tensor]:
    """The model on ids [B, n], up to its outputs."""
    nodes, edge_nodes = F.embedding(ids, node_table), F.embedding(ids, edge_table)
    out, l0 = dense_layer(nodes, edge_nodes, message, edge, noise, i, j, other, n, None, relu)
    return F.linear(out.mean(1), *head).squeeze(-1), l0


class Compiled(Eager):
    """The same under torch.compile, lookup and head included, as written."""

    name = "compile"

    def make_function(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return torch.compile(dense_model, dynamic=False, fullgraph=True)


class Repaired(Compiled):
    """The same under torch.compile, with the relu written so that inductor does well."""

    name = "repaired"

    def relu(self) -> Relu:
        return repaired_relu


MODELS: dict[str, type[Model]] = {
    kind.name: kind for kind in (Fused, Rows, Official, Eager, Compiled, Repaired)
}


def make(names: Iterable[str], graph_size: int, **hyperparameters: Any) -> dict[str, Model]:
    """The models of these names, each with its own copy of the same weights."""
    torch.manual_seed(0)
    first = L0SIGN(**hyperparameters, l2_penalty=False)
    weights = itertools.chain([first], map(copy.deepcopy, itertools.repeat(first)))
    return {name: MODELS[name](model, graph_size) for name, model in zip(names, weights, strict=False)}


def _weights(model: L0SIGN) -> tuple[Tensor, Tensor, Network, Network]:
    assert model.edge_embedding is not None and model.interaction.edge is not None
    tables = model.node_embedding.weight, model.edge_embedding.weight
    return *tables, model.interaction.message.weights(), model.interaction.edge.weights()
