"""The kept result of an experiment: assembled from the records that are there, what is missing said.

Where the records are gone, as in a fresh clone, a run goes on from the result (`records_of`).
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results import Document, check, read, table, write_aside
from .experiments import Experiment
from .records import REVISION, Record, Trial
from .runner import Row

_ENVIRONMENT = ("machine", "versions", "git", "process")  # the fields of a record that tell of where it ran


def document(
    name: str,
    experiment: Experiment,
    rows: Sequence[Row],
    quick: bool,
    fingerprint: Sequence[int] = (),
    before: Document | None = None,
) -> Document:
    """An experiment with everything that is known of it.

    Args:
        name: of the experiment.
        experiment: it.
        rows: its entries with their records.
        quick: whether it is the quick one.
        fingerprint: of the data.
        before: the kept result that some of the records may be from.
    """
    environments = _environments(rows, before)
    return {
        "format": 1,
        "kind": "accuracy",
        "quick": quick,
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "experiment": name,
        "title": experiment.title,
        "data": experiment.data,
        "protocol": experiment.protocol,
        "common": dict(experiment.common),
        "monitor": experiment.monitor,
        "columns": list(experiment.columns),
        "tuning_seed": experiment.tuning_seed,
        "seeds": list(rows[0].seeds),
        "revision": REVISION,
        "fingerprint": list(fingerprint),
        "rows": [_row(row, experiment, environments) for row in rows],
        "missing": list(_missing(rows)),
        "environments": environments,
    }


def records_of(result: Document | None) -> dict[str, Record]:
    """The records that a kept result tells of, by their trials' keys; none of one that says too little.

    Of points of a grid they have the validation samples' metrics alone.
    """
    found: dict[str, Record] = {}
    if result is None or result.get("revision") != REVISION:
        return found
    environments = result["environments"]

    def keep(row: Mapping[str, Any], options: Mapping[str, Any], seed: int, record: Record) -> None:
        trial = Trial(result["data"], row["model"], {**row["fixed"], **options}, seed, result["fingerprint"])
        ran = record.pop("environment")
        where = {} if ran is None else {name: environments[ran][name] for name in _ENVIRONMENT}
        found[trial.key()] = record | where

    for row in result["rows"]:
        for point in row["points"]:
            if point["valid"] is not None:
                record = {name: point[name] for name in ("valid", "environment")}
                keep(row, point["options"], result["tuning_seed"], record)
        for seed in row["seeds"]:
            record = {
                **seed,
                "history": seed.get("history") or [{"epoch": seed["epochs"]}] * bool(seed["epochs"]),
                "load_average": {"before": [seed["load_average"]]},
            }
            keep(row, row["chosen"] or {}, seed["seed"], record)
    return found


def trials(result: Document) -> int:
    """How many trials a result was assembled from."""
    return sum(found["trials"] for found in result["environments"])


def there(name: str, quick: bool, directory: Path) -> Document | None:
    """The result that is kept under an experiment's name, if one is."""
    path = directory / f"{_name(name, quick)}.json"
    return read(path) if path.exists() else None


def write(result: Document, directory: Path) -> tuple[Path, Path]:
    """Write a result's JSON and Markdown under the experiment's name; returns both paths."""
    check(result)
    directory.mkdir(parents=True, exist_ok=True)
    name = _name(result["experiment"], result["quick"])
    paths = directory / f"{name}.json", directory / f"{name}.md"
    for path, text in zip(paths, (json.dumps(result, indent=1) + "\n", table(result)), strict=True):
        write_aside(path, text)
    return paths


def _name(experiment: str, quick: bool) -> str:
    return experiment + "-quick" * quick


def _row(row: Row, experiment: Experiment, environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    entry = row.entry
    where = [_where(environment) for environment in environments]

    def ran(record: Record) -> int | None:
        return where.index(_where(record)) if "git" in record else None

    done = {seed: record for seed, record in row.seeds.items() if record is not None}
    metrics = list(dict.fromkeys(name for record in done.values() for name in record["test"]))
    values = {name: [record["test"][name] for record in done.values()] for name in metrics}
    return {
        "label": entry.label,
        "model": entry.model,
        "options": dict(entry.options),
        "fixed": row.fixed,
        "grid": {name: list(values) for name, values in entry.grid.items()},
        "points": [
            {
                "options": {name: options[name] for name in entry.grid},
                "valid": None if record is None else record["valid"],
                "environment": None if record is None else ran(record),
            }
            for options, record in row.points
        ],
        "chosen": None if row.chosen is None else {name: row.chosen[name] for name in entry.grid},
        "seeds": [
            {
                "seed": seed,
                **{k: record[k] for k in ("test", "valid", "best_epoch", "stopped", "parameters", "seconds")},
                "epochs": record["history"][-1]["epoch"] if record["history"] else 0,
                **({"history": record["history"]} if experiment.curves else {}),
                "load_average": record["load_average"]["before"][0],
                "environment": ran(record),
            }
            for seed, record in done.items()
        ],
        "n": len(done),
        "mean": {name: statistics.fmean(found) for name, found in values.items()},
        "deviation": {
            name: statistics.stdev(found) if len(found) > 1 else None for name, found in values.items()
        },
        "seconds": min((record["seconds"] for record in done.values()), default=None),
        "parameters": next((record["parameters"] for record in done.values()), None),
    }


def _missing(rows: Iterable[Row]) -> Iterator[str]:
    """What a row lacks: points of its grid, and seeds."""
    for row in rows:
        points = sum(record is None for _, record in row.points) if row.entry.grid else 0
        if points:
            yield f"{row.entry.label}: {points} of {len(row.points)} points of the grid"
        if seeds := [str(seed) for seed, record in row.seeds.items() if record is None]:
            yield f"{row.entry.label}: seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def _environments(rows: Iterable[Row], before: Document | None) -> list[dict[str, Any]]:
    """Every machine, set of versions and commit that records came from, with their number.

    Older kept results do not tell of each trial where it ran: with a trial of that kind, all their
    environments that no trial names stay as they were.
    """
    found: dict[str, dict[str, Any]] = {}
    records = list(_records(rows))
    if before is not None and not all("git" in record for record in records):
        named = {one.get("environment") for row in before["rows"] for one in (*row["points"], *row["seeds"])}
        for at, environment in enumerate(before["environments"]):
            if at not in named:
                found[_where(environment)] = dict(environment)
    for record in records:
        if "git" in record:
            what = {name: record[name] for name in _ENVIRONMENT}
            entry = found.setdefault(_where(what), {**what, "trials": 0})
            entry["trials"] += 1
    return list(found.values())


def _where(record: Mapping[str, Any]) -> str:
    return json.dumps([record[name] for name in _ENVIRONMENT], sort_keys=True)


def _records(rows: Iterable[Row]) -> Iterable[Record]:
    for row in rows:
        seen: list[Record] = []
        for record in (*(record for _, record in row.points), *row.seeds.values()):
            if record is not None and record not in seen:
                seen.append(record)
                yield record
