"""What `l0sign explain` tells about a run: its metrics, the interactions it kept, and single predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import report
from .config import TrainConfig
from .data import GraphDataset
from .explanation import Explanation
from .interactions import Interaction

FIELD_COLUMNS = ("open_share", "mean_gate", "support", "mean_contribution", "mean_strength")
#: The gate of two features is the same in every sample: their share of open edges says nothing.
FEATURE_COLUMNS = ("mean_gate", "support", "mean_contribution")
_TEXT_PAIRS = 10  # pairs of a single prediction that the text shows


class Sample(NamedTuple):
    """A sample whose prediction is explained."""

    explanation: Explanation
    label: float | None


@dataclass(frozen=True)
class RunReport:
    """Content of the text, the JSON and the HTML report of a run."""

    name: str
    config: TrainConfig
    hyperparameters: Mapping[str, Any]
    record: Mapping[str, Any]
    """metrics.json of the run, {} where there is none"""
    output: int
    """the output that is explained"""
    data: str
    """the name of the data that the interactions are means over"""
    part: str | None
    """the part of the split that they are of; None for all samples"""
    samples: int
    """how many samples these are"""
    min_support: int
    """the fewest samples that a pair of features had to be open in"""
    field_names: tuple[str, ...]
    fields: list[Interaction]
    """pairs of fields, strongest first"""
    positive_fields: list[Interaction]
    """pairs of fields that add most to the logit"""
    negative_fields: list[Interaction]
    positive: list[Interaction]
    """pairs of features that add most to the logit"""
    negative: list[Interaction]
    explained: list[Sample] = field(default_factory=list)
    explained_data: str | None = None
    """the name of the file that these are the first samples of; None where they are of `data`"""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row a part of the data, as training measured it: {"part": "test", "auc": ...}."""
        found = ((part, self.record.get(part)) for part in ("valid", "test"))
        return [{"part": part, **values} for part, values in found if values]

    @property
    def over(self) -> str:
        """Which samples the interactions are means over."""
        if self.part is not None:
            return f"the {self.samples:,} {self.part} samples of {self.data}"
        every = f"all {self.samples:,} samples of {self.data}"
        # A file of samples alone need not be what the run was trained on.
        return every if self.data == self.explained_data else f"{every}, training samples not left out"

    @property
    def explained_of(self) -> str:
        """Which samples are explained."""
        first = f"the first {len(self.explained):,}"
        return (
            f"{first} of {self.over}" if self.explained_data is None else f"{first} of {self.explained_data}"
        )

    def prediction(self, explanation: Explanation) -> str:
        """The prediction in words."""
        if self.config.loss == "mse":
            return f"prediction {explanation.logit:.4f}"
        if self.config.loss == "bce":
            return f"probability {_sigmoid(explanation.logit):.4f} (logit {explanation.logit:+.4f})"
        return f"logit of class {self.output}: {explanation.logit:+.4f}"

    def text(self, top: int = 20) -> str:
        """For the terminal, with at most `top` pairs of fields."""
        blocks = []
        if self.metrics:
            blocks.append(report.table(self.metrics))
        blocks.append(
            report.printable(f"tables: means over {self.over}")
            + "\nof pairs of different features; what a feature adds by itself is in the single predictions"
        )
        for heading, pairs, shown in (
            ("pairs of fields, strongest first", self.fields[:top], FIELD_COLUMNS),
            ("pairs of fields that raise the prediction most", self.positive_fields, FIELD_COLUMNS),
            ("pairs of fields that lower it most", self.negative_fields, FIELD_COLUMNS),
            ("pairs of features that raise the prediction most", self.positive, FEATURE_COLUMNS),
            ("pairs of features that lower it most", self.negative, FEATURE_COLUMNS),
        ):
            rows = [pair._asdict() for pair in pairs]
            blocks.append(f"{heading}:\n{report.table(rows, ['first', 'second', *shown]) or 'none'}")
        if self.explained:
            blocks.append(report.printable(f"single predictions: {self.explained_of}"))
        for number, sample in enumerate(self.explained, 1):
            entry = sample.explanation
            rows = [
                {"first": pair.names[0], "second": second_name(pair.i == pair.j, pair.names[1])}
                | {"gate": pair.gate, "contribution": pair.contribution}
                for pair in entry.interactions[:_TEXT_PAIRS]
            ]
            rest = entry.interactions[_TEXT_PAIRS:]
            if rest:
                rest_of_it = sum(pair.contribution for pair in rest)
                rows.append({"first": f"{len(rest)} more", "second": "", "contribution": rest_of_it})
            blocks.append(
                f"sample {number}: {self.prediction(entry)}{told_label(sample.label)}"
                f" = bias {entry.bias:+.4f} and {len(entry.interactions)} open pairs:\n"
                + (report.table(rows) or "none")
            )
        return "\n\n".join(blocks)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "run": self.name,
            "output": self.output,
            "metrics": {row["part"]: {k: v for k, v in row.items() if k != "part"} for row in self.metrics},
            "data": self.data,
            "part": self.part,
            "samples": self.samples,
            "min_support": self.min_support,
            "fields": [pair._asdict() for pair in self.fields],
            "fields_by_sign": {
                "positive": [pair._asdict() for pair in self.positive_fields],
                "negative": [pair._asdict() for pair in self.negative_fields],
            },
            "features": {
                "positive": [pair._asdict() for pair in self.positive],
                "negative": [pair._asdict() for pair in self.negative],
            },
            "explained": [
                {
                    **entry._asdict(),
                    "label": label,
                    "interactions": [pair._asdict() for pair in entry.interactions],
                }
                for entry, label in self.explained
            ],
        }


