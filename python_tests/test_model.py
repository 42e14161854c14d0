"""The L0SIGN model."""

from __future__ import annotations

import copy
import io

import cases
import pytest
import torch

from l0sign_cuda import L0SIGN, L0SIGNOutput, empirical_risk, functional

FEATURES = 20


def make_model(backend, device="cpu", **options):
    torch.manual_seed(3)
    return L0SIGN(FEATURES, 4, 8, 3, 6, backend=backend, **options).to(device)


def make_ids(device="cpu", batch=4, n=6):
    return torch.randint(FEATURES, (batch, n), generator=torch.Generator().manual_seed(4)).to(device)


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


NAMES = {
    "node_embedding.weight": (20, 4),
    "edge_embedding.weight": (20, 3),
    "interaction.message.hidden.weight": (8, 4),
    "interaction.message.hidden.bias": (8,),
    "interaction.message.out.weight": (4, 8),
    "interaction.message.out.bias": (4,),
    "interaction.edge.hidden.weight": (6, 3),
    "interaction.edge.hidden.bias": (6,),
    "interaction.edge.out.weight": (1, 6),
    "interaction.edge.out.bias": (1,),
    "head.weight": (2, 4),
    "head.bias": (2,),
}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("head_bias", [True, False])
def test_state_dict(gated, head_bias):
    model = make_model(None, num_outputs=2, gated=gated, head_bias=head_bias)
    expected = {
        name: shape
        for name, shape in NAMES.items()
        if (gated or "edge" not in name) and (head_bias or name != "head.bias")
    }
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("seed", [None, 9])
def test_the_model_is_its_definition(seed, iterations, values, backend, device):
    model = make_model(backend, device, iterations=iterations).double().train(seed is not None)
    ids = make_ids(device)
    x = (
        torch.rand(ids.shape, device=device, dtype=torch.float64) + 0.5
        if values
        else torch.ones_like(ids).double()
    )
    output = model(ids, values=x if values else None, seed=seed)

    v, e, l2 = model.node_embedding(ids), model.edge_embedding(ids), 0.0
    networks = model.interaction.message.weights(), model.interaction.edge.weights()
    for _ in range(iterations):
        step = functional.l0_sign(x.unsqueeze(-1) * v, e, *networks, seed=seed, backend="reference")
        v, l2 = step.nodes, l2 + step.l2_penalty
    logits = (x.unsqueeze(-1) * v).mean(1) @ model.head.weight[0] + model.head.bias[0]
    assert isinstance(output, L0SIGNOutput)
    assert_close(output, (logits, step.l0_penalty, l2, step.num_edges))


@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ({}, ["l0_sign_bag"]),
        ({"gated": False}, ["sign_bag"]),
        ({"sparse": True}, ["l0_sign_bag"]),
        ({"aggr": "neighbor_mean", "l2_penalty": False}, ["l0_sign_bag"]),
        ({"dropout": 0.0}, ["l0_sign_bag"]),
        ({"iterations": 2}, ["l0_sign", "l0_sign"]),
        ({"iterations": 2, "gated": False}, ["sign", "sign"]),
    ],
)
def test_which_operators_run(options, operators):
    """One operator does a single iteration, from the ids to what the head reads."""
    ids, values = make_ids(), torch.rand(4, 6)
    model = make_model("fused", **options)
    for training in (True, False):
        model.train(training)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode(), cases.OperatorCalls() as calls:
                model(ids, values=values)
            assert calls.names == operators
    with cases.OperatorCalls() as calls:
        model(ids, values=values).logits.sum().backward()
    assert calls.names == [*operators, *(f"{name}_backward" for name in operators)]
    with cases.OperatorCalls() as calls:
        make_model("reference", **options)(ids, values=values)
    assert calls.names == []


