"""Finished trials: a run that was interrupted goes on from them.

Each is a JSON file in the work directory; those that a kept result tells of stand in for files that are gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..results import write_aside

# Part of a trial's name: raise it when the same options mean another computation.
REVISION = 3

Record = dict[str, Any]


class Trial(NamedTuple):
    """One training: everything that decides its numbers. Experiments that need the same one share it."""

    dataset: str
    model: str
    options: Mapping[str, Any]
    seed: int
    fingerprint: Sequence[int] = ()
    """of the data, as datasets.fingerprint has it"""

    def key(self) -> str:
        """A name that no other trial has."""
        what = json.dumps(
            [REVISION, *self._replace(options=dict(self.options), fingerprint=list(self.fingerprint))],
            sort_keys=True,
        )
        return f"{self.dataset}-{self.model}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


class Records:
    """The records in a work directory, and below them those of a kept result, by their trials' keys."""

    def __init__(self, work: Path, kept: Mapping[str, Record] | None = None) -> None:
        self.directory = work / "trials"
        self.kept = kept or {}

    def find(self, trial: Trial) -> Record | None:
        """The record of a trial, if it is done."""
        path = self._path(trial)
        if not path.exists():
            return self.kept.get(trial.key())
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a finished trial ({error}); remove it to train again") from None
        return record

    def keep(self, trial: Trial, record: Record) -> None:
        """Write the record of a trial, aside and renamed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        what = trial._asdict() | {"options": dict(trial.options), "fingerprint": list(trial.fingerprint)}
        write_aside(self._path(trial), json.dumps({"trial": what, **record}, indent=1) + "\n")

    def _path(self, trial: Trial) -> Path:
        return self.directory / f"{trial.key()}.json"
