"""L0SIGN.risk: by one operator and by its two steps, with all gradients."""

from __future__ import annotations

import gc
import itertools
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from l0sign_cuda import L0SIGN, empirical_risk

FEATURES = 60
FUSED = "_RiskBackward"


def make_model(backend=None, *, dtype=torch.float64, device="cpu", **options):
    torch.manual_seed(3)
    model = L0SIGN(FEATURES, 5, 9, 3, 7, backend=backend, init_std=0.7, **options).to(dtype)
    if model.edge_embedding is not None:
        with torch.no_grad():  # gates of all kinds
            model.edge_embedding.weight.normal_()
    return model.to(device)


def make_batch(sizes, *, dtype=torch.float64, device="cpu", valued=False):
    """(ids, target, offsets, values): dense for a pair (B, n)."""
    generator = torch.Generator().manual_seed(4)
    dense = isinstance(sizes, tuple)
    offsets = None if dense else torch.tensor([0, *itertools.accumulate(sizes)])
    shape = sizes if dense else (sum(sizes),)
    ids = torch.randint(FEATURES, shape, generator=generator)
    values = torch.randn(shape, generator=generator).to(dtype) if valued else None
    target = torch.rand(sizes[0] if dense else len(sizes), generator=generator).to(dtype)
    return tuple(tensor if tensor is None else tensor.to(device) for tensor in (ids, target, offsets, values))


def gradients(model):
    return {
        name: None if param.grad is None else param.grad.to_dense().clone()
        for name, param in model.named_parameters()
    }


def one_by_one(model, batch, seed=5, l0_weight=0.0, l2_weight=0.0, loss="bce", **others):
    """(risk, output, gradients) by the model's call and the risk of what it gives."""
    ids, target, offsets, values = batch
    model.zero_grad()
    output = model(ids, offsets, values, seed=seed)
    risk = empirical_risk(output, target, l0_weight, l2_weight, loss)
    risk.backward()
    return risk, output, gradients(model)


def by_risk(model, batch, seed=5, **options):
    ids, target, offsets, values = batch
    model.zero_grad()
    risk, output = model.risk(ids, target, offsets, values, seed=seed, **options)
    risk.backward()
    return risk, output, gradients(model)


def assert_same(actual, expected, **tolerance):
    (risk, output, grads), (expected_risk, expected_output, expected_grads) = actual, expected
    torch.testing.assert_close(risk.detach(), expected_risk.detach(), **tolerance)
    for field in ("logits", "l0_penalty"):
        got = getattr(output, field)
        assert not got.requires_grad
        torch.testing.assert_close(got, getattr(expected_output, field).detach(), **tolerance)
    assert torch.equal(output.num_edges, expected_output.num_edges)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# -------------------- the operator against the definition


@pytest.mark.parametrize("aggr", ["mean", "neighbor_mean", "sum"])
@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [(35, 4), [3, 0, 70, 1, 7, 7]])
@pytest.mark.parametrize("valued", [True, False])
def test_definition(valued, sizes, training, loss, aggr, device):
    batch = make_batch(sizes, valued=valued, device=device)
    options = {"loss": loss, "l0_weight": 0.03}
    fused, reference = (
        make_model(backend, aggr=aggr, device=device).train(training) for backend in ("fused", "reference")
    )
    actual = by_risk(fused, batch, **options)
    assert actual[0].grad_fn.name() == FUSED
    assert_same(actual, one_by_one(reference, batch, **options))


@pytest.mark.parametrize(
    "sizes",
    [(0, 5), (3, 0), [], [0], [0, 0, 1, 0], (35, 1), (17, 10), (33, 17), (3, 150), (20, 64), [2] * 33 + [20]],
)
def test_sizes(sizes, device):
    batch = make_batch(sizes, valued=True, device=device)
    actual = by_risk(make_model("fused", device=device), batch, l0_weight=0.1)
    assert_same(actual, one_by_one(make_model("reference", device=device), batch, l0_weight=0.1))


@pytest.mark.parametrize("sizes", [(64, 180), (1, 500)])
def test_pairs_that_are_too_many_to_be_kept(sizes):
    """What the CPU keeps between forward and backward has a bound; side by side, and each graph by itself."""
    batch = make_batch(sizes)
    actual = by_risk(make_model("fused"), batch, l0_weight=0.1)
    assert_same(actual, one_by_one(make_model("reference"), batch, l0_weight=0.1))


