"""Checks that figures in README.md and docs/ are measured: `python .ci/check_numbers.py [PAGE ...]`.

A figure has to stand, rounded to the digits that it is shown with, in a result that its section links to: a
JSON file, a Markdown file beside one, or a directory of them, below benchmarks/results; a number before a %
sign as a share. What describes a run (settings, versions, machine, load) and raw samples count as no result,
and the epochs' histories only for an example's output. Figures are

- in a table every number, first column aside, and in an example's output (a fenced block without a language)
  every number with a decimal point. Those of a line have to stand in one record (an object of the JSON);
  where records have labels, in one that the line's first cell (up to a colon) names;
- in running text every number with a decimal point or thousands, or before a % sign, "times" or a unit of
  time, and "A" of "A to B %". They have to stand in what the tables show of the results that the paragraph
  links to, or its section if it links to none. Inline code and versions are skipped.

Between `<!-- results: ... -->` and `<!-- end -->` a page has to hold what benchmarks.report writes there, and
docs/figures what benchmarks.accuracy.figures draws (with matplotlib of the version that CI has).

A mark before a paragraph, list, table or output says what else its figures are:

    <!-- numbers: KIND -->               all of them
    <!-- numbers: KIND 0.05, 0.3 -->     these
    <!-- numbers: KIND, section -->      all from here to the next heading
    <!-- numbers: 0.05 = 0.9766 - 0.9274, 6 % = 1 - table2:0.94 -->

the last computed from numbers of the linked results, or of table2.json (`cited:` is what others measured),
where KIND is definition (chosen, or so by construction), predicted (computed or counted), cited (measured by
others) or tried (measured, but not kept as a result).

What it does not see: numbers in words, other whole numbers in running text, and a wrong figure that stands
elsewhere in the same result. Of figures that are off by 1 to 3 in the last digit the test of this file finds
97 % in tables, 99 % in outputs and 79 % in running text, and all that are listed in a mark or computed.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))  # for benchmarks
CHECKED_ELSEWHERE = {"cuda-resources.md"}  # .ci/cuda_resources.py writes it

NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?:(?=(?:x|ms|s)\b)|(?![\w.]*\w))(?:\s*%)?"
)
UNIT = re.compile(r"x\b|\s?(?:times|ns|us|ms|s|seconds)\b")
RANGE = re.compile(r" to [\d.,]*\d(\s?%|x\b|\s?(?:times|ns|us|ms|s|seconds)\b)")
NO_PROSE = re.compile(
    r"`[^`]*`|!\[[^]]*\]\([^)]*\)|\]\([^)]*\)|\b(?:torch|Python|GCC|nvcc|version|capability) [\d.]*\d\b"
)
DESCRIBING = {
    "allocator", "best_epoch", "case", "data", "format", "git", "grid", "load_average", "machine",
    "options", "points", "process", "settings", "variables", "versions",
}  # fmt: skip
HISTORIES = {"epochs", "history"}
NAMING = ("label", "model", "contestant", "shape", "epoch")  # what a record is called by, the first it has
NAMED = {"test", "valid"}  # what is called by its key
RECORD = 24  # the most numbers of an object, with all that is in it, that one line may be about
OPERAND = re.compile(r"(?:([\w-]+):)?(\d+(?:\.\d+)?)(?![\d.])")
LINK = re.compile(r"\]\(((?:\.\./)*benchmarks/results[^)#]*)\)")
KINDS = ("definition", "predicted", "cited", "tried")


@dataclass(frozen=True)
class Record:
    """Numbers that belong together, and what they, or what they are in, are called."""

    numbers: list[float]
    labels: frozenset[str] = frozenset()


@dataclass
class Mark:
    """What the author says of a block's figures."""

    excused: set[str] | None = field(default_factory=set)  # None: all
    computed: dict[str, str] = field(default_factory=dict)


@dataclass
class Block:
    """Lines that belong together; kind: prose, table or output."""

    kind: str
    lines: list[tuple[int, str]]
    mark: Mark = field(default_factory=Mark)


