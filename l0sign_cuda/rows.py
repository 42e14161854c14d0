"""The rows of embedding tables that a batch touches: their gradients, and optimizer updates in place.

Three operators of ``torch.ops.l0sign_cuda`` work on CPU and CUDA tensors. Beside each stands its definition
in plain PyTorch, which is what runs without the binary, and for CUDA tensors in a build without CUDA; it is
deterministic too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _checks, _extension

_LARGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14  # <asm-generic/mman-common.h>


def lookup(ids: Tensor, table: Tensor, *others: Tensor, sparse: bool = False) -> tuple[Tensor, ...]:
    """The rows ``ids`` (int64, any shape) of one or two tables [J, w].

    A sparse gradient has each row once, in ascending order, and is marked as coalesced. A compiler leaves a
    gap there: it knows no sparse gradients.
    """
    tables = (table, *others)
    if sparse and gives_sparse(*tables):
        return _sparse_lookup(ids, *tables)
    return tuple(F.embedding(ids, table) for table in tables)


def gives_sparse(*tables: Tensor) -> bool:
    """Whether these tables can have sparse gradients now; transforms and exports take dense ones."""
    return (
        torch.is_grad_enabled()
        and any(table.requires_grad for table in tables)
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_exporting()
    )


def _sparse_lookup(ids: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():  # as a decorator, `disable` would import the whole compiler
        return torch.compiler.disable(_Lookup.apply)(ids, *tables)
    return _Lookup.apply(ids, *tables)


def embedding_rows(
    ids: Tensor, grad_node: Tensor, grad_edge: Tensor | None, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gradients of each id's positions, in the order of the positions.

    Args:
        ids: int64 [N], from 0 to num_rows - 1.
        grad_node: [N, d].
        grad_edge: [N, b], or None.
        num_rows: J.

    Returns:
        (rows, node_rows, edge_rows): the U different ids, ascending, int64 [U]; their sums [U, d] and [U, b],
        summed in float32 at least; without ``grad_edge`` the last is [0]. On CUDA tensors the host waits for
        U, and sums of many positions are put together from those of 32 positions each.

    Raises:
        RuntimeError: an id out of range.
    """
    return _call("embedding_rows", _embedding_rows, ids, grad_node, grad_edge, num_rows)


