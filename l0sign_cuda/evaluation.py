"""Running a model over samples: predictions, metrics, and the share of edges that it keeps."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Union

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from . import _checks, metrics
from .config import TrainConfig
from .data import Batch, GraphDataset
from .model import L0SIGN

#: A data set, or (a data set, indices) for a part of it.
Samples = Union[GraphDataset, "tuple[GraphDataset, ArrayLike]"]

_CHUNK = 1 << 20


class Part:
    """Samples of a data set, by their indices."""

    def __init__(self, samples: Samples, name: str = "samples") -> None:
        pair = samples if isinstance(samples, tuple) else (samples, None)
        if len(pair) != 2 or not isinstance(pair[0], GraphDataset):
            raise TypeError(
                f"{name}: expected a GraphDataset, or (GraphDataset, indices), got {samples!r:.60}"
            )
        self.data, chosen = pair
        self.indices = np.arange(len(self.data)) if chosen is None else _indices(name, chosen, len(self.data))

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> NDArray[np.float32]:
        """The labels [B]; ValueError where the data set has none."""
        if self.data.labels is None:
            raise ValueError("the samples have no labels")
        return np.asarray(self.data.labels[self.indices])

    def batches(self, size: int, order: NDArray[np.int64] | None = None, start: int = 0) -> Iterator[Batch]:
        """Batches in the given order of positions (by default as they are), from batch number `start` on."""
        indices = self.indices if order is None else self.indices[order]
        for first in range(start * size, len(indices), size):
            yield self.data.batch(indices[first : first + size])

    def fingerprint(self) -> list[int]:
        """A few numbers that differ between data sets, and between parts of one; reads all of the data."""
        data, checksum = self.data, 0
        for array, dtype in (
            (data.ids, np.int64),  # of either width
            (data.offsets, np.int64),
            (data.values, np.float32),
            (data.labels, np.float32),
            (self.indices, np.int64),
        ):
            if array is not None:
                checksum = _crc32(array, dtype, checksum)
        return [len(data), len(data.ids), data.num_features, len(self), checksum]


def evaluate(
    model: L0SIGN, samples: Samples, *, loss: metrics.Loss = "bce", batch_size: int | None = None
) -> dict[str, float]:
    """Metrics of a model on labelled samples, and `edges_kept`, the share of all pairs whose gate is open.

    bce: auc, accuracy, logloss; cross_entropy: accuracy, logloss; mse: rmse. What has no meaning, as the AUC
    of a single class, is NaN.
    """
    if loss not in metrics.METRICS:
        raise ValueError(f"loss: expected one of {', '.join(map(repr, metrics.METRICS))}, got {loss!r}")
    part = Part(samples)
    labels = torch.from_numpy(part.labels())
    return measure(run(model, part, _size(batch_size)), labels, loss)


def predict(model: L0SIGN, samples: Samples, *, batch_size: int | None = None) -> Tensor:
    """Logits of samples, [B] or [B, K], on the CPU."""
    return run(model, Part(samples), _size(batch_size)).logits


class Predictions(NamedTuple):
    """What a model says about some samples."""

    logits: Tensor  # [B] or [B, K], float32 on the CPU
    open_edges: int
    pairs: int

    @property
    def edges_kept(self) -> float:
        """The share of all pairs whose gate is open; NaN where there are no pairs."""
        return self.open_edges / self.pairs if self.pairs else math.nan

    @staticmethod
    def join(parts: Sequence[Predictions]) -> Predictions:
        """Those of several parts, in order."""
        logits, open_edges, pairs = zip(*parts, strict=True)
        return Predictions(torch.cat(logits), sum(open_edges), sum(pairs))


def measure(predictions: Predictions, labels: Tensor, loss: metrics.Loss) -> dict[str, float]:
    """The metrics of predictions, with their share of edges kept."""
    return metrics.compute(predictions.logits, labels, loss) | {"edges_kept": predictions.edges_kept}


@torch.no_grad()
def run(
    model: L0SIGN, part: Part, batch_size: int, after_batch: Callable[[], None] = lambda: None
) -> Predictions:
    """Predict all samples of `part`, with deterministic gates."""
    device, outputs = model.head.weight.device, model.head.out_features
    logits = [torch.empty((0,) if outputs == 1 else (0, outputs))]
    open_edges, pairs = torch.zeros((), dtype=torch.int64, device=device), 0
    with evaluating(model):
        for batch in part.batches(batch_size):
            output = model(*batch.to(device)[:3])
            logits.append(output.logits.float().cpu())
            open_edges += output.num_edges.sum()
            pairs += int(count_pairs(batch).sum())
            after_batch()
    return Predictions(torch.cat(logits), int(open_edges), pairs)


def _size(batch_size: int | None) -> int:
    """The batch size given, or the default."""
    (size,) = _checks.positive(batch_size=TrainConfig().batch_size if batch_size is None else batch_size)
    return size


def _indices(name: str, chosen: ArrayLike, samples: int) -> NDArray[np.int64]:
    """Indices of samples; none at all may have any type, as [] has."""
    indices = np.asarray(chosen)
    if indices.dtype == bool or indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: expected indices [B], integers, got {indices.dtype} of shape {list(indices.shape)}"
        )
    if indices.size:
        _checks.in_range(f"{name} (indices)", indices, samples, "number of samples")
    return indices.astype(np.int64, copy=False)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and back as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _crc32(array: NDArray[Any], dtype: DTypeLike, value: int) -> int:
    """The checksum of an array's numbers, carried on from `value`; little of a memory map at a time."""
    for start in range(0, len(array), _CHUNK):
        value = zlib.crc32(np.ascontiguousarray(array[start : start + _CHUNK], dtype).data, value)
    return value


def count_pairs(batch: Batch) -> Tensor:
    """Unordered pairs of every graph, self-pairs included: n (n + 1) / 2, int64 [B]."""
    if batch.offsets is not None:
        sizes = batch.offsets.diff()
        return sizes * (sizes + 1) // 2
    graphs, n = batch.ids.shape
    return torch.full((graphs,), n * (n + 1) // 2, device=batch.ids.device)
