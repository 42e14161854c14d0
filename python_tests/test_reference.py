"""The reference against the equations, written out as loops over numbers, and against known answers."""

from __future__ import annotations

import math

import cases
import pytest
import torch

from l0sign_cuda import reference


def network(x, weights):
    """One hidden layer, on lists of floats."""
    hidden_weight, hidden_bias, out_weight, out_bias = (w.tolist() for w in weights)
    hidden = [
        max(0.0, b + sum(w * v for w, v in zip(row, x, strict=True)))
        for row, b in zip(hidden_weight, hidden_bias, strict=True)
    ]
    return [
        b + sum(w * h for w, h in zip(row, hidden, strict=True))
        for row, b in zip(out_weight, out_bias, strict=True)
    ]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def divide(rows, divisors):
    return [
        [value / divisor if divisor else 0.0 for value in row]
        for row, divisor in zip(rows, divisors, strict=True)
    ]


def gated_by_hand(nodes, edge_nodes, message, edge, noise, aggr, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """Equations 4 and 6 for one graph: (v', l0, l2, edges), all on lists of floats."""
    n, d = len(nodes), len(nodes[0]) if nodes else 0
    updated, degree = [[0.0] * d for _ in range(n)], [0] * n
    l0 = l2 = 0.0
    edges = 0
    draws = iter(noise or [])
    for i in range(n):
        for j in range(i, n):
            (a,) = network([x * y for x, y in zip(edge_nodes[i], edge_nodes[j], strict=True)], edge)
            if noise is None:
                s = sigmoid(a)
            else:
                u = next(draws)
                s = sigmoid((math.log(u) - math.log(1 - u) + a) / beta)
            gate = min(1.0, max(0.0, s * (zeta - gamma) + gamma))
            l0 += sigmoid(a - beta * math.log(-gamma / zeta))
            if gate == 0:
                continue
            edges += 1
            z = network([x * y for x, y in zip(nodes[i], nodes[j], strict=True)], message)
            l2 += sum(value**2 for value in z)
            for end in {i, j}:
                degree[end] += 1
                updated[end] = [v + gate * value for v, value in zip(updated[end], z, strict=True)]
    divisors = {"sum": [1] * n, "mean": [n] * n, "neighbor_mean": degree}[aggr]
    return divide(updated, divisors), l0, l2, edges


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("seed", [None, 3, -1])
def test_l0_sign_is_the_equations(seed, aggr):
    sizes = [2, 0, 4, 1]
    case = cases.make(sizes, seed=seed, aggr=aggr)
    output = cases.l0_sign(case, backend="reference")
    noise = None if seed is None else reference.gate_noise(seed, case.offsets).tolist()
    at = pair = 0
    for graph, n in enumerate(sizes):
        count = n * (n + 1) // 2
        rows = slice(at, at + n)
        draws = None if noise is None else noise[pair : pair + count]
        updated, l0, l2, edges = gated_by_hand(
            case.nodes[rows].tolist(), case.edge_nodes[rows].tolist(), case.message, case.edge, draws, aggr
        )
        torch.testing.assert_close(
            output["nodes"][rows], torch.tensor(updated, dtype=torch.float64).reshape(n, 3)
        )
        assert output["l0_penalty"][graph].item() == pytest.approx(l0, rel=1e-12)
        assert output["l2_penalty"][graph].item() == pytest.approx(l2, rel=1e-12)
        assert output["num_edges"][graph].item() == edges
        at, pair = at + n, pair + count


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
def test_sign_on_edges_is_the_equations(aggr):
    case = cases.with_edges(cases.make([3, 0, 4], aggr=aggr), weighted=True)
    out = cases.sign_edges(case, backend="reference")["nodes"]
    updated, degree = [[0.0] * 3 for _ in range(7)], [0] * 7
    for (source, target), weight in zip(case.edge_index.T.tolist(), case.edge_weight.tolist(), strict=True):
        z = network((case.nodes[source] * case.nodes[target]).tolist(), case.message)
        updated[target] = [v + weight * value for v, value in zip(updated[target], z, strict=True)]
        degree[target] += weight > 0
    divisors = {"sum": [1] * 7, "mean": [3] * 3 + [4] * 4, "neighbor_mean": degree}[aggr]
    torch.testing.assert_close(out, torch.tensor(divide(updated, divisors), dtype=torch.float64))


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
def test_complete_sign_is_all_edges_once(aggr):
    case = cases.make([3, 1, 4], aggr=aggr)
    i, j = reference.pair_index(case.offsets)
    other = i != j
    edges = torch.stack([torch.cat([i, j[other]]), torch.cat([j, i[other]])])
    complete = reference.complete_sign(case.nodes, case.message, case.offsets, aggr=aggr)
    listed = reference.sign(case.nodes, case.message, case.offsets, edge_index=edges, aggr=aggr)
    torch.testing.assert_close(complete.nodes, listed)
    assert complete.num_edges.tolist() == [6, 1, 10]
    assert complete.l0_penalty.tolist() == [0, 0, 0]


def test_a_pair_by_hand():
    """Two nodes, all widths 1: z = 3 relu(2 u_i u_j - 1) + 0.5, a = relu(e_i e_j) - 1."""
    nodes = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    edge_nodes = torch.tensor([[0.0], [3.0]], dtype=torch.float64)

    def weights(*values):
        shapes = ((1, 1), (1,), (1, 1), (1,))
        return tuple(
            torch.tensor(v, dtype=torch.float64).reshape(s) for v, s in zip(values, shapes, strict=True)
        )

    message, edge = weights(2.0, -1.0, 3.0, 0.5), weights(1.0, 0.0, 1.0, -1.0)
    out = reference.l0_sign(nodes, edge_nodes, message, edge, torch.tensor([0, 2]))
    # z: (0, 0) 3.5, (0, 1) 9.5, (1, 1) 21.5.  a: -1, -1, 8: the last gate is 1.
    gate = 1.2 / (1 + math.e) - 0.1
    expected = [[gate * (3.5 + 9.5) / 2], [(gate * 9.5 + 21.5) / 2]]
    torch.testing.assert_close(out.nodes, torch.tensor(expected, dtype=torch.float64))
    assert out.l2_penalty.item() == pytest.approx(3.5**2 + 9.5**2 + 21.5**2)
    shift = 2 / 3 * math.log(11)
    assert out.l0_penalty.item() == pytest.approx(2 * sigmoid(-1 + shift) + sigmoid(8 + shift))
    assert out.num_edges.tolist() == [3]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, words):
    def parse(text):
        return torch.tensor([int(word, 16) for word in text.split()])

    assert torch.equal(reference.philox4x32(parse(counter), parse(key)), parse(words))


