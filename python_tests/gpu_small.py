"""A small run of every kernel: `compute-sanitizer --tool memcheck python python_tests/gpu_small.py`.

Whether results are right is for the tests; here they only have to be finite.
"""

from __future__ import annotations

from dataclasses import replace

import cases
import torch

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
    torch.cuda.synchronize()


def run(case: cases.Case, call: object, **options: object) -> None:
    """Forward and backward, in one dtype."""
    case = case.with_leaves(lambda leaf: leaf.detach().requires_grad_())
    outputs = call(case, backend="fused", **options)  # type: ignore[operator]
    total = sum(value.sum() for value in outputs.values() if value.requires_grad)
    gradients = torch.autograd.grad(total, list(case.leaves.values()), allow_unused=True)
    values = [*outputs.values(), *gradients]
    assert all(bool(value.isfinite().all()) for value in values if value is not None)


if __name__ == "__main__":
    main()
