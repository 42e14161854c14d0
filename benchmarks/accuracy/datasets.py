"""The data sets of the experiments, read from the user's copy and kept prepared in the work directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l0sign_cuda.data import GraphDataset, planted, prepare_frappe, prepare_movielens_tag, read
from l0sign_cuda.evaluation import Part

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from, and what the trivial rules look at."""

    file: str | None  # below the directory of the data; None: made
    prepare: Callable[[Path], GraphDataset]
    owner: str | None = None  # the fields (owner, item): "this user used this app"
    item: str | None = None


def load(name: str, directory: Path | None, work: Path) -> GraphDataset:
    """A data set, from the work directory where it has been prepared before, or from the user's directory."""
    dataset = DATASETS[name]
    if dataset.file is None:
        return dataset.prepare(work)
    prepared = work / "data" / name
    if not prepared.exists():
        if directory is None:
            raise FileNotFoundError(f"{name}: expected --data, a directory with {dataset.file}")
        source = directory / dataset.file
        if not source.exists():
            raise FileNotFoundError(f"{name}: no {dataset.file} in the directory that --data names")
        dataset.prepare(source).save(prepared)
    return GraphDataset.load(prepared)


def split(data: GraphDataset, seed: int) -> tuple[Ints, Ints, Ints]:
    """Training, validation and test samples: 70, 15 and 15 %.

    The test samples are the same for all seeds, since what is chosen on the validation samples of one seed
    must not have seen the test samples of another; the seed divides the rest.
    """
    train, valid, test = data.split(seed=0)
    if seed:
        rest = np.random.default_rng(seed).permutation(np.concatenate([train, valid]))
        train, valid = np.sort(rest[: len(train)]), np.sort(rest[len(train) :])
    return train, valid, test


def fingerprint(data: GraphDataset) -> list[int]:
    """What tells the contents of a data set from others'."""
    return Part(data).fingerprint()


def first_copies(data: GraphDataset) -> Ints:
    """Indices of the graphs that are no copy of an earlier one, whatever the labels of the two.

    A copy with the other label would lie in training and test as well, and be answered wrongly from memory.
    """
    ids, offsets = np.asarray(data.ids, np.int64), data.offsets
    seen: dict[bytes, int] = {}
    for at in range(len(data)):
        seen.setdefault(ids[offsets[at] : offsets[at + 1]].tobytes(), at)
    return np.fromiter(seen.values(), np.int64)


def subset(data: GraphDataset, chosen: Ints) -> GraphDataset:
    """Some graphs of a data set, over the same features."""
    assert data.labels is not None
    starts, ends = data.offsets[chosen], data.offsets[chosen + 1]
    ids = [data.ids[a:b] for a, b in zip(starts, ends, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    return GraphDataset(
        np.concatenate(ids), offsets, labels=data.labels[chosen], num_features=data.num_features
    )


def _popular(path: Path) -> GraphDataset:
    return prepare_frappe(path, popularity=1.0)


def _graphs(path: Path) -> GraphDataset:
    return read(path, format="graph")


def _distinct(path: Path) -> GraphDataset:
    data = _graphs(path)
    return subset(data, first_copies(data))


def _demo(path: Path) -> GraphDataset:
    return planted()


def _planted(path: Path) -> GraphDataset:
    return planted(4000, num_fields=6, cardinality=6, num_interactions=3)


def _made_graphs(path: Path) -> GraphDataset:
    """Graphs of unequal size whose label is whether one of two features occurs."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 6, size=2000)
    ids, offsets = rng.integers(20, size=sizes.sum()), np.concatenate([[0], sizes.cumsum()])
    labels = np.add.reduceat(ids < 2, offsets[:-1]) > 0
    return GraphDataset(ids, offsets, labels=labels, num_features=20)


DATASETS = {
    "frappe": Dataset("frappe/frappe.csv.xz", prepare_frappe, "user", "item"),
    "frappe-popular": Dataset("frappe/frappe.csv.xz", _popular, "user", "item"),
    "movielens-tag": Dataset("ml-10m/tags.dat.xz", prepare_movielens_tag, "movie", "tag"),
    "twitter": Dataset("twitter/twitter.data.xz", _graphs),
    "twitter-distinct": Dataset("twitter/twitter.data.xz", _distinct),
    "dblp": Dataset("dblp/DBLP_v1.data.xz", _graphs),
    "planted-demo": Dataset(None, _demo, "f0", "f1"),
    "planted": Dataset(None, _planted, "f0", "f1"),
    "made-graphs": Dataset(None, _made_graphs),
}
