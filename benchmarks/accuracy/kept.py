"""The kept result of an experiment: assembled from the records that are there, what is missing said."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..results import Document, check, read, table, write_aside
from .experiments import Experiment
from .records import Record
from .runner import Row


def document(name: str, experiment: Experiment, rows: Sequence[Row], quick: bool) -> Document:
    """An experiment with everything that is known of it."""
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
        "rows": [_row(row, experiment) for row in rows],
        "missing": list(_missing(rows)),
        "environments": _environments(rows),
    }


def trials(result: Document) -> int:
    """How many trials a result was assembled from."""
    return sum(found["trials"] for found in result["environments"])


def trials_there(name: str, quick: bool, directory: Path) -> int:
    """How many trials the result has that is kept under an experiment's name; 0 where none is."""
    path = directory / f"{_name(name, quick)}.json"
    return trials(read(path)) if path.exists() else 0


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


def _row(row: Row, experiment: Experiment) -> dict[str, Any]:
    entry = row.entry
    done = {seed: record for seed, record in row.seeds.items() if record is not None}
    metrics = list(dict.fromkeys(name for record in done.values() for name in record["test"]))
    values = {name: [record["test"][name] for record in done.values()] for name in metrics}
    return {
        "label": entry.label,
        "model": entry.model,
        "options": dict(entry.options),
        "grid": {name: list(values) for name, values in entry.grid.items()},
        "points": [
            {
                "options": {name: options[name] for name in entry.grid},
                "valid": None if record is None else record["valid"],
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


def _environments(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Every machine, set of versions and commit that records came from, with their number."""
    found: dict[str, dict[str, Any]] = {}
    for record in _records(rows):
        what = {name: record[name] for name in ("machine", "versions", "git", "process")}
        entry = found.setdefault(json.dumps(what, sort_keys=True), {**what, "trials": 0})
        entry["trials"] += 1
    return list(found.values())


def _records(rows: Iterable[Row]) -> Iterable[Record]:
    for row in rows:
        seen: list[Record] = []
        for record in (*(record for _, record in row.points), *row.seeds.values()):
            if record is not None and record not in seen:
                seen.append(record)
                yield record
