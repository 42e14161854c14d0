"""Random problems for comparing backends, and the comparison.

A relu or a clamp has a kink: where float32 falls on the other side of it than float64, a gradient jumps, and
no tolerance is right. So the biases of a case are chosen such that every pre-activation keeps a margin from
its kink, far above rounding, and results can be held to rounding errors alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from l0sign_cuda import functional, reference
from l0sign_cuda.reference import Network

AGGREGATIONS = ("mean", "neighbor_mean", "sum")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PARTS = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")

# Distance of a pre-activation from its kink. Their size is about 1, float32 rounding of them below 2e-6.
MARGIN = 2e-5

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Arguments of the functions, with the float tensors by name."""

    leaves: Mapping[str, Tensor]
    offsets: Tensor | None
    seed: int | None
    aggr: str
    edge_index: Tensor | None = field(default=None)
    ids: Tensor | None = field(default=None)
    values: Tensor | None = field(default=None)

    @property
    def nodes(self) -> Tensor:
        return self.leaves["nodes"]

    @property
    def edge_nodes(self) -> Tensor:
        return self.leaves["edge_nodes"]

    @property
    def message(self) -> Network:
        return tuple(self.leaves[f"message.{part}"] for part in PARTS)

    @property
    def edge(self) -> Network:
        return tuple(self.leaves[f"edge.{part}"] for part in PARTS)

    @property
    def edge_weight(self) -> Tensor | None:
        return self.leaves.get("edge_weight")

    def bounds(self) -> Tensor:
        """The offsets, for dense nodes too."""
        if self.offsets is not None:
            return self.offsets
        rows = self.nodes[..., 0] if self.ids is None else self.ids
        batch, size = rows.shape
        return torch.arange(batch + 1, device=rows.device) * size

    def with_leaves(self, convert: Callable[[Tensor], Tensor]) -> Case:
        return replace(self, leaves={name: convert(leaf) for name, leaf in self.leaves.items()})

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Case:
        return replace(
            self.with_leaves(lambda leaf: leaf.to(device, dtype)),
            offsets=None if self.offsets is None else self.offsets.to(device),
            edge_index=None if self.edge_index is None else self.edge_index.to(device),
            ids=None if self.ids is None else self.ids.to(device),
            values=None if self.values is None else self.values.to(device, dtype),
        )

    def ragged(self) -> Case:
        """A dense case as a ragged one."""
        flat = {name: leaf.flatten(0, -2) if leaf.dim() == 3 else leaf for name, leaf in self.leaves.items()}
        ids, values = (None if t is None else t.flatten() for t in (self.ids, self.values))
        return replace(self, leaves=flat, offsets=self.bounds(), ids=ids, values=values)


def l0_sign(case: Case, **options: object) -> Outputs:
    output = functional.l0_sign(
        case.nodes, case.edge_nodes, case.message, case.edge, case.offsets,
        seed=case.seed, aggr=case.aggr, **options,
    )  # fmt: skip
    return {name: value for name, value in output._asdict().items() if value is not None}


def complete_sign(case: Case, **options: object) -> Outputs:
    output = functional.complete_sign(case.nodes, case.message, case.offsets, aggr=case.aggr, **options)
    return {name: value for name, value in output._asdict().items() if value is not None}


def sign_edges(case: Case, **options: object) -> Outputs:
    nodes = functional.sign(
        case.nodes, case.message, case.offsets,
        edge_index=case.edge_index, edge_weight=case.edge_weight, aggr=case.aggr, **options,
    )  # fmt: skip
    return {"nodes": nodes}


def pair_gates(case: Case, **options: object) -> Outputs:
    index, gates, logits = functional.pair_gates(
        case.edge_nodes, case.edge, case.offsets, seed=case.seed, **options
    )
    return {"pair_index": index, "gates": gates, "logits": logits}


def l0_sign_bag(case: Case, **options: object) -> Outputs:
    tables = case.leaves["node_table"], case.leaves["edge_table"]
    output = functional.l0_sign_bag(
        case.ids, *tables, case.message, case.edge, case.offsets, case.values,
        seed=case.seed, aggr=case.aggr, **options,
    )  # fmt: skip
    return {name: value for name, value in output._asdict().items() if value is not None}


def sign_bag(case: Case, **options: object) -> Outputs:
    output = functional.sign_bag(
        case.ids,
        case.leaves["node_table"],
        case.message,
        case.offsets,
        case.values,
        aggr=case.aggr,
        **options,
    )
    return {name: value for name, value in output._asdict().items() if value is not None}


