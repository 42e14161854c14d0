"""Ways to compute the gated layer: as the literature's code does, as dense PyTorch, compiled, and fused.

All compute the same function, :func:`l0sign_cuda.reference.l0_sign` with aggr="mean" and without the L2
penalty; python_tests/test_benchmarks.py holds them to it. What depends on the sizes of the graphs alone
(edge lists, padding, masks) is made once, outside of what is timed: to the others' favour, since this library
needs none of it. None but the fused one skips closed pairs or makes use of the identities in
docs/architecture.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0sign_cuda import functional, reference
from l0sign_cuda.reference import Network

from .problems import Problem

TEMPERATURE, GAMMA, ZETA = 2 / 3, -0.1, 1.1

Relu = Callable[[Tensor], Tensor]


class Contestant(ABC):
    """One way to compute the layer for graphs of given sizes.

    Args:
        offsets: int64 [B+1].
    """

    name: ClassVar[str]

    def __init__(self, offsets: Tensor) -> None:
        self.offsets = offsets
        self.sizes = offsets.diff()
        self.num_pairs = int((self.sizes * (self.sizes + 1) // 2).sum())

    def arrange(self, rows: Tensor) -> Tensor:
        """Rows [N, w] as this contestant wants them."""
        return rows.clone()

    def rows(self, arranged: Tensor) -> Tensor:
        """What :meth:`arrange` got: [N, w]."""
        return arranged

    def noise(self, seed: int) -> Tensor:
        """The draws of l0sign_cuda.functional.gate_noise for this seed, as this contestant wants them."""
        return reference.gate_noise(seed, self.offsets)

    def draw(self) -> Tensor:
        """New draws: part of a training step."""
        return torch.rand(self.num_pairs)

    @abstractmethod
    def layer(
        self, nodes: Tensor, edge_nodes: Tensor, message: Network, edge: Network, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(v', the sum of the probabilities of open edges [B]); deterministic gates without noise."""

    @abstractmethod
    def mean(self, nodes: Tensor) -> Tensor:
        """The mean of each graph's rows: [B, d]."""

    def predict(
        self, nodes: Tensor, edge_nodes: Tensor, message: Network, edge: Network, head: Tensor
    ) -> Tensor:
        """Predictions of the layer under a linear head: (1/n) sum_i head . v'_i, [B]."""
        return self.mean(self.layer(nodes, edge_nodes, message, edge, None)[0]) @ head


