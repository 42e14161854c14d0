"""Samples to train on: the real data sets, and made ones of any vocabulary or shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l0sign_cuda.data import GraphDataset, prepare_frappe, prepare_movielens_tag

from .environment import ROOT
from .problems import Shape

DATA = ROOT.parent / "shared" / "data"
REAL: dict[str, tuple[Callable[[Path], GraphDataset], str]] = {
    "Frappe": (prepare_frappe, "frappe/frappe.csv.xz"),
    "MovieLens tags": (prepare_movielens_tag, "ml-10m/tags.dat.xz"),
}

# Values of Frappe's fields: user, item, daytime, weekday, weekend, homework, cost, weather, country, city.
FIELDS = (957, 4082, 7, 7, 2, 3, 2, 9, 80, 233)
FRAPPE_FEATURES = sum(FIELDS)


def real(name: str, directory: Path = DATA) -> GraphDataset:
    """The training samples, 70 %, of a data set by the paper's protocol, from the original file."""
    prepare, file = REAL[name]
    data = prepare(directory / file)
    chosen = data.split()[0]
    assert data.graph_size and data.labels is not None
    ids = data.ids.reshape(-1, data.graph_size)[chosen]
    return GraphDataset.from_dense(ids, labels=data.labels[chosen], num_features=data.num_features)


def frappe_like(
    samples: int, features: int = FRAPPE_FEATURES, skewed: bool = True, seed: int = 0
) -> GraphDataset:
    """Ten categorical fields of ``features`` values together, with labels of chance.

    Vocabularies larger than Frappe's have more users and items. Values are drawn uniformly or, skewed, with
    probabilities in inverse proportion to their rank (Zipf's law); popular ones lie anywhere in the table.
    1,024 samples of Frappe touch 1,330 different rows; drawn skewed from as many features they touch 1,125,
    uniformly 1,880.
    """
    random = np.random.default_rng(seed)
    large, small = sum(FIELDS[:2]), sum(FIELDS[2:])
    users = (features - small) * FIELDS[0] // large
    fields = [users, features - small - users, *FIELDS[2:]]
    first = np.cumsum([0, *fields[:-1]])

    def draw(values: int) -> NDArray[np.int64]:
        if not skewed:
            return random.integers(values, size=samples)
        ranks = ((values + 1) ** random.random(samples)).astype(np.int64) - 1
        return random.permutation(values)[ranks]

    ids = np.stack([start + draw(values) for start, values in zip(first, fields, strict=True)], 1)
    return GraphDataset.from_dense(ids, labels=random.integers(2, size=samples), num_features=features)


def of_shape(shape: Shape) -> GraphDataset:
    """The samples of one batch of a shape, of as many features as Frappe has."""
    random = np.random.default_rng(0)
    ids = random.integers(FRAPPE_FEATURES, size=(shape.graphs, shape.nodes))
    labels = random.integers(2, size=shape.graphs)
    return GraphDataset.from_dense(ids, labels=labels, num_features=FRAPPE_FEATURES)
