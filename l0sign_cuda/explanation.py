"""Explanations: a prediction as the exact sum of what each pair of features brings to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from . import _checks
from .data import Vocabulary
from .evaluation import evaluating
from .functional import pair_gates
from .model import L0SIGN
from .reference import Network, node_graphs, pair_index

# Pairs at a time: of the gates, and of the hidden values of their messages (H numbers a pair).
_PAIRS = 1 << 20
_HIDDEN_PAIRS = 1 << 16


class OpenPair(NamedTuple):
    """A pair of a sample's features whose edge is open."""

    i: int
    """position of a node in its sample"""
    j: int
    """position of the other; i <= j, and i = j is a feature's own effect"""
    gate: float
    contribution: float
    """what the pair adds to the logit"""
    names: tuple[str, str]


class Explanation(NamedTuple):
    """One sample's prediction: logit = bias + the contributions of its open pairs, to rounding."""

    logit: float
    bias: float
    nodes: tuple[str, ...]
    """names of the sample's features, by position"""
    values: tuple[float, ...] | None
    """x of each node; None where all are 1"""
    interactions: list[OpenPair]
    """the open pairs, largest |contribution| first"""


class PairTerms(NamedTuple):
    """What all pairs of a piece of a batch bring to a logit, in canonical order."""

    pairs: Tensor
    """int64 [2, P], the rows i <= j of the whole batch's nodes 0..N-1"""
    gates: Tensor
    """[P]"""
    contributions: Tensor
    """float64 [P]; 0 where the gate is"""


class Explanations(Sequence[Explanation]):
    """The explanations of a batch's samples, each made when asked for."""

    def __init__(
        self,
        logits: NDArray[np.float64],
        bias: float,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        values: NDArray[np.float64] | None,
        index: NDArray[np.int64],
        gates: NDArray[np.float64],
        contributions: NDArray[np.float64],
        vocabulary: Vocabulary | None,
    ) -> None:
        self._logits, self._bias, self._ids, self._offsets, self._values = logits, bias, ids, offsets, values
        sample = np.searchsorted(offsets, index[0], side="right") - 1
        order = np.lexsort((-np.abs(contributions), sample))
        self._index, self._gates, self._contributions = index[:, order], gates[order], contributions[order]
        self._starts = np.searchsorted(sample[order], np.arange(len(logits) + 1))
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        """The number of samples, B."""
        return len(self._logits)

    @overload
    def __getitem__(self, at: int) -> Explanation: ...
    @overload
    def __getitem__(self, at: slice) -> list[Explanation]: ...
    def __getitem__(self, at: int | slice) -> Explanation | list[Explanation]:
        """The explanation of a sample, or a list of those of several."""
        if isinstance(at, slice):
            return [self._sample(k) for k in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"expected a sample in 0..{len(self) - 1}, got {at}")
        return self._sample(at % len(self))

    def __repr__(self) -> str:
        return f"Explanations({len(self)} samples, {len(self._gates)} open pairs)"

    def _sample(self, k: int) -> Explanation:
        first, last = self._offsets[k : k + 2]
        ids, known = self._ids[first:last].tolist(), self._vocabulary
        names = tuple(map(str, ids) if known is None else map(known.name, ids))
        pairs = slice(self._starts[k], self._starts[k + 1])
        positions = (self._index[:, pairs] - first).tolist()
        columns = *positions, self._gates[pairs].tolist(), self._contributions[pairs].tolist()
        return Explanation(
            float(self._logits[k]),
            self._bias,
            names,
            None if self._values is None else tuple(self._values[first:last].tolist()),
            [
                OpenPair(i, j, gate, contribution, (names[i], names[j]))
                for i, j, gate, contribution in zip(*columns, strict=True)
            ],
        )


