"""The interaction layers as modules: gated (L0-SIGN) and not (SIGN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import _checks, functional
from .reference import BagOutput, LayerOutput, Network

PLAIN: set[type[nn.Module]] = {nn.Linear, nn.Embedding}
"""Classes whose parameters and submodules are what their dictionaries hold; those below and L0SIGN join."""


def member(module: nn.Module, name: str) -> Any:
    """A parameter or submodule, as getattr finds it, from the dictionaries of plain modules.

    That is several times as fast, and a small batch takes no longer in the kernels than some twenty of
    getattr's searches. Other classes, such as parametrized ones, may have properties or ways of their own.
    """
    if type(module) in PLAIN and name not in module.__dict__:
        for members in (module._parameters, module._modules):
            if name in members:
                return members[name]
    return getattr(module, name)


class PairNetwork(nn.Module):
    """The network of one hidden layer that a pair's product of embeddings goes through.

    Its modules hold the weights; the fused operators apply them.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, outputs)

    def reset_parameters(self) -> None:
        """Torch's defaults."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()

    def weights(self) -> Network:
        """The weights as the functions take them."""
        hidden, out = member(self, "hidden"), member(self, "out")
        return member(hidden, "weight"), member(hidden, "bias"), member(out, "weight"), member(out, "bias")

    def forward(self, product: Tensor) -> Tensor:
        """The network itself, [..., in] -> [..., out]."""
        return self.out(torch.relu(self.hidden(product)))


class L0SIGNLayer(nn.Module):
    """Gated pairwise interactions on complete graphs: v'_i = (1/n) sum_j g_ij z_ij (Eq. 4).

    In training mode gates are drawn from the hard concrete distribution, from ``seed`` or else from torch's
    default generator, so that :func:`torch.manual_seed` governs them. In evaluation mode they are
    deterministic and ``seed`` is ignored.

    Args:
        embedding_dim: d, the columns of nodes.
        hidden_dim: H, hidden units of the message network.
        edge_dim: b, the columns of edge_nodes.
        edge_hidden_dim: He, hidden units of the edge network.
        aggr: "mean" divides by n, "neighbor_mean" by the number of open edges, "sum" does not.
        temperature: beta of the gates.
        limits: (gamma, zeta) of the gates, gamma < 0 and zeta > 1.
        gated: False sets every gate to 1: no edge network, edge_nodes are not looked at, l0_penalty is 0.
        l2_penalty: False leaves that field None and saves its work, about d * H multiplications a pair.
        backend: None, "auto", "fused" or "reference"; see :mod:`l0sign_cuda.functional`.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden_dim: int,
        edge_dim: int,
        edge_hidden_dim: int,
        aggr: str = "mean",
        *,
        temperature: float = 2 / 3,
        limits: tuple[float, float] = (-0.1, 1.1),
        gated: bool = True,
        l2_penalty: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        embedding_dim, hidden_dim, edge_dim, edge_hidden_dim = _checks.positive(
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim,
            edge_dim=edge_dim,
            edge_hidden_dim=edge_hidden_dim,
        )
        _checks.aggregation(aggr)
        temperature, gamma, zeta = _checks.gate_options(temperature, limits)
        _checks.backend(backend)
        self.aggr = aggr
        self.temperature = temperature
        self.limits = (gamma, zeta)
        self.gated = gated
        self.l2_penalty = l2_penalty
        self.backend = backend
        self.message = PairNetwork(embedding_dim, hidden_dim, embedding_dim)
        self.edge = PairNetwork(edge_dim, edge_hidden_dim, 1) if gated else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Torch's defaults, and edge output weights raised by 0.2, as the authors do: gates start open."""
        self.message.reset_parameters()
        if self.edge is not None:
            self.edge.reset_parameters()
            with torch.no_grad():
                self.edge.out.weight.add_(0.2)

    def draw_seed(self) -> Tensor | None:
        """A seed from torch's default generator, or None (deterministic gates) in evaluation mode."""
        if not (self.training and self.gated):
            return None
        return torch.randint(2**63 - 1, (1,), device=self.message.hidden.weight.device)

    def forward(
        self,
        nodes: Tensor,
        edge_nodes: Tensor | None,
        offsets: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> LayerOutput:
        """Apply the layer to a batch of graphs.

        Args:
            nodes: u, [B, n, d], or [N, d] with offsets.
            edge_nodes: e, [B, n, b] or [N, b]; None without gates.
            offsets: int64 [B+1].
            seed: an integer or an int64 tensor of one element, for training mode.

        Returns:
            LayerOutput(nodes of the shape given, l0_penalty [B], l2_penalty [B] or None, num_edges int64
            [B]).

        Raises:
            ValueError, IndexError, TypeError: as :func:`l0sign_cuda.functional.l0_sign`.
        """
        message = member(self, "message").weights()
        _checks.columns("nodes", nodes, message[0].shape[1])
        seed, network = self.seed_of(seed, message[0].device), member(self, "edge")
        if network is None:
            return functional.complete_sign(
                nodes, message, offsets, aggr=self.aggr, l2_penalty=self.l2_penalty, backend=self.backend
            )
        edge = network.weights()
        _checks.columns("edge_nodes", edge_nodes, edge[0].shape[1])
        return functional.l0_sign(
            nodes,
            edge_nodes,  # type: ignore[arg-type]  # None is refused there
            message,
            edge,
            offsets,
            seed=seed,
            aggr=self.aggr,
            temperature=self.temperature,
            limits=self.limits,
            l2_penalty=self.l2_penalty,
            backend=self.backend,
        )

    def bag(
        self,
        ids: Tensor,
        node_table: Tensor,
        edge_table: Tensor | None,
        offsets: Tensor | None = None,
        values: Tensor | None = None,
        seed: int | Tensor | None = None,
        *,
        sparse: bool = False,
    ) -> BagOutput:
        """Look up, apply the layer and pool; see :func:`l0sign_cuda.functional.l0_sign_bag`.

        Args:
            ids: int64 [B, n], or [N] with offsets.
            node_table: v, [J, d].
            edge_table: e, [J, b]; None without gates.
            offsets: int64 [B+1].
            values: x, float, of the shape of ids; None: 1.
            seed: an integer or an int64 tensor of one element, for training mode.
            sparse: the gradients of the tables are sparse tensors of the rows that occur.

        Returns:
            BagOutput(pooled [B, d], l0_penalty [B], l2_penalty [B] or None, num_edges int64 [B]).

        Raises:
            ValueError, IndexError, TypeError: as :func:`l0sign_cuda.functional.l0_sign_bag`.
        """
        message = member(self, "message").weights()
        _checks.columns("node_table", node_table, message[0].shape[1])
        seed, network = self.seed_of(seed, message[0].device), member(self, "edge")
        if network is None:
            return functional.sign_bag(
                ids,
                node_table,
                message,
                offsets,
                values,
                aggr=self.aggr,
                l2_penalty=self.l2_penalty,
                sparse=sparse,
                backend=self.backend,
            )
        edge = network.weights()
        _checks.columns("edge_table", edge_table, edge[0].shape[1])
        return functional.l0_sign_bag(
            ids,
            node_table,
            edge_table,  # type: ignore[arg-type]  # None is refused there
            message,
            edge,
            offsets,
            values,
            seed=seed,
            aggr=self.aggr,
            temperature=self.temperature,
            limits=self.limits,
            l2_penalty=self.l2_penalty,
            sparse=sparse,
            backend=self.backend,
        )

    def seed_of(self, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
        """The seed of this call, checked; one is drawn where it is wanted and not given."""
        key = _checks.seed(seed, device)
        if not (self.training and self.gated):
            return None
        return self.draw_seed() if key is None else key

    def extra_repr(self) -> str:
        """What print() shows beside the modules."""
        gates = f"temperature={self.temperature:.4g}, limits={self.limits}" if self.gated else "gated=False"
        return f"aggr={self.aggr!r}, {gates}, l2_penalty={self.l2_penalty}, backend={self.backend!r}"


class SIGNLayer(nn.Module):
    """Pairwise interactions without gates, on all pairs or on given edges (SIGN: Eq. 4 with g = 1).

    Args:
        embedding_dim: d, the columns of nodes.
        hidden_dim: H, hidden units of the message network.
        aggr: "mean" divides by n, "neighbor_mean" by the number of edges into a node of positive weight,
            "sum" does not.
        backend: None, "auto", "fused" or "reference"; see :mod:`l0sign_cuda.functional`.
    """

    def __init__(
        self, embedding_dim: int, hidden_dim: int, aggr: str = "mean", *, backend: str | None = None
    ) -> None:
        super().__init__()
        embedding_dim, hidden_dim = _checks.positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim)
        _checks.aggregation(aggr)
        _checks.backend(backend)
        self.aggr = aggr
        self.backend = backend
        self.message = PairNetwork(embedding_dim, hidden_dim, embedding_dim)

    def reset_parameters(self) -> None:
        """Torch's defaults."""
        self.message.reset_parameters()

    def forward(
        self,
        nodes: Tensor,
        offsets: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer to a batch of graphs.

        Args:
            nodes: u, [B, n, d], or [N, d] with offsets.
            offsets: int64 [B+1].
            edge_index: int64 [2, E], rows (source, target) over all nodes; None: all pairs, self-pairs
                included.
            edge_weight: [E]; None: 1.

        Returns:
            v', of the shape of nodes.

        Raises:
            ValueError, IndexError, TypeError: as :func:`l0sign_cuda.functional.sign`.
        """
        message = member(self, "message").weights()
        _checks.columns("nodes", nodes, message[0].shape[1])
        return functional.sign(
            nodes,
            message,
            offsets,
            edge_index=edge_index,
            edge_weight=edge_weight,
            aggr=self.aggr,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """What print() shows beside the modules."""
        return f"aggr={self.aggr!r}, backend={self.backend!r}"


PLAIN |= {PairNetwork, L0SIGNLayer, SIGNLayer}
