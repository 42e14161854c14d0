"""The definition: every function of :mod:`l0sign_cuda.functional` in plain PyTorch, for any dtype and device.

Written to be read beside the paper (Su, Zhang, Erfani, Xu, "Detecting Beneficial Feature Interactions for
Recommender Systems", AAAI 2021) and, for the gates, Louizos, Welling, Kingma, "Learning Sparse Neural
Networks through L0 Regularization", ICLR 2018. All pairs are laid out in memory; autograd differentiates
these functions, as often as wanted.

Accumulation and the penalties are float64 for float64 and float32 for everything else: a bfloat16 or float16
call computes in float32 and rounds its result once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from . import _checks
from .rows import accumulated, lookup

Network = tuple[Tensor, Tensor, Tensor, Tensor]
"""hidden weight [H, in], hidden bias [H], out weight [out, H], out bias [out]"""


class LayerOutput(NamedTuple):
    """What one application of the gated layer gives."""

    nodes: Tensor
    """v' (Eq. 4), of the shape and dtype of the nodes given"""
    l0_penalty: Tensor
    """[B], the sum over unordered pairs of the probability that their edge is open"""
    l2_penalty: Tensor | None
    """[B], the sum over open unordered pairs of ||z||^2; None where it was not asked for"""
    num_edges: Tensor
    """int64 [B], the number of open unordered pairs"""


class BagOutput(NamedTuple):
    """What looking up, interacting and pooling gives for a batch of B graphs."""

    pooled: Tensor
    """[B, d], (1/n) sum_i x_i v'_i, what the linear head reads; 0 of an empty graph"""
    l0_penalty: Tensor
    """[B], the sum over unordered pairs of the probability that their edge is open"""
    l2_penalty: Tensor | None
    """[B], the sum over open unordered pairs of ||z||^2; None where it was not asked for"""
    num_edges: Tensor
    """int64 [B], the number of open unordered pairs"""


# So that an exported program can be saved, and compiled by AOTInductor.
_register_namedtuple(LayerOutput, serialized_type_name="l0sign_cuda.LayerOutput")
_register_namedtuple(BagOutput, serialized_type_name="l0sign_cuda.BagOutput")


