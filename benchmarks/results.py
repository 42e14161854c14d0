"""Result files: what they must hold, how they are written, and the tables made from them.

`python -m benchmarks.results FILE.json` prints the table of a result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import environment
from .accuracy import tables as accuracy
from .rounds import quantile

RESULTS = Path(__file__).parent / "results"
ONE_SIZE = "fused, one size"  # the contestant with a ragged batch's pairs in graphs of one size

_PRIVATE = ("out", "part", "name", "data")  # settings that tell of the machine's directories

Document = dict[str, Any]

_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))
_OPTIONAL_TEXT = (str, type(None))
_TIMING = {"ms": [_NUMBER], "median": _NUMBER, "p10": _NUMBER, "p90": _NUMBER, "ratio": _OPTIONAL_NUMBER}
_MEASUREMENT = {"case": dict, "threads": int, "contestants": {"fused": _TIMING, ...: _TIMING}}
_RUN = {
    "allocator": {"name": str, "MALLOC_MMAP_MAX_": _OPTIONAL_TEXT, "MALLOC_TRIM_THRESHOLD_": _OPTIONAL_TEXT},
    "instruction_set": str,
    "variables": dict,
    "load_average": {"before": [_NUMBER], "after": [_NUMBER]},
    "measurements": [_MEASUREMENT],
}
_PEAK = {"method": str, "gflops": {...: _NUMBER}}
_DOCUMENT = {
    "format": int,
    "kind": str,
    "quick": bool,
    "written": str,
    "machine": {"cpu": str, "cores": int, "memory_gib": _NUMBER, "system": str, "libc": str},
    "versions": {
        "l0sign_cuda": str,
        "torch": str,
        "torch_geometric": _OPTIONAL_TEXT,
        "python": str,
        "compiler": str,
    },
    "git": {"commit": _OPTIONAL_TEXT, "dirty": (bool, type(None))},
    "settings": dict,
    "runs": [_RUN],
}
_ROW = {
    "label": str,
    "model": str,
    "options": dict,
    "grid": dict,
    "points": [{"options": dict, "valid": (dict, type(None))}],
    "chosen": (dict, type(None)),
    "seeds": list,
    "n": int,
    "mean": dict,
    "deviation": dict,
}
_ACCURACY = {
    **{name: _DOCUMENT[name] for name in ("format", "kind", "quick", "written")},
    "experiment": str,
    "title": str,
    "data": str,
    "protocol": str,
    "seeds": [int],
    "rows": [_ROW],
    "missing": list,
    "environments": [
        {"machine": _DOCUMENT["machine"], "versions": _DOCUMENT["versions"], "git": dict, "trials": int}
    ],
}
_INTERACTIONS = {
    **{name: _ACCURACY[name] for name in ("format", "kind", "quick", "written", "experiment", "title")},
    **{name: _ACCURACY[name] for name in ("protocol", "environments")},
    "test": dict,
    "feature": str,
    "fields": [dict],
    "strongest": [dict],
    "samples": [{"logit": _NUMBER, "bias": _NUMBER, "nodes": [str], "pairs": [dict]}],
}
_OTHERS = {"accuracy": _ACCURACY, "interactions": _INTERACTIONS}  # kinds that have no timed runs
KINDS: dict[str, dict[str, Any]] = {  # what a kind adds to runs and to measurements' cases
    "layer": {"run": {"peak": _PEAK}, "case": {"shape": str, "mode": str, "gflop": _NUMBER, "pairs": int}},
    "model": {
        "run": {"peak": _PEAK},
        "case": {"shape": str, "mode": str, "gflop": _NUMBER, "pairs": int, "graphs": int},
    },
    "step": {
        "result": {"memory": list},
        "run": {},
        "case": {"part": str, "features": int, "optimizer": str},
    },
}


def document(kind: str, quick: bool, settings: Mapping[str, Any], runs: Sequence[Any]) -> Document:
    """A result, with what is known of the machine."""
    return {
        "format": 1,
        "kind": kind,
        "quick": quick,
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "versions": environment.versions(),
        "git": environment.git(),
        "settings": {
            name: value for name, value in settings.items() if name not in ("out", "part", "name", "data")
        },
        "runs": list(runs),
    }


def check(result: Document) -> None:
    """Raise ValueError naming the first field that is missing, empty or of another type."""
    if result.get("kind") in _OTHERS:
        _check(result, _OTHERS[result["kind"]], "result")
        return
    _check(result, _DOCUMENT, "result")
    kind = KINDS.get(result["kind"])
    if kind is None:
        raise ValueError(f"result.kind: expected one of {', '.join(KINDS)}, got {result['kind']!r}")
    _check(result, kind.get("result", {}), "result")
    for at, run in enumerate(result["runs"]):
        _check(run, kind["run"], f"result.runs[{at}]")
        for index, measurement in enumerate(run["measurements"]):
            _check(measurement["case"], kind["case"], f"result.runs[{at}].measurements[{index}].case")


def _check(value: Any, expected: Any, where: str) -> None:
    """Compare with a pattern: types, [pattern of each item], or {key: pattern}; the key ... is any other."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected fields, got {type(value).__name__}")
        keys = dict.fromkeys(key for key in expected if key is not ...)
        if ... in expected:
            keys |= dict.fromkeys(value)
            if not keys:
                raise ValueError(f"{where}: expected at least one entry, got none")
        for key in keys:
            if key not in value:
                raise ValueError(f"{where}.{key}: missing")
            _check(value[key], expected.get(key, expected.get(...)), f"{where}.{key}")
    elif isinstance(expected, list):
        if not isinstance(value, list) or not value:
            raise ValueError(f"{where}: expected a list that is not empty, got {value!r}")
        for at, item in enumerate(value):
            _check(item, expected[0], f"{where}[{at}]")
    elif not isinstance(value, expected) or (isinstance(value, bool) and expected in (int, _NUMBER)):
        raise ValueError(f"{where}: unexpected {type(value).__name__}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that writes a result."""
    add = parser.add_argument
    add("--quick", action="store_true", help="little data, a few rounds: looks at function, not at time")
    add("--out", type=Path, default=RESULTS, help="directory; default: benchmarks/results")
    add("--name", help="of the files, without suffix; default: date and kind")
    add("--part", type=Path, help=argparse.SUPPRESS)


def write(result: Document, directory: Path, name: str | None = None) -> tuple[Path, Path]:
    """Check a result and write its JSON and its table, each aside and renamed. Returns both paths."""
    check(result)
    if name is None:
        when = result["written"][:16].replace(":", "")  # 2026-01-31T1405
        name = f"{when}-{result['kind']}{'-quick' if result['quick'] else ''}"
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / f"{name}.json", directory / f"{name}.md"
    for path, text in zip(paths, (json.dumps(result, indent=1) + "\n", table(result)), strict=True):
        write_aside(path, text)
    return paths


def write_aside(path: Path, text: str) -> None:
    """The file is the old one or the new one, never part of one."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read(path: Path) -> Document:
    """A result from its file, checked."""
    result: Document = json.loads(path.read_text(encoding="utf-8"))
    check(result)
    return result


def table(result: Document) -> str:
    """A result as Markdown."""
    return "\n".join([*_heading(result), *tables(result)]) + "\n"


def tables(result: Document) -> Iterable[str]:
    """The lines of a result's tables, without the heading."""
    if result["kind"] == "accuracy":
        yield from accuracy.tables(result)
    elif result["kind"] == "interactions":
        yield from accuracy.interaction_tables(result)
    elif result["kind"] == "layer":
        yield from _layer_tables(result["runs"])
    elif result["kind"] == "model":
        yield from _model_tables(result["runs"])
    else:
        yield from _step_tables(result["runs"])
        yield from _memory_table(result["memory"])


def _heading(result: Document) -> list[str]:
    quick = " (quick: no timing)" * result["quick"]
    name = result["title"] if result["kind"] in _OTHERS else result["kind"].capitalize()
    title = f"# {name}, {result['written'][:10]}{quick}"
    return [title, "", *circumstances(result)]


def circumstances(result: Document) -> list[str]:
    """Machine, versions, commit, and what each process ran with, as Markdown."""
    if result["kind"] in _OTHERS:
        return accuracy.circumstances(result)
    machine, versions, git = result["machine"], result["versions"], result["git"]
    commit = (git["commit"] or "unknown")[:12] + (" with changes" if git["dirty"] else "")
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"{machine['libc']}. Commit {commit}. "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + ".",
        "",
    ]
    for run in result["runs"]:
        load = run["load_average"]
        about = f"- allocator {run['allocator']['name']}, {run['instruction_set']} kernels, load average "
        about += f"{load['before'][0]:.1f} before and {load['after'][0]:.1f} after"
        if "peak" in run:
            rates = ", ".join(f"{rate:.0f} ({n} thr.)" for n, rate in run["peak"]["gflops"].items())
            about += f", multiply-add peak by {run['peak']['method']}: {rates} GFLOP/s"
        lines.append(about)
    return lines