@dataclass
class Section:
    """From a heading to the next; links also from what benchmarks.report writes."""

    blocks: list[Block] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def unfounded(page: Path) -> list[str]:
    """What the page shows and no result has: "LINE: number ..."."""
    return [
        f"{line}: {complaint}"
        for section in sections(page.read_text(encoding="utf-8"))
        for block in section.blocks
        for line, complaint in complaints(block, section, page.parent)
    ]


def complaints(block: Block, section: Section, folder: Path) -> Iterator[tuple[int, str]]:
    """What is wrong with a block, and its line."""
    if block.mark.excused is None:
        return
    shown = list(figures(block))
    named = block.mark.excused | set(block.mark.computed)
    for number in sorted(named - {number for _, _, numbers in shown for number in numbers}):
        yield block.lines[0][0], f"the mark before it names {number}, which is no figure of it"
    sources = sources_of(block, section, folder)
    for number, formula in block.mark.computed.items():
        if reason := miscalculated(number, formula, sources):
            yield block.lines[0][0], f"{number} = {formula}: {reason}"
    for line, cell, numbers in shown:
        asked = [number for number in numbers if number not in named]
        if not asked:
            continue
        if not sources:
            yield line, f"{', '.join(asked)} stands in a section that links to no result"
            return
        for number in strangers(asked, candidates(block.kind, cell, sources)):
            where = (
                "in none of the linked results"
                if block.kind == "prose"
                else ("in no record of the linked results that has the line's label and other figures")
            )
            yield line, f"{number} is {where}"


def sources_of(block: Block, section: Section, folder: Path) -> list[Path]:
    """The results that a block is about: those that a paragraph links to, else those of the section."""
    own = LINK.findall("\n".join(line for _, line in block.lines)) if block.kind == "prose" else []
    return [folder / link for link in own or section.links]


def candidates(kind: str, cell: str, sources: Iterable[Path]) -> list[Record]:
    """The records that a line with this first cell may be about."""
    if kind == "prose":
        return [Record([number for source in sources for file in files(source) for number in headline(file)])]
    records = [record for source in sources for record in records_of(source, kind == "output")]
    called = [record for record in records if squashed(cell) in record.labels]
    # A line of output may begin with anything; a row of a table has to say what it is about.
    return called or [record for record in records if kind == "output" or not record.labels]


def strangers(shown: list[str], records: list[Record]) -> list[str]:
    """The figures of a line that are not in the record which has most of them."""
    return min(
        ([number for number in shown if not is_founded(number, record.numbers)] for record in records),
        key=len,
        default=shown,
    )


def sections(page: str) -> Iterator[Section]:
    """The parts of a page from each heading to the next, without what benchmarks.report writes."""
    section, mark, excused = Section(), Mark(), False
    fence: str | None = None
    generated = False
    block: Block | None = None
    for number, line in enumerate(page.splitlines(), 1):
        generated |= line.startswith("<!-- results: ")
        section.links += LINK.findall(line) if fence is None else []
        if generated:
            generated, block = not line.startswith("<!-- end -->"), None
        elif fence is not None:
            if line.startswith("```"):
                fence = block = None
            elif block:
                block.lines.append((number, line))
        elif re.match(r"#+ ", line):
            yield section
            section, mark, excused, block = Section(), Mark(), False, None
        elif line.startswith("<!-- numbers:"):
            excused |= read_mark(line, mark)
            block = None
        elif not line.strip():
            block = None
        else:
            kind = "output" if line.startswith("```") else "table" if line.startswith("|") else "prose"
            if kind == "output":
                fence, block = line[3:].strip(), None
            if block is None or block.kind != kind:
                block = Block(kind, [], Mark(None) if excused else mark)
                section.blocks.append(block)
                mark = Mark()
            if kind != "output":
                block.lines.append((number, line))
            elif fence:
                section.blocks.pop()  # code is no output
                block = None
    if generated:
        raise ValueError("expected <!-- end --> after <!-- results: ... -->")
    yield section


