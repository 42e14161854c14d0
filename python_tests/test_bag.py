"""Look-up, interaction and pooling in one operator: against the definition, and what its gradients are."""

from __future__ import annotations

import re
from dataclasses import replace

import cases
import pytest
import torch
from torch.func import grad, vmap

from l0sign_cuda import L0SIGNLayer, functional, reference

CALLS = (cases.l0_sign_bag, cases.sign_bag)
OPS = torch.ops.l0sign_cuda


def fused_operators(call):
    name = call.__name__
    return [name, f"{name}_backward"]


# -------------------- against the reference


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("l2_penalty", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("call", CALLS)
def test_options(call, dtype, l2_penalty, seed, aggr, device):
    case = cases.make_bag([3, 0, 1, 7, 2, 10], seed=seed, aggr=aggr, dtype=dtype)
    cases.assert_fused_as_good(case, call, dtype, device, l2_penalty=l2_penalty)


@pytest.mark.parametrize("valued", [True, False])
@pytest.mark.parametrize(
    ("batch", "size"), [(0, 5), (3, 0), (0, 0), (35, 1), (35, 3), (17, 10), (17, 17), (2, 70)]
)
@pytest.mark.parametrize("call", CALLS)
def test_sizes_dense(call, batch, size, valued, device):
    case = cases.make_bag((batch, size), dense=True, valued=valued, num_rows=100, at=size)
    cases.assert_fused_as_good(case, call, device=device)


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 1, 0], [1], [3, 70, 0, 10, 1], [2] * 33 + [20]])
@pytest.mark.parametrize("call", CALLS)
def test_sizes_ragged(call, sizes, aggr, device):
    cases.assert_fused_as_good(cases.make_bag(sizes, aggr=aggr, num_rows=100), call, device=device)


@pytest.mark.parametrize(
    ("d", "b", "hidden", "edge_hidden"), [(1, 1, 1, 1), (8, 8, 32, 32), (3, 5, 7, 9), (17, 19, 33, 1)]
)
@pytest.mark.parametrize("call", CALLS)
def test_widths(call, d, b, hidden, edge_hidden, device):
    widths = {"d": d, "b": b, "hidden": hidden, "edge_hidden": edge_hidden}
    cases.assert_fused_as_good(cases.make_bag([0, 1, 6, 6, 3, 10], **widths), call, device=device)


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("call", CALLS)
def test_random_ragged(call, at, device):
    random = torch.Generator().manual_seed(at)
    batch, num_rows, *widths = torch.randint(1, 20, (6,), generator=random).tolist()
    sizes = torch.randint(0, 31 if at % 3 == 2 else 12, (batch,), generator=random).tolist()
    case = cases.make_bag(
        sizes,
        num_rows=num_rows,
        valued=at % 2 == 0,
        seed=at if at % 2 else None,
        aggr=cases.AGGREGATIONS[at % 3],
        at=at,
        **dict(zip(("d", "b", "hidden", "edge_hidden"), widths, strict=True)),
    )
    cases.assert_fused_as_good(case, call, device=device)


@pytest.mark.parametrize("call", CALLS)
def test_one_id_at_all_positions(call, device):
    cases.assert_fused_as_good(cases.make_bag([4, 9, 0, 2], num_rows=1), call, device=device)