def explain(
    model: L0SIGN,
    ids: Tensor,
    offsets: Tensor | None = None,
    values: Tensor | None = None,
    *,
    vocabulary: Vocabulary | None = None,
    output: int = 0,
) -> Explanations:
    """Explain each sample's prediction by its open pairs.

    The model predicts (1/n) sum_i w_g^T x_i v'_i + bias from v'_i = c_i sum_j g_ij z_ij (Eq. 4), so it is a
    sum over unordered pairs: (i, j) contributes g_ij (x_i c_i + x_j c_j) (w_g^T z_ij) / n, a pair (i, i) its
    x_i c_i once; c_i is 1/n, 1/degree_i or 1, as the model aggregates. With several iterations the pairs of
    the last one are attributed: the same identity holds, but z_ij then depends on what earlier iterations
    brought to i and j from their other neighbours.

    Gates are deterministic, as in evaluation mode; the model is left in the mode it was in. Memory grows with
    the number of open pairs, and with all pairs of the largest sample. Contributions are computed in float64,
    from weights of any dtype; the logit is the model's own, with the roundings of its dtype. So the bias and
    the contributions miss it by a few units of rounding (2^-24 in float32, 2^-8 in bfloat16) of the sum of
    their sizes: in bfloat16 a few 1e-4 where the logit is 0.1.

    >>> for pair in l0sign_cuda.explain(model, ids, vocabulary=vocabulary)[0].interactions[:3]:
    ...     print(f"{pair.contribution:+.3f}", *pair.names)

    Args:
        model: gated or not; without gates every pair is open. Compiled or not.
        ids: int64 [B, n], or [N] with offsets; 0..J-1.
        offsets: int64 [B+1], offsets[0] = 0 and offsets[B] = N.
        values: x, float, of the shape of ids; None: 1.
        vocabulary: names the features; without one a feature's name is its id.
        output: which of the K outputs to explain.

    Raises:
        IndexError: ids or output out of range.
        ValueError: values, weights or results that are not finite; the message names the weights.
        ValueError, TypeError: anything else that does not fit, by name.
    """
    model = check_model(model, output)
    if vocabulary is not None:
        check_vocabulary(model, vocabulary)
    with evaluating(model), torch.no_grad():
        logits = model(ids, offsets, values).logits.double().cpu()  # checks the arguments, too
    logits = logits if logits.dim() == 1 else logits[:, output]
    _check_finite(model, logits, values)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, gates, contributions in pair_terms(model, ids, offsets, values, output=output):
        is_open = gates != 0
        found.append((index[:, is_open].cpu(), gates[is_open].double().cpu(), contributions[is_open].cpu()))
    index, gates, contributions = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    bounds = _checks.graphs("ids", ids.shape, offsets, ids.device).bounds(ids.device)
    return Explanations(
        logits.numpy(),
        head_bias(model, output),
        ids.reshape(-1).cpu().numpy(),
        bounds.cpu().numpy(),
        None if values is None else values.reshape(-1).double().cpu().numpy(),
        index.numpy(),
        gates.numpy(),
        contributions.numpy(),
        vocabulary,
    )


