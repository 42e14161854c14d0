"""Theorem 1 and Corollary 1.1: two features interact in the prediction if, and only if, their edge is open.

Features i and j interact in f where its mixed second difference in x_i and x_j is not zero. Here these are
the values of two features, which scale their embeddings, or the embeddings themselves.
"""

from __future__ import annotations

import pytest
import torch

from l0sign_cuda import L0SIGN, functional

FEATURES = 5


def make_model(backend, at=0, seed=None):
    """A model of which some gates are closed and some are open, for this seed."""
    torch.manual_seed(at)
    model = L0SIGN(FEATURES, 3, 16, 4, 8, backend=backend).double()
    torch.nn.init.normal_(model.node_embedding.weight)
    torch.nn.init.normal_(model.edge_embedding.weight, std=2.0)
    with torch.no_grad():
        bias = model.interaction.edge.out.bias
        i, j = torch.tril_indices(FEATURES, FEATURES, -1)
        for shift in torch.linspace(-9, 9, 50):
            bias.fill_(shift)
            share = (gates(model, seed)[i, j] > 0).double().mean()
            if 0.3 < share < 0.7:
                return model
    raise AssertionError("no bias opens about half of the gates")


def gates(model, seed):
    rows, edge = model.edge_embedding.weight.unsqueeze(0), model.interaction.edge.weights()
    (i, j), values, _ = functional.pair_gates(rows, edge, seed=seed, backend=model.interaction.backend)
    matrix = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    matrix[i, j] = matrix[j, i] = values.detach()
    return matrix


def mixed_difference(predict, base, step, i, j):
    """f(x + h_i + h_j) - f(x + h_i) - f(x + h_j) + f(x)"""
    h_i, h_j = (torch.zeros_like(base).index_fill_(0, torch.tensor([k]), step) for k in (i, j))
    return predict(base + h_i + h_j) - predict(base + h_i) - predict(base + h_j) + predict(base)


def check(predict, base, matrix):
    for i in range(FEATURES):
        for j in range(i):
            difference = abs(mixed_difference(predict, base, 1.5, i, j))
            assert difference > 1e-6 if matrix[i, j] > 0 else difference < 1e-12, (i, j, difference)


@pytest.mark.parametrize("aggr", ["mean", "neighbor_mean", "sum"])
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("at", [0, 1])
def test_features_of_a_prediction(at, seed, aggr, backend):
    """Of the whole model, trained or not: in x_i v'_i stands x_j only where the edge is open."""
    model = make_model(backend, at, seed).train(seed is not None)
    model.interaction.aggr = aggr
    ids = torch.arange(FEATURES).unsqueeze(0)

    def predict(x):
        return model(ids, values=x.unsqueeze(0), seed=seed).logits.item()

    check(predict, torch.rand(FEATURES, dtype=torch.float64) + 0.5, gates(model, seed))


@pytest.mark.parametrize("seed", [None, 5])
def test_embeddings_of_a_sum(seed, backend):
    model = make_model(backend, seed=seed)
    edge_nodes, layer = model.edge_embedding.weight.unsqueeze(0), model.interaction

    def predict(nodes):
        networks = layer.message.weights(), layer.edge.weights()
        out = functional.l0_sign(nodes.unsqueeze(0), edge_nodes, *networks, seed=seed, backend=backend)
        return out.nodes.sum().item()

    check(predict, torch.randn(FEATURES, 3, dtype=torch.float64), gates(model, seed))
