"""Fills the pages of docs/ with the tables of kept results.

    python -m benchmarks.report

What stands between `<!-- results: KIND -->` and `<!-- end -->` is replaced by the tables of the newest result
of that kind in benchmarks/results, or with `accuracy/NAME` by the table of that experiment.
python_tests/test_benchmarks.py asks whether the pages are up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import environment, results
from .accuracy.experiments import EXPERIMENTS

PAGES = [environment.ROOT / "docs" / name for name in ("performance.md", "results.md")]
MARKED = re.compile(r"(<!-- results: ([\w/-]+) -->\n).*?(<!-- end -->)", re.S)

_UNKNOWN = "This has not been measured yet."


def filled(page: str, directory: Path = results.RESULTS) -> str:
    """The page with the tables of the newest results that are in a directory."""

    def tables(match: re.Match[str]) -> str:
        begin, kind, end = match.groups()
        return f"{begin}{_tables(kind, directory)}\n{end}"

    return MARKED.sub(tables, page)


def _tables(kind: str, directory: Path) -> str:
    folder, _, name = kind.rpartition("/")
    if folder:
        if folder != "accuracy" or name not in EXPERIMENTS:
            raise ValueError(f"results: expected accuracy/ and one of {', '.join(EXPERIMENTS)}, got {kind!r}")
        path = directory / folder / f"{name}.json"
        return _table(path, directory, results.read(path)) if path.exists() else _UNKNOWN
    if kind not in results.KINDS:
        raise ValueError(f"results: expected one of {', '.join(results.KINDS)}, got {kind!r}")
    kept = ((path, results.read(path)) for path in directory.glob("*.json"))
    found = [(path, result) for path, result in kept if result["kind"] == kind and not result["quick"]]
    if not found:
        return _UNKNOWN
    path, newest = max(found, key=lambda entry: str(entry[1]["written"]))
    return _table(path, directory, newest)


def _table(path: Path, directory: Path, result: results.Document) -> str:
    lines = [f"From [{path.name}](../benchmarks/results/{path.relative_to(directory).as_posix()}):", ""]
    lines += results.circumstances(result)
    lines += ["#" + line if line.startswith("## ") else line for line in results.tables(result)]
    return "\n".join(lines)


if __name__ == "__main__":
    for page in PAGES:
        results.write_aside(page, filled(page.read_text(encoding="utf-8")))
