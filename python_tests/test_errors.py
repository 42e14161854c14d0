"""Every refusal, with its message: the argument, what was expected and what came."""

from __future__ import annotations

import re

import cases
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from l0sign_cuda import L0SIGN, L0SIGNLayer, SIGNLayer, _extension, functional, ops

RAGGED = cases.with_edges(cases.make([2, 3]), weighted=True).to(torch.float32)
DENSE = cases.make((2, 3), dense=True).to(torch.float32)


def refuse(error, expected, function, *args, **options):
    with pytest.raises(error, match="^" + re.escape(expected)):
        function(*args, **options)


def replaced(weights, position, weight):
    return (*weights[:position], weight, *weights[position + 1 :])


long = torch.int64
message, edge = RAGGED.message, RAGGED.edge
elsewhere = {"device": "meta"}

# an argument of l0_sign, what it is given, and how that is refused
TYPE_ERRORS = [
    ("nodes", [1.0], "nodes: expected a tensor, got list"),
    ("edge_nodes", None, "edge_nodes: expected a tensor, got NoneType"),
    ("message", None, "message: expected a tuple (hidden weight, hidden bias, out"),
    ("message", replaced(message, 1, None), "message hidden bias: expected a tensor, got NoneType"),
    ("offsets", [0, 5], "offsets: expected a tensor, got list"),
    ("seed", 1.5, "seed: expected None, an integer or an int64 tensor, got float"),
    ("seed", True, "seed: expected None, an integer or an int64 tensor, got bool"),
]  # fmt: skip
VALUE_ERRORS = [
    ("nodes", torch.ones(5, 3, dtype=long), "nodes: expected dtype float32, float64, bfloat16"),
    ("nodes", torch.ones(5), "nodes: expected shape [B, n, d], or [N, d] with offsets, got shape [5]"),
    ("nodes", torch.ones(5, 3).to_sparse(), "nodes: expected a dense tensor, got layout sparse_coo"),
    ("nodes", torch.ones(5, 0), "nodes: expected at least one column, got shape [5, 0]"),
    ("nodes", torch.ones(5, 4), "message hidden weight: expected shape [5, 4], got shape [5, 3]"),
    ("nodes", torch.ones(1, 5, 3), "offsets: expected None, because nodes is dense"),
    ("edge_nodes", torch.ones(4, 2), "edge_nodes: expected shape [5, b] to go with nodes, got"),
    ("edge_nodes", torch.ones(5), "edge_nodes: expected shape [5, b] to go with nodes, got"),
    ("edge_nodes", torch.ones(5, 0), "edge_nodes: expected shape [5, b] to go with nodes, got"),
    ("edge_nodes", torch.ones(5, 2).double(), "edge_nodes: expected dtype float32, got float64"),
    ("edge_nodes", torch.ones(5, 2, **elsewhere), "edge_nodes: expected device cpu, got meta"),
    ("message", message[:3], "message: expected four tensors (hidden weight, hidden bias"),
    ("message", replaced(message, 0, torch.ones(3)), "message hidden weight: expected shape [H, 3]"),
    ("message", replaced(message, 0, torch.ones(0, 3)), "message hidden weight: expected shape [H, 3]"),
    ("message", replaced(message, 1, torch.ones(4)), "message hidden bias: expected shape [5], got"),
    ("message", replaced(message, 2, torch.ones(5, 3)), "message out weight: expected shape [3, 5]"),
    ("message", replaced(message, 3, torch.ones(2)), "message out bias: expected shape [3], got"),
    ("message", replaced(message, 3, torch.ones(3).half()), "message out bias: expected dtype float32"),
    ("edge", replaced(edge, 2, torch.ones(2, 4)), "edge out weight: expected shape [1, 4], got"),
    ("edge", replaced(edge, 0, torch.ones(4, 3)), "edge hidden weight: expected shape [4, 2], got"),
    ("edge", edge[:1], "edge: expected four tensors"),
    ("offsets", None, "offsets: expected int64 [B+1], because nodes is ragged (one row a node),"
     " got None; for one graph pass offsets=torch.tensor([0, 5])"),
    ("offsets", torch.tensor([0, 5]).int(), "offsets: expected dtype int64, got int32"),
    ("offsets", torch.tensor([[0, 5]]), "offsets: expected shape [B+1], got shape [1, 2]"),
    ("offsets", torch.empty(0, dtype=long), "offsets: expected shape [B+1], got shape [0]"),
    ("offsets", torch.tensor([1, 5]), "offsets: expected offsets[0] = 0, got 1"),
    ("offsets", torch.tensor([0, 4]), "offsets: expected offsets[-1] = 5, the number of rows"),
    ("offsets", torch.tensor([0, 3, 2, 5]), "offsets: expected values that never fall, got 3 then 2"),
    ("offsets", torch.tensor([0, 5], **elsewhere), "offsets: expected device cpu, got meta"),
    ("aggr", "max", "aggr: expected one of 'mean', 'neighbor_mean', 'sum', got 'max'"),
    ("aggr", 0, "aggr: expected one of 'mean', 'neighbor_mean', 'sum', got 0"),
    ("temperature", 0.0, "temperature: expected a positive number, got 0.0"),
    ("temperature", float("nan"), "temperature: expected a positive number, got nan"),
    ("temperature", "hot", "temperature, limits: expected a number and two numbers, got 'hot' and"),
    ("limits", (0.0, 1.1), "limits: expected (gamma, zeta) with gamma < 0 and zeta > 1, got (0.0"),
    ("limits", (-0.1, 1.0), "limits: expected (gamma, zeta) with gamma < 0 and zeta > 1, got"),
    ("limits", (-0.1,), "temperature, limits: expected a number and two numbers, got"),
    ("seed", 2**63, "seed: expected a 64-bit signed integer, got 9223372036854775808"),
    ("seed", -(2**63) - 1, "seed: expected a 64-bit signed integer, got -9223372036854775809"),
    ("seed", torch.tensor([1, 2]), "seed: expected one element, got shape [2]"),
    ("seed", torch.tensor([1.0]), "seed: expected dtype int64, got float32"),
    ("seed", torch.tensor([1], **elsewhere), "seed: expected device cpu, got meta"),
    ("backend", "cuda", "backend: expected None, 'auto', 'fused' or 'reference', got 'cuda'"),
]  # fmt: skip
L0_SIGN = [(TypeError, *row) for row in TYPE_ERRORS] + [(ValueError, *row) for row in VALUE_ERRORS]