def _layer_tables(runs: Sequence[Document]) -> Iterable[str]:
    """One table for each mode and number of threads."""
    best, lesser = _split(runs)
    yield from (
        "",
        "Medians. fused: milliseconds; peak: its share of the multiply-add peak, by the formulas of "
        "problems.gflop; others: median of the per-round ratios over fused, and behind the first, after a "
        "slash, what that ratio would be at the peak itself"
        + (", " + " → ".join(r["allocator"]["name"] for r in best) + " allocator." if len(best) > 1 else "."),
    )
    cases = _grouped(best[0]["measurements"], lambda m: (m["case"]["mode"], m["threads"]))
    for (mode, threads), measurements in cases.items():
        rivals = [name for name in _names(measurements) if name != ONE_SIZE]
        yield from ("", f"## {mode}, {_threads(threads)}", "")
        yield from _header("shape", "fused ms", "peak", *rivals)
        for m in measurements:
            case = m["case"]
            same = [_find(run, case, threads) for run in best]
            fused = _arrow(_value(s, "fused", "median") for s in same)
            share = _arrow(_share(s, run) for s, run in zip(same, best, strict=True))
            others = [_arrow(_value(s, name, "ratio") for s in same) for name in rivals]
            if others:
                bounds = (_at_peak(s, run, rivals[0]) for s, run in zip(same, best, strict=True))
                others[0] += " / " + _arrow(bounds)
            yield _row(case["shape"], fused, share, *others)
    yield from _thread_table(best[0])
    yield from _ragged_table(best[0])
    yield from _lesser_table(best[0], lesser)


