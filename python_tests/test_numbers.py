"""The check that figures of README and docs are measured finds those that are not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "check_numbers.py"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_numbers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tmp_path: Path) -> Path:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "run.json").write_text(
        json.dumps({"auc": 0.97637, "rows": [{"kept": 0.3571, "ms": 4.812}], "n": 1024})
    )
    return tmp_path / "page.md"


LINKED = "# A\n\nFrom [it](benchmarks/results/run.md).\n\n"


@pytest.mark.parametrize(
    "figures",
    [
        "| | auc | kept |\n|---|---|---|\n| row 7 | 0.9764 ± 0.36 | 35.7 % |\n",
        "| | ms | n |\n|---|---|---|\n| a | 4.81 ms | 1,024 |\n",
        "```\n$ run 3.5\nauc 0.98  # of 7.7\n```\n",
        "```python\nx = 3.5\n```\n",
    ],
)
def test_rounded_figures_are_founded(check: ModuleType, page: Path, figures: str) -> None:
    page.write_text(LINKED + figures)
    assert check.unfounded(page) == []
    page.write_text(
        (LINKED + figures).replace("0.9764", "0.9765").replace("4.81", "4.82").replace("0.98", "0.99")
    )
    assert len(check.unfounded(page)) == (0 if "python" in figures else 1)


def test_a_table_names_its_results_or_says_that_it_has_none(check: ModuleType, page: Path) -> None:
    table = "| | H |\n|---|---|\n| a | 32 |\n"
    page.write_text("# A\n\n" + table)
    assert "links to no result" in check.unfounded(page)[0]
    page.write_text(LINKED + "# B\n\n" + table)
    assert len(check.unfounded(page)) == 1, "a section has results of its own"
    for mark in ("definition", "predicted", "cited"):
        page.write_text(f"# A\n\n<!-- numbers: {mark} -->\n{table}")
        assert check.unfounded(page) == []
    page.write_text(f"# A\n\n<!-- numbers: cited -->\n{table}\ntext\n\n{table}")
    assert len(check.unfounded(page)) == 1, "a mark is for one table"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("It has an AUC of 0.976 and keeps\n35.7 % of them.", 0),
        ("It has an AUC of 0.977.", 1),
        ("It keeps 36 to 37 % of them.", 1),
        ("It keeps 35 to 36 % of them.", 1),
        ("It takes 5 ms, and is 6 times slower, or 7x, of 1,024 or 1,025.", 3),
        ("Seeds 1 and 2, `lr` and `0.5`, torch 2.10, Fig. 4, [x](y/0.1), 1.2.3", 0),
        ("    y = 0.5 x", 0),
    ],
)
def test_running_text(check: ModuleType, page: Path, text: str, wrong: int) -> None:
    page.write_text(f"{LINKED}{text}\n")
    assert len(check.unfounded(page)) == wrong


def test_a_paragraph_that_links_to_a_result_is_about_that(check: ModuleType, page: Path) -> None:
    (page.parent / "benchmarks" / "results" / "other.json").write_text('{"auc": 0.5}')
    page.write_text(f"{LINKED}An AUC of 0.976.\n\nAn AUC of 0.976 ([it](benchmarks/results/other.json)).\n")
    assert [line.partition(":")[0] for line in check.unfounded(page)] == ["7"]


@pytest.mark.parametrize(
    ("marks", "complaint"),
    [
        (["definition"], ""),
        (["tried, section"], ""),
        (["definition 0.5, 0.62"], ""),
        (["definition 0.62", "0.5 = 0.8571 - run:0.3571"], "0.8571 is not in"),
        (["definition 0.62", "0.5 = cited:0.86 - run:0.3571"], ""),
        (["definition 0.5", "0.62 = 0.97637 - 0.3571"], ""),
        (["definition 0.5", "0.62 = 0.97637 - 0.3551"], "0.3551 is not in"),
        (["definition 0.5", "0.62 = 0.97637 + 0.3571"], "it is 1.33347"),
        (["definition 0.5", "0.62 = other:0.97637 - 0.3571"], "not in other"),
        (["definition 0.5", "0.62 = __import__('os')"], "not a formula"),
        (["definition 0.5"], "0.62 is in none"),
        (["definition 0.5, 0.62, 0.7"], "names 0.7"),
    ],
)
def test_marks(
    check: ModuleType, page: Path, monkeypatch: pytest.MonkeyPatch, marks: list[str], complaint: str
) -> None:
    monkeypatch.setattr(check, "RESULTS", page.parent / "benchmarks" / "results")
    lines = "".join(f"<!-- numbers: {mark} -->\n" for mark in marks)
    page.write_text(f"{LINKED}{lines}Between 0.5 and 0.62.\n")
    found = check.unfounded(page)
    assert len(found) == bool(complaint) and complaint in "".join(found)


def test_a_mark_ends(check: ModuleType, page: Path) -> None:
    page.write_text("# A\n\n<!-- numbers: tried, section -->\n\n0.5\n\n0.5\n\n## B\n\n0.5\n")
    assert [line.partition(":")[0] for line in check.unfounded(page)] == ["11"]
    page.write_text("# A\n\n<!-- numbers: tried -->\n0.5\n\n0.5\n")
    assert [line.partition(":")[0] for line in check.unfounded(page)] == ["6"]
    page.write_text("# A\n\n<!-- numbers: guessed -->\n0.5\n")
    with pytest.raises(ValueError, match="guessed"):
        check.unfounded(page)


def test_a_row_is_about_what_it_says(check: ModuleType, page: Path) -> None:
    rows = [{"label": "SIGN", "mean": {"auc": 0.9}}, {"label": "L0-SIGN", "mean": {"auc": 0.8}}]
    (page.parent / "benchmarks" / "results" / "run.json").write_text(json.dumps({"rows": rows}))
    for first, wrong in (("SIGN", 0), ("SIGN: plain, `x`", 0), ("L0-SIGN", 1), ("FM", 1)):
        page.write_text(f"{LINKED}| | AUC |\n|---|---|\n| {first} | 0.9 |\n")
        assert len(check.unfounded(page)) == wrong
    page.write_text(f"{LINKED}```\nSIGN     0.9\nL0-SIGN  0.9\nthe best 0.9\n```\n")
    assert [line.partition(":")[0] for line in check.unfounded(page)] == ["7"]


def test_rows_are_called_by_the_files_of_a_directory(check: ModuleType, page: Path) -> None:
    (page.parent / "benchmarks" / "results" / "sign-seed0.json").write_text('{"test": {"auc": 0.9}}')
    for first, wrong in (("SIGN, seed 0", 0), ("SIGN, seed 1", 1)):
        page.write_text(f"# A\n\n[all](benchmarks/results)\n\n| | AUC |\n|---|---|\n| {first} | 0.9 |\n")
        assert len(check.unfounded(page)) == wrong


def test_a_mark_that_is_not_closed_is_an_error(check: ModuleType, page: Path) -> None:
    page.write_text("# A\n\n<!-- results: layer -->\n| | x |\n|---|---|\n| a | 3 |\n")
    with pytest.raises(ValueError, match="end"):
        check.unfounded(page)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8.5x and 4.7ms", ["8.5", "4.7"]),
        ("1e-05, 3 (4.5)", ["1e-05", "3", "4.5"]),
        ("35.7 % of 1,024", ["35.7 %", "1,024"]),
        ("AVX-512 v1.2.3 f16", []),
    ],
)
def test_numbers_are_read(check: ModuleType, text: str, found: list[str]) -> None:
    assert check.NUMBER.findall(text) == found


def test_shares_and_digits_are_those_shown(check: ModuleType) -> None:
    assert check.is_founded("35.7 %", [0.3571]) and not check.is_founded("35.7", [0.3571])
    assert check.is_founded("0.36", [0.3571]) and not check.is_founded("0.4", [0.3571 + 0.1])
    assert not check.is_founded("0.3570", [0.3571]) and check.is_founded("1e-05", [1e-5])


def test_what_describes_a_run_is_no_result(check: ModuleType, tmp_path: Path) -> None:
    found = {"versions": {"a": 1}, "ms": [2.5, 3.5], "epochs": [{"auc": 4}], "median": 5}
    (tmp_path / "run.json").write_text(json.dumps(found))
    assert [record.numbers for record in check.records_of(tmp_path, False)] == [[5]]
    assert [record.numbers for record in check.records_of(tmp_path, True)] == [[4], [4, 5]]


def test_the_figures_of_a_line_stand_together(check: ModuleType) -> None:
    def strangers(*records: list[float]) -> list[str]:
        return check.strangers(["1.5", "2.5"], [check.Record(numbers) for numbers in records])

    assert strangers([1.5, 3.5], [2.5]) == ["2.5"]
    assert strangers([3.5], [2.5, 1.5]) == []


# -------------------- the pages as they are


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The pages beside the kept results, to be made wrong."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    return tmp_path


def test_figures_of_the_documentation_are_founded(check: ModuleType, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    assert check.main(check.pages()) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("README.md", "an AUC of 0.986", "an AUC of 0.999"),
        ("README.md", "a logloss of 0.114", "a logloss of 0.014"),
        ("README.md", "at 29 % of", "at 2 % of"),
        ("README.md", "takes 2.69 ms", "takes 5.4 ms"),
        ("README.md", "3.0 and 1,103", "3.0 and 1,013"),
        ("README.md", "35 to 69 %", "38 to 69 %"),
        ("README.md", "by up to 0.002", "by up to 0.001"),
        ("README.md", "| SIGN, `--no-gates`, seed 0 |", "| L0-SIGN, `--no-gates`, seed 0 |"),
        ("README.md", "| A: 1,024 graphs", "| B: 1,024 graphs"),
        ("README.md", "| 14.1 times that |", "| 19.0 times that |"),
        ("README.md", "\nSIGN     0.9026", "\nSIGN     0.9160"),
        ("README.md", "\n   12   0.0911", "\n   13   0.0911"),
        ("docs/results.md", "loses 0.05 of AUC", "loses 0.15 of AUC"),
        ("docs/results.md", "0.022 to 0.025 of AUC", "0.022 to 0.026 of AUC"),
    ],
)
def test_planted_figures_are_found(check: ModuleType, copy: Path, name: str, right: str, wrong: str) -> None:
    page = (copy / name).read_text(encoding="utf-8")
    assert page.count(right) == 1
    (copy / name).write_text(page.replace(right, wrong), encoding="utf-8")
    assert check.unfounded(copy / name)


def test_a_table_that_is_not_the_generated_one_is_found(check: ModuleType, copy: Path) -> None:
    pages = sorted((copy / "docs").glob("*.md"))
    assert check.stale_pages(pages) == []
    results = copy / "docs" / "results.md"
    page = results.read_text(encoding="utf-8")
    results.write_text(page.replace("| L0-SIGN | 0.9761 ", "| L0-SIGN | 0.9961 "), encoding="utf-8")
    assert len(check.stale_pages(pages)) == 1


def test_drawings_are_those_of_the_kept_results(
    check: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    figures = copy / "docs" / "figures"
    drawn = figures / "fig4-frappe.svg"
    if f"Matplotlib v{matplotlib.__version__}," not in drawn.read_text(encoding="utf-8"):
        pytest.skip("drawn by another version of matplotlib, which may place things elsewhere")
    before = drawn.read_text(encoding="utf-8")
    drawn.write_text(before.replace("L 250", "L 251", 1), encoding="utf-8")
    (figures / "fig5-frappe.svg").unlink()
    (figures / "other.svg").write_text("<svg/>")
    stale = [Path(line.partition(":")[0]).name for line in check.stale_drawings(figures)]
    assert stale == ["fig4-frappe.svg", "fig5-frappe.svg", "other.svg"]
    monkeypatch.setattr(matplotlib, "__version__", "0.1")
    assert len(check.stale_drawings(figures)) == 2 and "not compared" in capsys.readouterr().out


def test_most_wrong_figures_are_found(check: ModuleType) -> None:
    """Each figure of the pages in turn, off by 1 to 3 in its last digit."""
    tried = dict.fromkeys(("table", "output", "prose"), 0)
    caught = dict(tried)
    computed = 0
    for page in check.pages():
        for section in check.sections(page.read_text(encoding="utf-8")):
            for block in section.blocks:
                if block.mark.excused is None:
                    continue
                named = block.mark.excused | set(block.mark.computed)
                sources = check.sources_of(block, section, page.parent)
                for _, cell, shown in check.figures(block):
                    computed += sum(number in block.mark.computed for number in shown)
                    records = check.candidates(block.kind, cell, sources)
                    asked = [number for number in shown if number not in named]
                    for at, off in ((at, off) for at in range(len(asked)) for off in (-3, -2, -1, 1, 2, 3)):
                        number = Decimal(check.plain(asked[at]).rstrip("% "))
                        wrong = f"{number + off * Decimal(1).scaleb(number.as_tuple().exponent)}"
                        line = [*asked[:at], wrong + " %" * ("%" in asked[at]), *asked[at + 1 :]]
                        tried[block.kind] += 1
                        caught[block.kind] += bool(check.strangers(line, records))
    shares = {kind: caught[kind] / tried[kind] for kind in tried}
    print(tried, shares, f"{computed} computed ones")  # these are compared with their formula: all are found
    assert min(tried.values()) > 60 and computed > 10
    assert shares["table"] >= 0.95 and shares["output"] >= 0.95 and shares["prose"] >= 0.7, shares
