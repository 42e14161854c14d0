"""L0-SIGN: embeddings, gated interactions, a linear head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from . import _checks
from . import risk as risks
from .layers import PLAIN, L0SIGNLayer, member
from .objective import Loss, empirical_risk
from .reference import BagOutput, mean_rows, scale_rows
from .rows import large_pages, lookup


class L0SIGNOutput(NamedTuple):
    """What the model gives for a batch of B graphs."""

    logits: Tensor
    """[B], or [B, K] with K > 1 outputs: logits for classification, values for regression"""
    l0_penalty: Tensor
    """[B], the sum over unordered pairs of the probability that their edge is open"""
    l2_penalty: Tensor | None
    """[B], the sum over open unordered pairs of ||z||^2, over all iterations; None with l2_penalty=False"""
    num_edges: Tensor
    """int64 [B], the number of open unordered pairs"""


class RiskOutput(NamedTuple):
    """What :meth:`L0SIGN.risk` gives for a batch."""

    risk: Tensor
    """The differentiable scalar."""
    output: L0SIGNOutput
    """The model's output, detached; its l2_penalty is None where that has no weight."""


# So that an exported program can be saved, and compiled by AOTInductor.
_register_namedtuple(L0SIGNOutput, serialized_type_name="l0sign_cuda.L0SIGNOutput")