@pytest.mark.parametrize("gated", [True, False])
def test_gradients(gated, device):
    """Of the objective in all parameters and values, through iterations: the same of both backends."""

    def gradients(backend):
        model = make_model(backend, device, gated=gated, iterations=3, aggr="sum").double()
        ids = make_ids(device)
        values = torch.linspace(0.5, 1.5, 24, dtype=torch.float64, device=device).view(4, 6).requires_grad_()
        output = model(ids, values=values, seed=6)
        risk = empirical_risk(output, torch.ones(4, device=device), 0.1, 0.01)
        return torch.autograd.grad(risk, [values, *model.parameters()])

    torch.testing.assert_close(gradients("fused"), gradients("reference"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_ragged_is_dense(num_outputs, gated, backend, device):
    model = make_model(backend, device, num_outputs=num_outputs, gated=gated, iterations=2).double()
    ids, values = make_ids(device), torch.rand(4, 6, device=device)
    dense = model(ids, values=values, seed=1)
    assert dense.logits.shape == ((4,) if num_outputs == 1 else (4, 3))
    offsets = torch.arange(5, device=device) * 6
    assert_close(model(ids.flatten(), offsets, values.flatten(), seed=1), dense)


def test_graphs_of_many_sizes_are_graphs_alone(backend, device):
    model, ids = make_model(backend, device).double().eval(), make_ids(device).flatten()
    offsets = torch.tensor([0, 1, 1, 9, 24], device=device)
    together = model(ids, offsets)
    for graph in range(4):
        one = ids[offsets[graph] : offsets[graph + 1]].unsqueeze(0)
        assert_close(model(one), [value[graph : graph + 1] for value in together])


@pytest.mark.parametrize("gated", [True, False])
def test_nothing_to_interact(gated, backend, device):
    model = make_model(backend, device, gated=gated)
    bias = model.head.bias.detach()
    long = {"dtype": torch.int64, "device": device}
    for ids, offsets, batch in (
        (torch.empty(0, 5, **long), None, 0),
        (torch.empty(3, 0, **long), None, 3),
        (torch.empty(0, **long), torch.zeros(1, **long), 0),
        (torch.empty(0, **long), torch.zeros(4, **long), 3),
    ):
        output = model(ids, offsets)
        assert torch.equal(output.logits.detach(), bias.expand(batch))
        for value in output[1:]:
            assert torch.equal(value.detach(), torch.zeros_like(value)) and value.shape == (batch,)
        empirical_risk(output, torch.ones(batch, device=device), 0.1, 0.1).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    single = model(torch.zeros(2, 1, **long))
    assert single.logits.isfinite().all() and single.num_edges.max() <= 1


def test_initialisation():
    torch.manual_seed(0)
    model = L0SIGN(5000)
    for weight, mean, std in (
        (model.node_embedding.weight, 0.0, 0.1),
        (model.edge_embedding.weight, 0.2, 0.01),
    ):
        assert abs(weight.mean() - mean) < 5 * std / 40_000**0.5
        assert abs(weight.std() / std - 1) < 0.02
    output = model.eval()(torch.randint(5000, (16, 10)))
    assert output.num_edges.tolist() == [55] * 16  # every gate starts open
    before = copy.deepcopy(model.state_dict())
    model.reset_parameters()
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_manual_seed_governs_training(backend):
    model, ids = make_model(backend), make_ids()

    def draw(seed):
        torch.manual_seed(seed)
        return model(ids).logits

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model(ids, seed=7).logits, model(ids, seed=torch.tensor([7])).logits)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids, seed=7).logits)


