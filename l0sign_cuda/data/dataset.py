"""GraphDataset: graphs of features as flat arrays, which may be memory maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .storage import read_directory, write_directory
from .vocabulary import Vocabulary

__all__ = ["Batch", "GraphDataset", "ReadReport"]

_HEADER = {"format": "l0sign_cuda.GraphDataset", "version": 1}


class Batch(NamedTuple):
    """What the model takes: `model(batch.ids, batch.offsets, batch.values)`."""

    ids: torch.Tensor  # int64 [b, n], or [N] with offsets
    offsets: torch.Tensor | None  # int64 [b + 1]; None where every graph of the data set has n nodes
    values: torch.Tensor | None  # float32, shape of ids; None means all ones
    labels: torch.Tensor | None  # float32 [b]

    @property
    def num_graphs(self) -> int:
        """The number of graphs, b."""
        return len(self.ids) if self.offsets is None else len(self.offsets) - 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where copies to a GPU can overlap with work."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        offsets, values, labels = (None if t is None else move(t) for t in self[1:])
        return Batch(move(self.ids), offsets, values, labels)


@dataclass
class ReadReport:
    """What a reader left out: lines that were malformed, values that the vocabulary does not know."""

    bad_lines: int = 0
    unseen: int = 0  # nodes dropped because their value is not in the vocabulary
    examples: list[str] = field(default_factory=list)  # the first few of both, as messages

    MAX_EXAMPLES = 5

    def note(self, message: str) -> None:
        """Keep a message, if it is among the first few."""
        if len(self.examples) < self.MAX_EXAMPLES:
            self.examples.append(message)


class GraphDataset:
    """B graphs with N nodes in all over J features; no object per graph.

    Args:
        ids: int32 or int64 [N], every graph's feature ids one after another, 0 <= id < J.
        offsets: int64 [B + 1]; graph k has the nodes offsets[k] to offsets[k + 1] - 1.
        values: float32 [N], or None for all ones.
        labels: float32 [B], or None.
        vocabulary: names of the features.
        num_features: J; by default the vocabulary's size, or the largest id + 1.

    Raises:
        ValueError: a wrong shape, offsets that do not fit, ids out of range, a value that is not finite.
    """

    def __init__(
        self,
        ids: ArrayLike,
        offsets: ArrayLike,
        values: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        vocabulary: Vocabulary | None = None,
        num_features: int | None = None,
        report: ReadReport | None = None,
    ) -> None:
        self._set(
            _ids_array(ids),
            np.ascontiguousarray(_integers("offsets", offsets), dtype=np.int64),
            None if values is None else np.ascontiguousarray(values, dtype=np.float32),
            None if labels is None else np.ascontiguousarray(labels, dtype=np.float32),
            vocabulary,
            num_features,
            report,
        )
        self._check_contents()

    @classmethod
    def from_dense(
        cls,
        ids: ArrayLike,
        values: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        vocabulary: Vocabulary | None = None,
        num_features: int | None = None,
    ) -> GraphDataset:
        """From a rectangle of ids [B, n], with values [B, n] where given."""
        rectangle = np.asarray(ids)
        if rectangle.ndim != 2:
            raise ValueError(f"ids: expected [graphs, nodes], got shape {list(rectangle.shape)}")
        if values is not None and np.shape(values) != rectangle.shape:
            raise ValueError(f"values: expected shape {list(rectangle.shape)}, got {list(np.shape(values))}")
        graphs, nodes = rectangle.shape
        offsets = np.arange(graphs + 1, dtype=np.int64) * nodes
        flat = None if values is None else np.asarray(values).reshape(-1)
        return cls(rectangle.reshape(-1), offsets, flat, labels, vocabulary, num_features)

    def _set(
        self,
        ids: NDArray[np.integer[Any]],
        offsets: NDArray[np.int64],
        values: NDArray[np.float32] | None,
        labels: NDArray[np.float32] | None,
        vocabulary: Vocabulary | None,
        num_features: int | None,
        report: ReadReport | None,
    ) -> None:
        """Shapes and offsets: what a load must check too, since a wrong one would read past the arrays."""
        if ids.ndim != 1:
            raise ValueError(f"ids: expected shape [N], got {list(ids.shape)}")
        if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(ids):
            raise ValueError(f"offsets: expected [B + 1] from 0 to {len(ids)}, got {_summary(offsets)}")
        lengths = np.diff(offsets)
        if np.any(lengths < 0):
            raise ValueError(f"offsets: must not decrease, but do after graph {int(np.argmax(lengths < 0))}")
        if values is not None and values.shape != ids.shape:
            raise ValueError(f"values: expected shape [{len(ids)}] like ids, got {list(values.shape)}")
        if labels is not None and labels.shape != lengths.shape:
            raise ValueError(
                f"labels: expected shape [{len(lengths)}], one a graph, got {list(labels.shape)}"
            )
        if num_features is None:
            num_features = len(vocabulary) if vocabulary is not None else int(ids.max(initial=-1)) + 1
        if vocabulary is not None and num_features != len(vocabulary):
            raise ValueError(f"num_features: the vocabulary has {len(vocabulary)}, got {num_features}")
        self.ids = ids
        self.offsets = offsets
        self.values = values
        self.labels = labels
        self.vocabulary = vocabulary
        self.num_features = int(num_features)
        self.report = report or ReadReport()
        self.max_nodes = int(lengths.max(initial=0))
        # None where graphs differ in size. Empty graphs are ragged too: a rectangle has at least one column.
        self.graph_size = self.max_nodes if self.max_nodes and self.max_nodes == lengths.min() else None

    def _check_contents(self) -> None:
        """What needs a pass over all nodes."""
        if len(self.ids) and (self.ids.min() < 0 or self.ids.max() >= self.num_features):
            raise ValueError(
                f"ids: expected 0 <= id < {self.num_features}, got {self.ids.min()} to {self.ids.max()}"
            )
        for name, array in (("values", self.values), ("labels", self.labels)):
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]}")

    def __len__(self) -> int:
        """B, the number of graphs."""
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        nodes = f"{self.max_nodes} nodes each" if self.graph_size else f"up to {self.max_nodes} nodes"
        if not len(self):
            labels = "empty"
        elif self.labels is None:
            labels = "unlabelled"
        else:
            labels = f"mean label {np.mean(self.labels):.3f}"
        return f"{type(self).__name__}({len(self)} graphs of {nodes}, {self.num_features} features, {labels})"

    def batch(self, indices: ArrayLike) -> Batch:
        """Gather graphs. indices: integers [b], each from 0 to B - 1, in any order, repeats allowed."""
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
            raise ValueError(f"indices: expected integers [b], got {chosen.dtype} {list(chosen.shape)}")
        chosen = chosen.astype(np.int64, copy=False)
        if chosen.size and chosen.view(np.uint64).max() >= len(self):  # those below 0 become large
            raise IndexError(
                f"indices: expected 0 <= index < {len(self)}, got {chosen.min()} to {chosen.max()}"
            )
        # numpy's take is several times as fast as its indexing.
        labels = None if self.labels is None else torch.from_numpy(self.labels.take(chosen))
        if self.graph_size:
            ids = self.ids.reshape(-1, self.graph_size).take(chosen, axis=0)
            values = None
            if self.values is not None:
                values = self.values.reshape(-1, self.graph_size).take(chosen, axis=0)
            offsets = None
        else:
            starts = self.offsets[chosen]
            lengths = self.offsets[chosen + 1] - starts
            bounds = np.zeros(len(chosen) + 1, np.int64)
            np.cumsum(lengths, out=bounds[1:])
            nodes = np.repeat(starts - bounds[:-1], lengths)
            nodes += np.arange(bounds[-1])
            ids = self.ids.take(nodes)
            values = None if self.values is None else self.values.take(nodes)
            offsets = torch.from_numpy(bounds)
        ids = ids.astype(np.int64, copy=False)
        return Batch(
            torch.from_numpy(ids), offsets, None if values is None else torch.from_numpy(values), labels
        )

    def iter_batches(
        self, indices: ArrayLike | None, batch_size: int, shuffle_seed: int | Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Batches over `indices` (None: all graphs), in their order or in one that `shuffle_seed` decides.

        The last batch may be smaller. A seed may be a sequence, e.g. (seed, epoch).
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        order = np.arange(len(self)) if indices is None else np.asarray(indices)
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(order)
        return (self.batch(order[k : k + batch_size]) for k in range(0, len(order), batch_size))

    def split(
        self, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
    ) -> tuple[NDArray[np.int64], ...]:
        """A random partition: one sorted int64 array of indices a fraction, disjoint, covering all graphs."""
        if not len(fractions) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions: expected numbers from 0 that sum to 1, got {tuple(fractions)}")
        cuts = np.rint(np.cumsum(fractions)[:-1] * len(self)).astype(np.int64)
        parts = np.split(np.random.default_rng(seed).permutation(len(self)), cuts)
        return tuple(np.sort(part) for part in parts)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write .npy files and dataset.json; what is already there is replaced as a whole or not at all."""
        arrays = {"ids": self.ids, "offsets": self.offsets, "values": self.values, "labels": self.labels}
        write_directory(
            Path(directory),
            {**_HEADER, "graphs": len(self), "nodes": len(self.ids), "num_features": self.num_features},
            {key: array for key, array in arrays.items() if array is not None},
            {} if self.vocabulary is None else {"vocabulary": self.vocabulary.dumps()},
        )

    @classmethod
    def load(cls, directory: str | os.PathLike[str], mmap: bool = True, verify: bool = False) -> GraphDataset:
        """Open what `save` wrote, as memory maps by default; `verify` checks every byte against its digest.

        Raises:
            ValueError: a file is missing, truncated, damaged or of another version; the message names it.
        """
        path = Path(directory)
        manifest, arrays, texts = read_directory(path, _HEADER, mmap=mmap, verify=verify)
        vocabulary = None
        if "vocabulary" in texts:
            vocabulary = Vocabulary.loads(
                texts["vocabulary"], str(path / manifest["files"]["vocabulary"]["file"])
            )
        dataset = GraphDataset.__new__(GraphDataset)
        try:
            dataset._set(
                arrays["ids"],
                arrays["offsets"],
                arrays.get("values"),
                arrays.get("labels"),
                vocabulary,
                manifest["num_features"],
                None,
            )
            if verify:
                dataset._check_contents()
        except KeyError as error:
            raise ValueError(f"{path}: damaged data set: dataset.json names no {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: damaged data set: {error}") from error
        return dataset


def _integers(name: str, numbers: ArrayLike) -> NDArray[Any]:
    array = np.asarray(numbers)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: expected integers, got {array.dtype}")
    return array


def _ids_array(ids: ArrayLike) -> NDArray[np.integer[Any]]:
    array = _integers("ids", ids)
    kept = array.dtype if array.dtype in (np.int32, np.int64) else np.dtype(np.int64)
    return np.ascontiguousarray(array, dtype=kept)


def _summary(offsets: NDArray[np.int64]) -> str:
    if offsets.ndim != 1 or not len(offsets):
        return f"shape {list(offsets.shape)}"
    return f"{len(offsets)} numbers from {offsets[0]} to {offsets[-1]}"