@pytest.mark.parametrize("sizes", [[2000], [200] * 16])
def test_sums_of_many_pairs_keep_their_digits(sizes, device):
    """All of one sign: what rounding takes from each addition would add up."""
    random = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    ids = torch.randint(50, (sum(sizes),), generator=random)
    leaves = [torch.rand(shape, generator=random) for shape in ((50, 3), (8, 3), (8,), (3, 8), (3,))]

    def pooled(dtype):
        table, *message = (leaf.to(dtype=dtype, device=device) for leaf in leaves)
        return functional.sign_bag(ids.to(device), table, tuple(message), offsets.to(device)).pooled

    exact = pooled(torch.float64)
    torch.testing.assert_close(pooled(torch.float32).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("call", CALLS)
def test_dense_is_ragged(call, aggr, backend, device):
    case = cases.make_bag((5, 4), dense=True, aggr=aggr).to(torch.float64, device)
    dense = cases.results(case, call, backend=backend)
    ragged = cases.results(case.ragged(), call, backend=backend)
    for name, value in dense.items():
        torch.testing.assert_close(ragged[name], value, rtol=0, atol=1e-13, msg=name)


@pytest.mark.parametrize("valued", [True, False])
@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_the_pooled_rows_of_the_layer(gated, aggr, valued, backend, device):
    """The mean of x_i v'_i; the counts are the layer's."""
    case = cases.make_bag([3, 0, 1, 9, 24], aggr=aggr, valued=valued).to(torch.float64, device)
    bag, layer = (cases.l0_sign_bag, cases.l0_sign) if gated else (cases.sign_bag, cases.complete_sign)
    output, apart = bag(case, backend=backend), layer(cases.looked_up(case), backend=backend)
    nodes = apart["nodes"] * (1 if case.values is None else case.values.unsqueeze(-1))
    pooled = [
        rows.sum(0) / max(len(rows), 1) for rows in nodes.split(case.offsets.diff().tolist())
    ]  # an empty graph has 0
    torch.testing.assert_close(output["pooled"], torch.stack(pooled))
    torch.testing.assert_close(output["l2_penalty"], apart["l2_penalty"])
    assert_same_penalty(output["l0_penalty"], apart["l0_penalty"])
    assert torch.equal(output["num_edges"], apart["num_edges"])


def assert_same_penalty(actual, expected):
    """To the bit on the CPU; CUDA kernels add up in an order of their own."""
    if actual.is_cpu:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("seed", [None, 3])
def test_gates_are_those_of_the_layer_in_float32(seed, device):
    case = cases.make_bag([12, 0, 3, 40, 7] * 8, seed=seed).to(torch.float32, device)
    output, apart = cases.l0_sign_bag(case), cases.l0_sign(cases.looked_up(case))
    assert torch.equal(output["num_edges"], apart["num_edges"])
    assert_same_penalty(output["l0_penalty"], apart["l0_penalty"])
    assert 0 < output["num_edges"].sum() < (case.bounds().diff() * (case.bounds().diff() + 1) // 2).sum()


def test_the_reference_backend_is_the_reference():
    case = cases.make_bag([3, 0, 7]).to(torch.float32)
    tables, networks = (case.leaves["node_table"], case.leaves["edge_table"]), (case.message, case.edge)
    gated = reference.l0_sign_bag(case.ids, *tables, *networks, case.offsets, case.values, seed=case.seed)
    ungated = reference.sign_bag(case.ids, tables[0], networks[0], case.offsets, case.values)
    for call, expected in zip(CALLS, (gated, ungated), strict=True):
        actual = call(case, backend="reference")
        assert all(torch.equal(actual[name], value) for name, value in expected._asdict().items())


# -------------------- gradients


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("call", CALLS)
def test_gradcheck(call, aggr, seed, device):
    case = cases.make_bag([3, 0, 1, 2], num_rows=4, d=2, hidden=3, edge_hidden=2, seed=seed, aggr=aggr)
    case = case.to(torch.float64, device)
    names = cases.results(case, call, backend="fused")
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves.items() if f"grad {name}" in names}
    assert {"node_table", "message.hidden.weight"} <= leaves.keys()

    def outputs(*values):
        moved = replace(case, leaves={**case.leaves, **dict(zip(leaves, values, strict=True))})
        return [value for value in call(moved, backend="fused").values() if value.is_floating_point()]

    # a step far below the margin that keeps the kinks away
    assert torch.autograd.gradcheck(outputs, list(leaves.values()), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
@pytest.mark.parametrize("name", ["pooled", "l0_penalty", "l2_penalty"])
def test_one_output_alone(name, aggr, device):
    case = cases.make_bag([5, 2, 0, 9], aggr=aggr)

    def only(case, **options):
        return {name: cases.l0_sign_bag(case, **options)[name]}

    fused, torchs = (
        cases.results(case.to(torch.float32, device), only, backend=b) for b in ("fused", "reference")
    )
    exact = cases.results(case, only, backend="reference")
    # The reference knows of what a penalty is no function; the operator gives it a gradient, which is 0.
    beyond = fused.keys() - exact.keys()
    assert all(not fused.pop(leaf).any() for leaf in beyond)
    assert ("grad node_table" in fused) == (name != "l0_penalty")
    cases.assert_as_good(case, fused, torchs, exact)


@pytest.mark.parametrize("frozen", [("node_table",), ("edge_table",), ("node_table", "edge_table")])
@pytest.mark.parametrize("sparse", [False, True])
def test_frozen_leaves_get_no_gradient(frozen, sparse, backend, device):
    case = cases.make_bag([4, 6]).to(torch.float32, device)
    full = cases.results(case, cases.l0_sign_bag, backend=backend, sparse=sparse)
    for name, leaf in case.leaves.items():
        leaf.requires_grad_(name not in frozen)
    output = cases.l0_sign_bag(case, backend=backend, sparse=sparse)
    sum(value.sum() for value in output.values() if value.requires_grad).backward()
    assert torch.equal(output["pooled"], full["pooled"])
    for name, leaf in case.leaves.items():
        assert (leaf.grad is None) == (name in frozen), name
        if "table" in name and name not in frozen:
            assert leaf.grad.is_sparse == sparse


@pytest.mark.parametrize("call", CALLS)
def test_sparse_gradients_are_the_dense_ones(call, backend, device):
    case = cases.make_bag([3, 0, 1, 9, 24], num_rows=1000).to(torch.float32, device)
    dense, sparse = (cases.results(case, call, backend=backend, sparse=s) for s in (False, True))
    assert dense.keys() == sparse.keys()
    for name, value in dense.items():
        actual = sparse[name]
        if "table" in name:
            assert actual.is_sparse and actual.is_coalesced() and actual.shape == (1000, value.shape[1])
            assert torch.equal(actual.indices()[0], case.ids.unique())
            actual = actual.to_dense()
        if backend == "fused":
            assert torch.equal(actual, value), name
        else:
            torch.testing.assert_close(actual, value, msg=name)


@pytest.mark.parametrize("call", CALLS)
def test_gradients_reach_the_leaves(call, device):
    """`backward` leaves sparse gradients coalesced, and adds up where there are some."""
    case = cases.make_bag([3, 5], num_rows=20).to(torch.float32, device)
    for sparse in (False, True):
        table = case.leaves["node_table"].clone().requires_grad_()
        moved = replace(case, leaves={**case.leaves, "node_table": table})
        output = call(moved, backend="fused", sparse=sparse)["pooled"]
        output.sum().backward()
        first = table.grad
        assert first.is_sparse == sparse and (not sparse or first.is_coalesced())
        once = first.to_dense().clone()
        call(moved, backend="fused", sparse=sparse)["pooled"].sum().backward()
        torch.testing.assert_close(table.grad.to_dense(), 2 * once)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_dense_gradient_is_taken_over_without_a_copy(sparse):
    case = cases.make_bag([3, 5], num_rows=20).to(torch.float32)
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves.items()}
    made = {}
    for name, leaf in leaves.items():
        if not (sparse and "table" in name):
            leaf.register_hook(lambda gradient, name=name: made.update({name: gradient.data_ptr()}))
    # Alive, as a training step's loss is.
    output = cases.l0_sign_bag(case, backend="fused", sparse=sparse)["pooled"].sum()
    output.backward()
    assert len(made) >= 8 and made == {name: leaves[name].grad.data_ptr() for name in made}


def test_a_table_that_changed_meanwhile_is_noticed():
    """The backward computes the forward's values again, from the tables."""
    case = cases.make_bag([3, 5]).to(torch.float32)
    table = case.leaves["node_table"].requires_grad_()
    output = cases.l0_sign_bag(case, backend="fused")["pooled"].sum()
    with torch.no_grad():
        table.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_second_derivative_names_the_way_out(call, sparse):
    case = cases.make_bag([3]).to(torch.float64)
    leaves = [leaf.requires_grad_() for leaf in case.leaves.values()]
    output = call(case, backend="fused", sparse=sparse)["pooled"]
    first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True, allow_unused=True)
    given = [g.to_dense() if g.is_sparse else g for g in first if g is not None]
    with pytest.raises(RuntimeError, match="backend='reference' for second derivatives"):
        torch.autograd.grad(sum(g.sum() for g in given), leaves, allow_unused=True)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_threads_do_not_change_a_bit(call, sparse):
    case = cases.make_bag([7, 0, 20, 3, 3, 3, 12] * 8, num_rows=50, d=5, hidden=9, aggr="neighbor_mean")
    case = case.to(torch.float32)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            runs.append(cases.results(case, call, backend="fused", sparse=sparse))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for name, value in run.items():
            assert torch.equal(value.to_dense(), runs[0][name].to_dense()), name


