"""The compiled operators of ``torch.ops.l0sign_cuda`` with autograd, fake implementations and vmap.

Arguments are positional, as in docs/architecture.md; what operators do not look at is checked already.
Everything about one operator is in its entry below: the fake implementation of its outputs, and what its
backward operator takes and gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _extension
from . import rows as rows_of_tables

_PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float}


class Operator:
    """An operator of the binary, called by the cheapest path that is right.

    A compiler sees the operator itself, which carries its registrations. Under functorch transforms only a
    Function with ``setup_context`` works, and in eager mode one without is several times cheaper than what
    ``register_autograd`` makes.

    ``backward`` is called with the gradients of the first ``outputs`` outputs (None where there is none),
    the first ``inputs`` inputs and the outputs ``extra``; it returns the gradients of the inputs ``wrt``.
    Without one there is no derivative. ``flag`` is the input that says whether the last of the differentiable
    outputs is there, or left empty. With ``has_room`` forward and backward take one input more, the number of
    a room: there the CPU's forward leaves what saves the backward work. ``tables`` are inputs whose gradients
    are sparse where the input ``sparse`` says so: of the rows that the backward operator returns before all
    gradients.
    """

    def __init__(
        self,
        name: str,
        fake: Callable[..., Any],
        backward: Operator | None = None,
        *,
        wrt: Sequence[int] = (),
        inputs: int = 0,
        outputs: int = 1,
        extra: Sequence[int] = (),
        flag: int | None = None,
        has_room: bool = False,
        tables: Sequence[int] = (),
        sparse: int = -1,
    ) -> None:
        self.name = name
        self._fake, self._backward = fake, backward
        self._wrt, self._inputs, self._outputs, self._extra = wrt, inputs, outputs, extra
        self._flag, self._has_room, self._tables, self._sparse = flag, has_room, tables, sparse
        self._op: Any = None
        self.on_cuda = False
        function = (torch.autograd.Function,)
        self._eager: Any = type(
            name,
            function,
            {"forward": self._forward, "backward": self._differentiate, "jvp": self._no_forward_mode},
        )
        self._transformed: Any = type(
            name,
            function,
            {
                "forward": self._below_autograd,
                "setup_context": self._setup,
                "backward": self._differentiate,
                "jvp": self._no_forward_mode,
                "vmap": self._vmap,
            },
        )

    def __call__(self, *args: Any) -> Any:
        """Call the operator."""
        if self._op is None:
            _extension.load()  # raises the reason, which importing this module met
        if isinstance(args[0], Tensor) and args[0].is_cuda and not self.on_cuda:
            raise NotImplementedError(
                f"l0sign_cuda::{self.name}: no CUDA kernel in this build; use backend='reference' (or the"
                " environment variable L0SIGN_BACKEND=reference), or build l0sign_cuda where nvcc is found"
            )
        if torch.compiler.is_compiling():
            return self._op(*args)
        if torch._C._are_functorch_transforms_active():
            return self._transformed.apply(*args)
        if torch.is_grad_enabled():
            return self._eager.apply(*args)
        return self._below_autograd(*args)

    def register(self) -> None:
        """Attach fake implementation, autograd and vmap to the operator of the binary."""
        qualname = f"l0sign_cuda::{self.name}"
        self._op = getattr(torch.ops.l0sign_cuda, self.name).default
        self.on_cuda = self.name in _extension.cuda_operators()
        torch.library.register_fake(qualname, self._checked_fake)
        torch.library.register_vmap(qualname, self._vmap)
        torch.library.register_autograd(qualname, self._differentiate, setup_context=self._setup)

    def _checked_fake(self, *args: Any) -> Any:
        # One tensor on the meta device brings a call here, with real ones that nobody would compute with.
        devices = {arg.device for arg in args if isinstance(arg, Tensor)}
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"l0sign_cuda::{self.name}: expected tensors on one device, got {found}")
        inputs = len(self._op._schema.arguments) - self._has_room  # which makes no difference
        return self._fake(*args[:inputs])

    def _below_autograd(self, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self._op(*args)

    def _forward(self, ctx: Any, *args: Any) -> Any:
        room = None
        if (
            self._has_room
            and any(ctx.needs_input_grad)
            # What has a mode, or tensors of another class, may make two calls of one.
            and set(map(type, args)) <= _PLAIN
            and torch._C._len_torch_dispatch_stack() == 0
            and args[0].is_cpu
        ):
            room = _extension.room()
        output = self._below_autograd(*args) if room is None else self._below_autograd(*args, room.number)
        self._setup(ctx, args, output)
        ctx.room = room
        return output

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # an unused output costs nothing
        ctx.num_inputs = len(inputs)
        ctx.room = None
        if self._flag is not None and not inputs[self._flag]:
            ctx.mark_non_differentiable(output[self._outputs - 1])
        kept = [*inputs[: self._inputs], *(output[k] for k in self._extra)]
        keep(ctx, kept)

    def _differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if self._backward is None:
            raise RuntimeError(
                f"l0sign_cuda::{self.name} has no derivative: the compiled operators give first derivatives;"
                " use backend='reference' for second derivatives"
            )
        result: list[Tensor | None] = [None] * ctx.num_inputs
        given = [None if grad is None else grad.contiguous() for grad in grads[: self._outputs]]
        if any(grad is not None for grad in given):
            kept = kept_by(ctx)
            if (
                self._tables
                and type(kept[0]) is Tensor
                and not any(map(ctx.needs_input_grad.__getitem__, self._tables))
            ):
                kept[self._sparse] = True  # nothing as large as a table for tables that are frozen
            gradients = self._backward(*given, *kept, *(() if ctx.room is None else (ctx.room.number,)))
            if ctx.room is not None and not torch._C._autograd._get_current_graph_task_keep_graph():
                ctx.room = None  # as autograd frees what was saved, though a graph may live on
            if self._tables:
                rows, *gradients = gradients
                if kept[self._sparse]:
                    for k, position in enumerate(self._tables):
                        num_rows = kept[position].shape[0]
                        gradients[k] = rows_of_tables.sparse_gradient(rows, gradients[k], num_rows)
                    ctx.held = gradients[: len(self._tables)]  # see rows._Lookup
            for position, gradient in zip(self._wrt, gradients, strict=True):
                if kept[position] is not None:
                    result[position] = gradient
        return tuple(result)

    def _no_forward_mode(self, ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            f"l0sign_cuda::{self.name} has no forward-mode derivative; use backend='reference'"
        )

    def _vmap(self, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        """One call for each batch element: graphs keep their index in the batch, and so their noise."""
        if not info.batch_size:
            raise ValueError(
                f"l0sign_cuda::{self.name}: vmap needs a dimension of at least 1, got 0;"
                " backend='reference' takes it"
            )
        results = []
        for k in range(info.batch_size):
            one = [
                value if dim is None else value.select(dim, k).contiguous()
                for value, dim in zip(args, in_dims, strict=True)
            ]
            results.append(self(*one))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(outputs) for outputs in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)


def keep(ctx: Any, values: Sequence[Any]) -> None:
    """Save tensors, and what is none, for a backward."""
    ctx.options = [None if isinstance(value, Tensor) else value for value in values]
    ctx.save_for_backward(*[value if isinstance(value, Tensor) else None for value in values])


def kept_by(ctx: Any) -> list[Any]:
    """What `keep` was given."""
    pairs = zip(ctx.saved_tensors, ctx.options, strict=True)
    return [option if saved is None else saved for saved, option in pairs]


def _gradients(*positions: int) -> Callable[..., tuple[Tensor, ...]]:
    """The fake implementation of a backward operator: gradients like its arguments at ``positions``."""

    def fake(*args: Any) -> tuple[Tensor, ...]:
        return tuple(_like(args[position]) for position in positions)

    return fake


def _like(tensor: Tensor) -> Tensor:
    """A contiguous tensor of the same shape, as kernels make them."""
    return tensor.new_empty(tensor.shape)


def _num_graphs(rows: Tensor, offsets: Tensor | None, graph_size: int) -> int:
    """Of rows [N, w] or [B, n, w], or of ids [N]."""
    if offsets is not None:
        return offsets.shape[0] - 1
    return rows.shape[0] if rows.dim() == 3 else rows.shape[0] // graph_size


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_l0_sign(nodes: Tensor, *args: Any) -> tuple[Tensor, ...]:
    offsets, graph_size, _, aggr, *_, l2 = args[9:]
    graphs = _num_graphs(nodes, offsets, graph_size)
    penalty = nodes.new_empty(graphs, dtype=_accumulator(nodes.dtype))
    return (
        _like(nodes),
        penalty,
        _like(penalty) if l2 else penalty.new_empty(0),
        nodes.new_empty(graphs, dtype=torch.int64),
        nodes.new_empty(math.prod(nodes.shape[:-1]) if aggr == 1 else 0, dtype=torch.int32),
    )


def _fake_l0_sign_bag(ids: Tensor, values: Tensor | None, table: Tensor, *args: Any) -> tuple[Tensor, ...]:
    offsets, graph_size, _, aggr, *_, l2 = args[9:]
    graphs = _num_graphs(ids, offsets, graph_size)
    penalty = table.new_empty(graphs)
    return (
        table.new_empty(graphs, table.shape[1]),
        penalty,
        _like(penalty) if l2 else penalty.new_empty(0),
        ids.new_empty(graphs),
        ids.new_empty(ids.shape[0] if aggr == 1 else 0, dtype=torch.int32),
    )


def _fake_sign_bag(ids: Tensor, values: Tensor | None, table: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    offsets, graph_size, _, _, l2 = args[4:]
    graphs = _num_graphs(ids, offsets, graph_size)
    return table.new_empty(graphs, table.shape[1]), table.new_empty(graphs if l2 else 0)


def _bag_gradients(ids: int, tables: Sequence[int], others: Sequence[int], sparse: int) -> Callable[..., Any]:
    """The fake implementation of a bag's backward operator, by the positions of its arguments."""

    def fake(*args: Any) -> tuple[Tensor, ...]:
        touched = torch.library.get_ctx().new_dynamic_size() if args[sparse] else 0
        shapes = [(touched if args[sparse] else args[k].shape[0], args[k].shape[1]) for k in tables]
        return (
            args[ids].new_empty(touched),
            *(args[k].new_empty(shape) for k, shape in zip(tables, shapes, strict=True)),
            *(_like(args[k]) for k in others),
        )

    return fake


