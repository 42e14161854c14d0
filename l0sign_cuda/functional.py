"""L0-SIGN's interactions as functions.

Each works on a batch of graphs, dense or ragged:

- dense: nodes [B, n, d], B graphs of n nodes;
- ragged: nodes [N, d] with ``offsets`` int64 [B+1]; graph g has the rows offsets[g] to offsets[g+1].

A network of one hidden layer is a tuple (hidden weight [H, in], hidden bias [H], out weight [out, H], out
bias [out]). All float tensors of a call share one dtype (float32, float64, bfloat16 or float16) and one
device; under autocast they are cast first. Accumulation and the penalties are float64 for float64 and
float32 for everything else.

``backend``: "fused" is the compiled operator, "reference" is :mod:`l0sign_cuda.reference`. None or "auto"
takes the environment variable L0SIGN_BACKEND, or else "fused". There is no silent fallback: where the binary
does not load, "fused" raises its ImportError.

Errors: ValueError for a wrong shape, dtype, device, option or offsets, IndexError for rows out of range,
TypeError for something that is no tensor, NotImplementedError for a device that this build has no kernel
for. Each names the argument, what was expected and what came.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _checks, ops, reference, rows
from .reference import BagOutput, LayerOutput, Network

__all__ = [
    "BagOutput",
    "LayerOutput",
    "complete_sign",
    "gate_noise",
    "l0_sign",
    "l0_sign_bag",
    "pair_gates",
    "sign",
    "sign_bag",
]


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
    backend: str | None = None,
) -> LayerOutput:
    """Gated interactions of all pairs of each graph, self-pairs included (Eq. 4, and the penalties of Eq. 6).

    v'_i = (1/n) sum_j g_ij z_ij with z_ij = MLP_message(u_i * u_j) and the hard concrete gate g_ij in [0, 1]
    of the logit a_ij = MLP_edge(e_i * e_j). A pair whose gate is 0 has no message, and costs none.

    Args:
        nodes: u, [B, n, d] or [N, d].
        edge_nodes: e, [B, n, b] or [N, b].
        message: the network d -> H -> d.
        edge: the network b -> He -> 1.
        offsets: int64 [B+1] for ragged nodes, else None.
        seed: None for deterministic gates; an integer or an int64 tensor of one element draws them, the same
            for the same seed on every device and in every layout.
        aggr: "mean" divides by n, "neighbor_mean" by the number of open edges of i (not differentiated),
            "sum" does not.
        temperature: beta of the gate.
        limits: (gamma, zeta) of the gate, gamma < 0 and zeta > 1.
        l2_penalty: False leaves that field None and saves its work, about d * H multiplications a pair.
        backend: see the module.

    Returns:
        LayerOutput: nodes of the shape given, l0_penalty [B], l2_penalty [B] or None, num_edges int64 [B]
        (unordered pairs with g > 0).
    """
    nodes, edge_nodes, message, edge = _autocast(nodes, edge_nodes, message, edge)
    if _use_reference(backend):
        return reference.l0_sign(
            nodes, edge_nodes, message, edge, offsets,
            seed=seed, aggr=aggr, temperature=temperature, limits=limits, l2_penalty=l2_penalty,
        )  # fmt: skip
    graphs = _checks.nodes("nodes", nodes, offsets, read=False)
    _checks.parts("message", message)
    _checks.parts("edge", edge)

    def check() -> None:
        _checks.nodes("nodes", nodes, offsets)
        _checks.edge_nodes(edge_nodes, nodes)
        _checks.network("message", message, nodes.shape[-1], nodes.shape[-1], nodes)
        _checks.network("edge", edge, edge_nodes.shape[-1], 1, nodes)

    def arguments() -> tuple[Any, ...]:
        return (
            *_contiguous(nodes, edge_nodes, *message, *edge),
            *gated(graphs, _checks.seed(seed, nodes.device), aggr, temperature, limits),
            l2_penalty,
        )

    out, l0, l2, num_edges, _ = call(ops.l0_sign, arguments, check, nodes)
    return LayerOutput(out, l0, l2 if l2_penalty else None, num_edges)


def sign(
    nodes: Tensor,
    message: Network,
    offsets: Tensor | None = None,
    *,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    aggr: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Interactions without gates, on all pairs or on given edges (SIGN: Eq. 4 with g = 1).

    With ``edge_index`` an edge j -> i adds edge_weight * z_ij to v'_i; each edge counts as often as it is
    listed.

    Args:
        nodes: u, [B, n, d] or [N, d].
        message: the network d -> H -> d.
        offsets: int64 [B+1] for ragged nodes, else None.
        edge_index: int64 [2, E], rows (source, target) over all N nodes (row g * n + i of dense nodes); each
            edge stays within one graph. None: all pairs, self-pairs included.
        edge_weight: [E], differentiable; None: 1.
        aggr: "mean" divides by n, "neighbor_mean" by the number of edges into i of positive weight, "sum"
            does not.
        backend: see the module.

    Returns:
        v', of the shape of nodes.
    """
    if edge_index is None:
        if edge_weight is not None:
            raise ValueError("edge_weight: expected None without edge_index, got a tensor")
        return complete_sign(nodes, message, offsets, aggr=aggr, l2_penalty=False, backend=backend).nodes
    nodes, edge_weight, message = _autocast(nodes, edge_weight, message)
    if _use_reference(backend):
        return reference.sign(
            nodes, message, offsets, edge_index=edge_index, edge_weight=edge_weight, aggr=aggr
        )
    graphs = _checks.nodes("nodes", nodes, offsets)
    _checks.network("message", message, nodes.shape[-1], nodes.shape[-1], nodes)
    _checks.edges(edge_index, edge_weight, nodes, graphs)
    out = ops.sign_edges(
        *_rows(nodes, *message),
        graphs.offsets,
        graphs.size,
        edge_index.contiguous(),
        None if edge_weight is None else edge_weight.contiguous(),
        _checks.aggregation(aggr),
    )
    return out.view(nodes.shape)