class L0SIGN(nn.Module):
    """The L0-SIGN model (Su et al., AAAI 2021): a prediction for each graph of features.

    With u_i = x_i v_i, one iteration is v'_i = (1/n) sum_j g_ij MLP_message(u_i * u_j), and the prediction is
    y = (1/n) sum_i w_g^T (x_i v'_i) + bias. Gates depend on edge embeddings alone and are the same in each
    iteration: drawn in training mode, deterministic in evaluation mode.

    Args:
        num_embeddings: J, the size of the vocabulary.
        embedding_dim: d.
        hidden_dim: H, hidden units of the message network.
        edge_dim: b.
        edge_hidden_dim: He, hidden units of the edge network.
        num_outputs: K.
        aggr: "mean" divides by n, "neighbor_mean" by the number of open edges, "sum" does not.
        iterations: T, how often the same interactions are applied.
        temperature: beta of the gates.
        limits: (gamma, zeta) of the gates, gamma < 0 and zeta > 1.
        gated: False is plain SIGN: no edge embedding, no edge network, l0_penalty 0.
        head_bias: whether the head has a bias.
        dropout: in training mode, the probability with which each component of a node's embedding is zeroed
            (others are scaled by 1 / (1 - dropout)), by torch's default generator. Edge embeddings stay as
            they are. The looked-up rows are then made as tensors.
        init_std: standard deviation of the node embeddings' first values, normal around 0. Torch's usual 1
            costs accuracy where an id is seldom met (docs/results.md).
        l2_penalty: False leaves that field None and saves its work, about d * H multiplications a pair.
        backend: None, "auto", "fused" or "reference"; see :mod:`l0sign_cuda.functional`.
        sparse: the embeddings' gradients are sparse tensors of the rows that the batch touches, each row once
            and in ascending order, for the optimizers of :mod:`l0sign_cuda.optim`. Like the backend it is no
            part of what the model is: it may change at any time, and is not saved with it.

    Attributes:
        hyperparameters: the arguments, without backend and sparse; ``L0SIGN(**hyperparameters)`` is another
            such model.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int = 8,
        hidden_dim: int = 32,
        edge_dim: int = 8,
        edge_hidden_dim: int = 32,
        num_outputs: int = 1,
        aggr: str = "mean",
        iterations: int = 1,
        temperature: float = 2 / 3,
        limits: tuple[float, float] = (-0.1, 1.1),
        gated: bool = True,
        head_bias: bool = True,
        *,
        dropout: float = 0.0,
        init_std: float = 0.1,
        l2_penalty: bool = True,
        backend: str | None = None,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        num_embeddings, embedding_dim, hidden_dim, edge_dim, edge_hidden_dim, num_outputs, iterations = (
            _checks.positive(
                num_embeddings=num_embeddings,
                embedding_dim=embedding_dim,
                hidden_dim=hidden_dim,
                edge_dim=edge_dim,
                edge_hidden_dim=edge_hidden_dim,
                num_outputs=num_outputs,
                iterations=iterations,
            )
        )
        temperature, gamma, zeta = _checks.gate_options(temperature, limits)
        dropout = _checks.probability(dropout=dropout)
        init_std = _checks.deviation(init_std=init_std)
        self.hyperparameters = {
            "num_embeddings": num_embeddings,
            "embedding_dim": embedding_dim,
            "hidden_dim": hidden_dim,
            "edge_dim": edge_dim,
            "edge_hidden_dim": edge_hidden_dim,
            "num_outputs": num_outputs,
            "aggr": aggr,
            "iterations": iterations,
            "temperature": temperature,
            "limits": (gamma, zeta),
            "gated": gated,
            "head_bias": head_bias,
            "dropout": dropout,
            "init_std": init_std,
            "l2_penalty": l2_penalty,
        }
        self.iterations = iterations
        self.dropout = dropout
        self.init_std = init_std
        self.sparse = bool(sparse)
        self.interaction = L0SIGNLayer(
            embedding_dim,
            hidden_dim,
            edge_dim,
            edge_hidden_dim,
            aggr,
            temperature=temperature,
            limits=limits,
            gated=gated,
            l2_penalty=l2_penalty,
            backend=backend,
        )
        self.node_embedding = _embedding(num_embeddings, embedding_dim)
        self.edge_embedding = _embedding(num_embeddings, edge_dim) if gated else None
        self.head = nn.Linear(embedding_dim, num_outputs, bias=head_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Node embeddings N(0, init_std), edge embeddings N(0.2, 0.01) so that gates start open."""
        nn.init.normal_(self.node_embedding.weight, 0.0, self.init_std)
        if self.edge_embedding is not None:
            nn.init.normal_(self.edge_embedding.weight, 0.2, 0.01)
        self.interaction.reset_parameters()
        self.head.reset_parameters()

    def forward(
        self,
        ids: Tensor,
        offsets: Tensor | None = None,
        values: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
    ) -> L0SIGNOutput:
        """Predict for each graph.

        Args:
            ids: int64 [B, n], or [N] with offsets; 0..J-1.
            offsets: int64 [B+1], offsets[0] = 0 and offsets[B] = N.
            values: x, float, of the shape of ids; None: 1.
            seed: an integer or an int64 tensor of one element fixes the draw of the gates in training mode;
                by default it comes from torch's generator. Evaluation mode ignores it.

        Raises:
            IndexError: ids out of range.
            ValueError, TypeError: anything else that does not fit, by name.
        """
        node_table, edge_table = self.tables()
        head = member(self, "head")
        if self.iterations == 1 and not (self.training and self.dropout):
            output = member(self, "interaction").bag(
                ids, node_table, edge_table, offsets, values, seed, sparse=self.sparse
            )
        else:
            output = self._iterate(ids, node_table, edge_table, offsets, values, seed)
        logits = head(output.pooled)
        if head.out_features == 1:
            logits = logits.squeeze(-1)
        return L0SIGNOutput(logits, *output[1:])

    def risk(
        self,
        ids: Tensor,
        target: Tensor,
        offsets: Tensor | None = None,
        values: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        l0_weight: float | Tensor = 0.0,
        l2_weight: float | Tensor = 0.0,
        loss: str | Loss = "bce",
    ) -> RiskOutput:
        """What the model gives for a batch, and its empirical risk: a training step's forward, at less cost.

            optimizer.zero_grad()  # first: the gradients take their memory in the next line
            risk, output = model.risk(ids, labels, l0_weight=1e-4)
            risk.backward()

        is ``empirical_risk(model(ids), labels, l0_weight=1e-4).backward()`` within rounding, by one operator,
        which makes the gradients with the risk. On the CPU it goes forward and back through a few graphs at a
        time, while what it found of their pairs is in the cache; on a GPU it starts fewer kernels than the
        two steps. It serves gated models of one output and one iteration in float32 or float64, with the
        losses "bce" and "mse" and no weight of the L2 penalty, where gradients are enabled. The two steps are
        taken by all other calls, and with dropout or autocast, within compilers and transforms, where target,
        values or l0_weight require a gradient, where the model or its head has a hook, and where a subclass
        or a wrapper has another ``forward``.

        With ``sparse=True`` the host waits for a GPU here, and not in the backward. DistributedDataParallel
        and others that look at a module's calls should be given a module whose ``forward`` calls ``risk``.

        Args:
            ids: int64 [B, n], or [N] with offsets; 0..J-1.
            target: of the shape of the logits, or classes, as :func:`~l0sign_cuda.empirical_risk` wants them.
            offsets: int64 [B+1].
            values: x, float, of the shape of ids; None: 1.
            seed: fixes the draw of the gates, as in a call of the model.
            l0_weight: lambda_1, for a graph's penalty summed over its unordered pairs; a tensor [B] weighs
                each graph by itself.
            l2_weight: lambda_2, likewise.
            loss: "bce", "mse", "cross_entropy" or a function, as for ``empirical_risk``.

        Returns:
            RiskOutput(risk, output): a differentiable scalar, and the model's output, detached, whose
            l2_penalty is None where it has no weight.

        Raises:
            ValueError, IndexError, TypeError: as the model and ``empirical_risk`` raise them.
        """
        if risks.fuses(self, loss, l2_weight, ids, target, values, l0_weight):
            risk, logits, l0_penalty, num_edges = risks.fused(
                self, ids, target, offsets, values, seed, l0_weight, str(loss)
            )
            return RiskOutput(risk, L0SIGNOutput(logits, l0_penalty, None, num_edges))
        output = self(ids, offsets, values, seed=seed)
        risk = empirical_risk(output, target, l0_weight, l2_weight, loss)
        logits, l0_penalty, l2_penalty, num_edges = output
        if l2_penalty is not None:
            weighs = isinstance(l2_weight, Tensor) or l2_weight != 0
            l2_penalty = l2_penalty.detach() if weighs else None
        return RiskOutput(risk, L0SIGNOutput(logits.detach(), l0_penalty.detach(), l2_penalty, num_edges))

    def tables(self) -> tuple[Tensor, Tensor | None]:
        """The tables v [J, d] and e [J, b]; no e without gates."""
        edge_embedding = member(self, "edge_embedding")
        edge_table = None if edge_embedding is None else member(edge_embedding, "weight")
        return member(member(self, "node_embedding"), "weight"), edge_table

    def overrides_forward(self) -> bool:
        """Whether a subclass, or somebody who wrapped this model's calls, predicts in another way."""
        return type(self).forward is not L0SIGN.forward or "forward" in vars(self)

    def _iterate(
        self,
        ids: Tensor,
        node_table: Tensor,
        edge_table: Tensor | None,
        offsets: Tensor | None,
        values: Tensor | None,
        seed: int | Tensor | None,
    ) -> BagOutput:
        """The interactions applied T times, and pooled."""
        if seed is None:
            seed = self.interaction.draw_seed()  # one for all iterations
        tables = (node_table,) if edge_table is None else (node_table, edge_table)
        graphs = _checks.bag(ids, offsets, values, *tables)
        _checks.rows_of(ids, node_table)
        nodes, *others = lookup(ids, *tables, sparse=self.sparse)
        nodes = nn.functional.dropout(nodes, self.dropout, self.training)
        edge_nodes = others[0] if others else None
        output = self.interaction(scale_rows(nodes, values), edge_nodes, offsets, seed)
        l2_penalty = output.l2_penalty
        for _ in range(self.iterations - 1):  # the same gates again: their report stands
            output = self.interaction(scale_rows(output.nodes, values), edge_nodes, offsets, seed)
            if l2_penalty is not None:
                l2_penalty = l2_penalty + output.l2_penalty
        pooled = mean_rows(scale_rows(output.nodes, values), graphs)
        return BagOutput(pooled, output.l0_penalty, l2_penalty, output.num_edges)

    def extra_repr(self) -> str:
        """What print() shows beside the modules."""
        return f"iterations={self.iterations}, dropout={self.dropout:g}"


PLAIN.add(L0SIGN)


def _embedding(num_embeddings: int, dim: int) -> nn.Embedding:
    """`torch.nn.Embedding` in memory that suits a large table."""
    embedding = nn.Embedding(num_embeddings, dim, _weight=large_pages(torch.empty(num_embeddings, dim)))
    embedding.reset_parameters()  # draws what it would have drawn: a seed means the same model
    return embedding
