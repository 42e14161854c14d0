"""All argument validation, for every backend and device.

A check compares types, dtypes, devices and shapes. What a tensor contains (offsets, ids, edges) is looked at
only where that is free: in a concrete CPU tensor, outside of a compiler's trace. Elsewhere the kernels guard
themselves. Where operators look at their arguments themselves, checks are made only when one has refused
them, to name what is wrong (``call`` in functional.py).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

AGGREGATIONS = {"mean": 0, "neighbor_mean": 1, "sum": 2}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PARTS = ("hidden weight", "hidden bias", "out weight", "out bias")


class Graphs(NamedTuple):
    """A batch of graphs: given by ``offsets``, or, without them, every graph has ``size`` >= 1 rows."""

    offsets: Tensor | None  # int64 [B+1]
    size: int  # 0 with offsets
    num_graphs: int  # B

    def bounds(self, device: torch.device) -> Tensor:
        """The offsets [B+1], made where they are not given."""
        if self.offsets is not None:
            return self.offsets
        return torch.arange(self.num_graphs + 1, device=device) * self.size


def positive(**sizes: int) -> tuple[int, ...]:
    """The sizes as Python's integers (numpy's are taken too); ValueError for one that is none >= 1."""
    return tuple(_integer(name, size, 1) for name, size in sizes.items())


def not_negative(**sizes: int) -> tuple[int, ...]:
    """The sizes as Python's integers; ValueError for one that is none >= 0."""
    return tuple(_integer(name, size, 0) for name, size in sizes.items())


