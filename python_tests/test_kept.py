"""What a forward leaves for its backward: gradients are those of a backward without it, at bounded memory."""

from __future__ import annotations

from itertools import pairwise

import cases
import pytest
import torch

from l0sign_cuda import L0SIGNLayer, _extension, functional, ops

OPS = torch.ops.l0sign_cuda
GATE = (2 / 3, -0.1, 1.1)
KEEPS = _extension.cpu_capability() != "portable"

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
    room = _extension.load().Room()
    outputs, again = forward(*shared, l2), forward(*shared, l2, room.number)
    for one, other in zip(outputs, again, strict=True):
        assert torch.equal(one, other)

    degree = (outputs[4],) if gated else ()
    results = [outputs[0], outputs[1], outputs[2]] if gated else [outputs[0], outputs[1]]
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(r.shape, generator=generator, dtype=r.dtype) for r in results]
    if not l2:
        grads[-1] = None
    expected, found = backward(*grads, *shared, *degree), backward(*grads, *shared, *degree, room.number)
    for one, other in zip(backward(*grads, *shared, *degree, room.number), found, strict=True):
        assert torch.equal(one, other)  # a backward only reads it
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


class Rooms:
    """What a test takes of them."""

    def __init__(self, monkeypatch):
        self.numbers, self.alive = [], 0
        take, rooms = _extension.room, self

        class Room:
            def __init__(self):
                self.room = take()
                self.number = self.room.number
                rooms.numbers.append(self.number)
                rooms.alive += 1

            def __del__(self):
                rooms.alive -= 1

        monkeypatch.setattr(_extension, "room", Room)


@pytest.fixture
def rooms(monkeypatch):
    if not KEEPS:
        pytest.skip("these kernels leave nothing")
    return Rooms(monkeypatch)


def test_a_layer_that_trains_has_a_room_and_others_have_none(rooms):
    layer, nodes, edge_nodes = make_layer()
    gradients(layer, nodes, edge_nodes)
    assert len(rooms.numbers) == 1
    with torch.no_grad():
        layer(nodes, edge_nodes)
    torch.compile(layer, backend="eager")(nodes, edge_nodes)
    layer.requires_grad_(False)
    layer(nodes.detach(), edge_nodes.detach())
    assert len(rooms.numbers) == 1
    layer(nodes, edge_nodes)
    assert len(rooms.numbers) == 2


def test_a_room_is_free_when_the_graph_is_gone(rooms):
    layer, nodes, edge_nodes = make_layer()
    outputs = [layer(nodes, edge_nodes, seed=seed).nodes.sum() for seed in range(5)]
    assert rooms.alive == 5
    assert len(set(rooms.numbers)) == 5
    expected = [
        torch.autograd.grad(layer(nodes, edge_nodes, seed=seed).nodes.sum(), nodes) for seed in range(5)
    ]
    assert rooms.alive == 5
    for output, [gradient] in zip(outputs, expected, strict=True):  # none has written to another's
        assert torch.equal(torch.autograd.grad(output, nodes, retain_graph=True)[0], gradient)
        before = rooms.alive
        assert torch.equal(torch.autograd.grad(output, nodes)[0], gradient)
        assert rooms.alive == before - 1  # though the output is there
    assert rooms.alive == 0
    lost = layer(nodes, edge_nodes)
    assert rooms.alive == 1
    del lost
    assert rooms.alive == 0


def test_numbers_of_rooms_are_checked():
    case = case_of("lanes over nodes", torch.float32, bag=False)
    shared = arguments(case, gated=True, bag=False, aggr=0)
    gone = _extension.load().Room().number
    for number in (gone, -1, 2**62):
        with pytest.raises(RuntimeError, match=f"room: expected the number of a room, got {number}"):
            OPS.l0_sign(*shared, False, number)
    degree = OPS.l0_sign(*shared, False)[4]
    with pytest.raises(RuntimeError, match="room: expected the number of a room"):
        OPS.l0_sign_backward(torch.ones_like(case.nodes), None, None, *shared, degree, gone)


