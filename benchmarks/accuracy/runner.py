"""Runs the trials of an experiment that are missing, in an order in which what is there is worth reading."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l0sign_cuda.data import GraphDataset
from l0sign_cuda.metrics import SMALLER_IS_BETTER

from .. import environment
from . import datasets, models
from .experiments import Entry, Experiment
from .loop import Problem
from .records import Record, Records, Trial

Say = Callable[[str], None]


class Row(NamedTuple):
    """What is known of an entry: the points of its grid with their records, and a record for each seed."""

    entry: Entry
    points: list[tuple[dict[str, Any], Record | None]]
    chosen: dict[str, Any] | None
    """None while a point is missing"""
    seeds: dict[int, Record | None]
    fixed: dict[str, Any]
    """the options that no point of the grid changes, with those that the code decides"""


def rows(
    experiment: Experiment, records: Records, seeds: Sequence[int], fingerprint: Sequence[int]
) -> list[Row]:
    """Every entry with the records that are there, of the data with that fingerprint."""
    return [_row(experiment, entry, records, seeds, fingerprint) for entry in experiment.entries]


def run(
    experiment: Experiment,
    data: Path | None,
    work: Path,
    seeds: Sequence[int],
    only: Sequence[str] = (),
    hours: float = math.inf,
    say: Say = lambda text: None,
    kept: Mapping[str, Record] | None = None,
) -> bool:
    """Run what is missing, of the entries whose label is in `only` (none: all); whether nothing is missing.

    No trial begins after `hours`, nor one whose record is among those of a kept result.
    """
    records, ends = Records(work, kept), time.monotonic() + 3600 * hours
    problems = _Problems(datasets.load(experiment.data, data, work))
    fingerprint = datasets.fingerprint(problems.data)
    while (found := next(missing(experiment, records, seeds, fingerprint, only), None)) is not None:
        label, trial = found
        if time.monotonic() > ends:
            return False
        began = time.perf_counter()
        record = run_trial(trial, problems(trial.seed), work)
        records.keep(trial, record)
        monitored = record["valid"].get(experiment.monitor, math.nan)
        say(
            f"{label}, seed {trial.seed}: valid {experiment.monitor} {monitored:.4f}, "
            f"{time.perf_counter() - began:.0f} s"
        )
    return True


def missing(
    experiment: Experiment,
    records: Records,
    seeds: Sequence[int],
    fingerprint: Sequence[int],
    only: Sequence[str] = (),
) -> Iterator[tuple[str, Trial]]:
    """Trials that are not done, with a name: the grids of all entries first, then seed by seed."""
    found = [
        row for row in rows(experiment, records, seeds, fingerprint) if not only or row.entry.label in only
    ]
    for row in found:
        for options, record in row.points:
            if record is None:
                point = "".join(f" {name} {options[name]}" for name in row.entry.grid)
                seed = experiment.tuning_seed
                trial = Trial(experiment.data, row.entry.model, options, seed, fingerprint)
                yield row.entry.label + point, trial
    for seed in seeds:
        for row in found:
            if row.chosen is not None and row.seeds[seed] is None:
                trial = Trial(experiment.data, row.entry.model, row.chosen, seed, fingerprint)
                yield row.entry.label, trial


def run_trial(trial: Trial, problem: Problem, work: Path) -> Record:
    """Train, and say what came out and what it was measured with."""
    load = environment.load_average()
    source = trial._replace(model="sign", options=trial.options.get("source", {}))
    cache = work / "edges" / f"{source.key()}.npy"
    trained = models.train(trial.model, trial.dataset, problem, trial.options, trial.seed, cache)
    return {
        **trained._asdict(),
        "machine": environment.machine(),
        "versions": environment.versions(),
        "git": environment.git(),
        "process": environment.process(),
        "load_average": {"before": load, "after": environment.load_average()},
    }


def _row(
    experiment: Experiment, entry: Entry, records: Records, seeds: Sequence[int], fingerprint: Sequence[int]
) -> Row:
    def find(options: dict[str, Any], seed: int) -> Record | None:
        return records.find(Trial(experiment.data, entry.model, options, seed, fingerprint))

    def tested(record: Record | None) -> Record | None:
        """Of the points that were not chosen, a kept result has no test samples."""
        return None if record is None or "test" not in record else record

    tried = [_options(experiment, entry, point) for point in entry.points()]
    points = [(options, find(options, experiment.tuning_seed)) for options in tried]
    chosen = _best(points, experiment.monitor)
    found = {seed: None if chosen is None else tested(find(chosen, seed)) for seed in seeds}
    fixed = {name: value for name, value in tried[0].items() if name not in entry.grid}
    return Row(entry, points, chosen, found, fixed)


def _options(experiment: Experiment, entry: Entry, point: dict[str, Any]) -> dict[str, Any]:
    common = {} if entry.model.startswith("rule-") else experiment.common
    return models.resolved(entry.model, {**common, **point})


def _best(points: list[tuple[dict[str, Any], Record | None]], monitor: str) -> dict[str, Any] | None:
    if len(points) == 1:
        return points[0][0]
    sign = -1 if monitor in SMALLER_IS_BETTER else 1

    def worth(point: tuple[dict[str, Any], Record | None]) -> float:
        _, record = point
        assert record is not None
        value = sign * record["valid"][monitor]
        return -math.inf if math.isnan(value) else value

    return None if any(record is None for _, record in points) else max(points, key=worth)[0]


class _Problems:
    """The split of the last seed that was asked for stays in memory."""

    def __init__(self, data: GraphDataset) -> None:
        self.data = data
        self.last: tuple[int, Problem] | None = None

    def __call__(self, seed: int) -> Problem:
        if self.last is None or self.last[0] != seed:
            self.last = seed, Problem(self.data, *datasets.split(self.data, seed))
        return self.last[1]
