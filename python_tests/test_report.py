"""Tables, CSV and the plot of a run."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest

from l0sign_cuda import report

ROWS = [
    {"epoch": 1, "auc": 0.5, "edges_kept": 1.0, "samples_per_second": 1234.5},
    {"epoch": 2, "auc": 0.9, "edges_kept": 0.255, "samples_per_second": 2000.0},
]


def test_table_aligns_and_names_units() -> None:
    assert report.table(ROWS).splitlines() == [
        "epoch     auc  edges kept  samples/s",
        "-----  ------  ----------  ---------",
        "    1  0.5000     100.0 %       1234",
        "    2  0.9000      25.5 %       2000",
    ]


def test_table_of_chosen_columns_missing_values_and_text() -> None:
    rows = [{"model": "SIGN", "auc": float("nan")}, {"model": "L0-SIGN", "auc": 0.75, "recall": 1.0}]
    assert report.table(rows, ["model", "auc", "recall"]).splitlines() == [
        "model       auc   recall",
        "-------  ------  -------",
        "SIGN          -        -",
        "L0-SIGN  0.7500  100.0 %",
    ]
    assert report.table([]) == ""


def test_a_table_shortens_names() -> None:
    name = "a" + 3000 * "x" + "b"
    line = report.table([{"first": name, "auc": 0.5}]).splitlines()[2]
    assert line == f"a{19 * 'x'}…{18 * 'x'}b  0.5000"


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    report.write_csv(tmp_path / "m.csv", ROWS)
    with open(tmp_path / "m.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(text) for name, text in row.items()} for row in rows] == ROWS


def test_plot_is_a_png_with_both_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.figure

    drawn = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure: matplotlib.figure.Figure, *arguments: object, **options: object) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    report.plot_epochs({"SIGN": ROWS, "L0-SIGN": ROWS[:1]}, tmp_path / "p.png", optimum=0.95)
    content = (tmp_path / "p.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", content[16:24])) >= 400
    (figure,) = drawn
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0.5, 0.9], [0.5], [0.95, 0.95]]
    assert [list(line.get_ydata()) for line in right.lines] == [[100.0, 25.5], [100.0]]
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["SIGN: AUC", "L0-SIGN: AUC", "optimum: AUC", "SIGN: edges kept", "L0-SIGN: edges kept"]
