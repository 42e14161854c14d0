"""The reference shapes, random problems of these shapes, and how much arithmetic they need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l0sign_cuda.reference import Network

MODES = ("train", "forward", "inference")


@dataclass(frozen=True)
class Shape:
    """A batch of graphs: each of ``nodes`` nodes, or of 1 to ``nodes`` where it is ragged."""

    name: str
    about: str
    graphs: int
    nodes: int
    dim: int
    hidden: int
    edge_dim: int = 8
    edge_hidden: int = 32
    ragged: bool = False

    def sizes(self) -> Tensor:
        """The number of nodes of each graph, int64 [B]: the same at each call."""
        if not self.ragged:
            return torch.full((self.graphs,), self.nodes)
        return torch.randint(1, self.nodes + 1, (self.graphs,), generator=torch.Generator().manual_seed(0))

    def tiny(self) -> Shape:
        """The same with few graphs, for looking at function instead of time."""
        return replace(self, graphs=max(1, min(self.graphs, 320 // self.nodes)))


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("A", "Frappe", 1024, 10, 8, 32),
        Shape("B", "MovieLens-tag", 1024, 3, 8, 32),
        Shape("C", "Criteo-like", 1024, 39, 16, 64),
        Shape("D", "long", 16, 256, 16, 32),
        Shape("R", "ragged, 1 to 64 nodes", 4096, 64, 8, 32, ragged=True),
    )
}
# As many pairs in graphs of one size: what raggedness costs.
ONE_SIZE = {"R": Shape("U", "R's pairs in graphs of 32 nodes", 5462, 32, 8, 32)}


@dataclass(frozen=True)
class Problem:
    """Inputs, weights and incoming gradients of the layer, float32, for ragged rows in canonical order."""

    offsets: Tensor  # int64 [B+1]
    nodes: Tensor  # [N, d]
    edge_nodes: Tensor  # [N, b]
    message: Network
    edge: Network
    head: Tensor  # [d]
    grad_nodes: Tensor  # [N, d]
    grad_l0: Tensor  # [B]

    @classmethod
    def random(cls, shape: Shape, seed: int = 0) -> Problem:
        """Weights as torch initialises them; edges as the authors do, so that gates start open."""
        random = torch.Generator().manual_seed(seed)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), shape.sizes().cumsum(0)])
        rows = int(offsets[-1])

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=random)

        def network(inputs: int, hidden: int, outputs: int) -> list[Tensor]:
            def uniform(fan: int, *size: int) -> Tensor:
                return (torch.rand(size, generator=random) * 2 - 1) / math.sqrt(fan)

            return [
                uniform(inputs, hidden, inputs),
                uniform(inputs, hidden),
                uniform(hidden, outputs, hidden),
                uniform(hidden, outputs),
            ]

        edge = network(shape.edge_dim, shape.edge_hidden, 1)
        edge[2] += 0.2
        return cls(
            offsets,
            normal(rows, shape.dim),
            0.2 + 0.01 * normal(rows, shape.edge_dim),
            tuple(network(shape.dim, shape.hidden, shape.dim)),  # type: ignore[arg-type]
            tuple(edge),  # type: ignore[arg-type]
            normal(shape.dim),
            normal(rows, shape.dim),
            normal(shape.graphs),
        )

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The eight weights, those of the messages first."""
        return *self.message, *self.edge


def count_pairs(sizes: Tensor) -> int:
    """P, the number of unordered pairs, self-pairs included."""
    return int((sizes * (sizes + 1) // 2).sum())


def gflop(shape: Shape, mode: str, open_pairs: float, pooled: bool = False) -> float:
    """The least work of the floating-point multiply-add units, in 1e9 operations (an FMA counts as 2).

    Counted are multiplications, additions and FMAs of the formulation that the fused kernels use: the second
    layer of the messages once a node, each pair once, closed pairs without a message, and nothing that the
    forward found computed again (beyond 30 MiB of it, something is). A masked addition counts as one of them,
    although some processors add on other units at the same time, and a sum of four units that is looked up as
    one addition, although some kernels make all four. Comparisons (relu, clamp), exponentials, random bits
    and data movement are not counted, so that this is a lower bound. With K = d + Hd (message) and
    Ke = b + He b + He (edge), in lanes of one multiply-add:

    - forward, a pair: Ke, and if open K + 2H (g relu(.) added to both ends); a node: Hd + d;
    - inference: the same, with a dot product of H instead of 2H and no second layer (it is in the head);
    - backward, a pair: Be = He b + He + He b / 4 + 4b (sums of the first layer's gradient, those looked up,
      both ends), and if open 2 Hd + 4H + 5d; a node: 2 Hd + d.

    Pooled, as in the model with its head, message and edge network have one output each, and what the forward
    found is at hand in the backward:

    - inference, a pair: Ke, and if open K + H; a graph: Hd + d;
    - training, a pair: Ke + Be, and if open K + H + B with B of H and d as Be is of He and b.

    Args:
        shape: sizes.
        mode: "train" is forward and backward.
        open_pairs: the expected number of pairs with a gate above 0.
        pooled: the model instead of the layer.
    """
    d, h, b, he = shape.dim, shape.hidden, shape.edge_dim, shape.edge_hidden
    sizes = shape.sizes()
    pairs, nodes = count_pairs(sizes), int(sizes.sum())
    message, edge = d + h * d, b + he * b + he

    def one_output_backward(size: int, hidden: int) -> float:
        return 1.25 * hidden * size + hidden + 4 * size

    if pooled:
        lanes = pairs * edge + open_pairs * (message + h)
        if mode == "train":
            lanes += pairs * one_output_backward(b, he) + open_pairs * one_output_backward(d, h)
        else:
            lanes += shape.graphs * (h * d + d)
        return 2e-9 * lanes
    if mode == "inference":
        lanes = pairs * edge + open_pairs * (message + h)
    else:
        lanes = pairs * edge + open_pairs * (message + 2 * h) + nodes * (h * d + d)
    if mode == "train":
        lanes += pairs * one_output_backward(b, he) + nodes * (2 * h * d + d)
        lanes += open_pairs * (2 * h * d + 4 * h + 5 * d)
    return 2e-9 * lanes


def select(names: Sequence[str], quick: bool, shapes: Mapping[str, Shape] = SHAPES) -> list[Shape]:
    """The shapes of these names, tiny ones for a quick run."""
    return [shapes[name].tiny() if quick else shapes[name] for name in names]
