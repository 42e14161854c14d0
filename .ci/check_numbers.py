"""Checks that figures in README.md and docs/ are measured: `python .ci/check_numbers.py [PAGE ...]`.

Every number in a table, first column aside, and every number with a decimal point in an example's output (a
fenced block without a language) has to stand, rounded to the digits that it is shown with, in a result that
its section links to: a JSON file, a Markdown file beside one, or a directory of them, below
benchmarks/results; a number before a % sign as a share. What describes a run (settings, versions, machine,
load) and raw samples count as no result, and the epochs' histories only for an example's output. A table of
other numbers says so before it: `<!-- numbers: definition -->` for what was chosen, `predicted` for what
was computed, `cited` for what others measured. Tables between `<!-- results: ... -->` and `<!-- end -->`
are written by benchmarks.report, whose test compares them whole.

All figures of a line have to stand in one record (an object of the JSON), so that few wrong ones are right by
accident: of README's, each made wrong by 1 to 3 in its last digit, the test of this file finds 98.5 %.
"""

import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKED_ELSEWHERE = {"cuda-resources.md"}  # .ci/cuda_resources.py writes it

NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?:(?=(?:x|ms|s)\b)|(?![\w.]*\w))(?:\s*%)?"
)
DESCRIBING = {
    "allocator", "best_epoch", "case", "data", "format", "git", "grid", "load_average", "machine",
    "options", "points", "process", "settings", "variables", "versions",
}  # fmt: skip
HISTORIES = {"epochs", "history"}
RECORD = 24  # the most numbers of an object, with all that is in it, that one line may be about
Numbers = list[float]
LINK = re.compile(r"\]\(((?:\.\./)*benchmarks/results[^)#]*)\)")
MARK = re.compile(r"<!-- numbers: (definition|predicted|cited) -->")


def unfounded(page: Path) -> list[str]:
    """What the page shows and no result has: "LINE: number ..."."""
    wrong = []
    for section in sections(page.read_text(encoding="utf-8")):
        sources, known = results_of(section, page.parent)
        for line, text, shown in figures(section):
            if not sources:
                wrong.append(f"{line}: {text.strip()!r} stands in a section that links to no result")
                break
            wrong += [
                f"{line}: {number} is in no record of the linked results that has the line's others"
                for number in strangers(shown, known[not text.startswith("|")])
            ]
    return wrong


def results_of(section: list[tuple[int, str]], folder: Path) -> tuple[list[Path], dict[bool, list[Numbers]]]:
    """What a section links to, and the records there, without those of single epochs and with them."""
    sources = [folder / link for _, line in section for link in LINK.findall(line)]
    return sources, {
        histories: [record for source in sources for record in records_of(source, histories)]
        for histories in (False, True)
    }


def strangers(shown: list[str], records: list[Numbers]) -> list[str]:
    """The figures of a line that are not in the record which has most of them."""
    return min(
        ([number for number in shown if not is_founded(number, record)] for record in records),
        key=len,
        default=shown,
    )


def sections(page: str) -> Iterator[list[tuple[int, str]]]:
    """The numbered lines from each heading to the next, without what benchmarks.report writes."""
    section: list[tuple[int, str]] = []
    fenced = generated = False
    for number, line in enumerate(page.splitlines(), 1):
        fenced ^= line.startswith("```")
        generated |= line.startswith("<!-- results: ")
        if re.match(r"#+ ", line) and not fenced and not generated:
            yield section
            section = []
        if not generated:
            section.append((number, line))
        generated &= not line.startswith("<!-- end -->")
    if generated:
        raise ValueError("expected <!-- end --> after <!-- results: ... -->")
    yield section


def figures(section: list[tuple[int, str]]) -> Iterator[tuple[int, str, list[str]]]:
    """(line, text, numbers) of the tables and of the examples' output."""
    language, excused, table = None, False, 0
    for at, line in section:
        if line.startswith("```"):
            language = line[3:].strip() if language is None else None
        elif language == "":
            output = "" if line.startswith("$") else line.partition("#")[0]
            if found := [number for number in NUMBER.findall(output) if "." in number]:
                yield at, line, found
        elif line.startswith("|"):
            table += 1
            cells = line.strip().strip("|").split("|")[1:]
            texts = [re.sub(r"`[^`]*`", "", cell) for cell in cells]
            found = [number for text in texts for number in NUMBER.findall(text)]
            if found and table > 1 and not excused:
                yield at, line, found
        elif line.strip():
            excused, table = bool(MARK.search(line)), 0


def records_of(source: Path, histories: bool) -> list[Numbers]:
    """The records of a result, as the numbers that they found, with those of single epochs or without."""
    records: list[Numbers] = []
    for file in sorted(source.rglob("*.json")) if source.is_dir() else [source.with_suffix(".json")]:
        _collect(json.loads(file.read_text(encoding="utf-8")), histories, records)
    return records


def _collect(value: object, histories: bool, records: list[Numbers]) -> Numbers:
    """The numbers of a part of a result; its objects become records: their own numbers, and all if few."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [float(value)]
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in DESCRIBING and (histories or k not in HISTORIES)}
        parts = [_collect(part, histories, records) for part in kept.values()]
        own = [
            n
            for k, part in zip(kept, parts, strict=True)
            if not isinstance(kept[k], (dict, list))
            for n in part
        ]
        whole = [number for part in parts for number in part]
        records.append(whole if len(whole) <= RECORD else own)
        return whole
    if isinstance(value, list) and not (value and all(isinstance(item, float) for item in value)):
        return [number for item in value for number in _collect(item, histories, records)]
    return []  # a list of numbers alone is one of samples


def is_founded(number: str, known: Numbers) -> bool:
    """Whether a known number is the figure, to the digits that are shown."""
    share = number.endswith("%")
    shown = Decimal(plain(number).rstrip("% "))
    exponent = shown.as_tuple().exponent
    assert isinstance(exponent, int)
    unit = Decimal(1).scaleb(exponent)
    for value in known:
        exact = Decimal(repr(value)) * (100 if share else 1)
        if not exact.is_finite():
            continue
        if abs(exact - shown) <= unit / 2:
            return True
    return False


def plain(number: str) -> str:
    """A number as Python writes it."""
    return number.replace(",", "").replace("−", "-")


def pages() -> list[Path]:
    """README and the pages of docs/ that this script checks."""
    everything = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in everything if page.name not in CHECKED_ELSEWHERE]


def main(given: list[Path]) -> int:
    """0 where every figure is founded."""
    wrong = [f"{page.relative_to(ROOT)}:{line}" for page in given for line in unfounded(page)]
    print("\n".join(wrong) or f"{len(given)} pages: every figure stands in a kept result")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main([Path(name).resolve() for name in sys.argv[1:]] or pages()))
