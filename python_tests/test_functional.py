"""The fused functions against the definition: outputs and all gradients."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch

from l0sign_cuda import functional

CALLS = (cases.l0_sign, cases.complete_sign, cases.sign_edges, cases.pair_gates)
WIDTHS = (  # d, b, H, He
    (1, 1, 1, 1),
    (8, 8, 32, 32),
    (3, 5, 7, 9),
    (16, 4, 64, 17),
    (17, 19, 33, 1),
    (2, 33, 5, 40),
)


def make(sizes, call, **options):
    case = cases.make(sizes, **options)
    return cases.with_edges(case, weighted=True) if call is cases.sign_edges else case


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_options(call, dtype, seed, aggr, device):
    case = make([3, 0, 1, 7, 2], call, seed=seed, aggr=aggr, dtype=dtype)
    cases.assert_fused_as_good(case, call, dtype, device)


@pytest.mark.parametrize("temperature", [0.5, 2 / 3, 0.6667, 1.3])
@pytest.mark.parametrize("call", [cases.l0_sign, cases.pair_gates])
def test_temperatures(call, temperature, device):
    """The default has a way of its own."""
    case = make([3, 7, 40], call, seed=5, dtype=torch.float64).to(torch.float64, device)
    fused, expected = (
        cases.results(case, call, backend=backend, temperature=temperature)
        for backend in ("fused", "reference")
    )
    for name, value in expected.items():
        torch.testing.assert_close(fused[name], value, msg=name)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("call", CALLS)
def test_widths(call, widths, dense, device):
    d, b, hidden, edge_hidden = widths
    sizes = (5, 6) if dense else [0, 1, 6, 6, 3, 10]
    case = make(sizes, call, d=d, b=b, hidden=hidden, edge_hidden=edge_hidden, dense=dense)
    cases.assert_fused_as_good(case, call, device=device)


# More graphs than a block of any vector width holds, and some over; few large ones, each a task of its own.
@pytest.mark.parametrize(
    ("batch", "size"),
    [(35, 1), (35, 2), (35, 3), (35, 5), (33, 8), (17, 15), (16, 16), (17, 17), (9, 31), (7, 39), (19, 40)],
)
@pytest.mark.parametrize("call", [cases.l0_sign, cases.complete_sign])
def test_sizes_dense(call, batch, size, device):
    cases.assert_fused_as_good(cases.make((batch, size), dense=True, at=size), call, device=device)


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("call", CALLS)
def test_random_ragged(call, at, device):
    random = torch.Generator().manual_seed(at)
    batch = int(torch.randint(1, 50, (), generator=random))
    sizes = torch.randint(0, 41 if at % 4 == 3 else 12, (batch,), generator=random).tolist()
    d, b, hidden, edge_hidden = torch.randint(1, 20, (4,), generator=random).tolist()
    case = make(
        sizes,
        call,
        d=d,
        b=b,
        hidden=hidden,
        edge_hidden=edge_hidden,
        seed=at if at % 2 else None,
        aggr=cases.AGGREGATIONS[at % 3],
        at=at,
    )
    cases.assert_fused_as_good(case, call, device=device)


@pytest.mark.parametrize("sizes", [[257], [3, 300, 0, 128, 1]])
@pytest.mark.parametrize("call", CALLS)
def test_large_graphs(call, sizes, device):
    cases.assert_fused_as_good(make(sizes, call, d=4, hidden=8), call, device=device)


def test_edges_without_weights(device):
    case = cases.with_edges(cases.make([4, 0, 6, 1]), weighted=False)
    assert case.edge_weight is None
    for aggr in cases.AGGREGATIONS:
        cases.assert_fused_as_good(replace(case, aggr=aggr), cases.sign_edges, device=device)


def test_no_edges(backend, device):
    case = cases.make([3, 2]).to(torch.float32, device)
    none = torch.empty(2, 0, dtype=torch.int64, device=device)
    out = functional.sign(case.nodes, case.message, case.offsets, edge_index=none, backend=backend)
    assert torch.equal(out, torch.zeros_like(case.nodes))


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("call", CALLS)
def test_dense_is_ragged(call, aggr, backend, device):
    case = make((5, 4), call, dense=True, aggr=aggr).to(torch.float64, device)
    dense = cases.results(case, call, backend=backend)
    ragged = cases.results(case.ragged(), call, backend=backend)
    for name, value in dense.items():
        torch.testing.assert_close(ragged[name].reshape(value.shape), value, rtol=0, atol=1e-13, msg=name)


@pytest.mark.parametrize("call", [cases.l0_sign, cases.complete_sign])
def test_without_l2_penalty(call, backend, device):
    case = cases.make([4, 1, 6]).to(torch.float64, device)
    full, lean = (call(case, backend=backend, l2_penalty=asked) for asked in (True, False))
    assert full.keys() - lean.keys() == {"l2_penalty"}
    assert all(torch.equal(full[name], lean[name]) for name in lean)
    cases.assert_fused_as_good(cases.make([4, 1, 6]), call, device=device, l2_penalty=False)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 1)])
@pytest.mark.parametrize("call", [cases.l0_sign, cases.complete_sign, cases.pair_gates])
def test_degenerate_dense(call, shape, device):
    cases.assert_fused_as_good(cases.make(shape, dense=True), call, device=device)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 1, 0], [1]])
@pytest.mark.parametrize("call", CALLS)
def test_degenerate_ragged(call, sizes, device):
    cases.assert_fused_as_good(make(sizes, call), call, device=device)


@pytest.mark.parametrize("call", CALLS)
def test_strided_inputs(call, device):
    def strided(leaf):
        wide = torch.full((*leaf.shape, 2), torch.nan, dtype=leaf.dtype, device=device)
        wide[..., 0] = leaf
        return wide[..., 0]

    case = make([3, 0, 5], call).to(torch.float32, device)
    spread = case.with_leaves(strided)
    assert not spread.nodes.is_contiguous()
    plain, actual = (call(each, backend="fused") for each in (case, spread))
    assert all(torch.equal(plain[name], actual[name]) for name in plain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("call", CALLS)
def test_without_grad(call, mode, backend, device):
    case = make([3, 0, 5], call).to(torch.float32, device)
    expected = call(case.with_leaves(lambda leaf: leaf.clone().requires_grad_()), backend=backend)
    with mode():
        actual = call(case, backend=backend)
    assert all(torch.equal(actual[name], expected[name].detach()) for name in expected)


def test_the_environment_chooses_the_backend(monkeypatch):
    case = cases.make([3]).to(torch.float32)
    called = []
    monkeypatch.setattr(functional.reference, "gate_noise", lambda *args: called.append(args))
    monkeypatch.setenv("L0SIGN_BACKEND", "reference")
    functional.gate_noise(1, case.offsets)
    functional.gate_noise(1, case.offsets, backend="auto")
    assert len(called) == 2
    functional.gate_noise(1, case.offsets, backend="fused")
    monkeypatch.setenv("L0SIGN_BACKEND", "auto")
    functional.gate_noise(1, case.offsets)
    assert len(called) == 2


def test_penalties_of_millions_of_pairs_do_not_drift(backend, device):
    """One graph of 2,000 nodes: each penalty is a sum over two million pairs.

    Measured: at most 1.2e-7 over both backends and all instruction sets.
    """
    random = torch.Generator().manual_seed(0)

    def grid(*shape, steps):  # so coarse that logits are exact, and no gate is near its kinks
        return (torch.randn(shape, generator=random).double() * steps).round() / steps

    leaves = {"nodes": grid(2000, 2, steps=2**20), "edge_nodes": grid(2000, 2, steps=2)}
    for network, steps, out in (("message", 2**10, 2), ("edge", 8, 1)):
        for part, shape in zip(cases.PARTS, ((3, 2), (3,), (out, 3), (out,)), strict=True):
            leaves[f"{network}.{part}"] = grid(*shape, steps=steps)
    case = cases.Case(leaves, torch.tensor([0, 2000]), None, "mean")
    for call in (cases.l0_sign, cases.complete_sign):
        exact = call(case, backend="reference")
        found = call(case.to(torch.float32, device), backend=backend)
        assert torch.equal(found["num_edges"].cpu(), exact["num_edges"])
        for name in ("l0_penalty", "l2_penalty"):
            torch.testing.assert_close(found[name].cpu().double(), exact[name], rtol=5e-7, atol=0)
