"""The paper's Fig. 6: what L0-SIGN makes of one app of Frappe, and of single predictions with it.

python -m benchmarks.accuracy.gmail --data ../shared/data
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import l0sign_cuda
from l0sign_cuda.data import GraphDataset, Vocabulary, read_names
from l0sign_cuda.interactions import Survey

from .. import environment
from ..results import RESULTS, check, write_aside
from . import datasets, models
from .loop import Ints, Problem

APP = "Gmail"
_STRONGEST = 10
_LEAST = 20  # samples: the strongest of all are features that occur once
_SAMPLES = 2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy.gmail", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="directory of the data")
    add("--work", type=Path, default=environment.ROOT / "build" / "accuracy", help="prepared data")
    add("--out", type=Path, default=RESULTS / "accuracy", help="default: benchmarks/results/accuracy")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = datasets.load("frappe", options.data, options.work)
    assert data.vocabulary is not None
    names = read_names(options.data / "frappe" / "apps.csv.xz", key="item", name="name")
    problem = Problem(data, *datasets.split(data, 0))
    model, trained = models.fit(problem, {}, 0)
    found = interactions(model, data, problem.test, data.vocabulary.with_names("item", names), f"item={APP}")
    result = {
        "format": 1,
        "kind": "interactions",
        "quick": False,
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "experiment": "fig6-frappe",
        "title": f"Fig. 6, Frappe: {APP}",
        "protocol": "L0-SIGN with the library's defaults, seed 0; interactions over the test samples, the "
        f"strongest of the pairs in at least {_LEAST} of them.",
        "test": trained.test,
        **found,
        "environments": [
            {
                "machine": environment.machine(),
                "versions": environment.versions(),
                "git": environment.git(),
                "trials": 1,
            }
        ],
    }
    check(result)
    options.out.mkdir(parents=True, exist_ok=True)
    write_aside(options.out / "fig6-frappe.json", json.dumps(result, indent=1) + "\n")


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


if __name__ == "__main__":
    main()
