"""Gradients: against finite differences, at the kinks, of parts of the outputs; and determinism."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import cases
import pytest
import torch

CALLS = (cases.l0_sign, cases.complete_sign, cases.sign_edges, cases.pair_gates)


def make(sizes, call, **options):
    case = cases.make(sizes, **options)
    return cases.with_edges(case, weighted=True) if call is cases.sign_edges else case


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("call", CALLS)
def test_gradcheck(call, aggr, seed, backend, device):
    case = make([3, 0, 1, 2], call, d=2, hidden=3, edge_hidden=2, seed=seed, aggr=aggr)
    case = case.to(torch.float64, device)
    if call is cases.sign_edges:  # an edge is counted from above 0 on: away from that kink too
        case.leaves["edge_weight"].clamp_(min=0.25)
    names = list(cases.results(case, call, backend=backend))
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves.items() if f"grad {name}" in names}

    def outputs(*values):
        moved = replace(case, leaves={**case.leaves, **dict(zip(leaves, values, strict=True))})
        return [value for value in call(moved, backend=backend).values() if value.is_floating_point()]

    # a step far below the margin that keeps the kinks away
    assert torch.autograd.gradcheck(outputs, list(leaves.values()), eps=1e-7, atol=1e-5, rtol=1e-4)


def pinned_gate(logit, backend, device):
    """One node whose only pair has this logit, deterministic: its results and gradients."""
    one = torch.ones(1, 1, dtype=torch.float64, device=device)
    leaves = {"nodes": one.reshape(1, 1, 1), "edge_nodes": one.reshape(1, 1, 1)}
    for network in ("message", "edge"):
        leaves |= {f"{network}.hidden.weight": one, f"{network}.hidden.bias": 0 * one[0]}
        leaves |= {f"{network}.out.weight": one, f"{network}.out.bias": 0 * one[0]}
    leaves["edge.out.bias"] = torch.full((1,), logit - 1.0, dtype=torch.float64, device=device)
    case = cases.Case(leaves, None, None, "mean")
    return cases.results(case, lambda c, **o: {"nodes": cases.l0_sign(c, **o)["nodes"]}, backend=backend)


@pytest.mark.parametrize("logit", [-10.0, 10.0])
def test_a_clamped_gate_has_no_gradient(logit, backend, device):
    result = pinned_gate(logit, backend, device)
    assert result["nodes"].item() == (0 if logit < 0 else 1)
    for name in ("edge_nodes", "edge.hidden.weight", "edge.out.weight", "edge.out.bias"):
        assert result[f"grad {name}"].abs().max() == 0
    # nor has the message of a closed pair
    assert (result["grad nodes"].abs().max() == 0) == (logit < 0)


def test_an_open_gate_has_a_gradient(backend, device):
    result = pinned_gate(0.5, backend, device)
    assert result["nodes"].item() == pytest.approx(1.2 / (1 + 2.718281828459045**-0.5) - 0.1)
    assert result["grad edge.out.bias"].abs().min() > 0.01


def test_a_closed_pairs_logit_keeps_its_gradient_through_the_penalty(backend, device):
    case = cases.make([4], seed=None).to(torch.float64, device)
    closed = case.with_leaves(lambda leaf: leaf.clone())
    closed.leaves["edge.out.bias"].sub_(100.0)
    bias = closed.leaves["edge.out.bias"].requires_grad_()
    output = cases.l0_sign(closed, backend=backend)
    assert output["num_edges"].sum() == 0 and output["nodes"].abs().max() == 0
    (gradient,) = torch.autograd.grad(output["l0_penalty"].sum(), bias)
    assert gradient.item() > 0


def test_relu_has_slope_0_at_0(backend, device):
    case = cases.make([2, 1]).to(torch.float64, device)
    flat = case.with_leaves(torch.zeros_like)
    result = cases.results(flat, cases.l0_sign, backend=backend)
    assert result["grad message.hidden.bias"].abs().max() == 0
    assert result["grad edge.hidden.bias"].abs().max() == 0
    assert result["grad edge.out.bias"].abs().max() > 0


@pytest.mark.parametrize("name", ["nodes", "l0_penalty", "l2_penalty"])
def test_one_output_alone(name, device):
    case = cases.make([5, 2, 0, 9])

    def only(case, **options):
        return {name: cases.l0_sign(case, **options)[name]}

    fused, torchs = (
        cases.results(case.to(torch.float32, device), only, backend=b) for b in ("fused", "reference")
    )
    exact = cases.results(case, only, backend="reference")
    # The reference knows of what l0 is no function; the operator gives it a gradient, which has to be 0.
    beyond = fused.keys() - exact.keys()
    assert (name == "l0_penalty") == ("grad nodes" in beyond)
    assert all(not fused.pop(leaf).any() for leaf in beyond)
    cases.assert_as_good(case, fused, torchs, exact)


def test_frozen_leaves_get_no_gradient(backend, device):
    case = cases.make([4]).to(torch.float32, device)
    full = cases.results(case, cases.l0_sign, backend=backend)
    weight = case.leaves["edge.hidden.weight"].requires_grad_()
    output = cases.l0_sign(case, backend=backend)
    output["nodes"].sum().backward()
    assert weight.grad is not None
    assert all(leaf.grad is None for name, leaf in case.leaves.items() if name != "edge.hidden.weight")
    assert torch.equal(output["nodes"], full["nodes"])


def test_expanded_incoming_gradients(backend, device):
    case = cases.make([4, 3]).to(torch.float32, device).with_leaves(lambda leaf: leaf.requires_grad_())
    output = cases.l0_sign(case, backend=backend)
    leaves = list(case.leaves.values())
    summed = torch.autograd.grad(sum(v.sum() for v in list(output.values())[:3]), leaves, retain_graph=True)
    given = torch.autograd.grad(
        list(output.values())[:3],
        leaves,
        [torch.ones_like(v).contiguous() for v in list(output.values())[:3]],
    )
    assert all(torch.equal(a, b) for a, b in zip(summed, given, strict=True))


@pytest.mark.parametrize("call", CALLS)
def test_a_second_derivative_names_the_way_out(call, device):
    case = make([3], call).to(torch.float64, device)
    leaves = [leaf.requires_grad_() for leaf in case.leaves.values()]
    output = next(v for v in call(case, backend="fused").values() if v.requires_grad)
    first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="backend='reference' for second derivatives"):
        torch.autograd.grad(sum(g.sum() for g in first if g is not None), leaves, allow_unused=True)


@pytest.mark.parametrize("call", CALLS)
def test_threads_do_not_change_a_bit(call):
    case = make([7, 0, 40, 3, 3, 3, 21] * 12, call, d=5, hidden=9).to(torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            runs.append(cases.results(case, call, backend="fused"))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for name, value in run.items():
            assert torch.equal(value, runs[0][name]), name


@pytest.mark.parametrize("call", CALLS)
def test_nothing_unwritten_is_read(call, device):
    """With memory filled with NaN before each operator runs, results are the same."""
    case = make([5, 0, 3, 1], call, aggr="neighbor_mean").to(torch.float32, device)
    expected = cases.results(case, call, backend="fused")
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = cases.results(case, call, backend="fused")
        assert torch.empty(3).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        assert torch.equal(poisoned[name], value), name


def test_nan_is_not_hidden(backend, device):
    """A NaN in one graph shows in that graph's results, and in no other's."""
    case = cases.make([3, 4]).to(torch.float32, device)
    for name, penalty in (("nodes", "l2_penalty"), ("edge_nodes", "l0_penalty")):
        spoiled = case.with_leaves(lambda leaf: leaf.clone())
        spoiled.leaves[name][1] = torch.nan
        output = cases.l0_sign(spoiled, backend=backend)
        assert output["nodes"][1].isnan().all() and output[penalty][0].isnan(), name
        assert not output["nodes"][3:].isnan().any() and not output[penalty][1].isnan(), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_of_an_edge_is_in_no_other_graph(value, backend, device):
    case = cases.with_edges(cases.make([3, 4, 5]), weighted=True).to(torch.float32, device)
    spoiled = case.with_leaves(lambda leaf: leaf.clone())
    spoiled.leaves["nodes"][4] = value
    clean, output = (cases.sign_edges(c, backend=backend)["nodes"] for c in (case, spoiled))
    assert torch.equal(clean[:3], output[:3]) and torch.equal(clean[7:], output[7:])
    assert not output[3:7].isfinite().all()


CAPABILITY = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import cases
from l0sign_cuda import _extension
assert _extension.cpu_capability() == sys.argv[2], _extension.cpu_capability()
for call in (cases.l0_sign, cases.complete_sign, cases.sign_edges, cases.pair_gates):
    for dtype in cases.DTYPES:
        case = cases.make([7, 0, 1, 5, 5, 5, 18], d=9, b=3, hidden=17, edge_hidden=5, dtype=dtype)
        if call is cases.sign_edges:
            case = cases.with_edges(case, weighted=True)
        cases.assert_fused_as_good(case, call, dtype)
for call in (cases.l0_sign_bag, cases.sign_bag):
    for dtype in (torch.float32, torch.float64):
        cases.assert_fused_as_good(cases.make_bag([7, 0, 1, 5, 5, 5, 18], dtype=dtype), call, dtype)
"""


@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_every_instruction_set(capability, request):
    flags = torch.backends.cpu.get_cpu_capability().lower()
    if (capability == "avx512" and capability not in flags) or (capability == "avx2" and flags == "default"):
        pytest.skip(f"this CPU has no {capability}")
    subprocess.run(
        [sys.executable, "-c", CAPABILITY, str(request.path.parent), capability],
        env={**os.environ, "L0SIGN_CPU_CAPABILITY": capability},
        check=True,
        timeout=300,
    )