def complete_sign(
    nodes: Tensor,
    message: Network,
    offsets: Tensor | None = None,
    *,
    aggr: str = "mean",
    l2_penalty: bool = True,
    backend: str | None = None,
) -> LayerOutput:
    """:func:`sign` on all pairs, with the report of :func:`l0_sign`.

    l0_penalty is 0 and num_edges is n(n+1)/2.
    """
    nodes, message = _autocast(nodes, message)
    if _use_reference(backend):
        return reference.complete_sign(nodes, message, offsets, aggr=aggr, l2_penalty=l2_penalty)
    graphs = _checks.nodes("nodes", nodes, offsets, read=False)
    _checks.parts("message", message)

    def check() -> None:
        _checks.nodes("nodes", nodes, offsets)
        _checks.network("message", message, nodes.shape[-1], nodes.shape[-1], nodes)

    def arguments() -> tuple[Any, ...]:
        options = graphs.offsets, graphs.size, _checks.aggregation(aggr), l2_penalty
        return *_contiguous(nodes, *message), *options

    out, l2 = call(ops.sign, arguments, check, nodes)
    report = reference.ungated_report(graphs.bounds(nodes.device), l2.dtype, l2 if l2_penalty else None)
    return LayerOutput(out, *report)


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
    backend: str | None = None,
) -> BagOutput:
    """Look up, interact and pool in one operator, as :func:`torch.nn.functional.embedding_bag` does its sum.

    The result is (1/n) sum_i x_i v'_i, with v' from :func:`l0_sign` on u_i = x_i node_table[ids_i] and
    e_i = edge_table[ids_i]. The sum over nodes is linear in the messages, so a pair adds to one sum a graph
    instead of two nodes, the second layer is applied once a graph, and neither looked-up rows nor v' are in
    memory. A linear head on the result is the model's prediction.

    Half types, autocast and ``values`` that require a gradient take the same steps one by one, as do sparse
    gradients under a compiler.

    On CUDA tensors ids are not looked at before: one out of range makes its graph's results NaN, and is left
    out of the gradient of the tables; with ``sparse`` the backward raises RuntimeError. ``sparse`` waits for
    the device in the backward, since the shape of the gradient depends on the ids: such a backward cannot be
    captured into a CUDA graph. Everything else can.

    Args:
        ids: int64 [B, n], or [N] with offsets: rows of the tables.
        node_table: v, [J, d].
        edge_table: e, [J, b].
        message: the network d -> H -> d.
        edge: the network b -> He -> 1.
        offsets: int64 [B+1] for ragged ids, else None.
        values: x, float, of the shape of ids; None: 1.
        seed: as for :func:`l0_sign`, like the next four.
        aggr: "mean", "neighbor_mean" or "sum".
        temperature: beta of the gate.
        limits: (gamma, zeta) of the gate.
        l2_penalty: False leaves that field None.
        sparse: the gradients of the tables are sparse tensors of the rows that occur, sorted and unique.
        backend: see the module.

    Returns:
        BagOutput: pooled [B, d], l0_penalty [B], l2_penalty [B] or None, num_edges int64 [B].
    """
    graphs = _checks.bag(ids, offsets, values, node_table, edge_table, read=False)
    sparse = sparse and rows.gives_sparse(node_table, edge_table)
    if not fuses_bag(backend, node_table, values, sparse):
        return reference.l0_sign_bag(
            ids, node_table, edge_table, message, edge, offsets, values,
            seed=seed, aggr=aggr, temperature=temperature, limits=limits, l2_penalty=l2_penalty,
            sparse=sparse, layer=partial(l0_sign, backend=backend),
        )  # fmt: skip
    _checks.parts("message", message)
    _checks.parts("edge", edge)

    def check() -> None:
        _checks.bag(ids, offsets, values, node_table, edge_table)
        _checks.network("message", message, node_table.shape[-1], node_table.shape[-1], node_table)
        _checks.network("edge", edge, edge_table.shape[-1], 1, node_table)
        _checks.rows_of(ids, node_table)

    def arguments() -> tuple[Any, ...]:
        return (
            *looked_up(ids, values, node_table, edge_table, *message, *edge),
            *gated(graphs, _checks.seed(seed, ids.device), aggr, temperature, limits),
            sparse,
            l2_penalty,
        )

    pooled, l0, l2, num_edges, _ = call(ops.l0_sign_bag, arguments, check, ids)
    return BagOutput(pooled, l0, l2 if l2_penalty else None, num_edges)


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
    backend: str | None = None,
) -> BagOutput:
    """:func:`l0_sign_bag` without gates: every pair counts, l0_penalty is 0 and num_edges is n(n+1)/2."""
    graphs = _checks.bag(ids, offsets, values, node_table, read=False)
    sparse = sparse and rows.gives_sparse(node_table)
    if not fuses_bag(backend, node_table, values, sparse):
        return reference.sign_bag(
            ids, node_table, message, offsets, values,
            aggr=aggr, l2_penalty=l2_penalty, sparse=sparse, layer=partial(complete_sign, backend=backend),
        )  # fmt: skip
    _checks.parts("message", message)

    def check() -> None:
        _checks.bag(ids, offsets, values, node_table)
        _checks.network("message", message, node_table.shape[-1], node_table.shape[-1], node_table)
        _checks.rows_of(ids, node_table)

    def arguments() -> tuple[Any, ...]:
        options = graphs.offsets, graphs.size, _checks.aggregation(aggr), sparse, l2_penalty
        return *looked_up(ids, values, node_table, *message), *options

    pooled, l2 = call(ops.sign_bag, arguments, check, ids)
    report = reference.ungated_report(graphs.bounds(ids.device), l2.dtype, l2 if l2_penalty else None)
    return BagOutput(pooled, *report)


