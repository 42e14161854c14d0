"""The helpers of the comparisons: they must be able to fail."""

from __future__ import annotations

import cases
import pytest
import torch

from l0sign_cuda import reference


def open_units_and_gates(case):
    """On which side of its kink each hidden unit and each gate falls."""
    i, j = reference.pair_index(case.bounds())
    sides = []
    for rows, network in (("nodes", "message"), ("edge_nodes", "edge")):
        x = case.leaves[rows].flatten(0, -2)
        units = (x[i] * x[j]) @ case.leaves[f"{network}.hidden.weight"].T + case.leaves[
            f"{network}.hidden.bias"
        ]
        sides.append(units > 0)
    _, gates, _ = reference.pair_gates(case.edge_nodes, case.edge, case.offsets, seed=case.seed)
    return *sides, gates > 0, gates < 1


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("sizes", [[1], [3, 0, 40], [120]])
def test_float32_is_on_the_same_side_of_every_kink(sizes, seed):
    case = cases.make(sizes, d=6, b=9, hidden=11, edge_hidden=13, seed=seed)
    exact, single = open_units_and_gates(case), open_units_and_gates(case.to(torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(exact, single, strict=True))


def test_cases_have_every_kind_of_gate_and_unit():
    units, edge_units, is_open, is_partial = open_units_and_gates(cases.make([30, 30]))
    for sides in (units, edge_units, is_open, is_partial):
        assert 0.01 < sides.double().mean() < 0.99


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_numbers_are_exact_in_the_dtype(dtype):
    case = cases.make([5, 3], dtype=dtype)
    assert all(torch.equal(leaf.to(dtype).double(), leaf) for leaf in case.leaves.values())


def test_the_comparison_refuses():
    case = cases.make([4, 5])
    exact = cases.results(case, cases.l0_sign, backend="reference")
    single = cases.results(case.to(torch.float32), cases.l0_sign, backend="reference")
    cases.assert_as_good(case, single, single, exact)
    for name, value in single.items():
        off = value + 1 if name == "num_edges" else value * (1 + 1e-4) + 1e-4
        with pytest.raises(AssertionError, match=name):
            cases.assert_as_good(case, single | {name: off}, single, exact)
        with pytest.raises(AssertionError, match=name):
            cases.assert_as_good(case, single | {name: off.double()}, single, exact)
    with pytest.raises(AssertionError):
        cases.assert_as_good(case, {k: v for k, v in single.items() if k != "nodes"}, single, exact)
