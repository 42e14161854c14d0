"""The paper's Fig. 6: what L0-SIGN makes of one app of Frappe, and of single predictions with it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

import l0sign_cuda
from l0sign_cuda.data import GraphDataset, Vocabulary, read_names
from l0sign_cuda.interactions import Survey

from .. import environment
from ..results import Document
from . import datasets, models
from .loop import Ints, Problem

NAME = "fig6-frappe"
APP = "Gmail"
_STRONGEST = 10
_LEAST = 20  # samples: the strongest of all are features that occur once
_SAMPLES = 2


def result(data: Path | None, work: Path, quick: bool = False) -> Document:
    """Train a model with the library's defaults, and ask it about the app, or (quick) a made feature."""
    dataset = datasets.load("planted" if quick else "frappe", data, work)
    vocabulary = dataset.vocabulary
    assert vocabulary is not None
    if quick:
        feature = vocabulary.name(0)
    else:
        if data is None:
            raise ValueError("--data: the names of the apps are there")
        names = read_names(data / "frappe" / "apps.csv.xz", key="item", name="name")
        vocabulary, feature = vocabulary.with_names("item", names), f"item={APP}"
    problem = Problem(dataset, *datasets.split(dataset, 0))
    model, trained = models.fit(problem, {"epochs": 2} if quick else {}, 0)
    return {
        "format": 1,
        "kind": "interactions",
        "quick": quick,
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "experiment": NAME,
        "title": f"Fig. 6, Frappe: {APP}",
        "protocol": "L0-SIGN with the library's defaults, seed 0; interactions over the test samples, the "
        f"strongest of the pairs in at least {_LEAST} of them.",
        "test": trained.test,
        **interactions(model, dataset, problem.test, vocabulary, feature),
        "environments": [
            {
                "machine": environment.machine(),
                "versions": environment.versions(),
                "git": environment.git(),
                "trials": 1,
            }
        ],
    }


def interactions(
    model: l0sign_cuda.L0SIGN,
    data: GraphDataset,
    part: Ints,
    vocabulary: Vocabulary,
    feature: str,
    least: int = _LEAST,
) -> dict[str, Any]:
    """The strongest pairs of fields; those of one feature, by strength; and two positive samples with it.

    Of the feature's pairs those count that `least` samples hold.
    """
    survey = Survey(model, vocabulary)
    survey.add((data, part))
    positive, negative = survey.features(1 << 30)
    own = [
        pair
        for pair in (*positive, *negative)
        if feature in (pair.first, pair.second) and pair.samples >= least
    ]
    own.sort(key=lambda pair: -abs(pair.mean_contribution))
    wanted = next(at for at in range(len(vocabulary)) if vocabulary.name(at) == feature)
    ids = np.asarray(data.ids).reshape(len(data), -1)
    assert data.labels is not None
    having = part[(ids[part] == wanted).any(axis=1) & (np.asarray(data.labels[part]) > 0.5)][:_SAMPLES]
    explained = l0sign_cuda.explain(model, data.batch(having).ids, vocabulary=vocabulary)
    return {
        "feature": feature,
        "fields": [pair._asdict() for pair in survey.fields()],
        "strongest": [pair._asdict() for pair in own[:_STRONGEST]],
        "samples": [
            {
                "logit": entry.logit,
                "bias": entry.bias,
                "nodes": list(entry.nodes),
                "pairs": [pair._asdict() for pair in entry.interactions],
            }
            for entry in explained
        ],
    }
