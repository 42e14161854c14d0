"""A small run of every kernel, for compute-sanitizer: `make gpu-check` runs it under memcheck and racecheck.

Whether results are right is for the tests; here they only have to be finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cases
import torch

from l0sign_cuda import L0SIGN, rows

# Each takes other kernels: those of the matrix units, by their sizes in csrc/cuda/tile_config.h, and the
# general ones.
WIDTHS = {
    "8": (8, 32, 8, 32),
    "16": (16, 64, 8, 32),
    "32": (20, 33, 9, 17),
    "64": (40, 33, 36, 17),
    "general": (70, 33, 9, 17),
}
SIZES = [10, 1, 16, 0, 17, 3]


def main(device: str = "cuda") -> None:
    """Forward and backward of every operator, in every type that has kernels of its own."""
    for name, widths in WIDTHS.items():
        run_layers(widths, torch.float32, device)
        run_bags(widths, torch.float32, device)
        if name == "general":
            run_layers(widths, torch.float64, device)
            run_bags(widths, torch.float64, device)
        else:
            with matmul_precision("high"):  # tf32
                run_layers(widths, torch.float32, device)
                run_bags(widths, torch.float32, device, cases.AGGREGATIONS[:1])
        for half in (torch.bfloat16, torch.float16):
            run_layers(widths, half, device)
    for dtype in (torch.float32, torch.float64):
        update_rows(dtype, device)
        run_risk(dtype, device)
    if device == "cuda":
        torch.cuda.synchronize()


def run_layers(widths: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """The operators on nodes; an L2 penalty has backward kernels of its own."""
    d, hidden, b, edge_hidden = widths
    case = cases.make(SIZES, d=d, hidden=hidden, b=b, edge_hidden=edge_hidden)
    for call in (cases.l0_sign, cases.complete_sign):
        for l2_penalty in (False, True):
            run(case.to(dtype, device), call, l2_penalty=l2_penalty)
    run(case.to(dtype, device), cases.pair_gates)
    for weighted in (False, True):
        run(cases.with_edges(case, weighted=weighted).to(dtype, device), cases.sign_edges)


def run_bags(
    widths: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    aggregations: tuple[str, ...] = cases.AGGREGATIONS,
) -> None:
    """The operators on tables, which have no half types."""
    d, hidden, b, edge_hidden = widths
    for aggr in aggregations:
        bag = cases.make_bag(SIZES, d=d, hidden=hidden, b=b, edge_hidden=edge_hidden, aggr=aggr)
        for sparse in (False, True):
            run(bag.to(dtype, device), cases.l0_sign_bag, l2_penalty=False, sparse=sparse)
            run(bag.to(dtype, device), cases.sign_bag, l2_penalty=False, sparse=sparse)
    for call in (cases.l0_sign_bag, cases.sign_bag):
        run(bag.to(dtype, device), call, l2_penalty=True)


def run(case: cases.Case, call: object, **options: object) -> None:
    """Forward and backward."""
    case = case.with_leaves(lambda leaf: leaf.detach().requires_grad_())
    outputs = call(case, backend="fused", **options)  # type: ignore[operator]
    total = sum(value.sum() for value in outputs.values() if value.requires_grad)
    gradients = torch.autograd.grad(total, list(case.leaves.values()), allow_unused=True)
    values = [*outputs.values(), *gradients]
    assert all(bool(value.to_dense().isfinite().all()) for value in values if value is not None)


def run_risk(dtype: torch.dtype, device: str) -> None:
    """A model's training step, over more than a warp of graphs."""
    model = L0SIGN(300).to(device, dtype)
    ids = torch.arange(70 * 3, device=device).reshape(70, 3)
    risk = model.risk(ids, torch.ones(70, dtype=dtype, device=device), seed=1, l0_weight=0.1).risk
    risk.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters() if weight.grad is not None)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """torch's precision of float32 products, for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def update_rows(dtype: torch.dtype, device: str) -> None:
    """The optimizers on the rows of a table, some of which have missed steps."""
    tables = [[torch.rand(300, 5, dtype=dtype, device=device)] for _ in range(3)]
    last = torch.arange(300, dtype=torch.int32, device=device) % 7
    ids = torch.arange(400, device=device) // 2
    touched, sums, _ = rows.embedding_rows(ids, torch.ones(400, 5, dtype=dtype, device=device), None, 300)
    args = ([torch.tensor(6)], [last], [touched], [sums])
    options = {"lr": 0.1, "weight_decay": 0.01, "eps": 1e-8}
    rows.row_adagrad_(*tables[:2], *args, lr_decay=0.0, **options)
    rows.row_adam_(*tables, *args, betas=(0.9, 0.99), **options)
    assert all(bool(table.isfinite().all()) for [table] in tables)


if __name__ == "__main__":
    main()
