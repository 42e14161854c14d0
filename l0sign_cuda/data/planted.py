"""A data set with planted interactions: some pairs of fields decide the label, everything else is noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import GraphDataset
from .vocabulary import Field, Vocabulary

__all__ = ["PlantedData", "planted"]


class PlantedData(GraphDataset):
    """A GraphDataset that knows its truth.

    interactions: the planted pairs of field indices (i, j), i < j, sorted.
    logits: the true log odds of every graph's label, float64 [B].
    optimal_auc: what a model that knows `logits` reaches, in expectation over the labels: the probability
        that a positive ranks above a negative, where ties count one half. No model does better but by chance.
    """

    interactions: list[tuple[int, int]]
    logits: NDArray[np.float64]
    optimal_auc: float


def planted(
    num_samples: int = 30_000,
    num_fields: int = 8,
    cardinality: int = 10,
    num_interactions: int = 4,
    seed: int = 0,
    noise: float = 0.5,
) -> PlantedData:
    """Draw a data set whose label depends on `num_interactions` pairs of fields and on nothing else.

    Every field has `cardinality` values, drawn uniformly and independently; a graph has one node a field. A
    planted pair (i, j) has a table of +1 and -1 over the values of i and j with sums of zero in every row and
    column, so that no single feature, and no pair that is not planted, tells anything about the label. With s
    the sum of a graph's table entries, the label is 1 with probability sigmoid(s / noise); with noise = 0 it
    is the sign of s, and a fair coin where s = 0.

    Args:
        num_samples: B.
        num_fields: nodes in every graph.
        cardinality: values of every field, even (a row of +1 and -1 must sum to zero).
        num_interactions: planted pairs, drawn among the num_fields (num_fields - 1) / 2 pairs.
        seed: decides everything.
        noise: temperature of the label, >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    pairs = [(i, j) for i in range(num_fields) for j in range(i + 1, num_fields)]
    if num_samples < 0:
        raise ValueError(f"num_samples: expected at least 0, got {num_samples}")
    if cardinality < 2 or cardinality % 2:
        raise ValueError(f"cardinality: expected an even number from 2, got {cardinality}")
    if not 0 <= num_interactions <= len(pairs):
        raise ValueError(
            f"num_interactions: {num_fields} fields have 0 to {len(pairs)} pairs, got {num_interactions}"
        )
    if not noise >= 0:
        raise ValueError(f"noise: expected at least 0, got {noise}")
    rng = np.random.default_rng(seed)
    chosen = sorted(pairs[k] for k in rng.choice(len(pairs), num_interactions, replace=False))
    values = rng.integers(cardinality, size=(num_samples, num_fields))
    score = np.zeros(num_samples, np.int64)
    for i, j in chosen:
        score += _balanced_table(cardinality, rng)[values[:, i], values[:, j]]
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.where(score == 0, 0.0, score / noise)
    positive = _sigmoid(logits)
    labels = rng.random(num_samples) < positive

    names = [str(v) for v in range(cardinality)]
    vocabulary = Vocabulary(Field(f"f{k}", values=names) for k in range(num_fields))
    data = PlantedData(
        (values + np.arange(num_fields) * cardinality).astype(np.int32).reshape(-1),
        np.arange(num_samples + 1) * num_fields,
        labels=labels,
        vocabulary=vocabulary,
    )
    data.interactions = chosen
    data.logits = logits
    data.optimal_auc = _expected_auc(score, positive)
    return data


def _balanced_table(size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random +1 and -1 [size, size] with zero row and column sums."""
    steps = np.add.outer(rng.permutation(size), rng.permutation(size)) % size
    return np.where(steps < size // 2, 1, -1)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _expected_auc(score: NDArray[np.integer[Any]], positive: NDArray[np.float64]) -> float:
    """AUC of a score whose samples are positive with the given probabilities."""
    level = np.unique(score, return_inverse=True)[1].reshape(-1)
    if not len(level):
        return 0.5
    ones = np.bincount(level, positive)
    zeros = np.bincount(level, 1 - positive)
    pairs = ones.sum() * zeros.sum()
    below = np.cumsum(zeros) - zeros
    return float((ones * (below + zeros / 2)).sum() / pairs) if pairs else 0.5