def l0_sign(
    nodes: Tensor,
    edge_nodes: Tensor,
    message: Network,
    edge: Network,
    offsets: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    aggr: str = "mean",
    temperature: float = 2 / 3,
    limits: tuple[float, float] = (-0.1, 1.1),
    l2_penalty: bool = True,
) -> LayerOutput:
    """Gated interactions on complete graphs (Eq. 4, with the penalties of Eq. 6).

    Arguments, result and errors: :func:`l0sign_cuda.functional.l0_sign`.
    """
    graphs = _checks.nodes("nodes", nodes, offsets)
    _checks.edge_nodes(edge_nodes, nodes)
    _checks.network("message", message, nodes.shape[-1], nodes.shape[-1], nodes)
    _checks.network("edge", edge, edge_nodes.shape[-1], 1, nodes)
    _checks.aggregation(aggr)
    gate = _checks.gate_options(temperature, limits)
    seed = _checks.seed(seed, nodes.device)

    bounds = graphs.bounds(nodes.device)
    pairs = pair_index(bounds)
    graph = node_graphs(bounds, nodes.numel() // nodes.shape[-1])
    with _full_precision(nodes):
        logits = _edge_logits(edge_nodes, edge, pairs)
        noise = None if seed is None else gate_noise(seed, bounds)
        gates = hard_concrete(logits, noise, *gate)
        z = _messages(nodes, message, pairs)
        # A closed pair has no message, whatever z is there; a gate that is NaN shows.
        gated = torch.where((gates != 0).unsqueeze(-1), gates.unsqueeze(-1) * z, 0)
        out = _aggregate(gated, gates > 0, pairs, bounds, graph, aggr, ordered=False)

        pair_graph = graph[pairs[0]]
        pi = torch.sigmoid(logits - gate[0] * math.log(-gate[1] / gate[2]))  # P(g > 0)
        l0 = _penalty(pi, pair_graph, graphs.num_graphs)
        l2 = None
        if l2_penalty:
            l2 = _penalty(torch.where(gates > 0, z.square().sum(-1), 0), pair_graph, graphs.num_graphs)
        num_edges = _sum_by((gates > 0).long(), pair_graph, graphs.num_graphs)
    return LayerOutput(out.to(nodes.dtype).view(nodes.shape), l0, l2, num_edges)


def sign(
    nodes: Tensor,
    message: Network,
    offsets: Tensor | None = None,
    *,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    aggr: str = "mean",
) -> Tensor:
    """Interactions without gates, on all pairs or on given edges (SIGN: Eq. 4 with g = 1).

    Arguments, result and errors: :func:`l0sign_cuda.functional.sign`.
    """
    if edge_index is None:
        if edge_weight is not None:
            raise ValueError("edge_weight: expected None without edge_index, got a tensor")
        return complete_sign(nodes, message, offsets, aggr=aggr, l2_penalty=False).nodes
    graphs = _checks.nodes("nodes", nodes, offsets)
    _checks.network("message", message, nodes.shape[-1], nodes.shape[-1], nodes)
    _checks.edges(edge_index, edge_weight, nodes, graphs)
    _checks.aggregation(aggr)

    bounds = graphs.bounds(nodes.device)
    graph = node_graphs(bounds, nodes.numel() // nodes.shape[-1])
    with _full_precision(nodes):
        z = _messages(nodes, message, edge_index)
        weight = z.new_ones(z.shape[0]) if edge_weight is None else accumulated(edge_weight)
        out = _aggregate(weight.unsqueeze(-1) * z, weight > 0, edge_index, bounds, graph, aggr, ordered=True)
    return out.to(nodes.dtype).view(nodes.shape)


def complete_sign(
    nodes: Tensor,
    message: Network,
    offsets: Tensor | None = None,
    *,
    aggr: str = "mean",
    l2_penalty: bool = True,
) -> LayerOutput:
    """SIGN on all pairs, with the report of :func:`l0_sign`: every gate is 1 and no edge is penalised."""
    graphs = _checks.nodes("nodes", nodes, offsets)
    _checks.network("message", message, nodes.shape[-1], nodes.shape[-1], nodes)
    _checks.aggregation(aggr)

    bounds = graphs.bounds(nodes.device)
    pairs = pair_index(bounds)
    graph = node_graphs(bounds, nodes.numel() // nodes.shape[-1])
    with _full_precision(nodes):
        z = _messages(nodes, message, pairs)
        out = _aggregate(
            z, torch.ones_like(pairs[0], dtype=torch.bool), pairs, bounds, graph, aggr, ordered=False
        )
        l2 = _penalty(z.square().sum(-1), graph[pairs[0]], graphs.num_graphs) if l2_penalty else None
    return LayerOutput(out.to(nodes.dtype).view(nodes.shape), *ungated_report(bounds, z.dtype, l2))


def ungated_report(
    bounds: Tensor, dtype: torch.dtype, l2: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(l0_penalty = 0, l2_penalty, num_edges = n(n+1)/2) of graphs whose pairs are all open."""
    n = bounds.diff()
    return torch.zeros_like(n, dtype=dtype), l2, n * (n + 1) // 2


def l0_sign_bag(
    ids: Tensor,
    node_table: Tensor,
    edge_table: Tensor,
    message: Network,
    edge: Network,
    offsets: Tensor | None = None,
    values: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    aggr: str = "mean",
    temperature: float = 2 / 3,
    limits: tuple[float, float] = (-0.1, 1.1),
    l2_penalty: bool = True,
    sparse: bool = False,
    layer: Callable[..., LayerOutput] = l0_sign,
) -> BagOutput:
    """:func:`l0_sign` of looked-up rows, pooled. See :func:`l0sign_cuda.functional.l0_sign_bag`.

    Another ``layer`` of that signature goes the same way: backends take it where they have no such operator.
    """

    def interact(nodes: Tensor) -> LayerOutput:
        return layer(
            nodes, edge_nodes, message, edge, offsets,
            seed=seed, aggr=aggr, temperature=temperature, limits=limits, l2_penalty=l2_penalty,
        )  # fmt: skip

    graphs = _checks.bag(ids, offsets, values, node_table, edge_table)
    _checks.rows_of(ids, node_table)
    nodes, edge_nodes = lookup(ids, node_table, edge_table, sparse=sparse)
    return bag(interact, nodes, values, graphs)


def sign_bag(
    ids: Tensor,
    node_table: Tensor,
    message: Network,
    offsets: Tensor | None = None,
    values: Tensor | None = None,
    *,
    aggr: str = "mean",
    l2_penalty: bool = True,
    sparse: bool = False,
    layer: Callable[..., LayerOutput] = complete_sign,
) -> BagOutput:
    """:func:`complete_sign` of looked-up rows, pooled. See :func:`l0sign_cuda.functional.sign_bag`."""

    def interact(nodes: Tensor) -> LayerOutput:
        return layer(nodes, message, offsets, aggr=aggr, l2_penalty=l2_penalty)

    graphs = _checks.bag(ids, offsets, values, node_table)
    _checks.rows_of(ids, node_table)
    (nodes,) = lookup(ids, node_table, sparse=sparse)
    return bag(interact, nodes, values, graphs)


def bag(
    interact: Callable[[Tensor], LayerOutput], nodes: Tensor, values: Tensor | None, graphs: _checks.Graphs
) -> BagOutput:
    """Let u_i = x_i v_i interact, and pool: (1/n) sum_i x_i v'_i."""
    output = interact(scale_rows(nodes, values))
    return BagOutput(mean_rows(scale_rows(output.nodes, values), graphs), *output[1:])


def scale_rows(rows: Tensor, values: Tensor | None) -> Tensor:
    """x_i times row i, in the rows' dtype."""
    return rows if values is None else rows * values.to(rows.dtype).unsqueeze(-1)


def mean_rows(rows: Tensor, graphs: _checks.Graphs) -> Tensor:
    """The mean of each graph's rows, 0 of an empty graph: [B, d]. Sums in float32 at least."""
    wide = accumulated(rows)
    if rows.dim() == 3:
        mean = wide.sum(1) / max(rows.shape[1], 1)
    else:
        assert graphs.offsets is not None
        graph = node_graphs(graphs.offsets, rows.shape[0])
        total = _sum_by(wide, graph, graphs.num_graphs)
        mean = total / graphs.offsets.diff().clamp(min=1).unsqueeze(-1)
    return mean.to(rows.dtype)


def pair_gates(
    edge_nodes: Tensor,
    edge: Network,
    offsets: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    temperature: float = 2 / 3,
    limits: tuple[float, float] = (-0.1, 1.1),
) -> tuple[Tensor, Tensor, Tensor]:
    """The gate and the logit of every pair. See :func:`l0sign_cuda.functional.pair_gates`."""
    graphs = _checks.nodes("edge_nodes", edge_nodes, offsets)
    _checks.network("edge", edge, edge_nodes.shape[-1], 1, edge_nodes)
    gate = _checks.gate_options(temperature, limits)
    seed = _checks.seed(seed, edge_nodes.device)

    bounds = graphs.bounds(edge_nodes.device)
    pairs = pair_index(bounds)
    with _full_precision(edge_nodes):
        logits = _edge_logits(edge_nodes, edge, pairs)
        noise = None if seed is None else gate_noise(seed, bounds)
        gates = hard_concrete(logits, noise, *gate)
    return pairs, gates.to(edge_nodes.dtype), logits.to(edge_nodes.dtype)


def hard_concrete(
    logits: Tensor, noise: Tensor | None, temperature: float, gamma: float, zeta: float
) -> Tensor:
    """Gates in [0, 1] from logits (Louizos et al.); drawn, where there is noise U in (0, 1).

    The clamp has the gradient of :func:`torch.clamp`: zero outside its limits, where the gate is 0 or 1.
    """
    if noise is not None:
        noise = noise.to(logits.dtype)
        logits = (torch.log(noise) - torch.log(1 - noise) + logits) / temperature
    return torch.clamp(torch.sigmoid(logits) * (zeta - gamma) + gamma, 0, 1)


def gate_noise(seed: int | Tensor, offsets: Tensor, device: torch.device | str | None = None) -> Tensor:
    """The uniform draws U_ij, float32 [P] in canonical pair order.

    Arguments, result and errors: :func:`l0sign_cuda.functional.gate_noise`.
    """
    if seed is None:
        raise TypeError("seed: expected an integer or an int64 tensor, got None")
    _checks.check_offsets(offsets, None, None)
    _checks.num_pairs(offsets)
    offsets = offsets.to(device or offsets.device)
    key = _checks.seed(seed, offsets.device)
    assert key is not None
    first, _ = pair_index(offsets)
    graph = node_graphs(offsets, int(offsets[-1]))[first]
    n = offsets.diff()
    start = F.pad((n * (n + 1) // 2).cumsum(0), (1, 0))  # of a graph's pairs
    pair = torch.arange(first.shape[0], device=offsets.device) - start[graph]
    counter = torch.stack([*_words(pair >> 2), *_words(graph)])
    words = philox4x32(counter, torch.stack([*_words(key)]).expand(2, pair.shape[0]))
    word = words.gather(0, (pair & 3).unsqueeze(0)).squeeze(0)
    return ((word >> 9).float() + 0.5) * 2.0**-23


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words from a counter [4, ...] and a key [2, ...].

    Words are int64 in 0..2^32-1. A product of two wraps in int64, but keeps its 64 bits.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        low0, high0 = _words(x0 * 0xD2511F53)
        low1, high1 = _words(x2 * 0xCD9E8D57)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return torch.stack([x0, x1, x2, x3])


def pair_index(offsets: Tensor) -> Tensor:
    """Rows (i, j) of all unordered pairs, int64 [2, P]: graph by graph, i <= j, row-major."""
    rows = torch.arange(int(offsets[-1]), device=offsets.device)
    end = offsets[1:][node_graphs(offsets, rows.shape[0])]
    partners = end - rows  # row i pairs with i, i + 1, ..., end - 1
    first = rows.repeat_interleave(partners)
    start = partners.cumsum(0) - partners
    second = first + torch.arange(first.shape[0], device=offsets.device) - start[first]
    return torch.stack([first, second])


def node_graphs(offsets: Tensor, rows: int) -> Tensor:
    """The graph of each of the rows, int64 [N]."""
    return torch.searchsorted(offsets, torch.arange(rows, device=offsets.device), right=True) - 1


def _network(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    hidden_weight, hidden_bias, out_weight, out_bias = map(accumulated, weights)
    return F.linear(torch.relu(F.linear(x, hidden_weight, hidden_bias)), out_weight, out_bias)


def _messages(nodes: Tensor, message: Network, pairs: Tensor) -> Tensor:
    """z_ij = W2 relu(W1 (u_i * u_j) + b1) + b2, the message of a pair: [P, d]."""
    u = accumulated(nodes).flatten(0, -2)
    return _network(u[pairs[0]] * u[pairs[1]], message)


def _edge_logits(edge_nodes: Tensor, edge: Network, pairs: Tensor) -> Tensor:
    """a_ij, the logit of an edge: [P]."""
    e = accumulated(edge_nodes).flatten(0, -2)
    return _network(e[pairs[0]] * e[pairs[1]], edge).squeeze(-1)


def _aggregate(
    messages: Tensor,
    is_open: Tensor,
    pairs: Tensor,
    bounds: Tensor,
    graph: Tensor,
    aggr: str,
    *,
    ordered: bool,
) -> Tensor:
    """v'_i: the sum of the messages [P, d] to node i, divided as ``aggr`` says (Eq. 4): [N, d].

    A message goes to its target, pairs[1]; that of an unordered pair to its other end too.
    """
    rows = graph.shape[0]
    total, degree = _sum_by(messages, pairs[1], rows), _sum_by(is_open.long(), pairs[1], rows)
    if not ordered:
        other = pairs[0] != pairs[1]
        total = total + _sum_by(messages * other.unsqueeze(-1), pairs[0], rows)
        degree = degree + _sum_by((is_open & other).long(), pairs[0], rows)
    if aggr == "sum":
        return total
    divisor = (bounds.diff()[graph] if aggr == "mean" else degree).unsqueeze(-1)
    return total / divisor.clamp(min=1) * (divisor > 0)  # no neighbour: 0; a NaN shows all the same


def _sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The sums of the rows of ``values`` that share an index: [size, ...]."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def _penalty(values: Tensor, index: Tensor, size: int) -> Tensor:
    """``_sum_by`` in float64: over millions of pairs a sum in float32 drifts."""
    return _sum_by(values.double(), index, size).to(values.dtype)


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def _words(x: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of int64."""
    return x & 0xFFFFFFFF, (x >> 32) & 0xFFFFFFFF