def pair_gates(
    edge_nodes: Tensor,
    edge: Network,
    offsets: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    temperature: float = 2 / 3,
    limits: tuple[float, float] = (-0.1, 1.1),
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gate and the logit of every unordered pair, differentiable: those of :func:`l0_sign`.

    Pairs are in canonical order: graph by graph, i <= j, row-major. Their number depends on the offsets, so
    that a GPU is waited for.

    Returns:
        (pair_index int64 [2, P], the rows i and j of 0..N-1; gates [P]; logits [P]).
    """
    edge_nodes, edge = _autocast(edge_nodes, edge)
    if _use_reference(backend):
        return reference.pair_gates(
            edge_nodes, edge, offsets, seed=seed, temperature=temperature, limits=limits
        )
    graphs = _checks.nodes("edge_nodes", edge_nodes, offsets)
    _checks.network("edge", edge, edge_nodes.shape[-1], 1, edge_nodes)
    pairs = reference.pair_index(graphs.bounds(edge_nodes.device))
    gates, logits = ops.edge_gates(
        *_rows(edge_nodes, *edge),
        graphs.offsets,
        graphs.size,
        _checks.seed(seed, edge_nodes.device),
        *_checks.gate_options(temperature, limits),
        pairs.shape[1],
    )
    return pairs, gates, logits


def gate_noise(
    seed: int | Tensor,
    offsets: Tensor,
    device: torch.device | str | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """The uniform draws U_ij in (0, 1) behind the gates of ``seed``: float32 [P] in canonical pair order.

    A pure function of (seed, graph's index in the batch, pair's index in its graph): Philox4x32-10.

    Args:
        seed: an integer or an int64 tensor of one element.
        offsets: int64 [B+1].
        device: of the result; by default that of the offsets.
        backend: see the module.
    """
    if _use_reference(backend):
        return reference.gate_noise(seed, offsets, device)
    if seed is None:
        raise TypeError("seed: expected an integer or an int64 tensor, got None")
    _checks.check_offsets(offsets, None, None)
    offsets = offsets.to(device or offsets.device).contiguous()
    num_pairs = _checks.num_pairs(offsets)
    return ops.gate_noise(_checks.seed(seed, offsets.device), offsets, 0, offsets.shape[0] - 1, num_pairs)


def _use_reference(backend: str | None) -> bool:
    if backend is None or backend == "auto":
        backend = os.environ.get("L0SIGN_BACKEND") or "auto"
    _checks.backend(backend)
    return backend == "reference"


def _autocast(first: Tensor, *others: Any) -> tuple[Any, ...]:
    """Tensors and tuples of tensors as autocast wants them; float64 is left alone, as in torch."""
    if not isinstance(first, Tensor) or not autocasts(first):
        return first, *others
    dtype = torch.get_autocast_dtype(first.device.type)

    def cast(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(map(cast, value))
        low = isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return value.to(dtype) if low else value

    return tuple(map(cast, (first, *others)))


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on where the tensor is."""
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def fuses_bag(backend: str | None, table: Tensor, values: Tensor | None, sparse: bool) -> bool:
    """Whether a bag's operator serves this call: with a half type it would copy the whole table."""
    return (
        not _use_reference(backend)
        and table.dtype in (torch.float32, torch.float64)
        and not autocasts(table)
        and (values is None or not _wants_gradient(values))
        and not (sparse and torch.compiler.is_compiling())  # a compiler knows no sparse gradients
    )


def _wants_gradient(values: Tensor) -> bool:
    """Whether a gradient of the values may be asked for; a transform may hide that it is."""
    transformed = torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() and (values.requires_grad or transformed)


def looked_up(ids: Tensor, values: Tensor | None, table: Tensor, *others: Tensor) -> list[Tensor | None]:
    """The flat ids and values, and contiguous tensors."""
    x = None if values is None else values.to(table.dtype).flatten().contiguous()
    return [ids.flatten().contiguous(), x, *_contiguous(table, *others)]


def gated(
    graphs: _checks.Graphs, seed: Tensor | None, aggr: str, temperature: float, limits: tuple[float, float]
) -> tuple[Any, ...]:
    """The options of the gated operators on all pairs, from ``offsets`` on; the seed is checked already."""
    code, gate = _checks.aggregation(aggr), _checks.gate_options(temperature, limits)
    return graphs.offsets, graphs.size, seed, code, *gate


def call(
    operator: Callable[..., Any],
    arguments: Callable[[], Sequence[Any]],
    check: Callable[[], None],
    rows: Tensor,
) -> Any:
    """Call an operator with ``arguments()``; where it refuses them, ``check`` raises the error instead.

    On the CPU an operator looks at its arguments itself, some twenty tensors in less time than Python takes.
    In a trace or transform, and on other devices, nobody would look: there the check comes first.
    """
    if not _checks.readable(rows):
        check()
        return operator(*arguments())
    try:
        return operator(*arguments())
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        refused: Exception = error
    try:
        check()
        raise refused
    finally:
        del refused  # its traceback holds this frame, and so the caller's tensors


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _rows(first: Tensor, *others: Tensor) -> list[Tensor]:
    """Contiguous tensors, nodes [B, n, d] flattened to rows [N, d]."""
    return _contiguous(*(t.flatten(0, -2) if t.dim() == 3 else t for t in (first, *others)))