@pytest.mark.parametrize(("error", "name", "value", "expected"), L0_SIGN)
def test_l0_sign(error, name, value, expected, backend):
    arguments = {key: getattr(RAGGED, key) for key in ("nodes", "edge_nodes", "message", "edge", "offsets")}
    refuse(error, expected, functional.l0_sign, **(arguments | {"backend": backend, name: value}))


PAIR = torch.tensor([[0], [1]])
SIGN = [
    ({"edge_index": [[0], [1]]}, TypeError, "edge_index: expected a tensor, got list"),
    ({"edge_index": PAIR.int()}, ValueError, "edge_index: expected dtype int64, got int32"),
    ({"edge_index": PAIR.T}, ValueError, "edge_index: expected shape [2, E], got shape [1, 2]"),
    ({"edge_index": PAIR + 4}, IndexError, "edge_index: expected values in 0..4 (nodes = 5), got 5"),
    ({"edge_index": PAIR - 1}, IndexError, "edge_index: expected values in 0..4 (nodes = 5), got -1"),
    ({"edge_index": torch.tensor([[0, 1], [1, 2]])}, ValueError, "edge_index: expected edges within one"
     " graph, got edge 1 from node 1 of graph 0 to node 2 of graph 1"),
    ({"edge_index": PAIR, "edge_weight": torch.ones(2)}, ValueError, "edge_weight: expected shape [1], got"),
    ({"edge_index": PAIR, "edge_weight": torch.ones(1).double()}, ValueError, "edge_weight: expected dtype"),
    ({"edge_weight": torch.ones(1)}, ValueError, "edge_weight: expected None without edge_index, got"),
    ({"offsets": torch.tensor([0, 4])}, ValueError, "offsets: expected offsets[-1] = 5, the number of rows"),
    ({"message": message[:3]}, ValueError, "message: expected four tensors"),
    ({"aggr": "median"}, ValueError, "aggr: expected one of"),
    ({"backend": "torch"}, ValueError, "backend: expected None"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "expected"), SIGN)
def test_sign(changes, error, expected, backend):
    arguments = {"nodes": RAGGED.nodes, "message": message, "offsets": RAGGED.offsets, "backend": backend}
    refuse(error, expected, functional.sign, **(arguments | changes))


def test_edges_between_dense_graphs(backend):
    across = torch.tensor([[0], [3]])
    refuse(
        ValueError,
        "edge_index: expected edges within one graph, got edge 0 from node 0 of graph 0 to node 3 of graph 1",
        functional.sign,
        DENSE.nodes,
        DENSE.message,
        edge_index=across,
        backend=backend,
    )