def pair_terms(
    model: L0SIGN, ids: Tensor, offsets: Tensor | None, values: Tensor | None, *, output: int = 0
) -> Iterator[PairTerms]:
    """The terms of all pairs of a batch, closed ones too; a piece holds whole samples.

    Arguments: :func:`explain`; they fit the model. There is at least one piece; with the bias they sum to
    the logits. Like there, what is not finite is refused.
    """
    bounds = _checks.graphs("ids", ids.shape, offsets, ids.device).bounds(ids.device)
    ids, values = ids.reshape(-1), None if values is None else values.reshape(-1)
    ends = bounds.cpu().numpy()
    pairs = np.cumsum(np.diff(ends) * (np.diff(ends) + 1) // 2)
    first = done = 0
    while True:
        # As many samples as fit, and one at least.
        last = min(max(int(np.searchsorted(pairs, done + _PAIRS, side="right")), first + 1), len(pairs))
        rows = slice(int(ends[first]), int(ends[last]))
        terms = _terms(
            model,
            ids[rows],
            bounds[first : last + 1] - rows.start,
            None if values is None else values[rows],
            output,
        )
        _check_finite(model, terms.contributions, values)  # NaN too where a gate is
        yield terms._replace(pairs=terms.pairs + rows.start)
        if last == len(pairs):
            return
        first, done = last, int(pairs[last - 1])


def head_bias(model: L0SIGN, output: int = 0) -> float:
    """The bias of one of the model's outputs, 0 without one: the prediction for a sample of no features."""
    return 0.0 if model.head.bias is None else float(model.head.bias[output].item())


@torch.no_grad()
def _terms(model: L0SIGN, ids: Tensor, offsets: Tensor, values: Tensor | None, output: int) -> PairTerms:
    layer = model.interaction
    nodes = model.node_embedding(ids)
    scale = nodes.new_ones(ids.shape) if values is None else values.to(nodes.dtype)
    nodes = nodes * scale.unsqueeze(-1)
    edge_nodes = None if model.edge_embedding is None else model.edge_embedding(ids)
    with evaluating(model):
        for _ in range(model.iterations - 1):
            nodes = layer(nodes, edge_nodes, offsets).nodes * scale.unsqueeze(-1)
    if layer.edge is None or edge_nodes is None:
        index = pair_index(offsets)
        gates = nodes.new_ones(index.shape[1])
    else:
        index, gates, _ = pair_gates(
            edge_nodes,
            layer.edge.weights(),
            offsets,
            temperature=layer.temperature,
            limits=layer.limits,
            backend=layer.backend,
        )

    first, second = index
    apart = first != second
    size = offsets.diff()[node_graphs(offsets, ids.shape[0])].double()  # n of each node's graph
    share = scale.double() / size  # [N], x_i c_i / n
    if layer.aggr == "mean":
        share = share / size
    elif layer.aggr == "neighbor_mean":
        is_open = (gates != 0).double()
        degree = torch.zeros_like(size).index_add(0, second, is_open).index_add(0, first, is_open * apart)
        share = share / degree.clamp(min=1)
    contributions = gates.double() * (share[first] + share[second] * apart)
    open_pairs = contributions.nonzero().squeeze(-1)
    for part in open_pairs.split(_HIDDEN_PAIRS):
        contributions[part] *= _read_messages(
            nodes, layer.message.weights(), model.head.weight[output], first[part], second[part]
        )
    return PairTerms(index, gates, contributions)


def _read_messages(nodes: Tensor, message: Network, head: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """w_g^T z_ij of pairs of rows, with w_g folded into the second layer: float64 [P]."""
    hidden_weight, hidden_bias, out_weight, out_bias = (weight.double() for weight in message)
    head = head.double()
    product = nodes[first].double() * nodes[second].double()
    return torch.relu(F.linear(product, hidden_weight, hidden_bias)) @ (head @ out_weight) + head @ out_bias


def _check_finite(model: L0SIGN, results: Tensor, values: Tensor | None) -> None:
    """Refuse results that are not finite: nothing could be said of their order, or of means over them."""
    if results.isfinite().all():
        return
    if values is not None and not values.isfinite().all():
        raise ValueError("values: expected finite numbers, got NaN or infinity")
    names = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if names:
        raise ValueError(f"model: expected finite weights, got NaN or infinity in {', '.join(names)}")
    raise ValueError(
        "expected finite predictions, got NaN or infinity from finite weights: values too large?"
    )


def check_model(model: Any, output: int) -> L0SIGN:
    """Check that it is a model, and that it has that output; of a compiled one, the model within."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, L0SIGN):
        raise TypeError(f"model: expected an L0SIGN, got {type(model).__name__}")
    outputs = model.head.out_features
    if isinstance(output, bool) or not isinstance(output, (int, np.integer)):
        raise TypeError(f"output: expected an integer, got {type(output).__name__}")
    if not 0 <= output < outputs:
        raise IndexError(f"output: expected 0..{outputs - 1}, got {output}")
    return model


def check_vocabulary(model: L0SIGN, vocabulary: Any) -> None:
    """Check that it is a vocabulary, of as many features as the model has."""
    if not isinstance(vocabulary, Vocabulary):
        raise TypeError(f"vocabulary: expected a Vocabulary, got {type(vocabulary).__name__}")
    num_features = model.node_embedding.num_embeddings
    if len(vocabulary) != num_features:
        raise ValueError(
            f"vocabulary: expected the model's {num_features} features, got one of {len(vocabulary)}"
        )
