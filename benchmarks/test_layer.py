"""The fused layer under pytest-benchmark: `pytest benchmarks --benchmark-only`.

Shapes A to D on one thread, for a quick look at a change and `--benchmark-compare`. Comparisons with others
are in benchmarks.layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .contestants import Fused, Task
from .problems import MODES, SHAPES, Problem

pytest.importorskip("pytest_benchmark", reason='needs pytest-benchmark: pip install "l0sign-cuda[bench]"')


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params="ABCD")
def task(request: pytest.FixtureRequest) -> Task:
    problem = Problem.random(SHAPES[request.param])
    return Task(Fused(problem.offsets), problem)


@pytest.mark.parametrize("mode", MODES)
def test_fused(benchmark: Any, task: Task, mode: str) -> None:
    benchmark.group = mode
    benchmark(getattr(task, mode))
