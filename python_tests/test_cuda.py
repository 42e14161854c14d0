"""What only a GPU can show: agreement with the CPU, streams, graphs, devices, memory.

Skipped without a GPU; REQUIRE_CUDA=1 makes that a failure. The kernels' results are tested where those of the
CPU are, by every test that takes the fixture `device`, and on the host by `make test-simt`.
"""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch

from l0sign_cuda import functional

# Each takes another way: the kernels of the matrix units, at the edges of their sizes, and the general ones.
WIDTHS = {
    "8x32": {"d": 8, "hidden": 32, "b": 8, "edge_hidden": 32},
    "5x20": {"d": 5, "hidden": 20, "b": 3, "edge_hidden": 9},
    "16x32": {"d": 16, "hidden": 32, "b": 8, "edge_hidden": 32},
    "16x64": {"d": 16, "hidden": 64, "b": 8, "edge_hidden": 32},
    "general": {"d": 20, "hidden": 70, "b": 9, "edge_hidden": 40},
}
RAGGED = [10, 1, 16, 0, 17, 3, 40, 2]


def layer(case, **options):
    return functional.l0_sign(
        case.nodes, case.edge_nodes, case.message, case.edge, case.offsets,
        seed=case.seed, aggr=case.aggr, backend="fused", **options,
    )  # fmt: skip


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("seed", [None, 7])
def test_widths(widths, aggr, seed, gpu):
    case = cases.make(RAGGED, aggr=aggr, seed=seed, **WIDTHS[widths])
    cases.assert_fused_as_good(case, cases.l0_sign, device=gpu, l2_penalty=False)


@pytest.mark.parametrize("widths", WIDTHS)
def test_ungated(widths, gpu):
    case = cases.make(RAGGED, **WIDTHS[widths])
    cases.assert_fused_as_good(case, cases.complete_sign, device=gpu, l2_penalty=False)


@pytest.mark.parametrize("size", [1, 8, 9, 16, 17, 32, 300])
def test_dense_sizes(size, gpu):
    case = cases.make((3, size), dense=True, at=size, **WIDTHS["8x32"])
    cases.assert_fused_as_good(case, cases.l0_sign, device=gpu, l2_penalty=False)


@pytest.mark.parametrize("seed", [0, -1, 2**62])
def test_noise_is_that_of_the_cpu(seed, gpu):
    offsets = torch.tensor([0, 3, 3, 40, 41])
    on_cpu = functional.gate_noise(seed, offsets)
    assert torch.equal(functional.gate_noise(seed, offsets, gpu).cpu(), on_cpu)