@pytest.mark.parametrize("iterations", [1, 2])
def test_dropout_is_of_node_embeddings_in_training(iterations, backend, device):
    model = make_model(backend, device, dropout=0.4, iterations=iterations)
    ids, x = make_ids(device), torch.rand(4, 6, device=device) + 0.5
    torch.manual_seed(1)
    output = model(ids, values=x, seed=9)
    torch.manual_seed(1)
    v = torch.nn.functional.dropout(model.node_embedding(ids), 0.4)
    assert 0.2 < (v == 0).float().mean() < 0.6
    networks = model.interaction.message.weights(), model.interaction.edge.weights()
    e, l2 = model.edge_embedding(ids), 0.0
    for _ in range(iterations):
        step = functional.l0_sign(x.unsqueeze(-1) * v, e, *networks, seed=9, backend="reference")
        v, l2 = step.nodes, l2 + step.l2_penalty
    logits = (x.unsqueeze(-1) * v).mean(1) @ model.head.weight[0] + model.head.bias[0]
    assert_close(output, (logits, step.l0_penalty, l2, step.num_edges))

    plain = L0SIGN(**model.hyperparameters | {"dropout": 0.0}, backend=backend).to(device)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)
    assert L0SIGN(**model.hyperparameters).dropout == 0.4


def test_node_embeddings_start_as_wide_as_init_std_says():
    torch.manual_seed(0)
    usual, wide = make_model(None), make_model(None, init_std=1.0)
    for model, std in ((usual, 0.1), (wide, 1.0)):
        assert model.node_embedding.weight.std().item() == pytest.approx(std, rel=0.2)
    assert L0SIGN(**wide.hyperparameters).hyperparameters["init_std"] == 1.0
    for value in (-0.1, float("inf"), float("nan"), "1", None, True):
        with pytest.raises(ValueError, match="init_std: expected a finite number of at least 0"):
            make_model(None, init_std=value)


@pytest.mark.parametrize("dropout", [1.0, -0.1, "0.5", None, True, float("nan")])
def test_dropout_is_a_probability_below_one(dropout):
    with pytest.raises(ValueError, match="dropout: expected a number of at least 0 and less than 1"):
        make_model(None, dropout=dropout)


def test_one_seed_for_all_iterations(backend, monkeypatch):
    seeds = []
    real = functional.l0_sign
    monkeypatch.setattr(
        functional, "l0_sign", lambda *a, **o: (seeds.append(o["seed"].item()), real(*a, **o))[1]
    )
    make_model(backend, iterations=3)(make_ids())
    assert len(seeds) == 3 and len(set(seeds)) == 1


def test_plain_sign(backend):
    model, ids = make_model(backend, gated=False, iterations=2), make_ids()
    output = model(ids)
    assert output.l0_penalty.tolist() == [0.0] * 4 and output.num_edges.tolist() == [21] * 4
    assert output.l2_penalty.min() > 0
    state = torch.get_rng_state()
    assert torch.equal(model(ids).logits, output.logits)
    assert torch.equal(torch.get_rng_state(), state)  # no gate, no draw


def test_without_l2_penalty(backend):
    ids = make_ids()
    full, lean = (make_model(backend, iterations=2, l2_penalty=asked)(ids, seed=1) for asked in (True, False))
    assert lean.l2_penalty is None
    assert torch.equal(full.logits, lean.logits) and torch.equal(full.l0_penalty, lean.l0_penalty)


def test_hyperparameters_make_the_model_again():
    options = {"aggr": "sum", "iterations": 2, "temperature": 0.5, "limits": (-0.2, 1.3), "num_outputs": 3}
    model = make_model("reference", **options, head_bias=False, l2_penalty=False)
    twin = L0SIGN(**model.hyperparameters)
    twin.load_state_dict(model.state_dict())
    twin.interaction.backend = "reference"
    ids = make_ids()
    assert torch.equal(twin(ids, seed=1).logits, model(ids, seed=1).logits)


