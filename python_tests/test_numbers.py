"""The check that figures of README and docs are measured finds those that are not."""

from __future__ import annotations

import importlib.util
import json
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


def test_figures_of_the_documentation_are_founded(check: ModuleType) -> None:
    assert (
        check.main([SCRIPT.parents[1] / "README.md", *sorted((SCRIPT.parents[1] / "docs").glob("[!c]*.md"))])
        == 0
    )
