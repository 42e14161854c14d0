"""The experiments, each with its protocol: written down before its final runs, and part of every result."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One row of a table: a model, its fixed options, and the grid that its options are chosen from."""

    label: str
    model: str  # a name in models.MODELS
    options: Options = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def points(self) -> Iterator[dict[str, Any]]:
        """All options of the grid, the fixed ones included."""
        for values in itertools.product(*self.grid.values()):
            yield {**self.options, **dict(zip(self.grid, values, strict=True))}


@dataclass(frozen=True)
class Experiment:
    """Rows over one data set; of each grid the point that `tuning_seed` finds best by validation is taken."""

    title: str
    data: str  # a name in datasets.DATASETS
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    protocol: str
    common: Options = field(default_factory=dict)  # options of every entry, which its own override
    tuning_seed: int = 0
    monitor: str = "auc"
    columns: tuple[str, ...] = ("auc", "accuracy", "logloss")
    curves: bool = False  # keep the metrics of every epoch


_SPLIT = (
    "Each seed has its own random split (70 % training, 15 % validation, 15 % test), the same for all rows, "
    "and decides weights and order too. "
)
_EARLY = "The epoch with the best validation {} counts; training stops after 3 epochs without a better one. "
_TUNED = (
    "The point of the grid with the best validation {} on seed 0 is taken for all seeds; no choice looks at "
    "test samples. "
)

# The same for each model: learning rate and L2 (weight decay in Adam's gradient).
_GRID = {"lr": (0.003, 0.01), "weight_decay": (1e-6, 1e-5, 5e-5)}
_TRAINING = {"epochs": 30, "patience": 3, "batch_size": 1024, "embedding_dim": 8}

_BASELINES = ("FM", "AFM", "NFM", "DeepFM", "xDeepFM", "AutoInt")


def _table2() -> tuple[Entry, ...]:
    return (
        Entry("seen with this user", "rule-seen"),
        Entry("click rate of the app", "rule-rate"),
        Entry("seen, then click rate", "rule-both"),
        Entry("L0-SIGN", "sign", {"gated": True}, _GRID),
        Entry("SIGN", "sign", {"gated": False}, _GRID),
        *(Entry(name, name.lower(), {}, _GRID) for name in _BASELINES),
    )


EXPERIMENTS: dict[str, Experiment] = {
    "table2-frappe": Experiment(
        title="Table 2, Frappe",
        data="frappe",
        entries=_table2(),
        seeds=(0, 1, 2, 3, 4),
        common=_TRAINING,
        protocol=_SPLIT
        + _EARLY.format("AUC")
        + _TUNED.format("AUC")
        + "Every model has dimension 8, embeddings that start from N(0, 0.1), other weights from torch's "
        "defaults, Adam, batches of 1,024 and at most 30 epochs; the grid is the same for all. Hidden layers "
        "are deepctr-torch's defaults, but xDeepFM's interaction network has 32 and 32 feature maps, since "
        "its default takes minutes an epoch here. L0-SIGN's weight of the L0 penalty is the "
        "library's default.",
    ),
}


def quick(experiment: Experiment) -> Experiment:
    """The experiment on made data, two epochs, two points of each grid: it asks whether all works."""
    entries = tuple(
        replace(
            entry,
            grid={
                name: values[:2] if at == 0 else values[:1]
                for at, (name, values) in enumerate(entry.grid.items())
            },
        )
        for entry in experiment.entries
    )
    return replace(
        experiment,
        data=QUICK_DATA.get(experiment.data, "planted"),
        entries=entries,
        seeds=experiment.seeds[:2],
        common={**experiment.common, "epochs": 2},
    )


QUICK_DATA: dict[str, str] = {}