def row_adagrad_(
    param: Tensor,
    state_sum: Tensor,
    row_step: Tensor | None,
    rows: Tensor,
    grad: Tensor,
    *,
    step: int,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """A step of Adagrad on the rows of a table.

    Args:
        param: [J, w], changed in place.
        state_sum: [J, w], the sums of squared gradients, changed in place.
        row_step: int32 [J], the last step that touched each row, 0 before the first, changed in place: a row
            makes up for the weight decay of the steps it missed since. None: it does not.
        rows: int64 [U], ascending, each once. (For CUDA tensors nobody looks whether they are; what is out of
            range is left out.)
        grad: [U, w], their gradients.
        step: the number of the step, from 1.
        lr: learning rate.
        weight_decay: L2 penalty of these rows.
        eps: added to the root of the sums.
    """
    tables = (param, state_sum)
    _update("row_adagrad_", _row_adagrad, tables, row_step, rows, grad, step, lr, weight_decay, eps)


def row_adam_(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor | None,
    rows: Tensor,
    grad: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
) -> None:
    """A step of Adam on the rows of a table.

    Args:
        param: [J, w], changed in place.
        exp_avg: [J, w], the mean of the gradients, changed in place.
        exp_avg_sq: [J, w], the mean of their squares, changed in place.
        row_step: as for `row_adagrad_`.
        rows: as for `row_adagrad_`.
        grad: [U, w], their gradients.
        step: the number of the step, from 1; the correction of the means' bias is that of this step.
        lr: learning rate.
        betas: how much of the two means is kept.
        weight_decay: L2 penalty of these rows.
        eps: added to the root of the second mean.
    """
    tables = (param, exp_avg, exp_avg_sq)
    _update("row_adam_", _row_adam, tables, row_step, rows, grad, step, lr, *betas, weight_decay, eps)


def empty_table(*shape: int, like: Tensor | None = None) -> Tensor:
    """An uninitialised table, with ``like`` of its shape, dtype and device.

    Rows lie all over a large one, and with pages of 4 KiB nearly every row would cost a walk through the page
    table: Linux is asked for large pages, which it gives to memory that nobody has written to.
    """
    table = torch.empty(*shape) if like is None else torch.empty_like(like)
    if sys.platform != "linux" or not _checks.readable(table):  # a fake tensor has no memory
        return table
    size = table.numel() * table.element_size()
    if size >= 8 * _LARGE_PAGE:
        begin = -(-table.data_ptr() // _LARGE_PAGE) * _LARGE_PAGE
        end = (table.data_ptr() + size) // _LARGE_PAGE * _LARGE_PAGE
        # Advice: where it is not taken, everything works as before.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_HUGEPAGE)
    return table


def accumulated(tensor: Tensor) -> Tensor:
    """The tensor in the type that sums are taken in: float64 stays, everything else is float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def sparse_gradient(rows: Tensor, values: Tensor, num_rows: int) -> Tensor:
    """The sparse gradient [J, w] with ``values`` [U, w] in ``rows`` [U], ascending."""
    shape = (num_rows, *values.shape[1:])
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, shape, is_coalesced=True, check_invariants=False
    )


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(ids)
        ctx.num_rows = tables[0].shape[0]
        return tuple(F.embedding(ids, table) for table in tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        needed = [k for k, needs in enumerate(ctx.needs_input_grad[1:]) if needs]
        flat = [grads[k].reshape(ids.numel(), grads[k].shape[-1]) for k in needed]  # one id is [w]
        second = flat[1] if len(flat) == 2 else None
        rows, *sums = embedding_rows(ids.flatten(), flat[0], second, ctx.num_rows)
        result: list[Tensor | None] = [None] * (1 + len(grads))
        for k, values in zip(needed, sums, strict=False):
            result[1 + k] = sparse_gradient(rows, values, ctx.num_rows)
        # Autograd takes over a gradient that nobody else holds, and forgets that it is coalesced; of one that
        # is held it makes a copy, which is as small as the batch.
        ctx.held = result
        return tuple(result)


def _call(name: str, definition: Callable[..., Any], *args: Any) -> Any:
    operator = getattr(torch.ops.l0sign_cuda, name) if _extension.is_available() else definition
    return operator(*args)


def _update(
    name: str,
    definition: Callable[..., Any],
    tables: tuple[Tensor, ...],
    row_step: Tensor | None,
    rows: Tensor,
    grad: Tensor,
    *options: Any,
) -> None:
    if tables[0].dtype in (torch.float32, torch.float64) and all(table.is_contiguous() for table in tables):
        _call(name, definition, *tables, row_step, rows.contiguous(), grad.contiguous(), *options)
        for table in tables:  # what autograd saved of them is out of date
            torch.autograd.graph.increment_version(table)
    else:
        definition(*tables, row_step, rows, grad, *options)


# -------------------- the definitions


def _embedding_rows(
    ids: Tensor, grad_node: Tensor, grad_edge: Tensor | None, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.argsort(ids, stable=True)
    rows, lengths = torch.unique_consecutive(ids[order], return_counts=True)

    def total(grad: Tensor) -> Tensor:
        wide = accumulated(grad)
        # One gradient after another within a segment, without atomics. (Unsafe leaves out checks of lengths.)
        return torch.segment_reduce(wide[order], "sum", lengths=lengths, unsafe=True).to(grad.dtype)

    return rows, total(grad_node), grad_node.new_empty(0) if grad_edge is None else total(grad_edge)


def _row_adagrad(
    param: Tensor,
    state_sum: Tensor,
    row_step: Tensor | None,
    rows: Tensor,
    grad: Tensor,
    step: int,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    values, total, grad = (accumulated(tensor) for tensor in (param[rows], state_sum[rows], grad))
    lost = _missed(row_step, rows, step, values) * (lr * weight_decay)
    values = _decayed(values, lost, total.sqrt() + eps)
    grad = grad + weight_decay * values
    total = total + grad * grad
    state_sum[rows] = total.to(state_sum.dtype)
    param[rows] = (values - lr * (grad / (total.sqrt() + eps))).to(param.dtype)


def _row_adam(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor | None,
    rows: Tensor,
    grad: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
) -> None:
    correction = (1 - beta2**step) ** 0.5
    tables = (param, exp_avg, exp_avg_sq)
    values, mean, square = (accumulated(table[rows]) for table in tables)
    lost = _missed(row_step, rows, step, values) * (lr * weight_decay)
    values = _decayed(values, lost, square.sqrt() / correction + eps)
    grad = accumulated(grad)
    grad = grad + weight_decay * values
    mean = mean + (1 - beta1) * (grad - mean)
    square = beta2 * square + (1 - beta2) * grad * grad
    values = values - lr / (1 - beta1**step) * (mean / (square.sqrt() / correction + eps))
    for table, result in zip(tables, (values, mean, square), strict=True):
        table[rows] = result.to(table.dtype)


def _missed(row_step: Tensor | None, rows: Tensor, step: int, like: Tensor) -> Tensor:
    """How many steps each row has missed since its last one [U, 1]; this step is its last one from now on."""
    if row_step is None:
        return like.new_zeros(1, 1)
    before = row_step[rows]
    row_step[rows] = step
    return torch.where(before > 0, step - 1 - before, 0).clamp(min=0).unsqueeze(1).to(like.dtype)


def _decayed(values: Tensor, lost: Tensor, spread: Tensor) -> Tensor:
    """Values [U, w] after the decay ``lost`` [U, 1]; without any they stay, even where the spread is 0."""
    return torch.where(lost > 0, values / (1 + lost / spread), values)


# -------------------- registration


def _fake_embedding_rows(
    ids: Tensor, grad_node: Tensor, grad_edge: Tensor | None, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    touched = torch.library.get_ctx().new_dynamic_size()
    return (
        ids.new_empty(touched),
        grad_node.new_empty(touched, grad_node.shape[1]),
        grad_node.new_empty(0) if grad_edge is None else grad_edge.new_empty(touched, grad_edge.shape[1]),
    )


if _extension.is_available():
    for _name, _definition, _fake in (
        ("embedding_rows", _embedding_rows, _fake_embedding_rows),
        ("row_adagrad_", _row_adagrad, lambda *args: None),
        ("row_adam_", _row_adam, lambda *args: None),
    ):
        if _name not in _extension.cuda_operators():
            torch.library.impl(f"l0sign_cuda::{_name}", "CUDA", _definition)
        torch.library.register_fake(f"l0sign_cuda::{_name}", _fake)
