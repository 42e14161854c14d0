"""The empirical risk of a model on a batch: by one operator that also makes the gradients, where it serves.

The backward of a sample needs nothing of the others: with the labels at hand, the operator ``l0_sign_risk``
goes forward and back through a few graphs at a time on the CPU, while what it found of their pairs is in the
cache. A forward and a backward of the whole batch find it twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import _checks, functional, ops
from .objective import Loss, check_target, empirical_risk, is_used
from .rows import gives_sparse, sparse_gradient

if TYPE_CHECKING:
    from .model import L0SIGN

_LOSSES = ("bce", "mse")  # by the operator's code


def empirical_risk_of(
    model: L0SIGN,
    ids: Tensor,
    target: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    seed: int | Tensor | None,
    l0_weight: float | Tensor,
    l2_weight: float | Tensor,
    loss: str | Loss,
) -> tuple[Any, ...]:
    """(risk, logits, l0_penalty, l2_penalty, num_edges) of :meth:`l0sign_cuda.L0SIGN.risk`."""
    weighs_l2 = is_used("l2_weight", l2_weight)
    if loss in _LOSSES and not weighs_l2 and _fuses(model, values, l0_weight):
        assert isinstance(loss, str)
        return _fused(model, ids, target, offsets, values, seed, l0_weight, loss)
    output = model(ids, offsets, values, seed=seed)
    risk = empirical_risk(output, target, l0_weight, l2_weight, loss)
    l2_penalty = output.l2_penalty.detach() if weighs_l2 else None
    return risk, output.logits.detach(), output.l0_penalty.detach(), l2_penalty, output.num_edges


def _fuses(model: L0SIGN, values: Tensor | None, l0_weight: float | Tensor) -> bool:
    """Whether the operator serves this model now."""
    layer, head, table = model.interaction, model.head, model.node_embedding.weight
    return (
        torch.is_grad_enabled()
        and (table.is_cpu or (table.is_cuda and ops.l0_sign_risk.on_cuda))
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and layer.edge is not None
        and type(head) is nn.Linear
        and head.out_features == 1
        and head.weight.dtype == table.dtype
        and model.iterations == 1
        and not (model.training and model.dropout)
        and not (isinstance(l0_weight, Tensor) and l0_weight.requires_grad)
        and functional.fuses_bag(layer.backend, table, values, model.sparse)
    )


def _fused(
    model: L0SIGN,
    ids: Tensor,
    target: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    seed: int | Tensor | None,
    l0_weight: float | Tensor,
    loss: str,
) -> tuple[Any, ...]:
    layer, head = model.interaction, model.head
    assert model.edge_embedding is not None and layer.edge is not None
    node_table, edge_table = model.node_embedding.weight, model.edge_embedding.weight
    message, edge = layer.message.weights(), layer.edge.weights()
    graphs = _checks.bag(ids, offsets, values, node_table, edge_table)
    _checks.network("message", message, node_table.shape[1], node_table.shape[1], node_table)
    _checks.network("edge", edge, edge_table.shape[1], 1, node_table)
    check_target(loss, target, (graphs.num_graphs,))
    risk, logits, l0_penalty, num_edges = _Risk.apply(
        *functional.looked_up(ids, values, node_table, edge_table, *message, *edge, head.weight),
        head.bias,
        target.to(node_table.dtype).contiguous(),
        _weights(l0_weight, graphs.num_graphs, node_table),
        graphs.offsets,
        graphs.size,
        layer.seed_of(seed, ids.device),
        _checks.aggregation(layer.aggr),
        layer.temperature,
        *layer.limits,
        # Nothing as large as a table for tables that are frozen.
        not (node_table.requires_grad or edge_table.requires_grad)
        or (model.sparse and gives_sparse(node_table, edge_table)),
        _LOSSES.index(loss),
    )
    return risk, logits, l0_penalty, None, num_edges


def _weights(weight: float | Tensor, num_graphs: int, like: Tensor) -> Tensor:
    """A weight for each graph."""
    if not isinstance(weight, Tensor):
        is_used("l0_weight", weight)  # whether it is one
        return like.new_full((num_graphs,), weight)
    if weight.numel() != 1 and weight.shape != (num_graphs,):
        raise ValueError(f"l0_weight: expected a number or shape [{num_graphs}], got {list(weight.shape)}")
    return weight.to(like.dtype).flatten().expand(num_graphs).contiguous()


class _Risk(torch.autograd.Function):
    """The gradients are there with the risk: its backward hands them on."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        risk, logits, l0_penalty, num_edges, *ctx.gradients = ops.l0_sign_risk(*args)
        ctx.options = [None if isinstance(value, Tensor) else value for value in args]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in args))
        ctx.num_rows = args[2].shape[0]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(logits, l0_penalty, num_edges)
        return risk, logits, l0_penalty, num_edges

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = [None] * len(ctx.options)
        if grad is None:
            return tuple(result)
        gradients, ctx.gradients = ctx.gradients, None
        # Autograd owns those that a backward before this one gave away; and of these a derivative may be
        # asked for, which the operator itself will refuse.
        if gradients is None or torch.is_grad_enabled():
            pairs = zip(ctx.saved_tensors, ctx.options, strict=True)
            gradients = ops.l0_sign_risk(*(option if saved is None else saved for saved, option in pairs))[4:]
        rows, *gradients = gradients
        if grad.requires_grad or not grad.is_cpu or grad != 1:  # nobody waits for a GPU
            gradients = [gradient * grad for gradient in gradients]
        *_, sparse, _ = ctx.options
        for position, gradient in enumerate(gradients, start=2):
            if ctx.needs_input_grad[position]:
                is_rows = sparse and position < 4
                result[position] = sparse_gradient(rows, gradient, ctx.num_rows) if is_rows else gradient
        if sparse:
            ctx.held = result[2:4]  # see rows._Lookup
        return tuple(result)