@pytest.mark.parametrize("widths", [(1, 1, 1, 1), (8, 32, 8, 32), (17, 33, 19, 2)])
def test_widths(widths):
    d, hidden, b, edge_hidden = widths
    models = [L0SIGN(FEATURES, d, hidden, b, edge_hidden, init_std=0.7).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].interaction.backend = "reference"
    batch = make_batch([3, 0, 70, 1, 7, 7])
    assert_same(by_risk(models[0], batch), one_by_one(models[1], batch))


@pytest.mark.parametrize("sizes", [(40, 10), [3, 0, 70, 1, 7, 7]])
def test_float32(sizes):
    """The two steps find the same units on, so that rounding is all that lies between."""
    model = make_model(dtype=torch.float32, aggr="neighbor_mean")
    batch = make_batch(sizes, dtype=torch.float32, valued=True)
    options = {"l0_weight": 0.03}
    actual = by_risk(model, batch, **options)
    assert actual[0].grad_fn.name() == FUSED
    assert_same(actual, one_by_one(model, batch, **options), rtol=1e-4, atol=1e-6)


class Risky(nn.Module):
    """What a wrapper of modules, such as DistributedDataParallel, would call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *batch, **options):
        return self.model.risk(*batch, **options).risk


def test_gradcheck():
    module = Risky(make_model("fused"))
    ids, target, offsets, values = make_batch([3, 0, 6, 1], valued=True)
    names = [name for name, _ in module.named_parameters()]

    def risk(*params):
        weights = dict(zip(names, params, strict=True))
        options = {"seed": 1, "l0_weight": 0.1}
        return torch.func.functional_call(module, weights, (ids, target, offsets, values), options)

    assert torch.autograd.gradcheck(risk, tuple(module.parameters()))


@pytest.mark.parametrize("head_bias", [True, False])
def test_weight_for_each_graph(head_bias):
    batch = make_batch((6, 4))
    weights = torch.rand(6, generator=torch.Generator().manual_seed(1))
    model = make_model(head_bias=head_bias)
    actual = by_risk(model, batch, l0_weight=weights)
    assert actual[0].grad_fn.name() == FUSED
    assert_same(actual, one_by_one(model, batch, l0_weight=weights))
    one = by_risk(model, batch, l0_weight=torch.tensor(0.25))
    assert_same(one, one_by_one(model, batch, l0_weight=0.25))


# -------------------- gradients


def test_sparse_gradients(device):
    batch = make_batch([3, 0, 6, 1], device=device)
    model = make_model(device=device)
    expected = by_risk(model, batch)[2]
    model.sparse = True
    actual = by_risk(model, batch)[2]
    for name in actual:
        assert torch.equal(actual[name], expected[name])
    for embedding in (model.node_embedding, model.edge_embedding):
        grad = embedding.weight.grad
        assert grad.is_sparse and grad.is_coalesced()
        assert torch.equal(grad.indices()[0], batch[0].unique())


def test_backward_scales_accumulates_and_repeats(device):
    model, batch = make_model(device=device), make_batch((6, 4), device=device)
    once = by_risk(model, batch)[2]
    risk = model.risk(*batch[:2], seed=5).risk
    (risk * 3).backward(retain_graph=True)  # 1 + 3
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, 4 * once[name])
    risk.backward()  # 1 + 3 + 1
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, 5 * once[name])
    with pytest.raises(RuntimeError, match="second time"):
        risk.backward()


@pytest.mark.parametrize("vmap", [True, False])
def test_many_gradients_at_a_time(vmap):
    model, batch = make_model(), make_batch((6, 4))
    expected = by_risk(model, batch)[2]
    risk, params = model.risk(*batch[:2], seed=5).risk, list(model.parameters())
    factors = torch.tensor([1.0, -3.0], dtype=torch.float64)
    if vmap:
        grads = torch.vmap(lambda f: torch.autograd.grad(risk, params, f, retain_graph=True))(factors)
    else:
        grads = torch.autograd.grad(risk, params, factors, is_grads_batched=True)
    for grad, once in zip(grads, expected.values(), strict=True):
        torch.testing.assert_close(grad, torch.stack([once, -3 * once]))


def test_targets_are_looked_at_before_they_are_rounded():
    model = make_model(dtype=torch.float32)
    ids, target, *_ = make_batch((6, 4))
    target[0] = 1 + 1e-9
    with pytest.raises(ValueError, match=r"target: expected values in 0\.\.1"):
        model.risk(ids, target)


def test_a_refused_batch_is_freed():
    """At once, and not when the garbage collector comes."""
    model, batch = make_model(), make_batch((6, 4))
    batch[0][0, 0] = FEATURES
    ids = weakref.ref(batch[0])
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(IndexError, match="ids"):
            model.risk(*batch[:2])
        del batch
        assert ids() is None
    finally:
        gc.enable()


def test_gradients_are_of_the_weights_at_the_call():
    """And a repeated backward tells that they have changed since."""
    model, batch = make_model(), make_batch((6, 4))
    expected = by_risk(model, batch)[2]
    model.zero_grad()
    risk = model.risk(*batch[:2], seed=5).risk
    with torch.no_grad():
        model.head.weight.mul_(2)
    risk.backward(retain_graph=True)
    for name, grad in gradients(model).items():
        assert torch.equal(grad, expected[name])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        risk.backward()


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("frozen", ["embedding", "node_embedding", "interaction", "head"])
def test_frozen_weights(frozen, sparse):
    model, batch = make_model(sparse=sparse), make_batch((6, 4))
    expected = by_risk(model, batch)[2]
    for name, param in model.named_parameters():
        param.requires_grad_(frozen not in name)
    actual = by_risk(model, batch)[2]
    for name, grad in actual.items():
        assert grad is None if frozen in name else torch.equal(grad, expected[name])


def test_all_frozen():
    model, batch = make_model(), make_batch((6, 4))
    expected = by_risk(model, batch)[0]
    model.requires_grad_(False)
    risk = model.risk(*batch[:2], seed=5).risk
    assert not risk.requires_grad and torch.equal(risk, expected.detach())


def test_no_second_derivative():
    model, batch = make_model(), make_batch((6, 4))
    risk = model.risk(*batch[:2], seed=5).risk
    (grad,) = torch.autograd.grad(risk, [model.head.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="l0sign_cuda::l0_sign_risk has no derivative"):
        grad.sum().backward()


def test_results_do_not_depend_on_threads():
    batch = make_batch([3, 0, 150, 1, 7, 7] + [20] * 400, dtype=torch.float32)
    model = make_model(dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(by_risk(model, batch, l0_weight=0.1))
    finally:
        torch.set_num_threads(before)
    for risk, output, grads in results[1:]:
        assert torch.equal(risk, results[0][0]) and torch.equal(output.logits, results[0][1].logits)
        assert all(torch.equal(grad, results[0][2][name]) for name, grad in grads.items())


# -------------------- which way a call takes


def test_seed_of_torch():
    model, (ids, target, *_) = make_model(), make_batch((6, 4))
    torch.manual_seed(8)
    first, second = (model.risk(ids, target).risk.item() for _ in range(2))
    torch.manual_seed(8)
    assert model.risk(ids, target).risk.item() == first != second
    torch.manual_seed(8)
    assert empirical_risk(model(ids), target).item() == pytest.approx(first, rel=1e-12)


def smooth(logits, target):
    return (logits - target).abs().sqrt()


@pytest.mark.parametrize(
    ("model_options", "options"),
    [
        ({}, {"l2_weight": 0.1}),
        ({}, {"l2_weight": torch.tensor(0.1), "l0_weight": 0.1}),
        ({}, {"loss": smooth}),
        ({}, {"l0_weight": torch.tensor(0.1, requires_grad=True)}),
        ({"num_outputs": 3}, {"loss": "cross_entropy"}),
        ({"iterations": 2}, {}),
        ({"gated": False}, {}),
        ({"backend": "reference"}, {"l0_weight": 0.1}),
    ],
)
def test_two_steps(model_options, options):
    ids, target, *others = make_batch((6, 4))
    if options.get("loss") == "cross_entropy":
        target = torch.arange(6) % 3
    model = make_model(**model_options)
    actual = by_risk(model, (ids, target, *others), **options)
    assert actual[0].grad_fn.name() != FUSED
    assert_same(actual, one_by_one(model, (ids, target, *others), **options))
    l2_penalty = actual[1].l2_penalty
    assert (l2_penalty is not None and not l2_penalty.requires_grad) == ("l2_weight" in options)


def test_two_steps_by_circumstance(monkeypatch):
    batch = make_batch((6, 4), dtype=torch.float32, valued=True)
    ids, target, _, values = batch

    def name_of(model, values=values):
        grad_fn = model.risk(ids, target, None, values, seed=5).risk.grad_fn
        return grad_fn and grad_fn.name()

    model = make_model(dtype=torch.float32)
    assert name_of(model) == FUSED
    with torch.no_grad():
        assert name_of(model) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert name_of(model) not in (None, FUSED)
    assert name_of(model, values.clone().requires_grad_()) not in (None, FUSED)
    dropping = make_model(dtype=torch.float32, dropout=0.5)
    assert name_of(dropping) not in (None, FUSED)
    assert name_of(dropping.eval()) == FUSED
    assert name_of(make_model(dtype=torch.bfloat16)) not in (None, FUSED)
    monkeypatch.setenv("L0SIGN_BACKEND", "reference")
    assert name_of(model) not in (None, FUSED)


class Shifted(L0SIGN):
    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        return output._replace(logits=output.logits + 1)


def test_two_steps_for_models_that_do_more():
    batch = make_batch((6, 4))
    model = make_model()
    calls = []
    for module in (model, model.head):
        handle = module.register_forward_hook(lambda *args: calls.append(args))
        assert by_risk(model, batch)[0].grad_fn.name() != FUSED and len(calls) == 1
        handle.remove()
        calls.clear()
    for pruned in (False, True):
        other = make_model()
        if pruned:
            prune.l1_unstructured(other.head, "weight", 2)
        else:
            torch.nn.utils.spectral_norm(other.head)
        for _ in range(2):  # their weights are made before each call
            assert by_risk(other, batch)[0].grad_fn.name() != FUSED
    handle = nn.modules.module.register_module_forward_hook(lambda *args: calls.append(args))
    try:
        assert by_risk(model, batch)[0].grad_fn.name() != FUSED and calls
    finally:
        handle.remove()
    assert by_risk(model, batch)[0].grad_fn.name() == FUSED
    for wrapped in ("", "head"):  # as libraries do that look at a module's calls
        other = make_model()
        module = other.get_submodule(wrapped)
        module.forward = types.MethodType(
            lambda self, *args, of=module.forward, **options: of(*args, **options), module
        )
        assert by_risk(other, batch)[0].grad_fn.name() != FUSED
    shifted = Shifted(FEATURES, 5, 9, 3, 7).double()
    shifted.load_state_dict(model.state_dict())
    assert_same(by_risk(shifted, batch), one_by_one(shifted, batch))


def test_two_steps_where_targets_want_a_gradient():
    model, (ids, target, *_) = make_model(), make_batch((6, 4))
    wanted = []
    for call in (
        lambda target: model.risk(ids, target, seed=5).risk,
        lambda target: empirical_risk(model(ids, seed=5), target),
    ):
        soft = target.clone().requires_grad_()
        call(soft).backward()
        wanted.append(soft.grad)
    torch.testing.assert_close(*wanted)
    assert wanted[0].norm() > 0


def test_fake_tensors_and_traces():
    model, (ids, target, *_) = make_model(), make_batch((6, 4))

    def step(ids, target):
        risk = model.risk(ids, target, seed=torch.tensor([5])).risk
        return torch.autograd.grad(risk, list(model.parameters()))

    for got, wanted in zip(make_fx(step)(ids, target)(ids, target), step(ids, target), strict=True):
        torch.testing.assert_close(got, wanted)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model.risk(mode.from_tensor(ids), mode.from_tensor(target)).risk.backward()


def test_no_forward_mode():
    model, (ids, target, *_) = make_model(), make_batch((6, 4))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        weight = model.head.weight
        del model.head.weight
        model.head.weight = forward_ad.make_dual(weight.detach().requires_grad_(), torch.ones_like(weight))
        model.risk(ids, target)


def test_compile_and_transforms():
    model, batch = make_model(), make_batch((6, 4))
    expected = by_risk(model, batch, l0_weight=0.1)
    ids, target, *_ = batch

    def risk():
        return model.risk(ids, target, seed=5, l0_weight=0.1).risk

    torch.testing.assert_close(torch.compile(risk, backend="aot_eager")(), expected[0])
    torch.compiler.reset()
    module, weights = Risky(model), {f"model.{name}": p.detach() for name, p in model.named_parameters()}

    def of(weights):
        return torch.func.functional_call(module, weights, (ids, target), {"seed": 5, "l0_weight": 0.1})

    for name, grad in torch.func.grad(of)(weights).items():
        torch.testing.assert_close(grad, expected[2][name.removeprefix("model.")])


# -------------------- errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.rand(5)}, ValueError, r"target: expected shape \[6\], got shape \[5\]"),
        ({"target": torch.full((6,), 2.0)}, ValueError, "target: expected values in 0..1"),
        ({"target": torch.full((6,), torch.nan)}, ValueError, "target: expected values in 0..1"),
        ({"target": [0.0] * 6}, TypeError, "target: expected a tensor, got list"),
        ({"l0_weight": -1.0}, ValueError, "l0_weight: expected a number of at least 0, got -1.0"),
        ({"l2_weight": -1.0}, ValueError, "l2_weight: expected a number of at least 0, got -1.0"),
        ({"l0_weight": None}, ValueError, "l0_weight: expected a number of at least 0, got None"),
        ({"l0_weight": 10**400}, ValueError, "l0_weight: expected a number of at least 0, got 1000"),
        ({"l2_weight": "1"}, ValueError, "l2_weight: expected a number of at least 0, got '1'"),
        ({"l0_weight": torch.rand(6, 1)}, ValueError, r"l0_weight: expected .* \[6\], got shape \[6, 1\]"),
        ({"l0_weight": torch.rand(6) * 1j}, ValueError, "l0_weight: expected real numbers, got complex64"),
        ({"target": torch.rand(6) * 1j}, ValueError, "target: expected real numbers, got complex64"),
        ({"target": torch.full((6,), 1.0000001)}, ValueError, r"got values in 1\.0000001"),
        ({"target": torch.rand(6, device="meta")}, ValueError, "target: expected device cpu, got meta"),
        ({"l0_weight": torch.rand(6, device="meta")}, ValueError, "l0_weight: expected device cpu, got meta"),
        ({"loss": ["bce"]}, ValueError, r"loss: expected a function or one of .* got \['bce'\]"),
        ({"values": np.ones((6, 4))}, TypeError, "values: expected a tensor, got ndarray"),
        (
            {"l0_weight": torch.rand(5)},
            ValueError,
            r"l0_weight: expected a number or shape \[6\], got shape \[5\]",
        ),
        ({"loss": "hinge"}, ValueError, "loss: expected a function or one of"),
        ({"ids": torch.full((6, 4), 99)}, IndexError, r"ids: expected values in 0..59 .* got 99"),
        ({"ids": torch.zeros(6, 4)}, ValueError, "ids: expected dtype int64"),
        ({"values": torch.rand(6, 3)}, ValueError, "values: expected"),
        ({"offsets": torch.tensor([0, 3])}, ValueError, "offsets|ids"),
        ({"seed": "a"}, TypeError, "seed: expected"),
    ],
)
def test_errors(change, error, message):
    ids, target, *_ = make_batch((6, 4))
    arguments = {"ids": ids, "target": target} | change
    with pytest.raises(error, match=message):
        make_model().risk(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.head.to("meta"), ValueError, "head.weight: expected device cpu, got meta"),
        (lambda m: m.head.float(), ValueError, "head.weight: expected dtype float64, got float32"),
        (lambda m: setattr(m, "head", nn.Linear(4, 1)), ValueError, r"head.weight: expected "),
        (lambda m: setattr(m.interaction, "limits", (0.1, 1.1)), ValueError, "limits: expected"),
        (lambda m: setattr(m.interaction, "temperature", "x"), ValueError, "temperature, limits: expected"),
    ],
)
def test_models_that_were_changed(change, error, message):
    model = make_model()
    change(model)
    with pytest.raises(error, match=message):
        model.risk(*make_batch((6, 4))[:2])


def test_the_operator_refuses_tensors_of_another_device(gpu):
    """A compiled graph would call it without the checks of Python."""
    model, (ids, target, *_) = make_model(), make_batch((6, 4))
    tables = model.node_embedding.weight, model.edge_embedding.weight
    networks = *model.interaction.message.weights(), *model.interaction.edge.weights()
    tensors = [ids.flatten(), None, *tables, *networks, *model.head.parameters(), target, target]
    options = (None, 4, None, 0, 2 / 3, -0.1, 1.1, False, 0)
    with torch.no_grad():
        assert torch.ops.l0sign_cuda.l0_sign_risk(*tensors, *options)[0].isfinite()
        for k in range(12, 16):
            moved = [tensor.to(gpu) if at == k else tensor for at, tensor in enumerate(tensors)]
            with pytest.raises(RuntimeError, match="expected a tensor on the device of node_table"):
                torch.ops.l0sign_cuda.l0_sign_risk(*moved, *options)


def test_l2_weight_without_the_penalty():
    with pytest.raises(ValueError, match="l2_weight: expected 0 for an output without l2_penalty"):
        make_model(l2_penalty=False).risk(*make_batch((6, 4))[:2], l2_weight=0.1)