def read_mark(line: str, mark: Mark) -> bool:
    """Add what a mark says; returns whether it says it of the rest of the section."""
    found = re.fullmatch(r"<!-- numbers: (.+) -->", line.rstrip())
    said = found[1] if found else ""
    kind, _, listed = said.partition(" ")
    if said.removesuffix(", section") in KINDS:
        mark.excused = None
        return said not in KINDS
    if kind in KINDS:
        mark.excused = None if mark.excused is None else mark.excused | set(listed.split(", "))
    elif not said or not all(" = " in part for part in said.split(", ")):
        raise ValueError(f"expected a kind, {', '.join(KINDS)}, or NUMBER = FORMULA, got {line!r}")
    else:
        mark.computed |= dict(part.split(" = ", 1) for part in said.split(", "))
    return False


def figures(block: Block) -> Iterator[tuple[int, str, list[str]]]:
    """(line, first cell, figures) of a block's lines; of a paragraph all at once."""
    if block.kind == "prose":
        yield block.lines[0][0], "", figures_of_text([line for _, line in block.lines])
    elif block.kind == "output":
        for at, line in block.lines:
            output = "" if line.startswith("$") else line.partition("#")[0]
            if found := [number for number in numbers_in(output) if "." in number]:
                yield at, re.split(r"\s{2,}", output.strip())[0], found
    else:
        for at, line in block.lines[1:]:
            first, *cells = line.strip().strip("|").split("|")
            if found := [n for cell in cells for n in numbers_in(re.sub(r"`[^`]*`", "", cell))]:
                yield at, first, found


def figures_of_text(lines: list[str]) -> list[str]:
    """What running text shows as measured."""
    if lines[0].startswith("    "):
        return []  # code
    text = NO_PROSE.sub("", " ".join(line.strip() for line in lines))
    found = []
    for match in NUMBER.finditer(text):
        number, rest = match[0], text[match.end() :]
        unit = UNIT.match(rest) or RANGE.match(rest)
        if "." in number or "," in number or "%" in number or unit:
            share = unit is not None and unit.re is RANGE and unit[1].endswith("%")
            found.append(spaced(number + "%" * (share and "%" not in number)))
    return found


def numbers_in(text: str) -> list[str]:
    """All numbers of a text, shares with their sign."""
    return [spaced(number) for number in NUMBER.findall(text)]


def spaced(number: str) -> str:
    """A number as marks have it."""
    return re.sub(r"\s*%", " %", number)


def squashed(cell: str) -> str:
    """What a first cell calls its row, without what may be written in several ways."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"`[^`]*`", "", cell).partition(":")[0].lower())


def miscalculated(number: str, formula: str, sources: list[Path]) -> str:
    """Why a formula of known numbers does not give the figure; "" if it does."""
    if not re.fullmatch(rf"(?:{OPERAND.pattern}|[+\-*/() ])+", formula):
        return "not a formula"
    for result, operand in OPERAND.findall(formula):
        named = sorted(RESULTS.rglob(f"{result}.json")) if result else sources
        if "." in operand and result != "cited" and not is_founded(operand, everything(named)):
            return f"{operand} is not in {', '.join(path.name for path in named) or result}"
    value = float(eval(OPERAND.sub(r"Fraction('\g<2>')", formula), {"Fraction": Fraction}))
    return "" if is_founded(number, [value]) else f"it is {value:.6g}"


def everything(sources: Iterable[Path]) -> list[float]:
    """All numbers of results, and of their tables."""
    shown = [number for source in sources for file in files(source) for number in headline(file)]
    return shown + [n for source in sources for record in records_of(source, True) for n in record.numbers]


def files(source: Path) -> list[Path]:
    """The results that a link is to."""
    return sorted(source.rglob("*.json")) if source.is_dir() else [source.with_suffix(".json")]


@cache
def headline(file: Path) -> list[float]:
    """What the tables of a result show, without deviations and settings; of one without tables all."""
    result = json.loads(file.read_text(encoding="utf-8"))
    tabled = result.get("kind") not in (None, "interactions")
    if not tabled:
        return [number for record in records_of(file, False) for number in record.numbers]
    from benchmarks.results import tables  # late: it imports torch

    cells = [cell.strip() for line in tables(result) if line.startswith("|") for cell in line.split("|")]
    shown = [n for cell in cells if cell[:1].isdigit() for n in numbers_in(cell.partition("±")[0])]
    return [float(plain(n).rstrip("% ")) / (100 if "%" in n else 1) for n in shown]


@cache
def records_of(source: Path, histories: bool) -> list[Record]:
    """The records of a result, with those of epochs or without; of several, called by their files too."""
    records: list[Record] = []
    for file in files(source):
        labels = frozenset({squashed(file.stem)} if source.is_dir() else ())
        collect(json.loads(file.read_text(encoding="utf-8")), histories, labels, records)
    return records


def collect(value: Any, histories: bool, labels: frozenset[str], records: list[Record]) -> list[float]:
    """The numbers of a part of a result; its objects become records: their own numbers, and all if few."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [float(value)]
    if isinstance(value, dict):
        names = value | value.get("case", {})
        own_labels = [squashed(str(names[key])) for key in NAMING if key in names][:1]
        labels |= set(own_labels)
        own, whole = [], []
        for key, part in value.items():
            if key not in DESCRIBING and (histories or key not in HISTORIES):
                found = collect(part, histories, labels | {key} & NAMED, records)
                whole += found
                own += [] if isinstance(part, (dict, list)) else found
        records.append(Record(whole if len(whole) <= RECORD else own, labels))
        return [] if own_labels else whole  # what has a name of its own is no part of a record without
    if isinstance(value, list) and not (value and all(isinstance(item, float) for item in value)):
        return [number for item in value for number in collect(item, histories, labels, records)]
    return []  # a list of numbers alone is one of samples