def test_pair_gates(backend):
    function = functional.pair_gates
    nodes, offsets = RAGGED.edge_nodes, RAGGED.offsets
    refuse(ValueError, "offsets: expected int64 [B+1]", function, nodes, edge, backend=backend)
    refuse(ValueError, "edge hidden weight: expected", function, nodes[:, :1], edge, offsets, backend=backend)
    refuse(TypeError, "edge_nodes: expected a tensor", function, None, edge, offsets, backend=backend)
    refuse(ValueError, "limits: expected", function, nodes, edge, offsets, limits=(0.1, 2.0), backend=backend)


def test_gate_noise(backend):
    offsets = torch.tensor([0, 2])
    refuse(TypeError, "seed: expected an integer or", functional.gate_noise, None, offsets, backend=backend)
    refuse(ValueError, "seed: expected a 64-bit", functional.gate_noise, 2**64, offsets, backend=backend)
    refuse(
        ValueError, "offsets: expected offsets[0] = 0", functional.gate_noise, 1, offsets + 1, backend=backend
    )
    refuse(
        ValueError, "offsets: expected values that never", functional.gate_noise, 1, -offsets, backend=backend
    )


@pytest.mark.parametrize("call", [cases.l0_sign, cases.complete_sign, cases.sign_edges])
def test_a_missing_cuda_kernel(call, monkeypatch):
    """No GPU is needed: a fake tensor on one meets the same refusal."""
    for operator in ops.OPERATORS:
        monkeypatch.setattr(operator, "on_cuda", False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        case = DENSE.with_leaves(lambda leaf: torch.empty(leaf.shape, device="cuda"))
        case = cases.replace(case, seed=None, edge_index=torch.empty(2, 3, dtype=long, device="cuda"))
        with pytest.raises(
            NotImplementedError, match=r"no CUDA kernel in this build.*backend='reference'.*nvcc"
        ):
            call(case, backend="fused")


def test_a_binary_that_does_not_load(monkeypatch):
    def fail():
        raise ImportError("the reason")

    monkeypatch.setattr(_extension, "load", fail)
    for operator in ops.OPERATORS:
        monkeypatch.setattr(operator, "_op", None)
    with pytest.raises(ImportError, match="the reason"):
        cases.l0_sign(RAGGED, backend="fused")
    assert cases.l0_sign(RAGGED, backend="reference")["num_edges"].shape == (2,)


def _unchecked(name, **changes):
    """Call an operator as compiled graphs do, without the checks of Python."""
    message, edge = ([t.contiguous() for t in network] for network in (RAGGED.message, RAGGED.edge))
    options = {"offsets": RAGGED.offsets, "graph_size": 0, "aggr": 0, "num_pairs": 9, **changes}
    where = [options["offsets"], options["graph_size"]]
    gates = [2 / 3, -0.1, 1.1]
    operator = getattr(torch.ops.l0sign_cuda, name).default
    if name == "sign":
        return operator(RAGGED.nodes, *message, *where, options["aggr"], True)
    if name == "sign_edges":
        return operator(RAGGED.nodes, *message, *where, options["edge_index"], None, options["aggr"])
    if name == "edge_gates":
        return operator(RAGGED.edge_nodes, *edge, *where, None, *gates, options["num_pairs"])
    both = [RAGGED.nodes, RAGGED.edge_nodes, *message, *edge, *where, None, options["aggr"], *gates]
    if name == "l0_sign":
        return operator(*both, True)
    return operator(torch.ones_like(RAGGED.nodes), None, None, *both, options["degree"])


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("sign", {"offsets": torch.tensor([0, 9_000_000])}, "offsets: expected non-decreasing values"),
        ("sign", {"offsets": torch.tensor([0, 4, 3, 5])}, "offsets: expected non-decreasing values"),
        ("sign", {"offsets": torch.tensor([0, 5], dtype=torch.int32)}, "offsets: unexpected dtype"),
        ("sign", {"offsets": None, "graph_size": 0}, "graph_size: expected a divisor"),
        ("sign", {"offsets": None, "graph_size": 4}, "graph_size: expected a divisor"),
        ("sign_edges", {"edge_index": torch.tensor([[0], [9_000_000]])}, "edge_index: "),
        ("sign_edges", {"edge_index": torch.tensor([[-1], [0]])}, "edge_index: "),
        ("edge_gates", {"num_pairs": 3}, "num_pairs: "),
        ("sign", {"aggr": 3}, "aggr: expected 0, 1 or 2, got 3"),
        ("l0_sign", {"aggr": -1}, "aggr: expected 0, 1 or 2, got -1"),
        (
            "sign_edges",
            {"edge_index": torch.tensor([[0], [1]]), "aggr": 3},
            "aggr: expected 0, 1 or 2, got 3",
        ),
        ("l0_sign_backward", {"aggr": 1, "degree": torch.ones(3, dtype=torch.int32)}, "degree: "),
        ("l0_sign_backward", {"aggr": 1, "degree": torch.ones(5)}, "degree: unexpected dtype"),
    ],
)
def test_operators_guard_their_memory(name, changes, expected):
    """A compiled graph calls operators without the checks of Python: they refuse what would leave memory."""
    with pytest.raises(RuntimeError, match=expected):
        _unchecked(name, **changes)


