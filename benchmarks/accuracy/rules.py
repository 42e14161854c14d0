"""Trivial rules, to be read beside the models: what a count over the training samples says."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from l0sign_cuda import metrics
from l0sign_cuda.data import GraphDataset

from .datasets import DATASETS
from .loop import Ints, Problem, Trained

KINDS = ("rule-seen", "rule-rate", "rule-both")


def train(kind: str, name: str, problem: Problem) -> Trained:
    """Score the samples of the data set `name` by a rule.

    rule-seen: whether (owner, item) was a positive in training, such as this user with this app. rule-rate:
    the share of positives among the training samples of the item, with two samples of chance added.
    rule-both: seen first, then by rate. A sample counts as positive where it was seen, or its rate is above
    one half.
    """
    owner, item = (_column(problem.data, field) for field in (DATASETS[name].owner, DATASETS[name].item))
    assert problem.data.labels is not None
    labels = np.asarray(problem.data.labels)
    train, features = problem.train, problem.data.num_features
    positives = train[labels[train] > 0.5]
    pair = owner * features + item
    seen = np.isin(pair, pair[positives])
    prior = len(positives) / max(len(train), 1)
    clicks = np.bincount(item[positives], minlength=features) + 2 * prior
    rate = clicks / (np.bincount(item[train], minlength=features) + 2)
    # Positive scores are those above one half, as a logit's are those above zero.
    score = {
        "rule-seen": seen - 0.5,
        "rule-rate": rate[item] - 0.5,
        "rule-both": np.where(seen, 1, rate[item] - 0.5),
    }[kind]
    return Trained(
        _measure(score, labels, problem.valid), _measure(score, labels, problem.test), 0, "rule", [], 0, 0.0
    )


def _measure(score: NDArray[np.float64], labels: NDArray[np.float32], part: Ints) -> dict[str, float]:
    found = metrics.compute(torch.from_numpy(score[part]), torch.from_numpy(labels[part]), "bce")
    del found["logloss"]  # a score is no log odds
    return found


def _column(data: GraphDataset, field: str | None) -> Ints:
    """The ids of a field [B]."""
    if field is None or data.vocabulary is None:
        raise ValueError("the rules need a data set with the fields owner and item")
    at = data.vocabulary.field_names.index(field)
    return np.asarray(data.ids).reshape(len(data), -1)[:, at].astype(np.int64)