def _thread_table(run: Document) -> Iterable[str]:
    """The gain by threads, of the fused contestant, over one."""
    many = sorted({m["threads"] for m in run["measurements"]} - {1})
    ones = [m for m in run["measurements"] if m["threads"] == 1]
    pairs = [(m, [_find(run, m["case"], n) for n in many]) for m in ones]
    pairs = [(m, others) for m, others in pairs if any(others)]
    if not pairs:
        return
    yield from ("", "## fused: time with one thread over time with more", "")
    yield from _header("shape", "mode", *map(_threads, many))
    for m, others in pairs:
        fused = [other["contestants"]["fused"] if other else None for other in others]
        gains = [_quotient_by_rounds(m["contestants"]["fused"], timing) for timing in fused]
        yield _row(m["case"]["shape"], m["case"]["mode"], *map(_number, gains))


def _ragged_table(run: Document) -> Iterable[str]:
    """What graphs of unequal size cost the fused contestant."""
    found = [m for m in run["measurements"] if ONE_SIZE in m["contestants"]]
    if not found:
        return
    yield from ("", "## fused: time over that of as many pairs in graphs of one size", "")
    yield from _header("shape", "mode", "threads", "median of the rounds' ratios")
    for m in found:
        ratio = _quotient_by_rounds(m["contestants"]["fused"], m["contestants"][ONE_SIZE])
        yield _row(m["case"]["shape"], m["case"]["mode"], m["threads"], _number(ratio))


