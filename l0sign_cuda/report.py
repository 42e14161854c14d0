"""Tables for people and for programs, and the plot of a training run (the paper's Fig. 4)."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._extras import require
from .checkpoint import written_aside

Row = Mapping[str, Any]

#: A name in a table is shown with at most this many characters.
LONGEST = 40

_AS_PERCENT = {"edges_kept", "precision", "recall", "open_share"}
_SHORT = {
    "samples_per_second": "samples/s",
    "edges_kept": "edges kept",
    "open_share": "open in",
    "mean_gate": "mean gate",
    "mean_contribution": "contribution",
    "mean_strength": "strength",
}
_DIGITS = {"seconds": 1, "samples_per_second": 0, "l0_weight": 6}


def cell(name: str, value: Any) -> str:
    """A value of column `name` as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if name in _AS_PERCENT:
        return f"{100 * value:.1f} %"
    return f"{value:.{_DIGITS.get(name, 4)}f}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """The text in one line, with U+FFFD for what cannot be shown, or would be taken for a command.

    That is control and format characters, and the surrogates of a path that is no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def shortened(text: str, length: int) -> str:
    """The text without its middle, where it is longer: names that differ often do so at the end."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"


def title(name: str) -> str:
    """The heading of column `name`."""
    return _SHORT.get(name, name)


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as aligned text; the columns are those of the first row, or those that are given.

    A longer cell is shortened to LONGEST characters.
    """
    if not rows:
        return ""
    columns = list(rows[0]) if columns is None else list(columns)
    lines = [[title(name) for name in columns]]
    lines += [[shortened(cell(name, row.get(name)), LONGEST) for name in columns] for row in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    left = [any(isinstance(row.get(name), str) for row in rows) for name in columns]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            text.ljust(width) if flush else text.rjust(width)
            for text, width, flush in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Rows as CSV, written aside and renamed; the columns are those of the first row."""
    with written_aside(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def plot_epochs(runs: Mapping[str, Sequence[Row]], path: str | Path, optimum: float | None = None) -> None:
    """Plot the validation AUC and the share of edges kept per epoch into a PNG file, one colour a run.

    Args:
        runs: name of a run -> its rows, with the keys epoch, edges_kept and auc.
        path: the file to write.
        optimum: the best AUC there can be, drawn as a line.
    """
    matplotlib = require("matplotlib", "report")
    figure = require("matplotlib.figure", "report").Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    for number, (name, rows) in enumerate(runs.items()):
        colour = matplotlib.color_sequences["tab10"][number % 10]
        epochs = [row["epoch"] for row in rows]
        left.plot(
            epochs, [row["auc"] for row in rows], "o-", color=colour, markersize=3, label=f"{name}: AUC"
        )
        kept = [100 * row["edges_kept"] for row in rows]
        right.plot(epochs, kept, "--", color=colour, label=f"{name}: edges kept")
    if optimum is not None:
        left.axhline(optimum, color="grey", linewidth=0.8, linestyle=":", label="optimum: AUC")
    left.set(xlabel="epoch", ylabel="validation AUC")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(ylabel="edges kept (%)", ylim=(0, 105))
    handles, labels = (
        a + b
        for a, b in zip(left.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True)
    )
    left.legend(handles, labels, loc="center right", fontsize="small")
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
