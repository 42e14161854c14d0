"""Draws the figures of docs/results.md from kept results: `python -m benchmarks.accuracy.figures`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from l0sign_cuda._extras import require
from l0sign_cuda.checkpoint import written_aside

from .. import environment
from ..results import RESULTS

FOLDER = environment.ROOT / "docs" / "figures"
Result = Mapping[str, Any]
_SIZE = (7, 3.6)  # inches


def draw(results: Path = RESULTS / "accuracy", folder: Path = FOLDER) -> list[Path]:
    """Draw what has a kept result; returns the files."""
    matplotlib = require("matplotlib", "report")
    written = []
    for name, drawing in DRAWINGS.items():
        source = results / f"{name}.json"
        if not source.exists():
            continue
        with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 9}):
            figure = require("matplotlib.figure", "report").Figure(figsize=_SIZE, layout="constrained")
            drawing(figure, json.loads(source.read_text(encoding="utf-8")))
            folder.mkdir(parents=True, exist_ok=True)
            with written_aside(folder / f"{name}.svg") as aside:
                figure.savefig(aside, format="svg", metadata={"Date": None})
        written.append(folder / f"{name}.svg")
    return written


def _fig4(figure: Any, result: Result) -> None:
    left, right = figure.subplots(1, 2)
    for row in result["rows"]:
        histories = [seed["history"] for seed in row["seeds"]]
        if not histories:
            continue
        for axes, metric, scale in ((left, "accuracy", 1), (right, "edges_kept", 100)):
            by_epoch = list(zip(*([scale * found[metric] for found in h] for h in histories), strict=False))
            _band(axes, [found["epoch"] for found in histories[0]], by_epoch, row["label"])
    left.set(xlabel="epoch", ylabel="validation accuracy")
    right.set(xlabel="epoch", ylabel="edges kept (%)", ylim=(0, 105))
    left.legend()


def _fig5(figure: Any, result: Result) -> None:
    for axes, metric in zip(figure.subplots(1, 2), ("auc", "accuracy"), strict=True):
        for kind in ("predicted", "reversed"):
            rows = {float(r["label"].split()[1]): r for r in result["rows"] if r["label"].startswith(kind)}
            shares = sorted(share for share, row in rows.items() if row["seeds"])
            if not shares:
                continue
            values = [[seed["test"][metric] for seed in rows[share]["seeds"]] for share in shares]
            _band(axes, shares, values, f"{kind} edges")
        axes.set(xlabel="share of the edges", ylabel={"auc": "AUC"}.get(metric, metric))
    axes.legend()


def _fig6(figure: Any, result: Result) -> None:
    graphs = len(result["samples"])
    figure.set_size_inches(_SIZE[0] * (1 + graphs) / 2, _SIZE[1])
    axes, *others = figure.subplots(1, 1 + graphs, width_ratios=[1] + [1.2] * graphs)
    pairs = result["strongest"][::-1]
    partners = [p["second"] if p["first"] == result["feature"] else p["first"] for p in pairs]
    values = [pair["mean_contribution"] for pair in pairs]
    axes.barh(partners, values, color=[_colour(value) for value in values])
    axes.set(title=f"strongest pairs of {result['feature']}", xlabel="mean contribution to the logit")
    for axes, sample in zip(others, result["samples"], strict=True):
        _graph(axes, sample)


def _graph(axes: Any, sample: Mapping[str, Any]) -> None:
    """A prediction: its features on a circle, its open pairs as lines."""
    nodes = len(sample["nodes"])
    angle = [2 * math.pi * at / nodes for at in range(nodes)]
    places = [(math.cos(a), math.sin(a)) for a in angle]
    largest = max(abs(pair["contribution"]) for pair in sample["pairs"])
    for pair in sample["pairs"]:
        (x0, y0), (x1, y1) = places[pair["i"]], places[pair["j"]]
        width, colour = 5 * abs(pair["contribution"]) / largest, _colour(pair["contribution"])
        if pair["i"] == pair["j"]:
            axes.plot([x0], [y0], "o", markersize=4 + 2 * width, color=colour, alpha=0.5)
        else:
            axes.plot([x0, x1], [y0, y1], color=colour, linewidth=width)
    for name, (x, y) in zip(sample["nodes"], places, strict=True):
        axes.annotate(
            name, (x, y), (1.1 * x, 1.1 * y), ha="left" if x > 0 else "right", va="center", fontsize=7
        )
    axes.set(title=f"one prediction, logit {sample['logit']:.2f}", xlim=(-2.8, 2.8), ylim=(-1.3, 1.3))
    axes.axis("off")


def _band(axes: Any, x: list[float], values: list[Any], label: str) -> None:
    """The means over the seeds, and a band of one deviation."""
    mean = [statistics.fmean(found) for found in values]
    spread = [statistics.stdev(found) if len(found) > 1 else 0 for found in values]
    (line,) = axes.plot(x, mean, "o-", markersize=3, label=label)
    low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _colour(value: float) -> str:
    return "tab:blue" if value > 0 else "tab:orange"


DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "fig4-frappe": _fig4,
    "fig5-frappe": _fig5,
    "fig6-frappe": _fig6,
}

if __name__ == "__main__":
    for path in draw():
        print(path.relative_to(environment.ROOT))
