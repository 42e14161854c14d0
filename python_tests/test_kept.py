"""What a forward leaves for its backward: gradients are those of a backward without it, at bounded memory."""

from __future__ import annotations

from itertools import pairwise

import cases
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from l0sign_cuda import L0SIGNLayer, _extension, functional

OPS = torch.ops.l0sign_cuda
GATE = (2 / 3, -0.1, 1.1)
KEEPS = _extension.cpu_capability() == "avx512"
MOST = 30 << 20

GRAPHS = {
    "lanes over graphs": [5] * 19 + [4, 1, 0],
    "one of them partly filled": [3, 3, 2],
    "lanes over nodes": [70, 33],
}


def case_of(kind, dtype, *, bag):
    make = cases.make_bag if bag else cases.make
    return make(GRAPHS[kind], hidden=35, edge_hidden=33).to(dtype)


def arguments(case, *, gated, bag, aggr):
    """Those that a forward and its backward share, up to the options that follow."""
    graphs = (case.offsets, 0)
    if bag:
        tables = case.leaves["node_table"], case.leaves["edge_table"]
        rows = (case.ids, case.values, *tables[: 1 + gated])
    else:
        rows = (case.nodes, case.edge_nodes)[: 1 + gated]
    networks = (*case.message, *case.edge) if gated else case.message
    options = (torch.tensor([3]), aggr, *GATE) if gated else (aggr,)
    return *rows, *networks, *graphs, *options, *((False,) if bag else ())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("aggr", [0, 1, 2])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bag", [True, False])
def test_gradients_are_the_same(bag, gated, aggr, l2, kind, dtype):
    """Those of the penalty too, which take the gates alone from there."""
    name = ("l0_sign" if gated else "sign") + ("_bag" if bag else "")
    shared = arguments(case_of(kind, dtype, bag=bag), gated=gated, bag=bag, aggr=aggr)
    forward, backward = getattr(OPS, name), getattr(OPS, f"{name}_backward")
    *outputs, nothing = forward(*shared, l2)
    *again, kept = forward(*shared, l2, True)
    assert nothing.numel() == 0
    assert kept.dtype == torch.uint8 and (kept.numel() > 0) == KEEPS
    for one, other in zip(outputs, again, strict=True):
        assert torch.equal(one, other)

    degree = (outputs[4],) if gated else ()
    results = [outputs[0], outputs[1], outputs[2]] if gated else [outputs[0], outputs[1]]
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(r.shape, generator=generator, dtype=r.dtype) for r in results]
    if not l2:
        grads[-1] = None
    before = kept.clone()
    expected, found = backward(*grads, *shared, *degree), backward(*grads, *shared, *degree, kept)
    assert torch.equal(kept, before)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for ours, theirs in zip(found, expected, strict=True):
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, largest))


def make_layer():
    torch.manual_seed(0)
    layer = L0SIGNLayer(8, 32, 8, 32)
    nodes, edge_nodes = torch.randn(40, 6, 8, requires_grad=True), torch.randn(40, 6, 8, requires_grad=True)
    return layer, nodes, edge_nodes


def gradients(layer, nodes, edge_nodes):
    out = layer(nodes, edge_nodes, seed=1)
    loss = out.nodes.square().sum() + out.l0_penalty.sum()
    return torch.autograd.grad(loss, [nodes, edge_nodes, *layer.parameters()])


def packed(run, pack=lambda t: t, unpack=lambda t: t):
    """The result, and the bytes that were saved for the backward as such."""
    sizes = []

    def saved(tensor):
        if tensor.dtype == torch.uint8:
            sizes.append(tensor.numel())
        return pack(tensor)

    with saved_tensors_hooks(saved, unpack):
        return run(), sizes


def test_a_layer_that_trains_keeps_and_others_do_not():
    layer, nodes, edge_nodes = make_layer()
    _, [size] = packed(lambda: gradients(layer, nodes, edge_nodes))
    assert (size > 0) == KEEPS
    with torch.no_grad():
        assert packed(lambda: layer(nodes, edge_nodes))[1] == []
    layer.requires_grad_(False)
    assert set(packed(lambda: layer(nodes.detach(), edge_nodes.detach()))[1]) <= {0}


def test_what_was_kept_may_move():
    """As when it is offloaded: to another address, which no vector load can be aligned at."""
    layer, nodes, edge_nodes = make_layer()

    def move(tensor):
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    expected = gradients(layer, nodes, edge_nodes)
    found, _ = packed(lambda: gradients(layer, nodes, edge_nodes), unpack=move)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_memory_does_not_grow_with_the_pairs():
    """Of many graphs the first ones are kept, as many as there is room for; of a large one nothing."""
    layer = L0SIGNLayer(8, 32, 8, 32, l2_penalty=False)

    def kept(*shape):
        nodes = torch.randn(*shape, 8, requires_grad=True)
        _, [size] = packed(lambda: layer(nodes, nodes).nodes.sum().backward())
        return size

    few, many, large = kept(64, 40), kept(4096, 40), kept(1, 3000)
    assert large == 0
    if KEEPS:
        assert 0 < few < MOST // 2 < many <= MOST


@pytest.mark.skipif(not KEEPS, reason="needs AVX-512")
def test_what_does_not_fit_is_refused():
    shared = arguments(case_of("lanes over nodes", torch.float32, bag=False), gated=True, bag=False, aggr=0)
    *_, degree, kept = OPS.l0_sign(*shared, False, True)
    grads = torch.ones_like(shared[0]), None, None
    for wrong in (kept[:-64], torch.cat([kept, kept])):
        with pytest.raises(RuntimeError, match=r"kept: expected what the forward left, \d+ bytes, got \d+"):
            OPS.l0_sign_backward(*grads, *shared, degree, wrong)
    with pytest.raises(RuntimeError, match="kept: unexpected dtype"):
        OPS.l0_sign_backward(*grads, *shared, degree, kept.float())


def test_threads_do_not_change_what_is_kept():
    layer, nodes, edge_nodes = make_layer()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(gradients(layer, nodes, edge_nodes))
    finally:
        torch.set_num_threads(threads)
    for one, other in pairwise(found):
        assert all(map(torch.equal, one, other))


def test_infinite_and_missing_numbers_are_seen():
    """In the gradients that a NaN among the nodes reaches, with and without what was kept."""
    case = case_of("lanes over graphs", torch.float32, bag=False)
    nodes = case.nodes.clone()
    nodes[7, 1] = torch.nan
    layer = functional.l0_sign(
        nodes.requires_grad_(), case.edge_nodes, case.message, case.edge, case.offsets, seed=1
    )
    layer.nodes.sum().backward()
    missing = nodes.grad.isnan().any(1)
    assert missing[5:10].any()
    assert not missing[:5].any() and not missing[10:].any()
