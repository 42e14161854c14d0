"""The check that figures of README and docs are measured finds those that are not."""

from __future__ import annotations

import importlib.util
import itertools
import json
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "check_numbers.py"


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_numbers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
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


def test_what_is_generated_is_left_to_its_own_test(check: ModuleType, page: Path) -> None:
    page.write_text("# A\n\n<!-- results: layer -->\n# B\n| | x |\n|---|---|\n| a | 3 |\n<!-- end -->\n")
    assert check.unfounded(page) == []


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
    assert check.records_of(tmp_path, False) == [[5]]
    assert check.records_of(tmp_path, True) == [[4], [4, 5]]


def test_the_figures_of_a_line_stand_together(check: ModuleType) -> None:
    assert check.strangers(["1.5", "2.5"], [[1.5, 3.5], [2.5]]) == ["2.5"]
    assert check.strangers(["1.5", "2.5"], [[3.5], [2.5, 1.5]]) == []


def test_most_wrong_figures_are_found(check: ModuleType) -> None:
    """Each figure of README in turn, off by 1 to 3 in its last digit."""
    readme, tried, caught = SCRIPT.parents[1] / "README.md", 0, 0
    for section in check.sections(readme.read_text(encoding="utf-8")):
        _, known = check.results_of(section, readme.parent)
        for _, line, shown in check.figures(section):
            for at, off in itertools.product(range(len(shown)), (-3, -2, -1, 1, 2, 3)):
                number = Decimal(check.plain(shown[at]).rstrip("% "))
                wrong = f"{number + off * Decimal(1).scaleb(number.as_tuple().exponent)}"
                line_wrong = [*shown[:at], wrong + "%" * ("%" in shown[at]), *shown[at + 1 :]]
                tried += 1
                caught += bool(check.strangers(line_wrong, known[not line.startswith("|")]))
    assert tried > 500
    assert caught >= 0.9 * tried, f"{caught} of {tried}"


def test_figures_of_the_documentation_are_founded(check: ModuleType) -> None:
    assert check.main(check.pages()) == 0