def probability(**values: float) -> float:
    """The one value as a float; ValueError unless it is at least 0 and less than 1."""
    ((name, value),) = values.items()
    number = as_number(value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: expected a number of at least 0 and less than 1, got {value!r}")
    return number


def deviation(**values: float) -> float:
    """The one value as a float; ValueError unless it is finite and at least 0."""
    ((name, value),) = values.items()
    number = as_number(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
    return number


def as_number(value: Any) -> float:
    """NaN for what is no number."""
    try:
        return math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (OverflowError, TypeError, ValueError):
        return math.nan


def _integer(name: str, size: Any, least: int) -> int:
    number: Any = size  # what is one stays as it is: it may be a compiler's symbol
    if not isinstance(size, int):
        try:
            number = operator.index(size)
        except TypeError:
            number = None
    if isinstance(size, bool) or number is None or number < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {size!r}")
    return number


def aggregation(aggr: str) -> int:
    """The operators' code of ``aggr``."""
    code = AGGREGATIONS.get(aggr) if isinstance(aggr, str) else None
    if code is None:
        raise ValueError(f"aggr: expected one of {', '.join(map(repr, AGGREGATIONS))}, got {aggr!r}")
    return code


def backend(backend: str | None) -> None:
    """Check the name of a backend."""
    if backend not in (None, "auto", "fused", "reference"):
        raise ValueError(f"backend: expected None, 'auto', 'fused' or 'reference', got {backend!r}")


def gate_options(temperature: float, limits: Sequence[float]) -> tuple[float, float, float]:
    """(temperature, gamma, zeta) of the hard concrete gate."""
    try:
        temperature = float(temperature)
        gamma, zeta = (float(limit) for limit in limits)
    except (TypeError, ValueError):
        raise ValueError(
            f"temperature, limits: expected a number and two numbers, got {temperature!r} and {limits!r}"
        ) from None
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    if not (-math.inf < gamma < 0 and 1 < zeta < math.inf):
        raise ValueError(f"limits: expected (gamma, zeta) with gamma < 0 and zeta > 1, got ({gamma}, {zeta})")
    return temperature, gamma, zeta


def seed(seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    """The seed as an int64 tensor of one element on ``device``; None stays None (deterministic gates)."""
    if seed is None:
        return None
    if isinstance(seed, Tensor):
        require("seed", seed, torch.int64, device)
        if seed.numel() != 1:
            raise ValueError(f"seed: expected one element, got shape {list(seed.shape)}")
        return seed if seed.dim() == 1 else seed.reshape(1)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected None, an integer or an int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected a 64-bit signed integer, got {seed}")
    return torch.full((1,), int(seed), dtype=torch.int64, device=device)


def nodes(name: str, rows: Tensor, offsets: Tensor | None, *, read: bool = True) -> Graphs:
    """The graphs of node rows [B, n, d], or [N, d] with ``offsets``."""
    tensor(name, rows)
    if rows.dtype not in DTYPES:
        expected = ", ".join(map(dtype_name, DTYPES))
        raise ValueError(f"{name}: expected dtype {expected}, got {dtype_name(rows.dtype)}")
    if rows.dim() not in (2, 3):
        raise ValueError(
            f"{name}: expected shape [B, n, d], or [N, d] with offsets, got shape {list(rows.shape)}"
        )
    if rows.shape[-1] < 1:
        raise ValueError(f"{name}: expected at least one column, got shape {list(rows.shape)}")
    return graphs(name, rows.shape[:-1], offsets, rows.device, read=read)


def graphs(
    name: str, shape: Sequence[int], offsets: Tensor | None, device: torch.device, *, read: bool = True
) -> Graphs:
    """The graphs of rows of ``shape`` [B, n], or [N] with ``offsets``, which are looked at with ``read``."""
    if len(shape) == 2:
        if offsets is not None:
            raise ValueError(
                f"offsets: expected None, because {name} is dense (a row of graphs, each of n nodes)"
            )
        count, size = shape
        if size == 0:  # the operators want offsets for graphs without rows
            return Graphs(torch.zeros(count + 1, dtype=torch.int64, device=device), 0, count)
        return Graphs(None, size, count)
    rows = shape[0]
    if offsets is None:
        raise ValueError(
            f"offsets: expected int64 [B+1], because {name} is ragged (one row a node), got None;"
            f" for one graph pass offsets=torch.tensor([0, {rows}])"
        )
    check_offsets(offsets, device, rows, name, read=read)
    return Graphs(offsets, 0, offsets.shape[0] - 1)


def check_offsets(
    offsets: Tensor,
    device: torch.device | None,
    rows: int | None,
    name: str = "nodes",
    *,
    read: bool = True,
) -> None:
    """Check int64 [B+1]: from 0, never falling, to ``rows`` (where that is known)."""
    require("offsets", offsets, torch.int64, device)
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets: expected shape [B+1], got shape {list(offsets.shape)}")
    if not (read and readable(offsets)):
        return
    values = offsets.numpy()
    if values[0] != 0:
        raise ValueError(f"offsets: expected offsets[0] = 0, got {values[0]}")
    if rows is not None and values[-1] != rows:
        raise ValueError(
            f"offsets: expected offsets[-1] = {rows}, the number of rows of {name}, got {values[-1]}"
        )
    falls = np.flatnonzero(values[1:] < values[:-1])
    if falls.size:
        at = int(falls[0])
        raise ValueError(
            f"offsets: expected values that never fall, got {values[at]} then {values[at + 1]}"
            f" at position {at + 1}"
        )


def parts(name: str, weights: Sequence[Tensor]) -> None:
    """Check that a network has as many tensors as it should."""
    if not isinstance(weights, (tuple, list)):
        raise TypeError(f"{name}: expected a tuple ({', '.join(_PARTS)}), got {type(weights).__name__}")
    if len(weights) != 4:
        raise ValueError(f"{name}: expected four tensors ({', '.join(_PARTS)}), got {len(weights)}")


def network(name: str, weights: Sequence[Tensor], inputs: int, outputs: int, like: Tensor) -> None:
    """Check (hidden weight [H, inputs], hidden bias [H], out weight [outputs, H], out bias [outputs])."""
    parts(name, weights)
    first = weights[0]
    tensor(f"{name} hidden weight", first)
    hidden = first.shape[0] if first.dim() else 0
    if first.dim() != 2 or hidden < 1:
        raise ValueError(f"{name} hidden weight: expected shape [H, {inputs}], got shape {list(first.shape)}")
    shapes = ((hidden, inputs), (hidden,), (outputs, hidden), (outputs,))
    dtype, device = like.dtype, like.device
    for part, weight, shape in zip(_PARTS, weights, shapes, strict=True):
        if not _fits(weight, dtype, device, shape):
            require(f"{name} {part}", weight, dtype, device, shape)


def columns(name: str, rows: Any, size: int) -> None:
    """Check that rows, if they are any, have ``size`` columns: in a layer the weights are given."""
    if isinstance(rows, Tensor) and rows.dim() and rows.shape[-1] != size:
        raise ValueError(f"{name}: expected {size} columns, got shape {list(rows.shape)}")


def edge_nodes(edge_nodes: Tensor, nodes: Tensor) -> None:
    """Check that there is an edge row, of the same dtype and device, for each row of ``nodes``."""
    require("edge_nodes", edge_nodes, nodes.dtype, nodes.device)
    if (
        edge_nodes.dim() != nodes.dim()
        or edge_nodes.shape[:-1] != nodes.shape[:-1]
        or edge_nodes.shape[-1] < 1
    ):
        rows = ", ".join(str(size) for size in nodes.shape[:-1])
        raise ValueError(
            f"edge_nodes: expected shape [{rows}, b] to go with nodes, got shape {list(edge_nodes.shape)}"
        )


def edges(edge_index: Tensor, edge_weight: Tensor | None, nodes: Tensor, graphs: Graphs) -> None:
    """Check int64 [2, E] rows (source, target) over all nodes, and weights [E]."""
    require("edge_index", edge_index, torch.int64, nodes.device)
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index: expected shape [2, E], got shape {list(edge_index.shape)}")
    if edge_weight is not None:
        require("edge_weight", edge_weight, nodes.dtype, nodes.device, (edge_index.shape[1],))
    if not readable(edge_index) or edge_index.numel() == 0:
        return
    index = edge_index.numpy()
    rows = nodes.shape[0] if nodes.dim() == 2 else nodes.shape[0] * nodes.shape[1]
    in_range("edge_index", index, rows, "nodes")
    if graphs.offsets is None:
        graph = index // graphs.size
    elif readable(graphs.offsets):
        graph = np.searchsorted(graphs.offsets.numpy(), index, side="right") - 1
    else:
        return
    across = np.flatnonzero(graph[0] != graph[1])
    if across.size:
        at = int(across[0])
        raise ValueError(
            f"edge_index: expected edges within one graph, got edge {at} from node {index[0, at]} of graph"
            f" {graph[0, at]} to node {index[1, at]} of graph {graph[1, at]}"
        )


def feature_ids(
    ids: Tensor, offsets: Tensor | None, values: Tensor | None, device: torch.device, *, read: bool = True
) -> Graphs:
    """The graphs of feature ids [B, n], or [N] with ``offsets``, and of their values.

    Whether rows of these ids exist is left to :func:`rows_of`.
    """
    require("ids", ids, torch.int64, device)
    if ids.dim() not in (1, 2):
        raise ValueError(f"ids: expected shape [B, n], or [N] with offsets, got shape {list(ids.shape)}")
    if values is not None:
        tensor("values", values)
        if not values.is_floating_point():
            raise ValueError(f"values: expected a floating dtype, got {dtype_name(values.dtype)}")
        require("values", values, values.dtype, device, tuple(ids.shape))
    return graphs("ids", ids.shape, offsets, device, read=read)


def bag(
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | None,
    node_table: Tensor,
    *edge_tables: Tensor,
    read: bool = True,
) -> Graphs:
    """The graphs of :func:`feature_ids`, after a look at the tables [J, d] and, if it is given, [J, b]."""
    tensor("node_table", node_table)
    if node_table.dim() != 2 or node_table.shape[1] < 1 or node_table.dtype not in DTYPES:
        raise ValueError(
            f"node_table: expected a floating tensor [J, d], got {dtype_name(node_table.dtype)} of shape"
            f" {list(node_table.shape)}"
        )
    for edge_table in edge_tables:
        tensor("edge_table", edge_table)
        require("edge_table", edge_table, node_table.dtype, node_table.device)
        rows = node_table.shape[0]
        if edge_table.dim() != 2 or edge_table.shape[0] != rows or edge_table.shape[1] < 1:
            raise ValueError(
                f"edge_table: expected shape [{rows}, b], as many rows as node_table, got shape"
                f" {list(edge_table.shape)}"
            )
    return feature_ids(ids, offsets, values, node_table.device, read=read)


def rows_of(ids: Tensor, table: Tensor) -> None:
    """Check that the table has a row for each id, where they can be looked at."""
    if readable(ids) and ids.numel():
        in_range("ids", ids.numpy(), table.shape[0], "num_embeddings")


def num_pairs(offsets: Tensor) -> int:
    """The unordered pairs of all graphs, n(n+1)/2 each; ValueError where a tensor of them cannot be."""
    n = offsets.diff()
    # float64 is exact enough for the limit, and does not wrap.
    if (n.double() * (n.double() + 1)).sum() >= 2.0**61:
        raise ValueError(
            f"offsets: expected fewer than 2**60 pairs, got graphs of up to {int(n.max())} nodes"
        )
    return int((n * (n + 1) // 2).sum())


def in_range(name: str, values: np.ndarray, size: int, of: str) -> None:
    """Raise IndexError where ``values`` leave 0..size-1."""
    # Of int64 in one pass: those below 0 become large.
    if values.dtype != np.int64 or values.view(np.uint64).max() >= size:
        low, high = values.min(), values.max()
        if low >= 0 and high < size:
            return
        wrong = low if low < 0 else high
        raise IndexError(f"{name}: expected values in 0..{size - 1} ({of} = {size}), got {wrong}")


def readable(tensor: Tensor) -> bool:
    """Whether the content can be looked at without waiting for a device or breaking a trace or transform."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.is_cpu
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def tensor(name: str, value: Any) -> None:
    """Raise TypeError for what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got layout {dtype_name(value.layout)}")


def _fits(value: Any, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...]) -> bool:
    """Whether `require` has nothing to say; cheaper, since no name is made."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.dtype is dtype
        and value.device == device
        and value.shape == shape
    )


def require(
    name: str,
    value: Any,
    dtype: torch.dtype,
    device: torch.device | None,
    shape: tuple[int, ...] | None = None,
) -> None:
    tensor(name, value)
    if value.dtype != dtype:
        raise ValueError(f"{name}: expected dtype {dtype_name(dtype)}, got {dtype_name(value.dtype)}")
    if device is not None:
        on_device(name, value, device)
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got shape {list(value.shape)}")


def on_device(name: str, value: Tensor, device: torch.device) -> None:
    """Raise ValueError for a tensor on another device."""
    if value.device != device:
        raise ValueError(f"{name}: expected device {device}, got {value.device}")


def dtype_name(dtype: torch.dtype | torch.layout) -> str:
    """Without "torch."."""
    return str(dtype).removeprefix("torch.")