def test_a_strided_degree_is_read_as_it_is():
    degree = _unchecked("l0_sign", aggr=1)[4]
    strided = torch.stack([degree, torch.full_like(degree, 99)], 1)[:, 0]
    assert not strided.is_contiguous()
    expected = _unchecked("l0_sign_backward", aggr=1, degree=degree)
    for ours, theirs in zip(_unchecked("l0_sign_backward", aggr=1, degree=strided), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_embeddings": 0}, "num_embeddings: expected an integer of at least 1, got 0"),
        ({"embedding_dim": 2.5}, "embedding_dim: expected an integer of at least 1, got 2.5"),
        ({"hidden_dim": -1}, "hidden_dim: expected an integer of at least 1, got -1"),
        ({"edge_dim": 0}, "edge_dim: expected an integer of at least 1, got 0"),
        ({"edge_hidden_dim": True}, "edge_hidden_dim: expected an integer of at least 1, got True"),
        ({"num_outputs": 0}, "num_outputs: expected an integer of at least 1, got 0"),
        ({"iterations": 0}, "iterations: expected an integer of at least 1, got 0"),
        ({"aggr": "avg"}, "aggr: expected one of 'mean', 'neighbor_mean', 'sum', got 'avg'"),
        ({"temperature": -1}, "temperature: expected a positive number, got -1.0"),
        ({"limits": (0.1, 1.1)}, "limits: expected (gamma, zeta)"),
        ({"backend": "gpu"}, "backend: expected None, 'auto', 'fused' or 'reference', got 'gpu'"),
    ],
)
def test_the_models_constructor(changes, expected):
    refuse(ValueError, expected, L0SIGN, **{"num_embeddings": 4, **changes})


def test_the_layers_constructors():
    refuse(ValueError, "edge_hidden_dim: expected an integer", L0SIGNLayer, 1, 1, 1, 0)
    refuse(ValueError, "aggr: expected one of", L0SIGNLayer, 1, 1, 1, 1, aggr="max")
    refuse(ValueError, "hidden_dim: expected an integer", SIGNLayer, 1, "2")
    refuse(ValueError, "backend: expected None", SIGNLayer, 1, 2, backend="fast")


@pytest.mark.parametrize(
    ("args", "error", "expected"),
    [
        (([[1]],), TypeError, "ids: expected a tensor, got list"),
        ((torch.ones(2, 3),), ValueError, "ids: expected dtype int64, got float32"),
        (
            (torch.ones(1, 2, 3, dtype=long),),
            ValueError,
            "ids: expected shape [B, n], or [N] with offsets, got",
        ),
        ((torch.tensor([[0, 9]]),), IndexError, "ids: expected values in 0..8 (num_embeddings = 9), got 9"),
        ((torch.tensor([[0, -1]]),), IndexError, "ids: expected values in 0..8 (num_embeddings = 9), got -1"),
        (
            (torch.tensor([1, 2]),),
            ValueError,
            "offsets: expected int64 [B+1], because ids is ragged (one row a node)",
        ),
        (
            (torch.tensor([1, 2]), torch.tensor([0, 1])),
            ValueError,
            "offsets: expected offsets[-1] = 2, the number",
        ),
        (
            (torch.tensor([[1, 2]]), torch.tensor([0, 1])),
            ValueError,
            "offsets: expected None, because ids is dense",
        ),
        (
            (torch.tensor([[1]]), None, torch.ones(1)),
            ValueError,
            "values: expected shape [1, 1], got shape [1]",
        ),
        (
            (torch.tensor([[1]]), None, torch.ones(1, 1, dtype=long)),
            ValueError,
            "values: expected a floating dtype",
        ),
        ((torch.tensor([[1]]), None, 1.0), TypeError, "values: expected a tensor, got float"),
        ((torch.tensor([[1]], device="meta"),), ValueError, "ids: expected device cpu, got meta"),
    ],
)
def test_the_models_input(args, error, expected, backend):
    refuse(error, expected, L0SIGN(9, backend=backend), *args)