def _lesser_table(best: Document, lesser: Sequence[Document]) -> Iterable[str]:
    """The speed of lesser instruction sets as a share of the best one's."""
    if not lesser:
        return
    yield from ("", f"## fused: speed of lesser instruction sets, {best['instruction_set']} = 1", "")
    yield from _header("shape", "mode", "threads", *(run["instruction_set"] for run in lesser))
    for m in best["measurements"]:
        time = _value(m, "fused", "median")
        found = [_find(run, m["case"], m["threads"]) for run in lesser]
        if not any(found):
            continue
        shares = [_quotient(time, _value(other, "fused", "median")) for other in found]
        yield _row(m["case"]["shape"], m["case"]["mode"], m["threads"], *map(_number, shares))


def _model_tables(runs: Sequence[Document]) -> Iterable[str]:
    """One table for each mode, and the latency."""
    for run in runs:
        yield from (
            "",
            "Medians. fused: milliseconds; peak: its share of the multiply-add peak, by the formulas of "
            "problems.gflop; others: median of the per-round ratios over fused.",
        )
        cases = _grouped(run["measurements"], lambda m: (m["case"]["mode"], m["threads"]))
        for (mode, threads), measurements in cases.items():
            rivals = _names(measurements)
            latency = mode == "latency"
            yield from ("", f"## {mode}, {_threads(threads)}, {run['allocator']['name']} allocator", "")
            yield from _header("samples" if latency else "shape", "fused ms", "peak", *rivals)
            for m in measurements:
                what = f"{m['case']['graphs']:,}" if latency else m["case"]["shape"]
                ratios = [_number(_value(m, name, "ratio")) for name in rivals]
                yield _row(what, _number(_value(m, "fused", "median")), _share(m, run), *ratios)


def _step_tables(runs: Sequence[Document]) -> Iterable[str]:
    for run in runs:
        by_part = _grouped(run["measurements"], lambda m: (m["case"]["part"], m["threads"]))
        for (part, threads), measurements in by_part.items():
            yield from ("", f"## {part}, {_threads(threads)}, {run['allocator']['name']} allocator", "")
            yield from (_epoch_table if part == "epoch" else _vocabulary_table)(measurements)


def _epoch_table(measurements: Sequence[Document]) -> Iterable[str]:
    names = ["fused", *_names(measurements)]
    yield (
        "Seconds an epoch: the median time of a step, times the steps. In brackets: how many times faster "
        "than the official approach with the same optimizer, the median of the rounds' ratios."
    )
    yield ""
    yield from _header("data", "samples", "optimizer", *names)
    for m in measurements:
        case = m["case"]
        cells = []
        for name in names:
            ms = _value(m, name, "median")
            cell = _number(None if ms is None else ms * case["steps"] / 1e3)
            faster = _ratio(m, "official", name)
            cells.append(cell if name == "official" or faster is None else f"{cell} ({_number(faster)})")
        yield _row(case["data"], f"{case['samples']:,}", case["optimizer"], *cells)


def _vocabulary_table(measurements: Sequence[Document]) -> Iterable[str]:
    names = ["fused", *_names(measurements)]
    features = sorted({m["case"]["features"] for m in measurements})
    yield (
        "Milliseconds a step, by the number of features; growth: with the most over with the fewest, the "
        "median of the rounds' ratios, and in brackets where the middle eight tenths of them lie."
    )
    yield ""
    yield from _header("", "optimizer", "ids", *(f"{n:,}" for n in features), "growth")
    rows = _grouped(measurements, lambda m: (m["case"]["optimizer"], m["case"]["ids"]))
    for name in names:
        for (optimizer, ids), found in rows.items():
            by_features = {m["case"]["features"]: m["contestants"].get(name) for m in found}
            timings = [by_features.get(n) for n in features]
            medians = [timing["median"] if timing else None for timing in timings]
            yield _row(
                name, optimizer, ids, *map(_number, medians), _number(_growth(timings[0], timings[-1]))
            )