def make(
    sizes: Sequence[int],
    *,
    d: int = 3,
    b: int = 2,
    hidden: int = 5,
    edge_hidden: int = 4,
    dense: bool = False,
    seed: int | None = 7,
    aggr: str = "mean",
    dtype: torch.dtype = torch.float32,
    at: int = 0,
) -> Case:
    """A case in float64 whose numbers are exact in ``dtype``: ragged graphs of ``sizes``, or dense (B, n)."""
    random = torch.Generator().manual_seed(at)

    def normal(*shape: int, fan: int = 1) -> Tensor:
        return (torch.randn(shape, generator=random) / math.sqrt(fan)).to(dtype).double()

    rows = tuple(sizes) if dense else (sum(sizes),)
    leaves = {"nodes": normal(*rows, d), "edge_nodes": normal(*rows, b)}
    for network, width, units, out in (("message", d, hidden, d), ("edge", b, edge_hidden, 1)):
        shapes = ((units, width), (units,), (out, units), (out,))
        for part, shape in zip(PARTS, shapes, strict=True):
            leaves[f"{network}.{part}"] = normal(*shape, fan=shape[-1] if len(shape) == 2 else 1)
    offsets = None if dense else torch.tensor([0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0)])
    return _with_margins(Case(leaves, offsets, seed, aggr), dtype)


