"""The operators in PyTorch: opcheck, compile, export, make_fx, functorch, checkpoint, autocast."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import cases
import pytest
import torch
from torch.func import functional_call, grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from l0sign_cuda import L0SIGN, L0SIGNLayer, empirical_risk, functional, ops

OPS = torch.ops.l0sign_cuda
GATE = (2 / 3, -0.1, 1.1)


def leaves(case, *prefixes, flat=True):
    chosen = [leaf for name, leaf in case.leaves.items() if name.startswith(prefixes)]
    return [leaf.flatten(0, -2) if flat and leaf.dim() == 3 else leaf for leaf in chosen]


def samples():
    """Arguments for each operator, ragged and dense, in float32."""
    for dense, seed in ((False, torch.tensor([3])), (True, None)):
        case = cases.make((2, 3) if dense else [2, 0, 3], dense=dense)
        graphs = (None, 3) if dense else (case.offsets, 0)
        edges = cases.with_edges(case, weighted=not dense)
        case, edges = (
            c.to(torch.float32).with_leaves(lambda leaf: leaf.requires_grad_()) for c in (case, edges)
        )
        if not dense:  # operators take any strides, and give contiguous results
            case, edges = (c.with_leaves(lambda leaf: leaf.t().contiguous().t()) for c in (case, edges))
        edge = leaves(case, "edge")
        pairs = case.bounds().diff()
        pairs = int((pairs * (pairs + 1) // 2).sum())
        batch = len(case.bounds()) - 1
        for aggr in range(3):
            for l2 in (True, False):  # dense nodes as [B, n, d], and as [N, d]
                yield "l0_sign", (*leaves(case, "", flat=not l2), *graphs, seed, aggr, *GATE, l2)
                yield "sign", (*leaves(case, "nodes", "message", flat=not l2), *graphs, aggr, l2)
            edge_list = (edges.edge_index, edges.edge_weight)
            yield "sign_edges", (*leaves(edges, "nodes", "message"), *graphs, *edge_list, aggr)
        yield from bag_samples(dense, seed, sparse=False)
        yield from risk_samples(dense, seed)
        yield "edge_gates", (*edge, *graphs, seed, *GATE, pairs)
        yield "gate_noise", (torch.tensor([5]), *graphs, batch, pairs)


def bag_samples(dense, seed, *, sparse):
    case = cases.make_bag((2, 3) if dense else [2, 0, 3], dense=dense, valued=not dense).to(torch.float32)
    case = case.with_leaves(lambda leaf: leaf.t().contiguous().t().requires_grad_())
    bag = case.ids.flatten(), None if dense else case.values
    node, edge = leaves(case, "node_table", "message"), leaves(case, "edge")
    every = (node[0], edge[0], *node[1:], *edge[1:])
    graphs = (None, 3) if dense else (case.offsets, 0)
    for aggr in range(3):
        for l2 in (True, False):
            yield "l0_sign_bag", (*bag, *every, *graphs, seed, aggr, *GATE, sparse, l2)
            yield "sign_bag", (*bag, *node, *graphs, aggr, sparse, l2)


def risk_samples(dense, seed):
    """Ragged and sparse, or dense and without a bias of the head. Its gradients are results: it has none."""
    bags = bag_samples(dense, seed, sparse=not dense)
    *_, args = (args for name, args in bags if name == "l0_sign_bag")
    tensors, (*options, sparse, _) = [arg if arg is None else arg.detach() for arg in args[:12]], args[12:]
    batch = 2 if dense else 3
    head = torch.ones(1, tensors[2].shape[1]), None if dense else torch.ones(1)
    for loss in range(2):
        yield "l0_sign_risk", (*tensors, *head, torch.rand(batch), torch.rand(batch), *options, sparse, loss)


@pytest.mark.parametrize(
    "name",
    ["l0_sign", "l0_sign_bag", "l0_sign_risk", "sign", "sign_bag", "sign_edges", "edge_gates", "gate_noise"],
)
def test_opcheck(name):
    chosen = [args for sample, args in samples() if sample == name]
    assert len(chosen) >= 2
    for at, args in enumerate(chosen):
        utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
        # the dynamic trace is slow: once for the ragged samples and once for the dense
        if at % (len(chosen) // 2) == 0:
            utils.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(getattr(OPS, name).default, args, test_utils=utils)


@pytest.mark.parametrize("dense", [False, True])
def test_opcheck_of_sparse_gradients(dense):
    """All but the trace of a backward, which knows no sparse gradients."""
    for name, args in bag_samples(dense, torch.tensor([3]), sparse=True):
        utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
        torch.library.opcheck(getattr(OPS, name).default, args, test_utils=utils)


@pytest.mark.parametrize(
    ("name", "sparse"),
    [
        *((name, False) for name in ("l0_sign", "sign", "sign_edges", "edge_gates")),
        *((name, sparse) for name in ("l0_sign_bag", "sign_bag") for sparse in (False, True)),
    ],
)
def test_opcheck_backward(name, sparse):
    """The backward operators, with the arguments that autograd gives them."""
    operator = getattr(ops, name)
    chosen = [*bag_samples(False, torch.tensor([3]), sparse=True)] if sparse else samples()
    for sample, args in chosen:
        if sample != name or args[-1] is False:
            continue
        args = [arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args]
        outputs = getattr(OPS, name)(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads = [torch.ones_like(output) for output in outputs[: operator._outputs]]
        kept = (*args[: operator._inputs], *(outputs[k] for k in operator._extra))
        utils = ["test_schema", "test_faketensor"]
        torch.library.opcheck(getattr(OPS, f"{name}_backward").default, (*grads, *kept), test_utils=utils)


def make_model(**options):
    torch.manual_seed(0)
    return L0SIGN(30, 4, 8, 3, 6, **options)


def make_batch(batch, n, ragged):
    ids, target = torch.randint(30, (batch, n)), torch.rand(batch).round()
    return (ids.flatten(), torch.arange(batch + 1) * n, target) if ragged else (ids, None, target)


def assert_same_gradients(step, compiled, model, *args):
    expected, actual = (torch.autograd.grad(f(*args), list(model.parameters())) for f in (step, compiled))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
def test_compile_traces_without_a_break(ragged, gated, iterations):
    torch._dynamo.reset()
    model = make_model(iterations=iterations, gated=gated)

    def step(ids, offsets, target, seed):
        return empirical_risk(model(ids, offsets, seed=seed), target, 0.01, 0.01)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, n in ((4, 5), (7, 3), (2, 9)):
        assert_same_gradients(step, compiled, model, *make_batch(batch, n, ragged), torch.tensor([5]))


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("ragged", [False, True])
def test_compile_for_evaluation(ragged, grad_mode):
    torch._dynamo.reset()
    model, found = make_model().eval(), []

    def backend(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes if "l0sign" in str(node.target))
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch, n in ((5, 7), (7, 3), (2, 9)):
        ids, offsets, _ = make_batch(batch, n, ragged)
        with grad_mode():
            torch.testing.assert_close(compiled(ids, offsets), model(ids, offsets))
    assert found == ["l0sign_cuda.l0_sign_bag.default"]


@pytest.mark.parametrize("gated", [True, False])
def test_compile_with_sparse_gradients(gated):
    """The look-up is left out of the graph; the gradients are those of the model that is not compiled."""
    torch._dynamo.reset()
    model = make_model(gated=gated, sparse=True)
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    for batch, n in ((4, 5), (7, 3)):
        ids, _, target = make_batch(batch, n, False)
        gradients = []
        for function in (model, compiled):
            model.zero_grad()
            empirical_risk(function(ids, seed=1), target, 0.01, 0.01).backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        expected, actual = gradients
        for name, gradient in expected.items():
            assert actual[name].is_sparse == gradient.is_sparse == ("embedding" in name), name
            torch.testing.assert_close(actual[name].to_dense(), gradient.to_dense(), msg=name)


def test_compile_with_inductor():
    torch._dynamo.reset()
    case = cases.make((2, 3), dense=True).to(torch.float32)
    compiled = torch.compile(cases.l0_sign, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(case), cases.l0_sign(case))


@pytest.mark.slow
def test_aot_inductor(tmp_path):
    model, (ids, offsets, _) = make_model().eval(), make_batch(4, 5, True)
    rows, graphs = torch.export.Dim("rows", min=3), torch.export.Dim("graphs", min=3)
    program = torch.export.export(model, (ids, offsets), dynamic_shapes=({0: rows}, {0: graphs}))
    assert any("l0sign_cuda.l0_sign_bag" in str(node.target) for node in program.graph.nodes)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    packaged = torch._inductor.aoti_load_package(path)
    for batch, n in ((4, 5), (6, 9)):
        ids, offsets, _ = make_batch(batch, n, True)
        torch.testing.assert_close(tuple(packaged(ids, offsets)), tuple(model(ids, offsets)))


def test_compiled_draws_follow_manual_seed():
    torch._dynamo.reset()
    model = make_model()
    compiled, (ids, _, _) = torch.compile(model, fullgraph=True, backend="aot_eager"), make_batch(4, 5, False)

    def draw(function):
        torch.manual_seed(3)
        return function(ids), function(ids)

    for actual, expected in zip(draw(compiled), draw(model), strict=True):
        torch.testing.assert_close(actual, expected)


def test_compile_edges():
    torch._dynamo.reset()
    case = cases.with_edges(cases.make([3, 4]), weighted=True).to(torch.float32)
    case = case.with_leaves(lambda leaf: leaf.requires_grad_())
    compiled = torch.compile(functional.sign, fullgraph=True, backend="aot_eager")
    graph = {"edge_index": case.edge_index, "edge_weight": case.edge_weight, "aggr": "neighbor_mean"}
    outputs = [f(case.nodes, case.message, case.offsets, **graph) for f in (functional.sign, compiled)]
    gradients = [
        torch.autograd.grad(out.sum(), [case.nodes, case.edge_weight, *case.message]) for out in outputs
    ]
    torch.testing.assert_close((outputs[1], gradients[1]), (outputs[0], gradients[0]))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    ("options", "operators"),
    [({}, ["l0_sign_bag"]), ({"gated": False}, ["sign_bag"]), ({"iterations": 2}, ["l0_sign"] * 2)],
)
def test_export(options, operators, ragged, strict):
    model = make_model(**options).eval()
    ids, offsets, _ = make_batch(4, 5, ragged)
    rows, graphs = torch.export.Dim("rows", min=3), torch.export.Dim("graphs", min=3)
    args, shapes = ((ids, offsets), ({0: rows}, {0: graphs})) if ragged else ((ids,), ({0: graphs, 1: rows},))
    program = torch.export.export(model, args, dynamic_shapes=shapes, strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if "l0sign" in str(node.target)]
    assert targets == [f"l0sign_cuda.{name}.default" for name in operators]
    ids, offsets, _ = make_batch(6, 9, ragged)
    args = (ids, offsets) if ragged else (ids,)
    torch.testing.assert_close(program.module()(*args), model(*args))


@pytest.mark.parametrize("module", [make_model().eval(), L0SIGNLayer(4, 8, 3, 6).eval()])
def test_exported_programs_are_saved(module, tmp_path):
    args = (make_batch(4, 5, False)[0],)
    if isinstance(module, L0SIGNLayer):
        args = torch.randn(4, 5, 4), torch.randn(4, 5, 3)
    torch.export.save(torch.export.export(module, args), tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(loaded(*args), module(*args))


@pytest.mark.parametrize("call", [cases.l0_sign, cases.l0_sign_bag])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode, call):
    make = cases.make if call is cases.l0_sign else cases.make_bag
    case = make([2, 3]).to(torch.float32)

    def gradients(offsets, ids, x, *leaves):
        leaves = dict(zip(case.leaves, leaves, strict=True))
        moved = replace(case, offsets=offsets, ids=ids, values=x, leaves=leaves)
        return torch.autograd.grad(next(iter(call(moved).values())).sum(), list(leaves.values()))

    args = (case.offsets, case.ids, case.values)
    args += tuple(leaf.requires_grad_() for leaf in case.leaves.values())
    graph = make_fx(gradients, tracing_mode=mode)(*args)
    targets = [str(node.target) for node in graph.graph.nodes if "l0sign" in str(node.target)]
    name = call.__name__
    assert targets == [f"l0sign_cuda.{name}.default", f"l0sign_cuda.{name}_backward.default"]
    torch.testing.assert_close(graph(*args), gradients(*args))


CALLS = (cases.l0_sign, cases.complete_sign, cases.sign_edges, cases.pair_gates)
BAGS = (cases.l0_sign_bag, cases.sign_bag)


def scalar(call, case, names, backend="fused"):
    """A scalar function of some leaves of a case."""

    def function(*values):
        outputs = call(
            replace(case, leaves={**case.leaves, **dict(zip(names, values, strict=True))}), backend=backend
        )
        return sum(value.square().sum() for value in outputs.values() if value.is_floating_point())

    return function


def make_functorch_case(call):
    case = (cases.make_bag if call in BAGS else cases.make)([3, 0, 2])
    case = cases.with_edges(case, weighted=True) if call is cases.sign_edges else case
    wanted = ("edge_nodes", "edge.") if call is cases.pair_gates else ("node", "message", "edge_weight")
    return case, [name for name in case.leaves if name.startswith(wanted)]


@pytest.mark.parametrize("call", (*CALLS, *BAGS))
def test_functorch_grad(call):
    case, names = make_functorch_case(call)
    values = [case.leaves[name] for name in names]
    fused, torchs = (
        grad(scalar(call, case, names, backend), argnums=tuple(range(len(names))))(*values)
        for backend in ("fused", "reference")
    )
    torch.testing.assert_close(fused, torchs)


@pytest.mark.parametrize("call", (*CALLS, *BAGS))
def test_functorch_vmap(call):
    """Over a batch of everything that is differentiable, of the outputs and of their gradients."""
    case, names = make_functorch_case(call)
    values = [torch.stack([case.leaves[name], case.leaves[name] * 1.5], -1) for name in names]
    dims = (-1,) * len(names)
    function = scalar(call, case, names)
    gradient = grad(function, argnums=tuple(range(len(names))))
    for f in (function, gradient):
        mapped = vmap(f, in_dims=dims)(*values)
        each = [f(*(value[..., k] for value in values)) for k in range(2)]
        expected = torch.stack(each) if f is function else tuple(map(torch.stack, zip(*each, strict=True)))
        torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize("valued", [True, False])
@pytest.mark.parametrize("call", BAGS)
def test_functorch_vmap_over_ids(call, valued):
    """Of the ids and values of several batches, with the noise of each alone."""
    case = cases.make_bag((2, 5), dense=True, valued=valued).to(torch.float64)
    ids = torch.stack([case.ids, case.ids.flip(0), case.ids.flip(1)])
    values = None if case.values is None else torch.stack([case.values, case.values + 1, case.values - 1])

    def outputs(ids, values):
        return call(replace(case, ids=ids, values=values))

    mapped = vmap(outputs, in_dims=(0, None if values is None else 0))(ids, values)
    each = [outputs(ids[k], None if values is None else values[k]) for k in range(3)]
    for name, value in mapped.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in each]), msg=name)


def test_vmap_over_nothing_is_refused():
    case = cases.make((2, 4), dense=True)
    nothing = torch.zeros(0, *case.nodes.shape, dtype=torch.float64)

    def nodes(rows, backend):
        leaves = {**case.leaves, "nodes": rows}
        return cases.l0_sign(replace(case, leaves=leaves), backend=backend)["nodes"]

    assert vmap(partial(nodes, backend="reference"))(nothing).shape == nothing.shape
    with pytest.raises(ValueError, match="l0sign_cuda::l0_sign: vmap needs a dimension of at least 1, got 0"):
        vmap(partial(nodes, backend="fused"))(nothing)


def test_vmap_keeps_the_noise():
    """A sample under vmap has the gates that it has alone."""
    case = cases.make((2, 4), dense=True).to(torch.float64)
    rows = torch.stack([case.nodes, case.nodes + 1])

    def nodes(rows):
        return cases.l0_sign(replace(case, leaves={**case.leaves, "nodes": rows}))["nodes"]

    torch.testing.assert_close(vmap(nodes)(rows), torch.stack([nodes(row) for row in rows]))


def test_gradients_per_sample():
    model, (ids, _, target) = make_model(), make_batch(3, 4, False)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, ids, target):
        output = functional_call(model, parameters, (ids.unsqueeze(0),), {"seed": 1})
        return empirical_risk(output, target.unsqueeze(0), 0.01)

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, ids, target)
    for k in range(3):
        one = grad(loss)(parameters, ids[k], target[k])
        torch.testing.assert_close({name: value[k] for name, value in each.items()}, one)


def test_functorch_jacobian_and_second_derivative():
    case, names = make_functorch_case(cases.l0_sign)
    values = [case.leaves[name] for name in names]
    function = scalar(cases.l0_sign, case, names)
    torch.testing.assert_close(jacrev(function)(*values), grad(function)(*values))
    with pytest.raises(RuntimeError, match="backend='reference' for second derivatives"):
        jacrev(jacrev(function))(*values)
    hessian = jacrev(jacrev(scalar(cases.l0_sign, case, names, "reference")))(*values)
    assert hessian.shape == case.nodes.shape * 2 and hessian.abs().max() > 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant, backend):
    torch.manual_seed(0)
    layer = L0SIGNLayer(4, 8, 3, 6, backend=backend)
    nodes, edge_nodes = torch.randn(3, 5, 4, requires_grad=True), torch.randn(3, 5, 3)

    def gradient(apply):
        nodes.grad = None
        torch.manual_seed(1)  # the draw of the first run is the draw of the second
        apply(nodes, edge_nodes)[0].square().sum().backward()
        return nodes.grad

    def checkpointed(*args):
        return checkpoint(layer, *args, use_reentrant=use_reentrant)

    assert torch.equal(gradient(checkpointed), gradient(layer))


@pytest.mark.parametrize("sparse", [False, True])
def test_checkpoint_of_the_model(sparse, backend):
    model, (ids, _, target) = make_model(backend=backend, sparse=sparse), make_batch(4, 5, False)

    def gradients(apply):
        model.zero_grad()
        torch.manual_seed(1)  # the draw of the first run is the draw of the second
        empirical_risk(apply(ids), target, 0.01).backward()
        return [p.grad.to_dense() for p in model.parameters()]

    checkpointed = partial(checkpoint, model, use_reentrant=False)
    assert all(map(torch.equal, gradients(checkpointed), gradients(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", CALLS)
def test_autocast(call, dtype, backend, device):
    """Autocast is the cast of all float32 arguments before, in both directions."""
    case = cases.make([4, 2], dtype=torch.float32)
    case = cases.with_edges(case, weighted=True) if call is cases.sign_edges else case
    case = case.to(torch.float32, device)

    def cast(case, **options):
        return call(case.with_leaves(lambda leaf: leaf.to(dtype)), **options)

    def autocast(case, **options):
        with torch.autocast(device.type, dtype=dtype):
            return call(case, **options)

    expected, actual = (cases.results(case, each, backend=backend) for each in (cast, autocast))
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    assert next(v for k, v in actual.items() if k in ("nodes", "gates")).dtype == dtype


def test_autocast_leaves_float64(backend):
    case = cases.make([4, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = cases.l0_sign(case, backend=backend)
    torch.testing.assert_close(output, cases.l0_sign(case, backend=backend), rtol=0, atol=0)


def test_autocast_of_the_model(backend):
    torch._dynamo.reset()
    model, (ids, offsets, target) = make_model(backend=backend), make_batch(4, 5, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, offsets, seed=1)
        assert output.logits.dtype == torch.bfloat16 and output.l0_penalty.dtype == torch.float32
        empirical_risk(output, target, 0.1, 0.1).backward()
        if backend == "fused":
            compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(ids, offsets, seed=1), output)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_seed_tensor_draws_anew_in_a_compiled_graph():
    torch._dynamo.reset()
    case = cases.make((4, 6), dense=True).to(torch.float32)

    def nodes(seed):
        networks = case.message, case.edge
        return functional.l0_sign(case.nodes, case.edge_nodes, *networks, seed=seed).nodes

    compiled = torch.compile(nodes, fullgraph=True, backend="aot_eager")
    first, second = (torch.tensor([k]) for k in (1, 2))
    assert torch.equal(compiled(first), nodes(first)) and torch.equal(compiled(second), nodes(second))
    assert not torch.equal(nodes(first), nodes(second))
