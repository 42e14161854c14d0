"""A small run of every kernel: `compute-sanitizer --tool memcheck python python_tests/gpu_small.py`.

Whether results are right is for the tests; here they only have to be finite.
"""

from __future__ import annotations

from dataclasses import replace

import cases
import torch

from l0sign_cuda import rows

WIDTHS = (
    (8, 32, 8, 32),
    (16, 32, 8, 32),
    (16, 64, 8, 32),
    (20, 33, 9, 17),
)  # each kernel of the matrix units; general
SIZES = [10, 1, 16, 0, 17, 3]


def main() -> None:
    """Forward and backward of every operator."""
    for dtype in (torch.float32, torch.float64):
        for d, hidden, b, edge_hidden in WIDTHS:
            case = cases.make(SIZES, d=d, hidden=hidden, b=b, edge_hidden=edge_hidden).to(dtype, "cuda")
            for call in (cases.l0_sign, cases.complete_sign):
                for l2_penalty in (False, True):
                    run(case, call, l2_penalty=l2_penalty)
            run(case, cases.pair_gates)
            edge_index = torch.tensor([[0, 1, 2, 2, 30], [1, 0, 2, 3, 29]], device="cuda")
            run(replace(case, edge_index=edge_index), cases.sign_edges)
            for aggr in cases.AGGREGATIONS:
                bag = cases.make_bag(SIZES, d=d, hidden=hidden, b=b, edge_hidden=edge_hidden, aggr=aggr)
                for sparse in (False, True):
                    run(bag.to(dtype, "cuda"), cases.l0_sign_bag, sparse=sparse)
                    run(bag.to(dtype, "cuda"), cases.sign_bag, sparse=sparse)
        update_rows(dtype)
    torch.cuda.synchronize()


def run(case: cases.Case, call: object, **options: object) -> None:
    """Forward and backward, in one dtype."""
    case = case.with_leaves(lambda leaf: leaf.detach().requires_grad_())
    outputs = call(case, backend="fused", **options)  # type: ignore[operator]
    total = sum(value.sum() for value in outputs.values() if value.requires_grad)
    gradients = torch.autograd.grad(total, list(case.leaves.values()), allow_unused=True)
    values = [*outputs.values(), *gradients]
    assert all(bool(value.to_dense().isfinite().all()) for value in values if value is not None)


def update_rows(dtype: torch.dtype) -> None:
    """The optimizers on the rows of a table, some of which have missed steps."""
    tables = [[torch.rand(300, 5, dtype=dtype, device="cuda")] for _ in range(3)]
    last = torch.arange(300, dtype=torch.int32, device="cuda") % 7
    ids = torch.arange(400, device="cuda") // 2
    touched, sums, _ = rows.embedding_rows(ids, torch.ones(400, 5, dtype=dtype, device="cuda"), None, 300)
    args = ([torch.tensor(6)], [last], [touched], [sums])
    options = {"lr": 0.1, "weight_decay": 0.01, "eps": 1e-8}
    rows.row_adagrad_(*tables[:2], *args, lr_decay=0.0, **options)
    rows.row_adam_(*tables, *args, betas=(0.9, 0.99), **options)
    assert all(bool(table.isfinite().all()) for [table] in tables)


if __name__ == "__main__":
    main()
