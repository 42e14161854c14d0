"""What only a GPU can show: agreement with the CPU, streams, graphs, devices, memory.

Skipped without a GPU; REQUIRE_CUDA=1 makes that a failure. The kernels' results are tested where those of the
CPU are, by every test that takes the fixture `device`, and on the host by `make test-simt`. Which operators
are called for CUDA tensors is tested on fake ones, which need no GPU.
"""

from __future__ import annotations

from dataclasses import replace

import cases
import gpu_small
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from l0sign_cuda import L0SIGN, _extension, empirical_risk, functional, ops, rows
from l0sign_cuda.optim import RowAdagrad, RowAdam

# Each takes another way: the kernels of the matrix units, at the edges of their sizes, and the general ones,
# for what is larger than the sizes in csrc/cuda/tile_config.h.
WIDTHS = {
    "8x32": {"d": 8, "hidden": 32, "b": 8, "edge_hidden": 32},
    "5x20": {"d": 5, "hidden": 20, "b": 3, "edge_hidden": 9},
    "16x32": {"d": 16, "hidden": 32, "b": 8, "edge_hidden": 32},
    "16x64": {"d": 16, "hidden": 64, "b": 8, "edge_hidden": 32},
    "20x70": {"d": 20, "hidden": 70, "b": 9, "edge_hidden": 40},
    "40x33": {"d": 40, "hidden": 33, "b": 36, "edge_hidden": 17},
    "general": {"d": 70, "hidden": 33, "b": 9, "edge_hidden": 17},
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
@pytest.mark.parametrize("l2_penalty", [False, True])
def test_widths(widths, aggr, seed, l2_penalty, gpu):
    case = cases.make(RAGGED, aggr=aggr, seed=seed, **WIDTHS[widths])
    cases.assert_fused_as_good(case, cases.l0_sign, device=gpu, l2_penalty=l2_penalty)


def test_rows_of_no_graph_are_refused(gpu):
    case = cases.make((3,), **WIDTHS["8x32"]).to(torch.float32, gpu)
    with pytest.raises((ValueError, RuntimeError), match="offsets: expected"):
        layer(replace(case, offsets=torch.tensor([0], device=gpu)))


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("l2_penalty", [False, True])
def test_ungated(widths, l2_penalty, gpu):
    case = cases.make(RAGGED, **WIDTHS[widths])
    cases.assert_fused_as_good(case, cases.complete_sign, device=gpu, l2_penalty=l2_penalty)


@pytest.mark.parametrize("size", [1, 8, 9, 16, 17, 32, 300])
def test_dense_sizes(size, gpu):
    case = cases.make((3, size), dense=True, at=size, **WIDTHS["8x32"])
    cases.assert_fused_as_good(case, cases.l0_sign, device=gpu, l2_penalty=False)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_given_edges(widths, aggr, weighted, gpu):
    case = cases.with_edges(cases.make(RAGGED, aggr=aggr, **WIDTHS[widths]), weighted=weighted)
    cases.assert_fused_as_good(case, cases.sign_edges, device=gpu)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("seed", [None, 7])
def test_gates_alone(widths, seed, gpu):
    case = cases.make(RAGGED, seed=seed, **WIDTHS[widths])
    cases.assert_fused_as_good(case, cases.pair_gates, device=gpu)


@pytest.mark.parametrize("call", [cases.l0_sign_bag, cases.sign_bag])
@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_bags(widths, aggr, call, gpu):
    case = cases.make_bag(RAGGED, aggr=aggr, **WIDTHS[widths])
    cases.assert_fused_as_good(case, call, device=gpu)
    for l2_penalty in (False, True):
        cases.assert_fused_as_good(case, call, torch.float64, gpu, l2_penalty=l2_penalty)


@pytest.mark.parametrize("size", [1, 16, 17, 33, 300])
def test_bags_of_dense_sizes(size, gpu):
    case = cases.make_bag((3, size), dense=True, at=size, **WIDTHS["8x32"])
    cases.assert_fused_as_good(case, cases.l0_sign_bag, device=gpu, l2_penalty=False)


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


@pytest.mark.parametrize("widths", WIDTHS)
def test_edges_and_gates_are_reproducible_to_the_bit(widths, gpu):
    case = cases.make([10] * 100 + [33, 70], **WIDTHS[widths])
    for call in (cases.sign_edges, cases.pair_gates):
        moved = cases.with_edges(case, weighted=True) if call is cases.sign_edges else case
        moved = moved.to(torch.float32, gpu)
        first = cases.results(moved, call, backend="fused")
        for _ in range(3):
            again = cases.results(moved, call, backend="fused")
            assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("aggr", ["mean", "neighbor_mean"])
@pytest.mark.parametrize("sparse", [False, True])
def test_bags_are_reproducible_to_the_bit(sparse, aggr, gpu):
    """One id is at half of all positions, so that its gradient is put together from many sums."""
    case = cases.make_bag([10] * 300 + [33, 70], num_rows=500, aggr=aggr, **WIDTHS["8x32"])
    case = case.to(torch.float32, gpu)
    case.ids[::2] = 3
    runs = [
        cases.results(case, cases.l0_sign_bag, backend="fused", sparse=s) for s in (sparse, sparse, False)
    ]
    for name, value in runs[0].items():
        for other in runs[1:]:
            assert torch.equal(value.to_dense(), other[name].to_dense()), name


def test_the_edges_of_a_bag_are_those_of_the_cpu(gpu):
    case = cases.make_bag([12, 0, 3, 40, 7] * 8, num_rows=100)
    edges = [cases.l0_sign_bag(case.to(torch.float32, d))["num_edges"].cpu() for d in ("cpu", gpu)]
    assert torch.equal(*edges)


@pytest.mark.parametrize("wrong", [-1, 12, 2**40])
def test_ids_out_of_range_are_seen(wrong, gpu):
    case = cases.make_bag([3, 4, 2]).to(torch.float32, gpu)
    case.ids[4] = wrong
    output = cases.l0_sign_bag(case)
    for name in ("pooled", "l0_penalty", "l2_penalty"):
        assert output[name][1].isnan().all() and not output[name][[0, 2]].isnan().any(), name
    gradient = cases.results(case, cases.l0_sign_bag)["grad node_table"]
    assert gradient.shape == (12, 3) and gradient[case.ids[:3]].isfinite().all()
    with pytest.raises(RuntimeError, match=rf"ids: expected values in 0\.\.11, got {wrong}"):
        cases.results(case, cases.l0_sign_bag, sparse=True)


@pytest.mark.parametrize("width", [1, 8, 40])
def test_sums_of_rows(width, gpu):
    """Those of the CPU; and of few positions, up to the bit."""
    random = torch.Generator().manual_seed(width)
    for count, num_rows, exact in ((0, 5, True), (5000, 40, False), (5000, 10**6, True)):
        ids = torch.randint(num_rows, (count,), generator=random)
        grad = torch.randn(count, width, generator=random)
        found, sums, _ = rows.embedding_rows(ids.to(gpu), grad.to(gpu), None, num_rows)
        expected_rows, expected, _ = rows.embedding_rows(ids, grad, None, num_rows)
        assert torch.equal(found.cpu(), expected_rows)
        few = ids.bincount(minlength=num_rows)[expected_rows] <= 2  # more may run over a part's end
        assert not exact or torch.equal(sums.cpu()[few], expected[few])
        torch.testing.assert_close(sums.cpu(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("optimizer", [RowAdagrad, RowAdam])
def test_training_is_that_of_the_cpu_and_reproducible(optimizer, gpu):
    def train(device):
        torch.manual_seed(0)
        model = L0SIGN(200, 8, 32, 8, 32, sparse=True).to(device)
        steps = optimizer(model.parameters(), lr=0.01, weight_decay=1e-4)
        random = torch.Generator().manual_seed(1)
        for seed in range(5):
            ids = torch.randint(200, (64, 10), generator=random).to(device)
            target = torch.rand(64, generator=random).round().to(device)
            output = model(ids, seed=seed)
            steps.zero_grad()
            empirical_risk(output, target, 1e-3, 1e-5).backward()
            assert model.node_embedding.weight.grad.is_sparse
            steps.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    first, again, expected = train(gpu), train(gpu), train("cpu")
    for value, other, wanted in zip(first, again, expected, strict=True):
        assert torch.equal(value, other)
        torch.testing.assert_close(value, wanted, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("widths", ["8x32", "16x32", "16x64", "20x70", "40x33"])
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


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
def test_nobody_waits_for_a_bag_with_dense_gradients(aggr, gpu):
    case = cases.make_bag(RAGGED, aggr=aggr, **WIDTHS["8x32"]).to(torch.float32, gpu)
    case = replace(case, seed=torch.tensor([5], device=gpu))
    case = case.with_leaves(lambda leaf: leaf.requires_grad_())
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = cases.l0_sign_bag(case)
        total = out["pooled"].sum() + out["l0_penalty"].sum() + out["l2_penalty"].sum()
        torch.autograd.grad(total, list(case.leaves.values()))
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_nobody_waits_for_a_risk_with_dense_gradients(gpu):
    model = L0SIGN(200).to(gpu)
    ids, target = torch.zeros(64, 10, dtype=torch.int64, device=gpu), torch.ones(64, device=gpu)
    seed = torch.tensor([5], device=gpu)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        risk = model.risk(ids, target, seed=seed, l0_weight=0.1).risk
        risk.backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert risk.grad_fn.name() == "_RiskBackward"


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


@pytest.mark.parametrize("call", [cases.l0_sign, cases.l0_sign_bag])
@pytest.mark.parametrize("l2_penalty", [False, True])
def test_a_graph_draws_anew_at_each_replay(l2_penalty, call, gpu):
    make = cases.make if call is cases.l0_sign else cases.make_bag
    case = make(RAGGED, **WIDTHS["8x32"]).to(torch.float32, gpu)
    seed = torch.tensor([1], device=gpu)
    leaves = case.with_leaves(lambda leaf: leaf.requires_grad_())
    captured = replace(leaves, seed=seed)

    def step():
        out = call(captured, l2_penalty=l2_penalty)
        total = sum(value.sum() for value in out.values() if value.requires_grad)
        result = out["nodes" if "nodes" in out else "pooled"]
        return result.detach(), torch.autograd.grad(total, list(captured.leaves.values()))

    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side):
        step()  # what torch sets up at first must not be captured
    torch.cuda.current_stream(gpu).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result, gradients = step()
    seen = []
    for value in (1, 2, 1):
        seed.fill_(value)
        graph.replay()
        expected_result, expected = step()
        assert torch.equal(result, expected_result)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
        seen.append(result.clone())
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


# -------------------- fake tensors: no GPU


@pytest.fixture
def _cuda_build():
    if not _extension.cuda_operators():
        pytest.skip("this build has no CUDA kernels")


@pytest.fixture
def _fake_cuda(_cuda_build):
    """Tensors on a GPU that is not there. (Autograd wants a real one.)"""
    with FakeTensorMode(shape_env=ShapeEnv()), torch.device("cuda"), torch.no_grad():
        yield


def networks():
    message = [torch.ones(8, 4), torch.ones(8), torch.ones(4, 8), torch.ones(4)]
    return message, [torch.ones(6, 3), torch.ones(6), torch.ones(1, 6), torch.ones(1)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.usefixtures("_fake_cuda")
def test_bags_are_one_operator_on_cuda(aggr, gated):
    """As on the CPU; half types take single steps."""
    ids, values = torch.zeros(5, 7, dtype=torch.int64), torch.ones(5, 7)
    message, edge = networks()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tables = torch.ones(30, 4, dtype=dtype), torch.ones(30, 3, dtype=dtype)
        weights = [[weight.to(dtype) for weight in network] for network in (message, edge)]
        with cases.OperatorCalls() as calls:
            if gated:
                output = functional.l0_sign_bag(ids, *tables, *weights, values=values, seed=1, aggr=aggr)
            else:
                output = functional.sign_bag(ids, tables[0], weights[0], values=values, aggr=aggr)
        name = "l0_sign" if gated else "sign"
        assert calls.names == [name if dtype == torch.bfloat16 else f"{name}_bag"]
        assert all(value.is_cuda and value.shape[0] == 5 for value in output)
        assert output.pooled.dtype == dtype and output.num_edges.dtype == torch.int64


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.usefixtures("_fake_cuda")
def test_the_gradients_of_bags_on_cuda(gated, sparse):
    ids, tables = torch.zeros(35, dtype=torch.int64), [torch.ones(30, 4), torch.ones(30, 3)]
    message, edge = networks()
    pooled, penalty, none = torch.ones(5, 4), torch.ones(5), torch.ones(0, dtype=torch.int32)
    if gated:
        weights, grads = [*tables, *message, *edge], (pooled, penalty, penalty)
        options = (None, 7, None, 0, 2 / 3, -0.1, 1.1, sparse, none)
        touched, *gradients = ops.l0_sign_bag_backward(*grads, ids, None, *weights, *options)
    else:
        weights = [tables[0], *message]
        options = (None, 7, 0, sparse)
        touched, *gradients = ops.sign_bag_backward(pooled, penalty, ids, None, *weights, *options)
    for gradient, weight in zip(gradients, weights, strict=True):
        assert gradient.is_cuda
        if sparse and weight.shape[0] == 30:
            assert gradient.shape == (touched.shape[0], weight.shape[1])
        else:
            assert gradient.shape == weight.shape


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("_fake_cuda")
def test_the_risk_on_cuda(biased, sparse):
    ids, (message, edge) = torch.zeros(35, dtype=torch.int64), networks()
    head = torch.ones(1, 4), torch.ones(1) if biased else None
    weights = [torch.ones(30, 4), torch.ones(30, 3), *message, *edge, *head]
    options = (torch.ones(5), torch.ones(5), None, 7, None, 0, 2 / 3, -0.1, 1.1, sparse, 0)
    risk, logits, l0, num_edges, touched, *gradients = ops.l0_sign_risk(ids, None, *weights, *options)
    assert risk.shape == () and logits.shape == l0.shape == num_edges.shape == (5,)
    assert all(output.is_cuda for output in (risk, logits, l0, num_edges, touched, *gradients))
    for gradient, weight in zip(gradients, weights, strict=True):
        if weight is None:
            assert gradient.shape == (0,)
        elif sparse and weight.shape[0] == 30:
            assert gradient.shape == (touched.shape[0], weight.shape[1])
        else:
            assert gradient.shape == weight.shape


@pytest.mark.usefixtures("_fake_cuda")
def test_rows_of_tables_on_cuda():
    with cases.OperatorCalls() as calls:
        touched, sums, _ = rows.embedding_rows(torch.zeros(9, dtype=torch.int64), torch.ones(9, 4), None, 30)
        tables = [[torch.zeros(30, 4)] for _ in range(3)]
        args = ([torch.tensor(0, device="cpu")], [None], [touched], [sums])
        options = {"lr": 0.1, "weight_decay": 0.0, "eps": 1e-8}
        rows.row_adagrad_(*tables[:2], *args, lr_decay=0.0, **options)
        rows.row_adam_(*tables, *args, betas=(0.9, 0.99), **options)
    assert calls.names == ["embedding_rows", "row_adagrad_", "row_adam_"]
    assert sums.is_cuda and sums.shape == (touched.shape[0], 4)


@pytest.mark.usefixtures("_cuda_build")
def test_every_operator_has_a_kernel_for_both():
    """As the dispatcher sees it: kernels, and none of the compositions that stand in for them."""
    names = {name.removeprefix("l0sign_cuda::") for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("l0sign_cuda::")}  # fmt: skip
    assert names == _extension.cuda_operators()
    for name in names:
        for key in ("CPU", "CUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"l0sign_cuda::{name}", key), (name, key)


def test_what_the_sanitizers_run_works_on_the_cpu():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gpu_small.main("cpu")
    finally:
        torch.set_num_threads(threads)