def test_pairs_are_listed_row_by_row():
    pairs = reference.pair_index(torch.tensor([0, 2, 2, 3, 6]))
    assert pairs.T.tolist() == [
        [0, 0], [0, 1], [1, 1],
        [2, 2],
        [3, 3], [3, 4], [3, 5], [4, 4], [4, 5], [5, 5],
    ]  # fmt: skip
    assert reference.pair_index(torch.tensor([0])).shape == (2, 0)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("options", [(2 / 3, -0.1, 1.1), (0.5, -0.3, 1.2)])
def test_the_l0_penalty_is_the_probability_of_an_open_gate(logit, options):
    temperature, gamma, zeta = options
    draws = 100_000
    noise = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    gates = reference.hard_concrete(torch.full((draws,), logit, dtype=torch.float64), noise, *options)
    probability = sigmoid(logit - temperature * math.log(-gamma / zeta))
    assert abs((gates > 0).double().mean().item() - probability) <= 1 / draws
    assert gates.min() == 0 and gates.max() == 1


def test_low_precision_is_float32_rounded_once():
    case = cases.make([3, 5], dtype=torch.bfloat16)
    low = cases.results(case.to(torch.bfloat16), cases.l0_sign, backend="reference")
    single = cases.results(case.to(torch.float32), cases.l0_sign, backend="reference")
    assert low["l0_penalty"].dtype == low["l2_penalty"].dtype == torch.float32
    for name in ("nodes", "l0_penalty", "l2_penalty", "num_edges"):
        assert torch.equal(low[name], single[name].to(low[name].dtype)), name


def test_second_derivatives():
    case = cases.make([3, 1, 2], d=2, hidden=2, edge_hidden=2)

    def outputs(*leaves):
        moved = cases.replace(case, leaves=dict(zip(case.leaves, leaves, strict=True)))
        result = cases.l0_sign(moved, backend="reference")
        return result["nodes"], result["l0_penalty"], result["l2_penalty"]

    leaves = [leaf.requires_grad_() for leaf in case.leaves.values()]
    assert torch.autograd.gradgradcheck(outputs, leaves)