def read_record(run: str | Path) -> dict[str, Any]:
    """metrics.json of a run; {} where there is none, as beside a model that `save_model` wrote."""
    path = Path(run) / "metrics.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_record(content)
    except ValueError as error:
        raise ValueError(f"{path}: damaged, or not the metrics of a run ({error})") from None
    return content


def recorded_split(run: str | Path, data: GraphDataset, seed: int) -> tuple[NDArray[np.int64], ...] | None:
    """The split of `data` that metrics.json of a run tells, where its checkpoint is gone; None without."""
    told = read_record(run).get("data")
    if told is None:
        return None
    try:
        shares, sizes = told["split"], [int(told["samples"][part]) for part in ("train", "valid", "test")]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{run}/metrics.json: damaged, or of another version: {error!r}") from None
    if shares is None:
        raise ValueError(f"{run}: it was trained with --valid or --test, and split no samples")
    parts = data.split(shares, seed)
    if [*map(len, parts)] != sizes:
        raise ValueError(f"{run}: expected the {sum(sizes)} samples that its training split, got {len(data)}")
    return parts


def _check_record(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError("expected an object")
    epochs, best = content.get("epochs", []), content.get("best_epoch")
    if not isinstance(epochs, list):
        raise ValueError("epochs: expected a list")
    for row in epochs:
        _check_numbers("epochs", row)
        if not _is_count(row.get("epoch")):
            raise ValueError(f"epochs: expected the number of each epoch, got {row.get('epoch')!r}")
    for part in ("valid", "test"):
        if content.get(part) is not None:
            _check_numbers(part, content[part])
    if best is not None and not _is_count(best):
        raise ValueError(f"best_epoch: expected an integer or null, got {best!r}")


def _check_numbers(name: str, row: Any) -> None:
    if not isinstance(row, dict) or not all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        for value in row.values()
    ):
        raise ValueError(f"{name}: expected objects of numbers, got {row!r}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def told_label(label: float | None) -> str:
    """The label as it follows a prediction."""
    return "" if label is None else f", label {label:g}"


def second_name(alone: bool, name: str) -> str:
    """The second column of a pair: a feature's pair with itself is its own effect."""
    return "(by itself)" if alone else name


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * x))
