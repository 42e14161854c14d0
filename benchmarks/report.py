"""Fills docs/performance.md with the tables of the newest kept results.

    python -m benchmarks.report

What stands between `<!-- results: KIND -->` and `<!-- end -->` is replaced by the tables of the newest result
of that kind in benchmarks/results. python_tests/test_benchmarks.py asks whether the page is up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import environment, results

PAGE = environment.ROOT / "docs" / "performance.md"
_MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)


def filled(page: str, directory: Path = results.RESULTS) -> str:
    """The page with the tables of the newest results that are in a directory."""

    def tables(match: re.Match[str]) -> str:
        begin, kind, end = match.groups()
        return f"{begin}{_tables(kind, directory)}\n{end}"

    return _MARKED.sub(tables, page)


def _tables(kind: str, directory: Path) -> str:
    if kind not in results.KINDS:
        raise ValueError(f"results: expected one of {', '.join(results.KINDS)}, got {kind!r}")
    kept = ((path, results.read(path)) for path in directory.glob("*.json"))
    found = [(path, result) for path, result in kept if result["kind"] == kind and not result["quick"]]
    if not found:
        return "This has not been measured yet."
    path, newest = max(found, key=lambda entry: str(entry[1]["written"]))
    lines = [f"From [{path.name}](../benchmarks/results/{path.name}):", ""]
    lines += results.circumstances(newest)
    lines += ["#" + line if line.startswith("## ") else line for line in results.tables(newest)]
    return "\n".join(lines)


if __name__ == "__main__":
    results.write_aside(PAGE, filled(PAGE.read_text(encoding="utf-8")))
