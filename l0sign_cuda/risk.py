"""The empirical risk of a model on a batch: by one operator that also makes the gradients, where it serves.

The backward of a sample needs nothing of the others: with the labels at hand, the operator ``l0_sign_risk``
goes forward and back through a few graphs at a time on the CPU, while what it found of their pairs is in the
cache. A forward and a backward of the whole batch find it twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.nn.modules.module import _has_any_global_hook

from . import _checks, functional, ops
from .layers import L0SIGNLayer, member
from .objective import Loss, check_target, is_used
from .rows import gives_sparse, sparse_gradient

if TYPE_CHECKING:
    from .model import L0SIGN

_LOSSES = ("bce", "mse")  # by the operator's code


def fuses(
    model: L0SIGN,
    loss: str | Loss,
    l2_weight: float | Tensor,
    *data: Any,
) -> bool:
    """Whether the operator serves this model, loss and data (ids, target, values, l0_weight) now."""
    layer, head = member(model, "interaction"), member(model, "head")
    table, _ = model.tables()
    return (
        isinstance(loss, str)
        and loss in _LOSSES
        and isinstance(l2_weight, (int, float))
        and l2_weight == 0
        and torch.is_grad_enabled()
        and not model.overrides_forward()
        and all(value is None or isinstance(value, (float, int)) or _is_plain(value) for value in data)
        and (table.is_cpu or (table.is_cuda and ops.l0_sign_risk.on_cuda))
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and member(layer, "edge") is not None
        and getattr(type(layer), "bag", None) is L0SIGNLayer.bag
        and type(head) is nn.Linear
        and "forward" not in vars(head)
        and head.out_features == 1
        and model.iterations == 1
        and not (model.training and model.dropout)
        and not (_has_any_global_hook() or _has_hooks(model) or _has_hooks(head))
        and functional.fuses_bag(layer.backend, table, None, model.sparse)
    )


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of which nobody wants a gradient; of what is none the two steps complain."""
    return type(value) is Tensor and not value.requires_grad


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at calls of a module, which the operator does not make."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def fused(
    model: L0SIGN,
    ids: Tensor,
    target: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    seed: int | Tensor | None,
    l0_weight: float | Tensor,
    loss: str,
) -> tuple[Tensor, ...]:
    """(risk, logits, l0_penalty, num_edges); only the first has a gradient."""
    layer, head = member(model, "interaction"), member(model, "head")
    head_weight, head_bias = member(head, "weight"), member(head, "bias")
    node_table, edge_table = model.tables()
    assert edge_table is not None
    message, edge = member(layer, "message").weights(), member(layer, "edge").weights()
    dtype, device, d = node_table.dtype, node_table.device, node_table.shape[1]
    graphs = _checks.bag(ids, offsets, values, node_table, edge_table, read=False)
    _checks.require("head.weight", head_weight, dtype, device, (1, d))
    if head_bias is not None:
        _checks.require("head.bias", head_bias, dtype, device, (1,))
    # The operator looks at ids and targets, but at targets of another type only after they were rounded.
    check_target(loss, target, (graphs.num_graphs,), device, read=target.dtype != dtype)

    def arguments() -> tuple[Any, ...]:
        return (
            *functional.looked_up(ids, values, node_table, edge_table, *message, *edge, head_weight),
            head_bias,
            (target if target.dtype == dtype else target.to(dtype)).contiguous(),
            _weights(l0_weight, graphs.num_graphs, node_table),
            *functional.gated(
                graphs, layer.seed_of(seed, device), layer.aggr, layer.temperature, layer.limits
            ),
            # Nothing as large as a table for tables that are frozen; a GPU, though, would be waited for.
            (model.sparse if gives_sparse(node_table, edge_table) else node_table.is_cpu),
            _LOSSES.index(loss),
        )

    def check() -> None:
        _checks.bag(ids, offsets, values, node_table, edge_table)
        _checks.network("message", message, d, d, node_table)
        _checks.network("edge", edge, edge_table.shape[1], 1, node_table)
        _checks.rows_of(ids, node_table)
        check_target(loss, target, (graphs.num_graphs,), device)

    result: tuple[Tensor, ...] = functional.call(_Risk.apply, arguments, check, ids)
    return result


def _weights(weight: float | Tensor, num_graphs: int, like: Tensor) -> Tensor:
    """A weight for each graph."""
    is_used("l0_weight", weight, (num_graphs,))  # whether it is one
    if not isinstance(weight, Tensor):
        return like.new_full((num_graphs,), float(weight))
    if weight.dim():
        _checks.on_device("l0_weight", weight, like.device)
    return weight.to(like.device, like.dtype).flatten().expand(num_graphs).contiguous()


class _Risk(torch.autograd.Function):
    """The gradients are there with the risk: its backward hands them on."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        risk, logits, l0_penalty, num_edges, *ctx.gradients = ops.l0_sign_risk(*args)
        ops.keep(ctx, args)
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
        # Autograd owns those that a backward before this one gave away; and where it makes a graph, the
        # operator has to be in it, to refuse a derivative of these.
        if gradients is None or torch.is_grad_enabled():
            gradients = ops.l0_sign_risk(*ops.kept_by(ctx))[4:]
        rows, *gradients = gradients
        batched = functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
        if batched or grad.requires_grad or not grad.is_cpu or grad.item() != 1:  # nobody waits for a GPU
            gradients = [g * grad for g in gradients] if batched else torch._foreach_mul(gradients, grad)
        *_, sparse, _ = ctx.options
        for position, gradient in enumerate(gradients, start=2):
            if ctx.needs_input_grad[position]:
                is_rows = sparse and position < 4
                result[position] = sparse_gradient(rows, gradient, ctx.num_rows) if is_rows else gradient
        if sparse:
            ctx.held = result[2:4]  # see rows._Lookup
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError("L0SIGN.risk has no forward-mode derivative; use backend='reference'")