@pytest.mark.parametrize("seed", [None, 3])
def test_gates_are_those_of_the_cpu(seed, gpu):
    case = cases.make(RAGGED, seed=seed, **WIDTHS["8x32"]).to(torch.float32)
    found = {}
    for device in ("cpu", gpu):
        moved = case.to(torch.float32, device)
        index, gates, logits = functional.pair_gates(
            moved.edge_nodes, moved.edge, moved.offsets, seed=seed, backend="fused"
        )
        found[str(device)] = index.cpu(), gates.cpu(), logits.cpu(), layer(moved).num_edges.cpu()
    (index, gates, logits, edges), other = found["cpu"], found[str(gpu)]
    assert torch.equal(index, other[0]) and torch.equal(edges, other[3])
    assert torch.equal(gates > 0, other[1] > 0) and torch.equal(gates == 1, other[1] == 1)
    torch.testing.assert_close(gates, other[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, other[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", WIDTHS)
def test_results_are_reproducible_to_the_bit(widths, gpu):
    case = cases.make([10] * 300 + [33, 70], **WIDTHS[widths]).to(torch.float32, gpu)
    for l2_penalty in (False, True):
        first = cases.results(case, cases.l0_sign, backend="fused", l2_penalty=l2_penalty)
        for _ in range(3):
            again = cases.results(case, cases.l0_sign, backend="fused", l2_penalty=l2_penalty)
            assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("widths", ["8x32", "16x32", "16x64"])
def test_tf32_is_used_only_where_torch_allows_it(widths, gpu):
    case = cases.make(RAGGED, **WIDTHS[widths])
    exact = layer(case.to(torch.float64, "cpu"), l2_penalty=False).nodes
    before = torch.get_float32_matmul_precision()
    error = {}
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            found = layer(case.to(torch.float32, gpu), l2_penalty=False).nodes
            error[precision] = float((found.cpu().double() - exact).abs().max() / exact.abs().max())
    finally:
        torch.set_float32_matmul_precision(before)
    assert error["highest"] < 3e-6 < error["high"] < 3e-3


def test_nobody_waits_for_the_gpu(gpu):
    case = cases.make(RAGGED, **WIDTHS["8x32"]).to(torch.float32, gpu)
    case = replace(case, seed=torch.tensor([5], device=gpu))
    case = case.with_leaves(lambda leaf: leaf.requires_grad_())
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = layer(case)
        torch.autograd.grad(
            out.nodes.sum() + out.l0_penalty.sum() + out.l2_penalty.sum(), list(case.leaves.values())
        )
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_another_stream(gpu):
    case = cases.make(RAGGED, **WIDTHS["8x32"]).to(torch.float32, gpu)
    expected = cases.results(case, cases.l0_sign, backend="fused")
    torch.cuda.synchronize(gpu)
    stream = torch.cuda.Stream(gpu)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what runs on another stream would be done long before
        doubled = case.with_leaves(lambda leaf: leaf * 2)
        halved = doubled.with_leaves(lambda leaf: leaf / 2)
        found = cases.results(halved, cases.l0_sign, backend="fused")
    stream.synchronize()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_device_of_the_tensors(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    case = cases.make(RAGGED, **WIDTHS["8x32"]).to(torch.float32, "cuda:1")
    expected = layer(case.to(torch.float32, "cuda:0")).nodes
    with torch.cuda.device(0):
        assert torch.equal(layer(case).nodes.cpu(), expected.cpu())


@pytest.mark.parametrize("l2_penalty", [False, True])
def test_a_graph_draws_anew_at_each_replay(l2_penalty, gpu):
    case = cases.make(RAGGED, **WIDTHS["8x32"]).to(torch.float32, gpu)
    seed = torch.tensor([1], device=gpu)
    leaves = case.with_leaves(lambda leaf: leaf.requires_grad_())
    captured = replace(leaves, seed=seed)

    def step():
        out = layer(captured, l2_penalty=l2_penalty)
        total = out.nodes.sum() + out.l0_penalty.sum()
        if l2_penalty:
            total = total + out.l2_penalty.sum()
        return out.nodes.detach(), torch.autograd.grad(total, list(captured.leaves.values()))

    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side):
        step()  # what torch sets up at first must not be captured
    torch.cuda.current_stream(gpu).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nodes, gradients = step()
    seen = []
    for value in (1, 2, 1):
        seed.fill_(value)
        graph.replay()
        expected_nodes, expected = step()
        assert torch.equal(nodes, expected_nodes)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
        seen.append(nodes.clone())
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_a_graph_of_thousands_of_nodes_needs_no_memory_for_pairs(gpu):
    size = 8192
    case = cases.make([3], **WIDTHS["8x32"]).to(torch.float32, gpu)
    leaves = dict(
        case.leaves, nodes=torch.randn(size, 8, device=gpu), edge_nodes=torch.randn(size, 8, device=gpu)
    )
    big = replace(case, leaves=leaves, offsets=torch.tensor([0, size], device=gpu))
    torch.cuda.synchronize(gpu)
    before = torch.cuda.memory_allocated(gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    out = layer(big, l2_penalty=False)
    results = out.nodes.numel() * 4
    assert torch.cuda.max_memory_allocated(gpu) - before < 4 * results  # a float a pair would be 134 MB
    # Node 0 by the definition.
    products = leaves["nodes"][:1].double() * leaves["nodes"].double()
    gates = hard_gates(big, size)
    w1, b1, w2, b2 = (weight.double() for weight in case.message)
    z = torch.relu(products @ w1.T + b1) @ w2.T + b2
    expected = (gates[:, None] * z).mean(0)
    torch.testing.assert_close(out.nodes[0].double(), expected, rtol=1e-4, atol=1e-5)


def hard_gates(case, size):
    """The gates of the pairs (0, j), drawn by the case's seed."""
    e = case.edge_nodes.double()
    w1, b1, w2, b2 = (weight.double() for weight in case.edge)
    logits = torch.relu((e[:1] * e) @ w1.T + b1) @ w2.T + b2
    noise = functional.gate_noise(case.seed, case.offsets)[:size].double()
    s = torch.sigmoid((noise.log() - (1 - noise).log() + logits.squeeze(-1)) / (2 / 3))
    return (s * 1.2 - 0.1).clamp(0, 1)


def test_edges_out_of_range_are_seen(gpu):
    case = cases.make([2, 2], **WIDTHS["5x20"]).to(torch.float32, gpu)
    edges = torch.tensor([[0, 3, 1], [1, 1, 0]], device=gpu)  # 3 -> 1 leaves its graph
    out = functional.sign(case.nodes, case.message, case.offsets, edge_index=edges, backend="fused")
    assert out[1].isnan().all() and not out[0].isnan().any()
