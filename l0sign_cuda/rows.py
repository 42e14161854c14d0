"""The rows of embedding tables that a batch touches: their gradients, and optimizer updates in place.

Three operators of ``torch.ops.l0sign_cuda`` work on CPU and CUDA tensors. Beside each stands its definition
in plain PyTorch, which is what runs without the binary, and for CUDA tensors in a build without CUDA; it is
deterministic too.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _checks, _extension

_LARGE_PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # <asm-generic/mman-common.h>


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
        U and for two ids, and sums of many positions are put together from those of 32 positions each.

    Raises:
        RuntimeError: an id out of range.
    """
    return _call("embedding_rows", _embedding_rows, ids, grad_node, grad_edge, num_rows)


def row_adagrad_(
    params: Sequence[Tensor],
    sums: Sequence[Tensor],
    steps: Sequence[Tensor],
    row_steps: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    lr: float,
    lr_decay: float,
    weight_decay: float,
    eps: float,
) -> None:
    """A step of Adagrad on parameters, of which the first ``len(rows)`` have gradients of rows.

    Args:
        params: [J, ...] each, changed in place.
        sums: of the same shapes, the sums of squared gradients, changed in place.
        steps: int64 numbers on the CPU, how many steps each has had, counted up.
        row_steps: int32 [J], the last step that touched each row, 0 before the first, changed in place: a row
            makes up for the weight decay of the steps it missed since. None: it does not. Of a dense
            gradient it may be one number for all rows.
        rows: int64 [U], ascending, each once. (On a GPU nobody looks whether they are; what is out of range
            is left out.)
        grads: [U, w], the gradients of these rows; of the parameters after them the whole gradients.
        lr: learning rate.
        lr_decay: the learning rate of step t is lr / (1 + (t - 1) lr_decay).
        weight_decay: L2 penalty of what is updated.
        eps: added to the root of the sums.
    """
    options = (lr, lr_decay, weight_decay, eps)
    _update("row_adagrad_", _row_adagrad, (params, sums), steps, row_steps, rows, grads, *options)


def row_adam_(
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    row_steps: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
) -> None:
    """A step of Adam on parameters, of which the first ``len(rows)`` have gradients of rows.

    Args:
        params: as for `row_adagrad_`.
        exp_avgs: of the same shapes, the means of the gradients, changed in place.
        exp_avg_sqs: likewise the means of their squares.
        steps: as for `row_adagrad_`, like the next three; the correction of the means' bias is that of the
            step.
        row_steps: see there.
        rows: see there.
        grads: see there.
        lr: learning rate.
        betas: how much of the two means is kept.
        weight_decay: L2 penalty of what is updated.
        eps: added to the root of the second mean.
    """
    tables, options = (params, exp_avgs, exp_avg_sqs), (lr, *betas, weight_decay, eps)
    _update("row_adam_", _row_adam, tables, steps, row_steps, rows, grads, *options)


def has_kernel(param: Tensor, dense: bool) -> bool:
    """Whether operators update this parameter by this kind of gradient; the definitions below take any.

    Dense gradients only where the binary is, on the CPU: torch's own optimizers beat the definitions there.
    """
    if param.dtype not in (torch.float32, torch.float64) or not param.is_contiguous():
        return False
    return param.is_cpu and _extension.is_available() if dense else param.is_cpu or param.is_cuda


def as_matrix(tensor: Tensor) -> Tensor:
    """A view [J, w] of a tensor [J, ...]; a scalar is [1, 1]."""
    if tensor.dim() == 2:
        return tensor
    return tensor.view(len(tensor), math.prod(tensor.shape[1:])) if tensor.dim() else tensor.view(1, 1)


def mark_every_row(row_step: Tensor, step: int, weight_decay: float) -> None:
    """Note in ``row_step`` that a dense update, the step of this number, has touched all rows."""
    if weight_decay:  # every row has had its decay
        row_step.fill_(step)
    else:  # a row that never had any still has none to make up for
        row_step.masked_fill_(row_step > 0, step)


