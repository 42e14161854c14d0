"""The noise behind the gates: uniform, and a function of (seed, graph, pair) alone."""

from __future__ import annotations

import cases
import pytest
import torch

from l0sign_cuda import functional, reference

SEEDS = [0, 1, -1, 2**31, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF]


@pytest.mark.parametrize("seed", SEEDS)
def test_fused_is_reference_bit_for_bit(seed, device):
    offsets = torch.tensor([0, 3, 3, 50, 51, 60], device=device)
    fused = functional.gate_noise(seed, offsets, backend="fused")
    assert fused.device.type == device.type
    assert torch.equal(fused.cpu(), reference.gate_noise(seed, offsets.cpu()))


def test_uniform(backend):
    from scipy import stats  # the other tests run where it is not

    offsets = torch.arange(0, 200_001, 20)  # 10,000 graphs of 210 pairs
    noise = functional.gate_noise(5, offsets, backend=backend)
    assert noise.dtype == torch.float32 and noise.shape == (2_100_000,)
    assert noise.min() > 0 and noise.max() < 1
    by_graph = noise.double().reshape(10_000, 210)
    assert stats.kstest(by_graph.flatten().numpy(), "uniform").pvalue > 1e-3
    # across graphs for one pair, and across pairs for one graph
    for sample in (by_graph[:, 0], by_graph[:, 209], by_graph[7]):
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-3
    # neighbours, in a graph and between graphs, are uncorrelated: |r| < 5 / sqrt(samples)
    centred = by_graph - 0.5
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(product.mean().item() * 12) < 5 / product.numel() ** 0.5


def test_values_are_exact_in_float32(backend):
    noise = functional.gate_noise(5, torch.tensor([0, 100]), backend=backend).double()
    steps = noise * 2**24
    assert torch.equal(steps, steps.round()) and bool((steps % 2 == 1).all())


def test_a_seed_tensor_is_a_seed(backend, device):
    offsets = torch.tensor([0, 9, 12], device=device)
    expected = functional.gate_noise(-12, offsets, backend=backend)
    for shape in ((), (1,), (1, 1)):
        seed = torch.full(shape, -12, device=device)
        assert torch.equal(functional.gate_noise(seed, offsets, backend=backend), expected)
    assert not torch.equal(functional.gate_noise(-11, offsets, backend=backend), expected)


def test_a_graphs_noise_depends_on_its_index_alone(backend):
    def noise(*sizes):
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        pairs = [n * (n + 1) // 2 for n in sizes]
        return functional.gate_noise(3, offsets, backend=backend).split(pairs)

    first, other = noise(4, 7, 2), noise(9, 7, 0, 5)
    assert torch.equal(first[1], other[1])  # whatever its neighbours
    # a pair's draw is by its index in the graph, so that a smaller graph has the first ones
    assert torch.equal(first[0], other[0][: first[0].numel()])
    assert not torch.equal(first[0][:3], first[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [[5], [3, 0, 1, 6], [20, 2]])
def test_gates_are_those_of_the_layer(sizes, dtype, backend, device):
    """The gates that l0_sign uses, seen through messages that are all 1, are those of pair_gates."""
    case = cases.make(sizes, d=1, hidden=1).to(dtype, device)
    ones = [torch.zeros_like(weight) for weight in case.message[:3]] + [torch.ones_like(case.message[3])]
    out = functional.l0_sign(
        case.nodes,
        case.edge_nodes,
        tuple(ones),
        case.edge,
        case.offsets,
        seed=case.seed,
        aggr="sum",
        backend=backend,
    )
    (i, j), gates, _ = functional.pair_gates(
        case.edge_nodes, case.edge, case.offsets, seed=case.seed, backend=backend
    )
    sums = torch.zeros(len(case.nodes), dtype=dtype, device=device).index_add(0, i, gates)
    sums = sums.index_add(0, j, gates * (i != j))
    torch.testing.assert_close(out.nodes.squeeze(1), sums)
    assert out.num_edges.sum() == (gates > 0).sum()
    assert out.num_edges.sum() > 0


def test_device_argument(device):
    offsets = torch.tensor([0, 4])
    assert torch.equal(functional.gate_noise(1, offsets, device).cpu(), functional.gate_noise(1, offsets))