def _growth(fewest: Document | None, most: Document | None) -> str | None:
    ratios = _ratios_by_rounds(most, fewest)
    if not ratios:
        return None
    low, high = (_number(quantile(ratios, at)) for at in (0.1, 0.9))
    return f"{_number(statistics.median(ratios))} ({low} to {high})"


def _memory_table(memory: Sequence[Document]) -> Iterable[str]:
    if not memory:
        return
    features = sorted({m["features"] for m in memory})
    yield from ("", "## memory", "")
    yield (
        "MiB that a process takes at most while it trains with Adam, by the number of features; in brackets "
        "what of it the program and the data had taken before."
    )
    yield ""
    yield from _header("", *(f"{n:,}" for n in features))
    for name, found in _grouped(memory, lambda m: m["contestant"]).items():
        by_features = {m["features"]: m for m in found}
        cells = [
            f"{m['peak_bytes'] / 2**20:,.0f} ({m['program_bytes'] / 2**20:,.0f})" if m else "–"
            for m in map(by_features.get, features)
        ]
        yield _row(name, *cells)


def _split(runs: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """The runs with the first run's kernels, and the others."""
    first = runs[0]["instruction_set"]
    return (
        [run for run in runs if run["instruction_set"] == first],
        [run for run in runs if run["instruction_set"] != first],
    )


def _grouped(items: Iterable[Document], key: Callable[[Document], Any]) -> dict[Any, list[Document]]:
    groups: dict[Any, list[Document]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _names(measurements: Iterable[Document]) -> list[str]:
    """All contestants but fused, in their order."""
    return [
        name for name in dict.fromkeys(n for m in measurements for n in m["contestants"]) if name != "fused"
    ]


def _find(run: Document, case: Mapping[str, Any], threads: int) -> Document | None:
    def key(m: Document) -> tuple[Any, ...]:
        return m["case"].get("shape"), m["case"].get("mode"), m["threads"]

    wanted = case.get("shape"), case.get("mode"), threads
    return next((m for m in run["measurements"] if key(m) == wanted), None)


def _value(measurement: Document | None, name: str, field: str) -> float | None:
    timing = measurement["contestants"].get(name) if measurement else None
    return timing[field] if timing else None


def _share(measurement: Document | None, run: Document) -> str | None:
    """The fused contestant's share of the multiply-add peak."""
    share = _quotient(_ms_at_peak(measurement, run), _value(measurement, "fused", "median"))
    return None if share is None else f"{share:.0%}"


def _at_peak(measurement: Document | None, run: Document, name: str) -> float | None:
    """How many times a contestant's time is that of multiply-adds at the peak, and nothing else."""
    return _quotient(_value(measurement, name, "median"), _ms_at_peak(measurement, run))


def _ms_at_peak(measurement: Document | None, run: Document) -> float | None:
    if measurement is None:
        return None
    return 1e3 * measurement["case"]["gflop"] / run["peak"]["gflops"][str(measurement["threads"])]


def _ratio(measurement: Document, name: str, over: str) -> float | None:
    """The median of the per-round ratios of two contestants."""
    return _quotient_by_rounds(*(measurement["contestants"].get(of) for of in (name, over)))


def _quotient_by_rounds(a: Document | None, b: Document | None) -> float | None:
    """The median of the ratios of two timings, round by round."""
    ratios = _ratios_by_rounds(a, b)
    return statistics.median(ratios) if ratios else None


def _ratios_by_rounds(a: Document | None, b: Document | None) -> list[float]:
    return [x / y for x, y in zip(a["ms"], b["ms"], strict=False)] if a and b else []


def _quotient(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _number(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    if abs(value) < 1:
        return f"{value:.2g}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _arrow(values: Iterable[float | str | None]) -> str:
    cells = list(values)
    return " → ".join(map(_number, cells)) if any(cell is not None for cell in cells) else "–"


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number != 1)}"


def _header(*names: str) -> tuple[str, str]:
    return _row(*names), "|---" * len(names) + "|"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("file", type=Path)
    print(table(read(parser.parse_args(arguments).file)), end="")


if __name__ == "__main__":
    main()