def large_pages(table: Tensor) -> Tensor:
    """The table, for whose memory Linux was asked for large pages.

    Rows lie all over a large table, and with pages of 4 KiB nearly every row would cost a walk through the
    page table.
    """
    if sys.platform != "linux" or not _checks.readable(table):  # a fake tensor has no memory
        return table
    size = table.numel() * table.element_size()
    if size >= 2 * _LARGE_PAGE and not table.is_shared():  # other processes have a say in shared memory
        begin = -(-table.data_ptr() // _LARGE_PAGE) * _LARGE_PAGE
        end = (table.data_ptr() + size) // _LARGE_PAGE * _LARGE_PAGE
        _ask_for_large_pages(begin, end)
    return table


def _ask_for_large_pages(begin: int, end: int) -> bool:
    """Whether Linux gave them to the addresses from `begin` to `end`."""
    # Advice: where it is not taken, everything works as before. The first is for memory that nobody has
    # written to yet, the second, new in Linux 6.1, for memory that is in use.
    madvise = ctypes.CDLL(None).madvise
    where = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
    return [madvise(*where, advice) for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE)] == [0, 0]


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
    tables: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    row_steps: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    *options: Any,
) -> None:
    # Not None in the schema: torch's functionalization takes none in a list that is changed, nor one tensor
    # twice.
    row_steps = [torch.empty(0, dtype=torch.int32) if last is None else last for last in row_steps]
    if all(has_kernel(param, dense=k >= len(rows)) for k, param in enumerate(tables[0])):
        _call(name, definition, *tables, steps, row_steps, rows, grads, *options)
        for changed in tables:  # what autograd saved of them is out of date
            torch.autograd.graph.increment_version(changed)
    else:
        definition(*tables, steps, row_steps, rows, grads, *options)


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
    params: Sequence[Tensor],
    sums: Sequence[Tensor],
    steps: Sequence[Tensor],
    row_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    lr_decay: float,
    weight_decay: float,
    eps: float,
) -> None:
    for tables, step, row_step, touched, grad in _each(
        (params, sums), steps, row_steps, rows, grads, weight_decay
    ):
        rate = lr / (1 + (step - 1) * lr_decay)
        values, total = (accumulated(table[touched]) for table in tables)
        lost = _missed(row_step, touched, step, values) * (rate * weight_decay)
        values = _decayed(values, lost, total.sqrt() + eps)
        grad = grad + weight_decay * values
        total = total + grad * grad
        _store(tables, touched, values - rate * (grad / (total.sqrt() + eps)), total)


def _row_adam(
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    row_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
) -> None:
    for tables, step, row_step, touched, grad in _each(
        (params, exp_avgs, exp_avg_sqs), steps, row_steps, rows, grads, weight_decay
    ):
        correction = (1 - beta2**step) ** 0.5
        values, mean, square = (accumulated(table[touched]) for table in tables)
        lost = _missed(row_step, touched, step, values) * (lr * weight_decay)
        values = _decayed(values, lost, square.sqrt() / correction + eps)
        grad = grad + weight_decay * values
        mean = mean + (1 - beta1) * (grad - mean)
        square = beta2 * square + (1 - beta2) * grad * grad
        values = values - lr / (1 - beta1**step) * (mean / (square.sqrt() / correction + eps))
        _store(tables, touched, values, mean, square)


def _each(
    tables: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    row_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    weight_decay: float,
) -> Iterator[tuple[list[Tensor], int, Tensor | None, Tensor, Tensor]]:
    """Of each parameter (its tables [J, w], this step's number, row_step, rows [U], gradient [U, w])."""
    for k, grad in enumerate(grads):
        steps[k].add_(1)
        step = int(steps[k])
        ones = [as_matrix(table[k]) for table in tables]
        row_step = row_steps[k] if row_steps[k].numel() else None
        if k < len(rows):
            yield ones, step, row_step, rows[k], accumulated(grad)
            continue
        every = torch.arange(len(ones[0]), device=grad.device)
        yield ones, step, None, every, accumulated(as_matrix(grad))
        if row_step is None:
            continue
        mark_every_row(row_step, step, weight_decay)


def _store(tables: Sequence[Tensor], rows: Tensor, *results: Tensor) -> None:
    for table, result in zip(tables, results, strict=True):
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
