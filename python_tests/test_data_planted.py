"""Planted interactions: nothing but the planted pairs tells anything about the label."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l0sign_cuda.data import GraphDataset, PlantedData, planted
from l0sign_cuda.data.planted import _balanced_table


def cells(d: PlantedData) -> np.ndarray[Any, Any]:
    """The position in its field of every node [B, fields]."""
    assert d.vocabulary is not None
    return d.ids.reshape(len(d), -1) - d.vocabulary.offsets[:-1]


def test_shape_and_names() -> None:
    d = planted(num_samples=500, num_fields=5, cardinality=4, num_interactions=3, seed=1)
    assert isinstance(d, GraphDataset) and len(d) == 500
    assert d.graph_size == 5 and d.num_features == 20 and d.values is None
    assert d.vocabulary is not None and d.vocabulary.name(7) == "f1=3"
    assert len(d.interactions) == len(set(d.interactions)) == 3
    assert d.interactions == sorted(d.interactions)
    assert all(0 <= i < j < 5 for i, j in d.interactions)
    assert d.labels is not None and set(d.labels.tolist()) == {0, 1}
    assert cells(d).min() == 0 and cells(d).max() == 3


def test_the_seed_decides_everything() -> None:
    first, again, other = planted(300, seed=3), planted(300, seed=3), planted(300, seed=4)
    assert (first.ids == again.ids).all() and first.interactions == again.interactions
    assert first.labels is not None and again.labels is not None
    assert (first.labels == again.labels).all() and first.optimal_auc == again.optimal_auc
    assert (first.ids != other.ids).any()


@pytest.mark.parametrize("size", [2, 4, 10])
def test_tables_are_balanced_on_both_margins(size: int) -> None:
    tables = [_balanced_table(size, np.random.default_rng(seed)) for seed in range(20)]
    for table in tables:
        assert set(np.unique(table).tolist()) == {-1, 1}
        assert (table.sum(axis=0) == 0).all() and (table.sum(axis=1) == 0).all()
    assert len({t.tobytes() for t in tables}) > 1


def test_logits_depend_on_each_planted_pair_and_on_nothing_else() -> None:
    d = planted(20_000, num_fields=4, cardinality=4, num_interactions=2, seed=5, noise=0.5)
    x, score = cells(d), d.logits * 0.5
    assert set(score.tolist()) == {-2, 0, 2}
    # Rows that agree on the planted pairs' fields agree on the logit.
    fields = sorted({k for pair in d.interactions for k in pair})
    keys = (x[:, fields] * 4 ** np.arange(len(fields))).sum(axis=1)
    for key in np.unique(keys):
        assert len(set(score[keys == key].tolist())) == 1
    # The mean score over a pair's cells: a +1/-1 table for a planted pair, zero for every other.
    for i, j in combinations(range(4), 2):
        table = np.array(
            [[score[(x[:, i] == a) & (x[:, j] == b)].mean() for b in range(4)] for a in range(4)]
        )
        expected = np.sign(table) if (i, j) in d.interactions else np.zeros_like(table)
        assert np.abs(table - expected).max() < 0.2  # about 1,250 samples a cell: 7 standard errors


def test_labels_follow_the_logits() -> None:
    d = planted(50_000, seed=2, noise=1.0)
    assert d.labels is not None
    for value in np.unique(d.logits):
        chosen = d.logits == value
        expected = 1 / (1 + np.exp(-value))
        assert abs(d.labels[chosen].mean() - expected) < 5 * np.sqrt(0.25 / chosen.sum())


def test_without_noise_the_label_is_the_sign() -> None:
    d = planted(5000, num_interactions=3, noise=0, seed=7)
    assert d.labels is not None and set(d.logits.tolist()) == {-np.inf, np.inf}
    assert ((d.logits > 0) == (d.labels == 1)).all() and d.optimal_auc == 1
    coin = planted(5000, num_interactions=0, noise=0, seed=7)
    assert coin.interactions == [] and coin.optimal_auc == 0.5
    assert coin.labels is not None and 0.45 < coin.labels.mean() < 0.55


def test_the_optimal_auc_is_the_auc_of_the_true_logits() -> None:
    d = planted(4000, seed=9, noise=0.8)
    assert d.labels is not None
    positive, negative = d.logits[d.labels == 1], d.logits[d.labels == 0]
    auc = ((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)).mean()
    assert abs(auc - d.optimal_auc) < 0.03 and 0.6 < d.optimal_auc < 0.95
    p = 1 / (1 + np.exp(-d.logits))
    wins = (d.logits[:, None] > d.logits) + 0.5 * (d.logits[:, None] == d.logits)
    expected = p @ wins @ (1 - p) / (p.sum() * (1 - p).sum())
    assert d.optimal_auc == pytest.approx(expected, rel=1e-12)
    more_noise = [planted(4000, noise=s).optimal_auc for s in (0.3, 0.6, 1.2, 2.4)]
    assert more_noise == sorted(more_noise, reverse=True)


def test_it_saves_as_any_data_set(tmp_path: Path) -> None:
    d = planted(100)
    d.save(tmp_path)
    loaded = GraphDataset.load(tmp_path, verify=True)
    assert (loaded.ids == d.ids).all() and loaded.vocabulary == d.vocabulary
    assert len(planted(0)) == 0 and planted(0).optimal_auc == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": -1}, "num_samples: expected at least 0, got -1"),
        ({"cardinality": 5}, "cardinality: expected an even number from 2, got 5"),
        ({"cardinality": 0}, "cardinality: expected an even number from 2, got 0"),
        ({"num_fields": 3}, "num_interactions: 3 fields have 0 to 3 pairs, got 4"),
        ({"num_interactions": -1}, "num_interactions: 8 fields have 0 to 28 pairs, got -1"),
        ({"noise": -1.0}, "noise: expected at least 0, got -1.0"),
        ({"noise": float("nan")}, "noise: expected at least 0, got nan"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        planted(**arguments)
    assert str(error.value) == message