def test_copies(backend):
    model, ids = make_model(backend), make_ids()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(ids, seed=2).logits, model(ids, seed=2).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype, backend, device):
    model, ids = make_model(backend, device).to(dtype), make_ids(device)
    output = model(ids, values=torch.rand(ids.shape, device=device), seed=1)
    assert output.logits.dtype == dtype and output.l0_penalty.dtype == torch.float32
    empirical_risk(output, torch.ones(4, device=device), 0.1, 0.1).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_it_learns(backend, device):
    """An interaction that no sum of features can express: the label is whether features 0 and 1 meet."""
    torch.manual_seed(0)
    model = L0SIGN(8, backend=backend).to(device)
    ids = torch.stack([torch.randperm(8)[:4] for _ in range(128)]).to(device)
    labels = ((ids == 0).any(1) & (ids == 1).any(1)).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        empirical_risk(model(ids), labels, l0_weight=1e-4).backward()
        optimizer.step()
    model.eval()
    accuracy = ((model(ids).logits > 0) == labels.bool()).float().mean()
    assert accuracy > 0.95


# -------------------- sparse gradients


def sparse_and_dense(backend, device="cpu", **options):
    return [make_model(backend, device, sparse=sparse, **options).double() for sparse in (True, False)]


def step(model, ids, **options):
    empirical_risk(model(ids, seed=1, **options), torch.ones(4, device=ids.device), 0.1).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("iterations", [1, 2])
def test_sparse_gradients_are_the_dense_ones(iterations, gated, backend, device):
    ids, values = make_ids(device, n=3), torch.rand(4, 3, device=device, dtype=torch.float64)
    models = sparse_and_dense(backend, device, gated=gated, iterations=iterations)
    sparse, dense = (step(model, ids, values=values) for model in models)
    for name, gradient in dense.items():
        if "embedding" in name:
            assert sparse[name].is_sparse and sparse[name].is_coalesced(), name
            assert torch.equal(sparse[name]._indices()[0], ids.unique()), name
            torch.testing.assert_close(sparse[name].to_dense(), gradient)
        else:
            assert torch.equal(sparse[name], gradient), name


def test_sparse_gradients_of_ragged_and_empty_batches(backend):
    sparse, dense = sparse_and_dense(backend)
    ids = make_ids().flatten()
    for offsets in (torch.tensor([0, 5, 5, 20, 24]), torch.zeros(5, dtype=torch.int64)):
        gradients = [step(model, ids[: offsets[-1]], offsets=offsets) for model in (sparse, dense)]
        for name in ("node_embedding.weight", "edge_embedding.weight"):
            torch.testing.assert_close(gradients[0][name].to_dense(), gradients[1][name])
        for model in (sparse, dense):
            model.zero_grad()


def test_a_frozen_table_has_no_gradient(backend):
    model, ids = make_model(backend, sparse=True), make_ids()
    model.node_embedding.requires_grad_(False)
    empirical_risk(model(ids), torch.ones(4), 0.1).backward()
    assert model.node_embedding.weight.grad is None and model.edge_embedding.weight.grad.is_sparse
    model.edge_embedding.requires_grad_(False)
    model(ids).logits.sum().backward()


def test_sparse_is_no_part_of_the_architecture():
    model = make_model("reference", sparse=True)
    assert "sparse" not in model.hyperparameters
    assert L0SIGN(**model.hyperparameters).sparse is False
    assert copy.deepcopy(model).sparse


def test_sparse_under_transforms_compilers_and_export():
    """Transforms take dense gradients; a compiler leaves the lookup out; an export has no gradients."""
    torch._dynamo.reset()
    sparse, dense = sparse_and_dense("fused")
    ids = make_ids()

    def loss(parameters, model):
        return torch.func.functional_call(model, parameters, (ids,), {"seed": 1}).logits.sum()

    parameters = dict(dense.named_parameters())
    torch.testing.assert_close(*(torch.func.grad(loss)(parameters, model) for model in (sparse, dense)))

    compiled = torch.compile(sparse, backend="eager")
    gradients = step(compiled, ids)
    name = "_orig_mod.node_embedding.weight"
    assert gradients[name].is_sparse
    torch.testing.assert_close(gradients[name].to_dense(), step(dense, ids)["node_embedding.weight"])

    program = torch.export.export(sparse.eval(), (ids,))
    torch.testing.assert_close(tuple(program.module()(ids)), tuple(sparse(ids)))