def _fake_l0_sign_risk(ids: Tensor, values: Tensor | None, table: Tensor, *args: Any) -> tuple[Tensor, ...]:
    head_bias, target = args[10:12]
    rows_and_gradients = _bag_gradients(0, (2, 3), range(4, 13), 23)(ids, values, table, *args)
    return (
        table.new_empty(()),
        table.new_empty(target.shape),
        table.new_empty(target.shape),
        ids.new_empty(target.shape),
        *rows_and_gradients,
        table.new_empty(0) if head_bias is None else _like(head_bias),
    )


def _fake_sign(nodes: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    offsets, graph_size, _, l2 = args[4:]
    graphs = _num_graphs(nodes, offsets, graph_size) if l2 else 0
    return _like(nodes), nodes.new_empty(graphs, dtype=_accumulator(nodes.dtype))


def _fake_edges_backward(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    edge_weight = args[8]
    return (
        *_gradients(*range(5))(*args),
        grad_out.new_empty(0) if edge_weight is None else _like(edge_weight),
    )


def _fake_edge_gates(edge_nodes: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    num_pairs = args[-1]
    return edge_nodes.new_empty(num_pairs), edge_nodes.new_empty(num_pairs)


def _fake_gate_noise(
    seed: Tensor, offsets: Tensor | None, graph_size: int, num_graphs: int, num_pairs: int
) -> Tensor:
    return seed.new_empty(num_pairs, dtype=torch.float32)


l0_sign_backward = Operator("l0_sign_backward", _gradients(*range(3, 13)))
l0_sign = Operator(
    "l0_sign", _fake_l0_sign, l0_sign_backward, wrt=range(10), inputs=17, outputs=3, extra=(4,), flag=17,
    has_room=True,
)  # fmt: skip

l0_sign_bag_backward = Operator("l0_sign_bag_backward", _bag_gradients(3, (5, 6), range(7, 15), 22))
l0_sign_bag = Operator(
    "l0_sign_bag", _fake_l0_sign_bag, l0_sign_bag_backward, wrt=range(2, 12), inputs=20, outputs=3,
    extra=(4,), flag=20, has_room=True, tables=(2, 3), sparse=19,
)  # fmt: skip

l0_sign_risk = Operator("l0_sign_risk", _fake_l0_sign_risk)

sign_bag_backward = Operator("sign_bag_backward", _bag_gradients(2, (4,), range(5, 9), 12))
sign_bag = Operator(
    "sign_bag", _fake_sign_bag, sign_bag_backward, wrt=range(2, 7), inputs=11, outputs=2, flag=11,
    has_room=True, tables=(2,), sparse=10,
)  # fmt: skip

sign_backward = Operator("sign_backward", _gradients(*range(2, 7)))
sign = Operator("sign", _fake_sign, sign_backward, wrt=range(5), inputs=8, outputs=2, flag=8, has_room=True)

sign_edges_backward = Operator("sign_edges_backward", _fake_edges_backward)
sign_edges = Operator(
    "sign_edges",
    lambda nodes, *args: _like(nodes),
    sign_edges_backward,
    wrt=(0, 1, 2, 3, 4, 8),
    inputs=10,
)

edge_gates_backward = Operator("edge_gates_backward", _gradients(*range(2, 7)))
edge_gates = Operator("edge_gates", _fake_edge_gates, edge_gates_backward, wrt=range(5), inputs=11, outputs=2)

gate_noise = Operator("gate_noise", _fake_gate_noise)

OPERATORS = (
    l0_sign_backward, l0_sign, l0_sign_bag_backward, l0_sign_bag, l0_sign_risk, sign_backward, sign,
    sign_bag_backward, sign_bag, sign_edges_backward, sign_edges, edge_gates_backward, edge_gates, gate_noise,
)  # fmt: skip

if _extension.is_available():
    for _operator in OPERATORS:
        _operator.register()