def with_edges(case: Case, *, weighted: bool, at: int = 0) -> Case:
    """The case with edges drawn from its pairs, both ways: some twice, some of a weight not above 0."""
    random = torch.Generator().manual_seed(at)
    i, j = reference.pair_index(case.bounds())
    count = i.shape[0]
    pick = torch.randint(count, (count + count // 2,), generator=random) if count else i
    flip = torch.rand(pick.shape, generator=random) < 0.5
    edge_index = torch.stack([torch.where(flip, i[pick], j[pick]), torch.where(flip, j[pick], i[pick])])
    leaves = dict(case.leaves)
    if weighted:
        leaves["edge_weight"] = torch.randint(-4, 17, pick.shape, generator=random).double() / 16
    return replace(case, leaves=leaves, edge_index=edge_index)


def make_bag(
    sizes: Sequence[int],
    *,
    num_rows: int = 12,
    valued: bool = True,
    dtype: torch.dtype = torch.float32,
    at: int = 0,
    **options: object,
) -> Case:
    """The case with its nodes looked up in tables, at ids that repeat, and scaled by values of both signs."""
    case = make(sizes, dtype=dtype, at=at, **options)
    random = torch.Generator().manual_seed(at + 1)
    ids = torch.randint(num_rows, case.nodes.shape[:-1], generator=random)
    values = torch.randint(-8, 17, ids.shape, generator=random).double() / 8 if valued else None
    node_table, edge_table = (
        torch.randn(num_rows, rows.shape[-1], generator=random).to(dtype).double()
        for rows in (case.nodes, case.edge_nodes)
    )
    rows = {
        "nodes": node_table[ids] if values is None else node_table[ids] * values.unsqueeze(-1),
        "edge_nodes": edge_table[ids],
    }
    case = _with_margins(replace(case, leaves={**case.leaves, **rows}), dtype)
    networks = {name: leaf for name, leaf in case.leaves.items() if name not in rows}
    leaves = {"node_table": node_table, "edge_table": edge_table, **networks}
    return replace(case, leaves=leaves, ids=ids, values=values)


def looked_up(case: Case) -> Case:
    """A case of tables as one of the rows that they have at its ids."""
    scale = torch.ones_like(case.ids) if case.values is None else case.values
    leaves = {
        "nodes": case.leaves["node_table"][case.ids] * scale.unsqueeze(-1),
        "edge_nodes": case.leaves["edge_table"][case.ids],
    }
    leaves |= {name: leaf for name, leaf in case.leaves.items() if "table" not in name}
    return replace(case, leaves=leaves, ids=None, values=None)


class OperatorCalls(TorchDispatchMode):
    """The names of this library's operators, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "l0sign_cuda":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def _with_margins(case: Case, dtype: torch.dtype) -> Case:
    """The case with biases that keep hidden units and gates away from their kinks."""
    bounds = case.bounds()
    i, j = reference.pair_index(bounds)
    if i.numel() == 0:
        return case
    leaves = dict(case.leaves)
    for rows, network in (("nodes", "message"), ("edge_nodes", "edge")):
        x = leaves[rows].flatten(0, -2)
        units = (x[i] * x[j]) @ leaves[f"{network}.hidden.weight"].T  # [P, H]
        leaves[f"{network}.hidden.bias"] = torch.stack([_far_from(-unit, dtype) for unit in units.T])
    logits = torch.relu(units + leaves["edge.hidden.bias"]) @ leaves["edge.out.weight"].squeeze(0)
    if case.seed is not None:
        u = reference.gate_noise(case.seed, bounds).double()
        logits = logits + torch.log(u) - torch.log(1 - u)
    # sigmoid(x) (zeta - gamma) + gamma passes 0 and 1 at x = -ln 11 and ln 11, with the default limits.
    kink = math.log(11) * (2 / 3 if case.seed is not None else 1)
    leaves["edge.out.bias"] = _far_from(torch.cat([-kink - logits, kink - logits]), dtype).reshape(1)
    return replace(case, leaves=leaves)


def _far_from(points: Tensor, dtype: torch.dtype) -> Tensor:
    """A value, exact in ``dtype``, among the points but farther than MARGIN from each."""
    points = points.sort().values
    fifth = points.numel() // 5
    central = points[fifth : points.numel() - fifth]
    ends = torch.cat([central[:1] - 0.5, central, central[-1:] + 0.5])
    middles = ((ends[:-1] + ends[1:]) / 2).to(dtype).double()
    at = torch.searchsorted(points, middles)
    padded = torch.cat([points.new_tensor([-math.inf]), points, points.new_tensor([math.inf])])
    distance = torch.minimum(middles - padded[at], padded[at + 1] - middles)
    best = distance.argmax()
    assert distance[best] > MARGIN, "the problem is too large for biases with a margin"
    return middles[best]


def results(case: Case, call: Callable[..., Outputs], **options: object) -> Outputs:
    """The outputs, and the gradient of each leaf for incoming gradients that are exact in every dtype."""
    case = case.with_leaves(lambda leaf: leaf.detach().requires_grad_())
    outputs = call(case, **options)
    differentiable = {name: value for name, value in outputs.items() if value.requires_grad}
    gradients = torch.autograd.grad(
        list(differentiable.values()),
        list(case.leaves.values()),
        [_incoming(value, at) for at, value in enumerate(differentiable.values())],
        allow_unused=True,
    )
    named = {
        f"grad {name}": value for name, value in zip(case.leaves, gradients, strict=True) if value is not None
    }
    return {name: value.detach() for name, value in (outputs | named).items()}


def _incoming(output: Tensor, at: int) -> Tensor:
    random = torch.Generator().manual_seed(at)
    return (torch.randn(output.shape, generator=random) * 16).round().div(16).to(output)


def assert_as_good(case: Case, actual: Outputs, torchs: Outputs, exact: Outputs) -> None:
    """``actual`` errs at most twice as much as torch does in the same dtype, give or take rounding.

    Besides, 8 + sqrt(P) roundings are allowed, in the type of accumulation and relative to the largest
    element (of all gradients of a network's weights: single ones are sums that cancel). Torch sums pairwise;
    a running sum over P pairs loses about sqrt(P) / 2 roundings. Measured: at most 0.46 sqrt(P), in an
    output bias.
    """
    assert actual.keys() == torchs.keys() == exact.keys()
    roundings = 8 + math.sqrt(reference.pair_index(case.bounds()).shape[1])
    scale: dict[str, float] = {}
    for name, value in exact.items():
        group = name.split(".")[0]
        scale[group] = max(scale.get(group, 0.0), float(value.abs().max()) if value.numel() else 0.0)
    for name, value in actual.items():
        assert value.dtype == torchs[name].dtype and value.shape == exact[name].shape, name
        if not value.is_floating_point():
            assert torch.equal(value.cpu(), exact[name]), name
        elif value.numel():
            error = float((value.cpu().double() - exact[name]).abs().max())
            torchs_error = float((torchs[name].double() - exact[name]).abs().max())
            eps = torch.finfo(torch.float64 if value.dtype == torch.float64 else torch.float32).eps
            allowed = 2 * torchs_error + roundings * eps * scale[name.split(".")[0]]
            assert error <= allowed, (
                f"{name}: error {error:.3g}, torch's {torchs_error:.3g}, allowed {allowed:.3g}"
            )


def assert_fused_as_good(
    case: Case,
    call: Callable[..., Outputs],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: object,
) -> None:
    """The fused backend in ``dtype`` against the reference in ``dtype`` and in float64."""
    fused = results(case.to(dtype, device), call, backend="fused", **options)
    torchs = results(case.to(dtype), call, backend="reference", **options)
    assert_as_good(case, fused, torchs, results(case, call, backend="reference", **options))
