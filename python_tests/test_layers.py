"""The layers as modules."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from l0sign_cuda import L0SIGNLayer, LayerOutput, SIGNLayer, functional


def make_inputs(device="cpu", batch=3, n=5, d=4, b=3):
    random = torch.Generator().manual_seed(1)
    nodes, edge_nodes = torch.randn(batch, n, d, generator=random), torch.randn(batch, n, b, generator=random)
    return nodes.to(device), edge_nodes.to(device)


def make_layer(backend, device="cpu", **options):
    torch.manual_seed(2)
    return L0SIGNLayer(4, 8, 3, 6, backend=backend, **options).to(device)


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_the_layer_is_the_function(backend, device):
    options = {"aggr": "neighbor_mean", "temperature": 0.5, "limits": (-0.2, 1.3)}
    layer, inputs = make_layer(backend, device, **options), make_inputs(device)
    message, edge = layer.message.weights(), layer.edge.weights()
    output = layer(*inputs, seed=3)
    assert isinstance(output, LayerOutput)
    assert_same(output, functional.l0_sign(*inputs, message, edge, seed=3, backend=backend, **options))
    output = layer.eval()(*inputs)
    assert_same(output, functional.l0_sign(*inputs, message, edge, backend=backend, **options))


def test_ragged(backend, device):
    layer, (nodes, edge_nodes) = make_layer(backend, device), make_inputs(device)
    offsets = torch.arange(4, device=device) * 5
    dense = layer(nodes, edge_nodes, seed=1)
    ragged = layer(nodes.flatten(0, 1), edge_nodes.flatten(0, 1), offsets, seed=1)
    assert ragged.nodes.shape == (15, 4)
    torch.testing.assert_close(ragged.nodes.view(3, 5, 4), dense.nodes)
    torch.testing.assert_close(ragged[1:], dense[1:])


def test_manual_seed_governs_the_draw(backend, device):
    layer, inputs = make_layer(backend, device), make_inputs(device)

    def draw(seed):
        torch.manual_seed(seed)
        return layer(*inputs), layer(*inputs)

    (first, second), (again, _), (other, _) = draw(1), draw(1), draw(2)
    assert_same(first, again)
    assert not torch.equal(first.nodes, second.nodes)
    assert not torch.equal(first.nodes, other.nodes)


def test_evaluation_is_deterministic_and_draws_nothing(backend, device):
    layer, inputs = make_layer(backend, device).eval(), make_inputs(device)
    state = torch.get_rng_state()
    outputs = [layer(*inputs), layer(*inputs), layer(*inputs, seed=5)]
    assert torch.equal(torch.get_rng_state(), state)
    for output in outputs[1:]:
        assert_same(output, outputs[0])


def test_gates_start_open(backend):
    """As the authors start: most pairs open, none of them all the way."""
    torch.manual_seed(0)
    layer = L0SIGNLayer(8, 32, 8, 32, backend=backend).eval()
    edge_nodes = 0.2 + 0.01 * torch.randn(10, 10, 8)
    output = layer(torch.randn(10, 10, 8), edge_nodes)
    assert output.num_edges.tolist() == [55] * 10
    weight = layer.edge.out.weight
    assert weight.min() >= 0.2 - 32**-0.5 and weight.max() <= 0.2 + 32**-0.5
    assert abs(weight.mean() - 0.2) < 0.1


def test_reset_parameters_draws_anew():
    layer = make_layer(None)
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not any(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_without_l2_penalty(backend):
    output = make_layer(backend, l2_penalty=False)(*make_inputs())
    assert output.l2_penalty is None and output.l0_penalty.shape == (3,)


def test_without_gates(backend, device):
    layer, (nodes, _) = make_layer(backend, device, gated=False), make_inputs(device)
    assert [name for name in layer.state_dict() if name.startswith("edge")] == []
    output = layer(nodes, None)
    assert output.num_edges.tolist() == [15] * 3 and output.l0_penalty.tolist() == [0.0] * 3
    assert output.num_edges.dtype == torch.int64 and output.l0_penalty.dtype == torch.float32
    plain = SIGNLayer(4, 8, backend=backend).to(device)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain(nodes), output.nodes)


def test_sign_on_edges(backend, device):
    layer, (nodes, _) = SIGNLayer(4, 8, "sum", backend=backend).to(device), make_inputs(device)
    edges = torch.tensor([[0, 1, 7], [1, 0, 7]], device=device)
    weight = torch.tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    out = layer(nodes, edge_index=edges, edge_weight=weight).view(15, 4)
    rows = nodes.view(15, 4)
    z = layer.message(rows[edges[0]] * rows[edges[1]])
    torch.testing.assert_close(out[1], z[0])
    torch.testing.assert_close(out[0], 2 * z[1])
    torch.testing.assert_close(out[7], 3 * z[2])
    assert out.count_nonzero(1).count_nonzero() == 3
    out.sum().backward()
    torch.testing.assert_close(weight.grad, z.sum(1).detach())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied, backend):
    layer, inputs = make_layer(backend, limits=(-0.2, 1.2)), make_inputs()
    twin = copied(layer)
    assert_same(twin(*inputs, seed=4), layer(*inputs, seed=4))
    twin.message.hidden.weight.data.zero_()
    assert layer.message.hidden.weight.abs().sum() > 0


def test_saving_a_module(backend):
    layer, inputs = make_layer(backend), make_inputs()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert_same(torch.load(buffer, weights_only=False)(*inputs, seed=4), layer(*inputs, seed=4))


def test_representation():
    expected = "aggr='sum', temperature=0.6667, limits=(-0.1, 1.1), l2_penalty=True, backend='reference'"
    assert repr(make_layer("reference", aggr="sum")).startswith(f"L0SIGNLayer(\n  {expected}\n")
    assert "gated=False" in repr(make_layer(None, gated=False))
    assert repr(SIGNLayer(2, 3)).startswith("SIGNLayer(\n  aggr='mean', backend=None")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype, backend, device):
    layer = make_layer(backend, device).to(dtype)
    nodes, edge_nodes = (x.to(dtype) for x in make_inputs(device))
    output = layer(nodes, edge_nodes, seed=1)
    assert output.nodes.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert output.l0_penalty.dtype == output.l2_penalty.dtype == wide
    output.nodes.float().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())


class Doubled(torch.nn.Linear):
    """A module with a way of its own to its weight, as parametrized ones have it."""

    @property
    def weight(self):
        return 2 * self._parameters["weight"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("way", ["property", "attribute", "parametrized", "scripted"])
def test_weights_are_those_that_the_modules_show(way, backend):
    layer, inputs = make_layer(backend).eval(), make_inputs()
    expected = copy.deepcopy(layer)
    hidden = layer.message.hidden
    if way == "scripted":
        layer.message.hidden = torch.jit.script(hidden)
    else:
        with torch.no_grad():
            expected.message.hidden.weight.mul_(2)
    if way == "property":
        hidden.__class__ = Doubled
    elif way == "attribute":
        vars(hidden)["weight"] = 2 * hidden.weight.detach()
    elif way == "parametrized":
        double = torch.nn.Module()
        double.forward = lambda weight: 2 * weight
        torch.nn.utils.parametrize.register_parametrization(hidden, "weight", double)
    assert_same(layer(*inputs), expected(*inputs))
