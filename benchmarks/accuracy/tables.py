"""A kept result as Markdown: mean ± deviation over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SHOWN_EPOCHS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 100, 150, 200)
_TITLES = {"auc": "AUC", "edges_kept": "edges kept"}
# Name in a history -> title.
_OF_CURVES = {
    prefix + name: f"{part} {_TITLES.get(name, name)}"
    for prefix, part in (("test ", "test"), ("", "validation"))
    for name in ("auc", "accuracy", "edges_kept")
}


def circumstances(result: Mapping[str, Any]) -> list[str]:
    """Where the trials ran, as Markdown: a line for each machine with its versions, and the commits."""
    groups: dict[str, dict[str, Any]] = {}
    for found in result["environments"]:
        machine, git = found["machine"], found["git"]
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
        cores = f"{machine['cores']} core" + "s" * (machine["cores"] != 1)
        where = f"{machine['cpu']}, {cores}, {versions}"
        group = groups.setdefault(where, {"trials": 0, "commits": {}})
        group["trials"] += found["trials"]
        group["commits"][(git["commit"] or "unknown")[:12] + " with changes" * bool(git["dirty"])] = None
    return [
        f"- {group['trials']} trials: {where}; commits {', '.join(sorted(group['commits']))}"
        for where, group in groups.items()
    ]


def tables(result: Mapping[str, Any]) -> Iterable[str]:
    """The lines of a result's table."""
    yield from ("", f"Data: {result['data']}. {result['protocol']}", "")
    names = _columns(result)
    titles = [*(_TITLES.get(name, name) for name in names), "seeds", "parameters", "s an epoch"]
    tuned = any(row["grid"] for row in result["rows"])
    yield _line("", *titles, *["chosen"] * tuned)
    yield _line("---", *["---"] * (len(titles) + tuned))
    for row in result["rows"]:
        cells = [_cell(name, row["mean"].get(name), row["deviation"].get(name)) for name in names]
        learnt = bool(row["parameters"])
        yield _line(
            row["label"],
            *cells,
            row["n"],
            f"{row['parameters']:,}" if learnt else "–",
            f"{row['seconds']:.1f}" if learnt else "–",
            *[", ".join(f"{name} {value:g}" for name, value in (row["chosen"] or {}).items()) or "–"] * tuned,
        )
    yield from _curves(result["rows"])
    if at_edge := [found for row in result["rows"] if (found := _at_edge(row))]:
        yield from (
            "",
            f"Chosen at an edge of the grid, beyond which there may be better: {'; '.join(at_edge)}.",
        )
    if cut := [found for row in result["rows"] if (found := _cut(row, result["common"]))]:
        yield from ("", f"Still getting better when the epochs ended: {'; '.join(cut)}.")
    if result["missing"]:
        yield from ("", f"Missing: {'; '.join(result['missing'])}.")


def interaction_tables(result: Mapping[str, Any]) -> Iterable[str]:
    """The lines of the tables of a result about one feature."""
    yield from ("", result["protocol"], "", f"Strongest pairs of {result['feature']}:", "")
    yield _line("first", "second", "samples", "open in", "mean contribution")
    yield _line("---", "---", "---", "---", "---")
    for pair in result["strongest"]:
        share = f"{100 * pair['open_share']:.1f} %"
        contribution = f"{pair['mean_contribution']:+.4f}"
        yield _line(pair["first"], pair["second"], pair["samples"], share, contribution)
    for sample in result["samples"]:
        yield from ("", f"One prediction: logit {sample['logit']:.4f}, bias {sample['bias']:.4f}.", "")
        yield _line("first", "second", "gate", "contribution")
        yield _line("---", "---", "---", "---")
        for pair in sorted(sample["pairs"], key=lambda pair: -abs(pair["contribution"])):
            yield _line(*pair["names"], f"{pair['gate']:.4f}", f"{pair['contribution']:+.4f}")


def _at_edge(row: Mapping[str, Any]) -> str:
    """The row's options that are the least or the most of their grid; empty without any."""
    ends = {name: (min(values), max(values)) for name, values in row["grid"].items() if len(values) > 1}
    chosen = row["chosen"] or {}
    found = [
        f"{name} {chosen[name]:g}" for name, both in ends.items() if name in chosen and chosen[name] in both
    ]
    return f"{row['label']} ({', '.join(found)})" if found else ""


def _cut(row: Mapping[str, Any], common: Mapping[str, Any]) -> str:
    """The row's seeds that were trained for as long as they might be, with the best epoch among the last."""
    patience = common.get("patience") or 0
    late = [
        s["seed"]
        for s in row["seeds"]
        if s["stopped"] == "epochs" and s["epochs"] - s["best_epoch"] < patience
    ]
    return f"{row['label']} (seed{'s' * (len(late) > 1)} {', '.join(map(str, late))})" if late else ""


def _curves(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """The means of AUC, accuracy and edges kept by epoch, of the rows whose history was kept.

    Stages were measured on the test samples too, epochs on the validation samples alone; a title says which.
    """
    means: dict[tuple[int, str, str], float] = {}
    for row in rows:
        histories = [seed["history"] for seed in row["seeds"] if "history" in seed]
        for epoch in _SHOWN_EPOCHS:
            there = [found for history in histories for found in history if found["epoch"] == epoch]
            for key in _OF_CURVES:
                values = [found[key] for found in there if key in found]
                if values and len(values) == len(there):
                    means[epoch, row["label"], key] = statistics.fmean(values)
    if not means:
        return
    columns = [(row["label"], key) for row in rows for key in _OF_CURVES]
    columns = [
        column
        for column in columns
        if (values := [mean for key, mean in means.items() if key[1:] == column])
        and not (column[1].endswith("edges_kept") and min(values) == 1)
    ]
    yield ""
    yield _line("epoch", *(f"{label}: {_OF_CURVES[key]}" for label, key in columns))
    yield _line("---", *["---"] * len(columns))
    for epoch in dict.fromkeys(key[0] for key in sorted(means)):
        cells = (
            _cell(key.removeprefix("test "), means.get((epoch, label, key)), None) for label, key in columns
        )
        yield _line(epoch, *cells)


def _columns(result: Mapping[str, Any]) -> list[str]:
    """Those of the experiment, and the share of edges where there is one."""
    shares = any("edges_kept" in row["mean"] for row in result["rows"])
    return [*result["columns"], *(["edges_kept"] if shares else [])]


def _cell(name: str, mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "–"
    if name == "edges_kept":
        return f"{100 * mean:.1f} %" + ("" if not deviation else f" ± {100 * deviation:.1f}")
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _line(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