@pytest.mark.parametrize("aggr", ["mean", "neighbor_mean"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_nothing_unwritten_is_read(call, sparse, aggr, device):
    """With memory filled with NaN before each operator runs, results are the same."""
    case = cases.make_bag([5, 0, 3, 1, 20], aggr=aggr, num_rows=40).to(torch.float32, device)
    expected = cases.results(case, call, backend="fused", sparse=sparse)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = cases.results(case, call, backend="fused", sparse=sparse)
        assert torch.empty(3).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        assert torch.equal(poisoned[name].to_dense(), value.to_dense()), name


# -------------------- gates that are shut, and numbers that are none


def closed(case):
    """The case with all gates shut."""
    bias = torch.full_like(case.leaves["edge.out.bias"], -100.0)
    return replace(case, leaves={**case.leaves, "edge.out.bias": bias})


@pytest.mark.parametrize("aggr", cases.AGGREGATIONS)
def test_a_closed_pair_has_no_message(aggr, backend, device):
    """Not even one whose message is beyond the numbers; its logit keeps its gradient through the penalty."""
    case = closed(cases.make_bag([3, 5, 20], seed=None, aggr=aggr, valued=False)).to(torch.float32, device)
    case.leaves["node_table"].fill_(3e38)
    output = cases.l0_sign_bag(case, backend=backend)
    assert not output["num_edges"].any() and not output["pooled"].any() and not output["l2_penalty"].any()
    gradients = cases.results(case, cases.l0_sign_bag, backend="fused")  # through the reference 0 meets inf
    for name, value in gradients.items():
        assert value.isfinite().all(), name
        assert not ("message" in name or "node_table" in name) or not value.any(), name
    assert gradients["grad edge.out.bias"].item() != 0


@pytest.mark.parametrize("sizes", [[3, 4], [3, 40], [40, 3]])
@pytest.mark.parametrize(("table", "penalty"), [("node_table", "l2_penalty"), ("edge_table", "l0_penalty")])
def test_nan_is_not_hidden(table, penalty, sizes, backend, device):
    """A NaN in one graph shows in that graph's results, and in no other's."""
    case = cases.make_bag(sizes, num_rows=sum(sizes)).to(torch.float32, device)
    case = replace(case, ids=torch.arange(sum(sizes), device=device))
    case.leaves[table][1] = torch.nan
    if table == "node_table":
        case.leaves["edge.out.bias"].fill_(100.0)
    output = cases.l0_sign_bag(case, backend=backend)
    assert output["pooled"][0].isnan().all() and output[penalty][0].isnan()
    for name, value in output.items():
        assert not value[1].isnan().any(), name


# -------------------- what the operators do not serve


@pytest.mark.parametrize("call", CALLS)
def test_which_operators_run(call, monkeypatch):
    monkeypatch.delenv("L0SIGN_BACKEND", raising=False)
    case = cases.make_bag([3, 5]).to(torch.float32)
    with cases.OperatorCalls() as calls:
        cases.results(case, call, sparse=True)
    assert calls.names == fused_operators(call)
    with cases.OperatorCalls() as calls, torch.no_grad():
        call(case)
    assert calls.names == fused_operators(call)[:1]
    with cases.OperatorCalls() as calls:
        call(case, backend="reference")
    assert calls.names == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", CALLS)
def test_half_types_take_single_steps(call, dtype, device):
    case = cases.make_bag([3, 0, 7], dtype=dtype).to(dtype, device)
    fused, reference = (cases.results(case, call, backend=b) for b in ("fused", "reference"))
    assert fused["pooled"].dtype == dtype
    assert fused["l2_penalty"].dtype == torch.float32
    for name, value in fused.items():
        scale = float(reference[name].abs().max()) if value.numel() else 0
        bound = 4 * torch.finfo(dtype).eps * scale
        torch.testing.assert_close(value, reference[name], rtol=0, atol=bound, msg=name)
    with cases.OperatorCalls() as calls:
        call(case, backend="fused")
    assert calls.names == ["l0_sign" if call is cases.l0_sign_bag else "sign"]


@pytest.mark.parametrize("call", CALLS)
def test_autocast(call, backend, device):
    """The look-up is in float32, the interactions are cast."""
    case = cases.make_bag([3, 0, 7], dtype=torch.bfloat16).to(torch.float32, device)

    def cast(case, **options):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return call(case, **options)

    output = cases.results(case, cast, backend=backend)
    exact = cases.results(case, call, backend=backend)
    assert output["pooled"].dtype == torch.bfloat16 and output["grad node_table"].dtype == torch.float32
    for name, value in output.items():
        if value.is_floating_point():
            bound = 0.05 * float(exact[name].abs().max())
            torch.testing.assert_close(value.float(), exact[name], rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_values_that_want_a_gradient(call, sparse, device):
    case = cases.make_bag([3, 0, 7]).to(torch.float64, device)

    def gradients(backend):
        values = case.values.clone().requires_grad_()
        table = case.leaves["node_table"].clone().requires_grad_()
        moved = replace(case, values=values, leaves={**case.leaves, "node_table": table})
        output = call(moved, backend=backend, sparse=sparse)
        loss = output["pooled"].square().sum() + output["l2_penalty"].sum()
        return torch.autograd.grad(loss, [values, table])

    fused, reference = gradients("fused"), gradients("reference")
    assert fused[0].abs().min() > 0 and fused[1].is_sparse == sparse
    torch.testing.assert_close([g.to_dense() for g in fused], [g.to_dense() for g in reference])
    with cases.OperatorCalls() as calls, torch.no_grad():  # without one, one operator
        call(replace(case, values=case.values.clone().requires_grad_()), backend="fused")
    assert calls.names == fused_operators(call)[:1]


@pytest.mark.parametrize("call", CALLS)
def test_values_under_transforms(call):
    """A gradient of values through vmap, whatever level of the transforms it is wanted on."""
    case = cases.make_bag([3, 7]).to(torch.float64)
    values = torch.stack([case.values, case.values + 0.25])

    def pooled(backend, x):
        return call(replace(case, values=x), backend=backend)["pooled"].square().sum()

    def outside(backend):
        return grad(lambda v: vmap(lambda x: pooled(backend, x))(v).sum())(values)

    def inside(backend):
        return vmap(grad(lambda x: pooled(backend, x)))(values)

    for gradient in (outside, inside):
        assert gradient("fused").abs().max() > 0
        torch.testing.assert_close(gradient("fused"), gradient("reference"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_of_another_type(dtype, backend, device):
    """Values are taken in the tables' type."""
    case = cases.make_bag([3, 5]).to(torch.float32, device)  # values are eighths: exact in each
    expected = cases.l0_sign_bag(case, backend=backend)
    output = cases.l0_sign_bag(replace(case, values=case.values.to(dtype)), backend=backend)
    assert all(torch.equal(output[name], value) for name, value in expected.items())


@pytest.mark.parametrize("call", CALLS)
def test_strided_inputs(call, device):
    def strided(tensor):
        wide = torch.zeros((*tensor.shape, 2), dtype=tensor.dtype, device=device)
        wide[..., 0] = tensor
        return wide[..., 0]

    case = cases.make_bag((4, 5), dense=True).to(torch.float32, device)
    spread = replace(case.with_leaves(strided), ids=strided(case.ids), values=strided(case.values))
    assert not spread.ids.is_contiguous() and not spread.leaves["node_table"].is_contiguous()
    plain, actual = (cases.results(each, call, backend="fused") for each in (case, spread))
    assert all(torch.equal(plain[name], actual[name]) for name in plain)


# -------------------- the layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_the_layers_bag(gated, training, backend, device):
    """What its look-up, the layer and the mean give one by one."""
    case = cases.make_bag([3, 0, 7]).to(torch.float32, device)
    layer = L0SIGNLayer(3, 5, 2, 4, gated=gated, aggr="neighbor_mean", backend=backend).to(device)
    layer.train(training)
    tables = case.leaves["node_table"], case.leaves["edge_table"] if gated else None
    output = layer.bag(case.ids, *tables, case.offsets, case.values, seed=5)
    rows = cases.looked_up(case)
    apart = layer(rows.nodes, rows.edge_nodes if gated else None, case.offsets, seed=5)
    nodes = (apart.nodes * case.values.unsqueeze(-1)).split([3, 0, 7])
    torch.testing.assert_close(output.pooled, torch.stack([n.sum(0) / max(len(n), 1) for n in nodes]))
    torch.testing.assert_close(output[1:], apart[1:])


# -------------------- refusals

LONG = torch.int64
NODE, EDGE = torch.ones(12, 3), torch.ones(12, 2)
ERRORS = [  # an argument, what it is given, and how that is refused
    ("ids", [1], TypeError, "ids: expected a tensor, got list"),
    ("ids", torch.ones(5), ValueError, "ids: expected dtype int64, got float32"),
    ("ids", torch.zeros(1, 1, 5, dtype=LONG), ValueError, "ids: expected shape [B, n], or [N] with offsets,"),
    ("ids", torch.tensor([0, 1, 12, 2, 3]), IndexError, "ids: expected values in 0..11"),
    ("ids", torch.tensor([0, 1, -1, 2, 3]), IndexError, "ids: expected values in 0..11"),
    ("node_table", None, TypeError, "node_table: expected a tensor, got NoneType"),
    ("node_table", torch.ones(12), ValueError, "node_table: expected a floating tensor [J, d], got float32"),
    ("node_table", NODE.long(), ValueError, "node_table: expected a floating tensor [J, d], got int64"),
    ("node_table", NODE.to(torch.float8_e5m2), ValueError, "node_table: expected a floating tensor [J, d],"),
    ("node_table", NODE[:, :0], ValueError, "node_table: expected a floating tensor [J, d], got float32"),
    ("node_table", NODE.to_sparse(), ValueError, "node_table: expected a dense tensor, got layout"),
    ("node_table", torch.ones(12, 4), ValueError, "message hidden weight: expected shape [5, 4], got"),
    ("edge_table", None, TypeError, "edge_table: expected a tensor, got NoneType"),
    ("edge_table", EDGE[:11], ValueError, "edge_table: expected shape [12, b], as many rows as node_table"),
    ("edge_table", EDGE[:, :0], ValueError, "edge_table: expected shape [12, b], as many rows as node_table"),
    ("edge_table", EDGE.double(), ValueError, "edge_table: expected dtype float32, got float64"),
    ("edge_table", EDGE.to("meta"), ValueError, "edge_table: expected device cpu, got meta"),
    ("edge_table", torch.ones(12, 3), ValueError, "edge hidden weight: expected shape [4, 3], got"),
    ("message", None, TypeError, "message: expected a tuple"),
    ("edge", None, TypeError, "edge: expected a tuple"),
    ("offsets", None, ValueError, "offsets: expected int64 [B+1], because ids is ragged"),
    ("offsets", [0, 5], TypeError, "offsets: expected a tensor, got list"),
    ("offsets", torch.tensor([0, 4]), ValueError, "offsets: expected offsets[-1] = 5, the number of rows"),
    ("offsets", torch.tensor([0, 3, 2, 5]), ValueError, "offsets: expected values that never fall"),
    ("values", [1.0] * 5, TypeError, "values: expected a tensor, got list"),
    ("values", torch.ones(5, dtype=LONG), ValueError, "values: expected a floating dtype, got int64"),
    ("values", torch.ones(4), ValueError, "values: expected shape [5], got shape [4]"),
    ("values", torch.ones(1, 5), ValueError, "values: expected shape [5], got shape [1, 5]"),
    ("seed", 1.5, TypeError, "seed: expected None, an integer or an int64 tensor, got float"),
    ("aggr", "max", ValueError, "aggr: expected one of"),
    ("temperature", 0.0, ValueError, "temperature: expected a positive number, got 0.0"),
    ("limits", (0.0, 1.1), ValueError, "limits: expected (gamma, zeta)"),
    ("backend", "cuda", ValueError, "backend: expected None, 'auto', 'fused' or 'reference', got 'cuda'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "expected"), ERRORS)
@pytest.mark.parametrize("gated", [True, False])
def test_errors(gated, name, value, error, expected, backend):
    case = cases.make_bag([2, 3]).to(torch.float32)
    arguments = {
        "ids": case.ids,
        "node_table": case.leaves["node_table"],
        "message": case.message,
        "offsets": case.offsets,
        "values": case.values,
        "aggr": "mean",
        "backend": backend,
    }
    gates = {
        "edge_table": case.leaves["edge_table"],
        "edge": case.edge,
        "seed": 1,
        "temperature": 0.5,
        "limits": (-0.1, 1.1),
    }
    if gated:
        function, arguments = functional.l0_sign_bag, arguments | gates
    elif name in gates:
        return
    else:
        function = functional.sign_bag
    arguments[name] = value
    with pytest.raises(error, match="^" + re.escape(expected)):
        function(**arguments)


def test_errors_of_the_layers_bag(backend):
    case, layer = cases.make_bag([2, 3]).to(torch.float32), L0SIGNLayer(3, 5, 2, 4, backend=backend)
    with pytest.raises(ValueError, match=r"^node_table: expected 3 columns, got shape \[12, 4\]"):
        layer.bag(case.ids, torch.ones(12, 4), EDGE, case.offsets)
    with pytest.raises(ValueError, match=r"^edge_table: expected 2 columns, got shape \[12, 3\]"):
        layer.bag(case.ids, NODE, NODE, case.offsets)
    with pytest.raises(TypeError, match=r"^edge_table: expected a tensor, got NoneType"):
        layer.bag(case.ids, NODE, None, case.offsets)


def unchecked(gated, backward, **changes):
    """Call the operator itself, as a compiled graph does, with some arguments changed."""
    case = cases.make_bag([2, 3], aggr="neighbor_mean").to(torch.float32)
    arguments = {
        "grads": (torch.ones(2, 3), *([torch.ones(2)] * (2 if gated else 1))),
        "ids": case.ids,
        "values": case.values,
        "node_table": case.leaves["node_table"],
        "edge_table": case.leaves["edge_table"],
        "message": case.message,
        "edge": case.edge,
        "offsets": case.offsets,
        "graph_size": 0,
        "seed": torch.tensor([1]),
        "aggr": 1,
        "gate": (2 / 3, -0.1, 1.1),
        "sparse": False,
        "l2": True,
        "degree": torch.ones(5, dtype=torch.int32),
    } | changes
    unused = {"l2"} if backward else {"grads", "degree"}
    if not gated:
        unused |= {"edge_table", "edge", "seed", "gate", "degree"}
    flat = []
    for name, value in arguments.items():
        if name not in unused:
            flat += value if isinstance(value, tuple) else [value]
    name = ("l0_sign_bag" if gated else "sign_bag") + ("_backward" if backward else "")
    return getattr(OPS, name)(*flat)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids": torch.tensor([0, 1, 12, 2, 3])}, r"ids: expected values in 0\.\.11"),
        ({"ids": torch.tensor([0, 1, -1, 2, 3])}, r"ids: expected values in 0\.\.11"),
        ({"ids": torch.tensor([0, 1, 2**62, 2, 3])}, r"ids: expected values in 0\.\.11"),
        ({"ids": torch.zeros(5, dtype=torch.int32)}, "ids: unexpected dtype"),
        ({"ids": torch.zeros(1, 5, dtype=LONG)}, r"ids: expected \[N\], got \[1, 5\]"),
        ({"ids": torch.zeros(4, dtype=LONG)}, r"values: expected shape \[4\], got \[5\]"),
        ({"values": torch.ones(6)}, r"values: expected shape \[5\], got \[6\]"),
        ({"node_table": torch.ones(12)}, r"node_table: expected \[J, d\], got \[12\]"),
        ({"node_table": torch.ones(12, 4)}, "message hidden weight: expected shape"),
        ({"node_table": NODE.bfloat16()}, "node_table: unexpected dtype"),
        ({"node_table": NODE.long()}, "expected a tensor of dtype float64, float32"),
        ({"offsets": torch.tensor([0, 2, 6])}, "offsets: expected non-decreasing values from 0"),
        ({"offsets": torch.tensor([0, 7, 5])}, "offsets: expected non-decreasing values from 0"),
        ({"offsets": None, "graph_size": 2}, "graph_size: expected a divisor of the number of rows, 5"),
        ({"offsets": None, "graph_size": 0}, "graph_size: expected a divisor"),
        ({"aggr": 3}, "aggr: expected 0, 1 or 2, got 3"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("gated", [True, False])
def test_operators_guard_their_memory(gated, backward, changes, expected):
    unchecked(gated, backward)
    with pytest.raises(RuntimeError, match=expected):
        unchecked(gated, backward, **changes)


@pytest.mark.parametrize(
    ("changes", "backward", "expected"),
    [
        ({"edge_table": torch.ones(11, 2)}, False, r"edge_table: expected \[J, b\] with the rows"),
        ({"edge_table": torch.ones(12)}, False, r"edge_table: expected \[J, b\] with the rows"),
        ({"edge_table": EDGE.double()}, False, "edge_table: unexpected dtype"),
        ({"edge_table": torch.ones(12, 3)}, False, "edge hidden weight: expected shape"),
        ({"seed": torch.ones(2, dtype=LONG)}, False, "seed: expected one element"),
        ({"degree": torch.ones(4, dtype=torch.int32)}, True, r"degree: expected shape \[5\], got \[4\]"),
        ({"degree": torch.ones(5)}, True, "degree: unexpected dtype"),
        ({"grads": (torch.ones(2, 4), None, None)}, True, r"grad_pooled: expected shape \[2, 3\]"),
        ({"grads": (None, torch.ones(3), None)}, True, r"grad_l0: expected shape \[2\], got \[3\]"),
        ({"grads": (None, None, torch.ones(3))}, True, r"grad_l2: expected shape \[2\], got \[3\]"),
    ],
)  # fmt: skip
def test_the_gated_operators_guard_their_memory(changes, backward, expected):
    with pytest.raises(RuntimeError, match=expected):
        unchecked(True, backward, **changes)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_backward_without_gradients_gives_zeros(gated, sparse):
    grads = (None,) * (3 if gated else 2)
    _, *gradients = unchecked(gated, True, grads=grads, sparse=sparse)
    assert len(gradients) == (10 if gated else 5)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
