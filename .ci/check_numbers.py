"""Checks that figures in README.md and docs/ are measured: `python .ci/check_numbers.py [PAGE ...]`.

Every number in a table, first column aside, and every number with a decimal point in an example's output (a
fenced block without a language) has to stand, rounded as it is there, in a result that its section links
to: a JSON file, a Markdown file beside one, or a directory of them, below benchmarks/results. A table of
other numbers says so before it: `<!-- numbers: definition -->` for what was chosen, `predicted` for what
was computed, `cited` for what others measured. Tables between `<!-- results: ... -->` and `<!-- end -->`
are written by benchmarks.report, whose test compares them whole.
"""

import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKED_ELSEWHERE = {"cuda-resources.md"}  # .ci/cuda_resources.py writes it

NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?![\w.]*\w)")
LINK = re.compile(r"\]\(((?:\.\./)*benchmarks/results[^)#]*)\)")
MARK = re.compile(r"<!-- numbers: (definition|predicted|cited) -->")


def unfounded(page: Path) -> list[str]:
    """What the page shows and no result has: "LINE: number ..."."""
    wrong = []
    for section in sections(page.read_text(encoding="utf-8")):
        sources = [page.parent / link for _, line in section for link in LINK.findall(line)]
        known = rounded({number for source in sources for number in numbers_of(source)})
        for line, text, shown in figures(section):
            if not sources:
                wrong.append(f"{line}: {text.strip()!r} stands in a section that links to no result")
                break
            wrong += [
                f"{line}: {number} is in none of the linked results"
                for number in shown
                if plain(number) not in known
            ]
    return wrong


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
            texts = [re.sub(r"`[^`]*`|\([^)]*\)", "", cell) for cell in cells]
            found = [number for text in texts for number in NUMBER.findall(text)]
            if found and table > 1 and not excused:
                yield at, line, found
        elif line.strip():
            excused, table = bool(MARK.search(line)), 0


def numbers_of(source: Path) -> Iterator[float]:
    """All numbers of a result."""
    for file in sorted(source.rglob("*.json")) if source.is_dir() else [source.with_suffix(".json")]:
        yield from _leaves(json.loads(file.read_text(encoding="utf-8")))


def _leaves(value: object) -> Iterator[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)


def rounded(numbers: set[float]) -> set[str]:
    """Each number, and its percentage, with 0 to 4 decimals and with 2 and 3 digits."""
    shown = set()
    for number in numbers:
        for value in (number, 100 * number):
            shown |= {f"{value:.{digits}f}" for digits in range(5)}
            shown |= (
                {plain(f"{Decimal(f'{value:.{digits}g}'):f}") for digits in (2, 3)}
                if value == value
                else set()
            )
    return shown


def plain(number: str) -> str:
    """A number as Python writes it."""
    return number.replace(",", "").replace("−", "-")


def main(pages: list[Path]) -> int:
    """0 where every figure is founded."""
    wrong = [f"{page.relative_to(ROOT)}:{line}" for page in pages for line in unfounded(page)]
    print("\n".join(wrong) or f"{len(pages)} pages: every figure stands in a kept result")
    return 1 if wrong else 0


if __name__ == "__main__":
    given = [Path(name).resolve() for name in sys.argv[1:]]
    everything = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    sys.exit(main(given or [page for page in everything if page.name not in CHECKED_ELSEWHERE]))