def test_a_room_that_is_too_small_holds_the_first_graphs(monkeypatch):
    """4,096 graphs of 40 nodes leave more than there is room for; one of 3,000 nodes leaves nothing."""
    layer = L0SIGNLayer(8, 32, 8, 32, l2_penalty=False)
    for shape in ((4096, 40), (1, 3000)):
        nodes, grads = torch.randn(*shape, 8) / 8, []
        for keeps in (True, False):
            rows = nodes.clone().requires_grad_()
            weights = [weight for network in (layer.message, layer.edge) for weight in network.weights()]
            monkeypatch.setattr(ops.l0_sign, "_has_room", keeps)
            layer(rows, rows, seed=3).nodes.square().sum().backward()
            grads.append([rows.grad, *(weight.grad for weight in weights)])
            layer.zero_grad()
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))


def test_threads_do_not_change_the_gradients():
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


@pytest.mark.parametrize("with_room", [True, False])
def test_infinite_and_missing_numbers_stay_in_their_graph(with_room, monkeypatch):
    case = case_of("lanes over graphs", torch.float32, bag=False)
    nodes = case.nodes.clone()
    nodes[7, 1] = torch.nan
    nodes[12, 1] = torch.inf
    monkeypatch.setattr(ops.l0_sign, "_has_room", with_room)
    layer = functional.l0_sign(
        nodes.requires_grad_(), case.edge_nodes, case.message, case.edge, case.offsets, seed=1
    )
    layer.nodes.sum().backward()
    missing = nodes.grad.isnan().any(1)
    assert missing[5:15].any()
    assert not missing[:5].any() and not missing[15:].any()


@pytest.mark.parametrize("with_room", [True, False])
def test_a_unit_that_a_bias_turns_off(with_room, monkeypatch):
    """And products that are too large for float32, where no unit is on."""
    monkeypatch.setattr(ops.l0_sign, "_has_room", with_room)
    layer, nodes, edge_nodes = make_layer()
    with torch.no_grad():
        layer.message.hidden.bias[2] = -torch.inf
    assert all(gradient.isfinite().all() for gradient in gradients(layer, nodes, edge_nodes))
    with torch.no_grad():
        layer.message.hidden.weight.fill_(-1e-30)
        layer.message.hidden.weight[:, 0] = -1
        nodes[0, :, 0] = 1e25
    out = layer(nodes, edge_nodes, seed=1)
    assert out.nodes.isfinite().all()
    edges = torch.autograd.grad(out.nodes.sum(), [edge_nodes, *layer.edge.parameters()])
    assert all(gradient.isfinite().all() for gradient in edges)


def test_tensors_of_other_classes_have_no_room(rooms):
    """They may call the operator twice, where the second call would overwrite what the first has left."""

    class Twice(torch.Tensor):
        pass

    layer, nodes, edge_nodes = make_layer()
    weights = [weight.detach().as_subclass(Twice) for weight in layer.message.weights()]
    functional.l0_sign(nodes, edge_nodes, tuple(weights), layer.edge.weights(), seed=1)
    assert not rooms.numbers
    functional.l0_sign(
        torch.nn.Parameter(nodes.detach()), edge_nodes, layer.message.weights(), layer.edge.weights()
    )
    assert len(rooms.numbers) == 1


def test_without_memory_there_is_no_room(monkeypatch):
    layer, nodes, edge_nodes = make_layer()
    expected = gradients(layer, nodes, edge_nodes)

    class Binary:
        def Room(self):
            raise MemoryError("std::bad_alloc")

        cpu_capability = staticmethod(lambda: "avx512")

    monkeypatch.setattr(_extension, "load", Binary)
    assert _extension.room() is None
    for one, other in zip(gradients(layer, nodes, edge_nodes), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))