def is_founded(number: str, known: Iterable[float]) -> bool:
    """Whether a known number is the figure, to the digits that are shown."""
    share = number.endswith("%")
    shown = Decimal(plain(number).rstrip("% "))
    exponent = shown.as_tuple().exponent
    assert isinstance(exponent, int)
    half = Decimal(1).scaleb(exponent) / 2
    exact = (Decimal(repr(value)) * (100 if share else 1) for value in known)
    return any(abs(value - shown) <= half for value in exact if value.is_finite())


def plain(number: str) -> str:
    """A number as Python writes it."""
    return number.replace(",", "").replace("−", "-")


def stale_pages(given: Iterable[Path]) -> list[str]:
    """The pages that do not hold what benchmarks.report would write."""
    from benchmarks import report

    changed = [page for page in given if report.filled(text := page.read_text(encoding="utf-8")) != text]
    return [
        f"{page}: not the tables of the kept results; run python -m benchmarks.report" for page in changed
    ]


def stale_drawings(folder: Path) -> list[str]:
    """The drawings that are not those of the kept results."""
    import matplotlib

    from benchmarks.accuracy import figures as drawings

    stale = []
    with tempfile.TemporaryDirectory() as temporary:
        drawn = {
            path.name: path.read_text(encoding="utf-8") for path in drawings.draw(folder=Path(temporary))
        }
    for name in sorted(drawn.keys() | {path.name for path in folder.glob("*.svg")}):
        there = (folder / name).read_text(encoding="utf-8") if (folder / name).exists() else ""
        version = re.search(r"Matplotlib v([\w.]+)", there)
        if version and version[1].rstrip(".") != matplotlib.__version__ and name in drawn:
            print(f"{name}: not compared, drawn by matplotlib {version[1]}, here is {matplotlib.__version__}")
        elif there != drawn.get(name):
            stale.append(f"{folder / name}: not the kept results; run python -m benchmarks.accuracy.figures")
    return stale


def pages() -> list[Path]:
    """README and the pages of docs/ that this script checks."""
    everything = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in everything if page.name not in CHECKED_ELSEWHERE]


def main(given: list[Path]) -> int:
    """0 where every figure is founded."""
    wrong = [f"{page}:{line}" for page in given for line in unfounded(page)]
    wrong += stale_pages(given) + stale_drawings(ROOT / "docs" / "figures")
    print("\n".join(wrong) or f"{len(given)} pages: every figure stands in a kept result")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main([Path(name).resolve() for name in sys.argv[1:]] or pages()))