def test_a_layer_blames_its_input():
    gated, plain = L0SIGNLayer(8, 4, 3, 4), SIGNLayer(8, 4)
    nodes, edge_nodes = torch.ones(1, 2, 8), torch.ones(1, 2, 3)
    expected = "nodes: expected 8 columns, got shape [1, 2, 7]"
    refuse(ValueError, expected, gated, nodes[..., :7], edge_nodes)
    refuse(ValueError, expected, plain, nodes[..., :7])
    refuse(
        ValueError, "edge_nodes: expected 3 columns, got shape [1, 2, 2]", gated, nodes, edge_nodes[..., :2]
    )


def test_a_seed_is_checked_where_it_is_ignored(backend):
    model = L0SIGN(4, backend=backend).eval()
    refuse(TypeError, "seed: expected None, an integer", model, torch.zeros(1, 2, dtype=long), seed="x")


@pytest.mark.parametrize("size", [2**31, 2**33, 2**62])
def test_pairs_that_no_tensor_holds(size, backend):
    offsets = torch.tensor([0, size])
    refuse(ValueError, "offsets: expected fewer than", functional.gate_noise, 3, offsets, backend=backend)


def test_sizes_may_be_numpys():
    model = L0SIGN(np.int64(5), np.int32(2), iterations=np.uint8(3))
    sizes = [model.hyperparameters[name] for name in ("num_embeddings", "embedding_dim", "iterations")]
    assert sizes == [5, 2, 3] and {type(size) for size in sizes} == {int}


def test_meta_tensors_have_shapes():
    model = L0SIGN(4).to("meta")
    assert model(torch.zeros(3, 2, dtype=long, device="meta")).logits.shape == (3,)


def test_forward_mode_is_for_the_reference():
    layer, nodes = SIGNLayer(8, 4, backend="fused"), torch.ones(1, 2, 8)
    expected = "l0sign_cuda::sign has no forward-mode derivative; use backend='reference'"
    refuse(NotImplementedError, expected, torch.func.jvp, layer, (nodes,), (nodes,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(nodes, nodes)
        refuse(NotImplementedError, expected, layer, dual)


@pytest.mark.parametrize("call", [cases.l0_sign, cases.l0_sign_bag], ids=["l0_sign", "l0_sign_bag"])
@pytest.mark.parametrize("name", ["message", "edge"])
def test_a_network_of_other_lengths(call, name):
    """Also where the two of them have eight tensors together."""
    case = cases.make_bag([2, 3]) if call is cases.l0_sign_bag else RAGGED
    tables = (case.leaves["node_table"], case.leaves["edge_table"]) if call is cases.l0_sign_bag else ()
    rows = (case.ids, *tables) if tables else (case.nodes, case.edge_nodes)
    function = functional.l0_sign_bag if tables else functional.l0_sign
    networks = {"message": [*case.message], "edge": [*case.edge]}
    moved = networks["message" if name == "edge" else "edge"].pop()
    networks[name].append(moved)
    first = "message"  # which is looked at first
    with pytest.raises(ValueError, match=f"^{first}: expected four tensors .*, got {len(networks[first])}"):
        function(*rows, tuple(networks["message"]), tuple(networks["edge"]), case.offsets)
    with pytest.raises(TypeError, match=f"^{name}: expected a tuple"):
        function(
            *rows,
            **{"message": case.message, "edge": case.edge, name: iter(case.message)},
            offsets=case.offsets,
        )


def test_a_layer_on_another_device():
    layer = L0SIGNLayer(4, 6, 3, 5).to("meta")
    with pytest.raises(ValueError, match=r"^message hidden weight: expected device cpu, got meta"):
        layer(torch.randn(2, 3, 4), torch.randn(2, 3, 3))


@pytest.mark.parametrize("changes", [{"dtype": torch.float64}, {"device": "meta"}])
def test_operators_want_one_type_and_device(changes):
    message = [t.to(**changes) if k == 1 else t for k, t in enumerate(RAGGED.message)]
    with pytest.raises(
        RuntimeError, match=r"message hidden bias: expected the dtype|expected tensors on one device"
    ):
        torch.ops.l0sign_cuda.sign(RAGGED.nodes, *message, RAGGED.offsets, 0, 0, True)