def hard_concrete(logits: Tensor, noise: Tensor | None) -> Tensor:
    """The gate of a logit, drawn where there is noise."""
    if noise is not None:
        logits = (noise.log() - (1 - noise).log() + logits) / TEMPERATURE
    return (logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(logits: Tensor) -> Tensor:
    """P(g > 0)."""
    return (logits - TEMPERATURE * math.log(-GAMMA / ZETA)).sigmoid()


def mlp(x: Tensor, network: Network, relu: Relu = torch.relu) -> Tensor:
    """A network of one hidden layer."""
    hidden_weight, hidden_bias, out_weight, out_bias = network
    return F.linear(relu(F.linear(x, hidden_weight, hidden_bias)), out_weight, out_bias)


class Fused(Contestant):
    """This library. It makes its noise from a seed."""

    name = "fused"

    def __init__(self, offsets: Tensor) -> None:
        super().__init__(offsets)
        size = int(self.sizes[0])
        self.uniform = size if bool((self.sizes == size).all()) else None
        ids = torch.arange(int(offsets[-1]))
        self.ids = ids.unflatten(0, (-1, size)) if self.uniform else ids

    def arrange(self, rows: Tensor) -> Tensor:
        return rows.clone().unflatten(0, (-1, self.uniform)) if self.uniform else rows.clone()

    def rows(self, arranged: Tensor) -> Tensor:
        return arranged.flatten(0, 1) if self.uniform else arranged

    def noise(self, seed: int) -> Tensor:
        return torch.tensor([seed])

    def draw(self) -> Tensor:
        return torch.randint(2**63 - 1, (1,))

    def layer(
        self, nodes: Tensor, edge_nodes: Tensor, message: Network, edge: Network, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        offsets = None if self.uniform else self.offsets
        out = functional.l0_sign(
            nodes, edge_nodes, message, edge, offsets, seed=noise, l2_penalty=False, backend="fused"
        )
        return out.nodes, out.l0_penalty

    def mean(self, nodes: Tensor) -> Tensor:
        if self.uniform:
            return nodes.mean(1)
        return torch.segment_reduce(nodes, "mean", offsets=self.offsets)

    def predict(
        self, nodes: Tensor, edge_nodes: Tensor, message: Network, edge: Network, head: Tensor
    ) -> Tensor:
        """By the pooled operator, as the model predicts: here every row is an id of its own."""
        tables = (nodes.flatten(0, 1), edge_nodes.flatten(0, 1)) if self.uniform else (nodes, edge_nodes)
        offsets = None if self.uniform else self.offsets
        out = functional.l0_sign_bag(
            self.ids, *tables, message, edge, offsets, l2_penalty=False, backend="fused"
        )
        return out.pooled @ head


class Official(Contestant):
    """Message passing of PyTorch Geometric over a list of the pairs i <= j, graphs collated into one.

    Both ends are gathered for each pair, the edge network gives the gate, the message network the message,
    and the messages are averaged at both ends by scattering.
    """

    name = "official"

    def __init__(self, offsets: Tensor) -> None:
        super().__init__(offsets)
        self.edge_index = reference.pair_index(offsets)
        self.batch = reference.node_graphs(offsets, int(offsets[-1]))
        self.passing = self.make_passing()

    def make_passing(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return gated_message_passing()

    def layer(
        self, nodes: Tensor, edge_nodes: Tensor, message: Network, edge: Network, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.passing(
            nodes, edge_nodes, self.edge_index, self.batch, self.sizes.numel(), message, edge, noise
        )

    def mean(self, nodes: Tensor) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        return global_mean_pool(nodes, self.batch, self.sizes.numel())


class PlainOfficial(Official):
    """The official approach where torch_geometric is missing: the same steps by torch's own operations."""

    name = "official, plain torch"

    def make_passing(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return plain_message_passing

    def mean(self, nodes: Tensor) -> Tensor:
        return scatter_mean(nodes, self.batch, self.sizes.numel())


def has_pyg() -> bool:
    """Whether torch_geometric can be imported."""
    try:
        import torch_geometric.nn  # noqa: F401
    except ImportError:
        return False
    return True


def edge_logits(e_i: Tensor, e_j: Tensor, edge: Network) -> Tensor:
    """Logits [P] of the pairs' gates."""
    return mlp(e_i * e_j, edge).squeeze(-1)


def gated_messages(x_i: Tensor, x_j: Tensor, gates: Tensor, network: Network) -> Tensor:
    """Messages [P, d] times their gates."""
    return gates.unsqueeze(-1) * mlp(x_i * x_j, network)


def at_both_ends(inputs: Tensor, index_i: Tensor, index_j: Tensor) -> tuple[Tensor, Tensor]:
    """Each message once for each end, with the ends; a self-pair arrives once."""
    other = index_i != index_j
    return torch.cat([inputs, inputs[other]]), torch.cat([index_i, index_j[other]])


def gated_message_passing() -> nn.Module:
    """The layer as a torch_geometric MessagePassing."""
    from torch_geometric.nn import MessagePassing
    from torch_geometric.utils import scatter

    class GatedMessagePassing(MessagePassing):  # type: ignore[misc]
        def forward(
            self,
            x: Tensor,
            e: Tensor,
            edge_index: Tensor,
            batch: Tensor,
            num_graphs: int,
            message: Network,
            edge: Network,
            noise: Tensor | None,
        ) -> tuple[Tensor, Tensor]:
            logits = self.edge_updater(edge_index, e=e, edge=edge)
            gates = hard_concrete(logits, noise)
            out = self.propagate(edge_index, x=x, gates=gates, network=message)
            l0 = scatter(open_probability(logits), batch[edge_index[0]], dim_size=num_graphs, reduce="sum")
            return out, l0

        def edge_update(self, e_i: Tensor, e_j: Tensor, edge: Network) -> Tensor:
            return edge_logits(e_i, e_j, edge)

        def message(self, x_i: Tensor, x_j: Tensor, gates: Tensor, network: Network) -> Tensor:
            return gated_messages(x_i, x_j, gates, network)

        def aggregate(
            self, inputs: Tensor, edge_index_i: Tensor, edge_index_j: Tensor, dim_size: int
        ) -> Tensor:
            inputs, index = at_both_ends(inputs, edge_index_i, edge_index_j)
            return scatter(inputs, index, dim_size=dim_size, reduce="mean")

    return GatedMessagePassing(aggr="mean")


def plain_message_passing(
    x: Tensor,
    e: Tensor,
    edge_index: Tensor,
    batch: Tensor,
    num_graphs: int,
    message: Network,
    edge: Network,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What :func:`gated_message_passing` does, gathered and scattered by torch."""
    j, i = edge_index
    logits = edge_logits(e.index_select(0, i), e.index_select(0, j), edge)
    gates = hard_concrete(logits, noise)
    inputs, index = at_both_ends(
        gated_messages(x.index_select(0, i), x.index_select(0, j), gates, message), i, j
    )
    l0 = logits.new_zeros(num_graphs).index_add(0, batch.index_select(0, j), open_probability(logits))
    return scatter_mean(inputs, index, len(x)), l0


def scatter_mean(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """The mean of the rows of each index: [size, w], 0 where there are none."""
    count = rows.new_zeros(size).index_add(0, index, rows.new_ones(()).expand(len(index)))
    return rows.new_zeros(size, rows.shape[1]).index_add(0, index, rows) / count.clamp(min=1).unsqueeze(1)


class Eager(Contestant):
    """Dense batched PyTorch over the upper triangle of pairs; ragged graphs are padded and masked."""

    name = "eager"

    def __init__(self, offsets: Tensor) -> None:
        super().__init__(offsets)
        size = int(self.sizes.max())
        self.i, self.j = torch.triu_indices(size, size)
        self.other = (self.i != self.j).float().unsqueeze(-1)  # [P, 1]: a self-pair arrives once
        self.n = self.sizes.float().view(-1, 1, 1)
        self.is_node = torch.arange(size) < self.sizes.unsqueeze(1)  # [B, n]
        self.is_pair = self.j < self.sizes.unsqueeze(1)  # [B, P]; i <= j
        self.mask = None if bool(self.is_node.all()) else self.is_pair.float()
        self.function = self.make_function()

    def make_function(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return dense_layer

    def relu(self) -> Relu:
        return torch.relu

    def arrange(self, rows: Tensor) -> Tensor:
        padded = rows.new_zeros(*self.is_node.shape, rows.shape[-1])
        padded[self.is_node] = rows
        return padded

    def rows(self, arranged: Tensor) -> Tensor:
        return arranged[self.is_node]

    def noise(self, seed: int) -> Tensor:
        padded = torch.full(self.is_pair.shape, 0.5)
        padded[self.is_pair] = super().noise(seed)
        return padded

    def draw(self) -> Tensor:
        return torch.rand(self.is_pair.shape)

    def layer(
        self, nodes: Tensor, edge_nodes: Tensor, message: Network, edge: Network, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.function(
            nodes, edge_nodes, message, edge, noise,
            self.i, self.j, self.other, self.n, self.mask, self.relu(),
        )  # fmt: skip

    def mean(self, nodes: Tensor) -> Tensor:
        return nodes.sum(1) / self.n.squeeze(-1)  # padding is 0: nothing arrives there


def dense_layer(
    nodes: Tensor,
    edge_nodes: Tensor,
    message: Network,
    edge: Network,
    noise: Tensor | None,
    i: Tensor,
    j: Tensor,
    other: Tensor,
    n: Tensor,
    mask: Tensor | None,
    relu: Relu,
) -> tuple[Tensor, Tensor]:
    """The layer on [B, n, d], pair by pair: [B, P, ...] is in memory at each step."""
    logits = mlp(edge_nodes.index_select(1, i) * edge_nodes.index_select(1, j), edge, relu).squeeze(-1)
    gates, pi = hard_concrete(logits, noise), open_probability(logits)
    if mask is not None:
        gates, pi = gates * mask, pi * mask
    z = mlp(nodes.index_select(1, i) * nodes.index_select(1, j), message, relu)
    gated = gates.unsqueeze(-1) * z
    total = torch.zeros_like(nodes).index_add(1, j, gated).index_add(1, i, gated * other)
    return total / n, pi.sum(1)


class Compiled(Eager):
    """The same under torch.compile, as written."""

    name = "compile"

    def make_function(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return torch.compile(dense_layer, dynamic=False, fullgraph=True)


def repaired_relu(x: Tensor) -> Tensor:
    """relu(x) in words that spare inductor a slow kernel on CPU."""
    return 0.5 * (x + x.abs())


class Repaired(Compiled):
    """The same under torch.compile, with the relu written so that inductor does well."""

    name = "repaired"

    def relu(self) -> Relu:
        return repaired_relu


CONTESTANTS: dict[str, type[Contestant]] = {
    kind.name: kind for kind in (Fused, Official, Eager, Compiled, Repaired)
}


class Task:
    """A contestant with a problem, laid out as it wants it: what is timed."""

    def __init__(self, contestant: Contestant, problem: Problem) -> None:
        self.contestant = contestant
        self.nodes = contestant.arrange(problem.nodes).requires_grad_()
        self.edge_nodes = contestant.arrange(problem.edge_nodes).requires_grad_()
        weights = [weight.clone().requires_grad_() for weight in problem.weights]
        self.message: Network = tuple(weights[:4])  # type: ignore[assignment]
        self.edge: Network = tuple(weights[4:])  # type: ignore[assignment]
        self.head = problem.head
        self.grads = [contestant.arrange(problem.grad_nodes), problem.grad_l0]

    def leaves(self) -> Sequence[Tensor]:
        return self.nodes, self.edge_nodes, *self.message, *self.edge

    def layer(self, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.contestant.layer(self.nodes, self.edge_nodes, self.message, self.edge, noise)

    def train(self) -> Sequence[Tensor]:
        """Forward with new noise, and backward for all inputs and weights."""
        return torch.autograd.grad(self.layer(self.contestant.draw()), self.leaves(), self.grads)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Forward with new noise, ready for a backward."""
        return self.layer(self.contestant.draw())

    @torch.no_grad()
    def inference(self) -> Tensor:
        """Predictions [B] with deterministic gates."""
        return self.contestant.predict(self.nodes, self.edge_nodes, self.message, self.edge, self.head)

    def results(self, seed: int | None) -> dict[str, Tensor]:
        """Everything the contestant computes, in the order of the problem's rows; gates drawn by ``seed``."""
        noise = None if seed is None else self.contestant.noise(seed)
        nodes, l0 = self.layer(noise)
        gradients = torch.autograd.grad((nodes, l0), self.leaves(), self.grads)
        rows = self.contestant.rows
        named = {"nodes": rows(nodes), "l0": l0, "grad nodes": rows(gradients[0])}
        named |= {"grad edge nodes": rows(gradients[1]), "prediction": self.inference()}
        named |= {f"grad weight {at}": gradient for at, gradient in enumerate(gradients[2:])}
        return {name: value.detach() for name, value in named.items()}


class WrongResult(ValueError):
    """A contestant computes something else."""


def check_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], who: str, tolerance: float) -> None:
    """Raise WrongResult unless each result errs by at most ``tolerance``, relative and in the Euclidean norm.

    The norm, because single gradients jump where a relu or a clamp falls on the other side of its kink.
    """
    for name, value in expected.items():
        error = float((actual[name] - value).norm() / value.norm().clamp(min=1e-6))
        if not error <= tolerance:
            raise WrongResult(f"{who} computes something else: {name} is off by {error:.2g}")
