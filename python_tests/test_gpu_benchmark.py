"""benchmarks.gpu, run on the CPU: its figures, and that a failing contestant costs no others."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no part of the package

from benchmarks import gpu
from benchmarks.contestants import Contestant, Eager, PlainOfficial, Task
from benchmarks.problems import Problem, Shape

MODES = ["forward", "train", *(f"inference, {closed:.0%} closed" for closed in gpu.CLOSED)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(path: Path, *contestants: str, shapes: tuple[str, ...] = ("B",)) -> None:
    quick = ["--device", "cpu", "--quick", "--out", str(path), "--name", "here"]
    gpu.main([*quick, "--shapes", *shapes, "--contestants", *contestants])


def document(path: Path) -> dict[str, Any]:
    return json.loads((path / "here.json").read_text())


def test_every_mode_has_shares_of_the_roofs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also without torch_geometric, where the official approach runs in plain torch."""
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    run(tmp_path, "official", "eager", shapes=("A", "R"))
    found = document(tmp_path)
    assert all(0 < rate < math.inf for rate in found["roofs"].values())
    assert found["formulas"].keys() == {"copy roof", "matrix roof", "memory"}
    modes = [(m["case"]["shape"], m["case"]["mode"]) for m in found["measurements"]]
    assert modes == [(shape, mode) for shape in "AR" for mode in MODES]
    for m in found["measurements"]:
        assert list(m["contestants"]) == ["fused", PlainOfficial.name, "eager"] and not m["left_out"]
        assert m["shares"]["product"] == "fp32"
        assert all(0 < m["shares"][roof] < math.inf for roof in ("copy", "matrix"))
    assert capsys.readouterr().out == (tmp_path / "here.md").read_text() + "\n"


def test_closed_gates_are_no_work(tmp_path: Path) -> None:
    run(tmp_path, "fused", shapes=("A",))
    inference = [m["case"] for m in document(tmp_path)["measurements"][2:]]
    open_shares = [case["open_pairs"] / case["pairs"] for case in inference]
    assert open_shares == pytest.approx([1, 0.5, 0.2], abs=0.1)
    work = [case["gflop"] for case in inference]
    assert work[0] > work[1] > work[2] > 0


def test_bytes_are_those_of_inputs_and_outputs() -> None:
    problem = Problem.random(Shape("", "", graphs=3, nodes=4, dim=5, hidden=6, edge_dim=2, edge_hidden=7))
    weights = (6 * 5 + 6 + 5 * 6 + 5) + (7 * 2 + 7 + 7 + 1)
    inputs = 12 * (5 + 2) + weights
    forward = inputs + 12 * 5 + 3
    assert gpu.required_bytes(problem, "forward") == 4 * forward
    assert gpu.required_bytes(problem, "train") == 4 * (forward + 12 * 5 + 3 + inputs)
    assert gpu.required_bytes(problem, "inference") == 4 * (inputs + 5 + 3)


def made_document() -> dict[str, Any]:
    """20 MB and 30 GFLOP in 1 ms on a GPU of 100 GB/s and 60 TFLOP/s."""
    case = {"shape": "A", "mode": "train", "graphs": 1000, "bytes": 20_000_000, "gflop": 30.0}
    timings = {"fused": {"median": 1.0, "ratio": 1.0}, "eager": {"median": 7.0, "ratio": 7.0}}
    memory = {"fused": {"peak": 110, "inputs and outputs": 100}, "eager": None}
    left_out = {"compile": "Error: a | b"}
    measurement = {"case": case, "contestants": timings, "left_out": left_out, "memory": memory}
    roofs = {"copy_gb_s": 100.0, "fp32_tflop_s": 20.0, "tf32x3_tflop_s": 60.0}
    gpu.add_shares(measurement, roofs, "tf32x3")
    lost = {"case": case | {"shape": "B"}, "contestants": {}, "left_out": {"fused": "out of memory"}}
    gpu.add_shares(lost, roofs, "tf32x3")
    return {
        "device": "made",
        "versions": {"torch": "1"},
        "git": {"commit": "c"},
        "quick": False,
        "formulas": gpu.FORMULAS,
        "roofs": roofs,
        "measurements": [measurement, lost],
    }


def test_the_table_has_shares_memory_and_reasons() -> None:
    found = made_document()
    assert found["measurements"][0]["shares"] == pytest.approx(
        {"copy": 0.2, "matrix": 0.5, "product": "tf32x3"}
    )
    lines = gpu.table(found).splitlines()
    assert r"| A | train | 1e+03 | 20% | 50% (tf32x3) | eager 7 | compile: Error: a \| b |" in lines
    assert "| B | train | – | – | – |  | fused: out of memory |" in lines
    assert "| A | fused 1.1 |" in lines
    assert all(any(formula in line for line in lines) for formula in gpu.FORMULAS.values())


def test_wrong_results_and_a_failed_fused_one_fail_the_run() -> None:
    found = made_document()
    assert gpu.failures(found) == ["shape B, fused: out of memory"]
    left_out = {"fused": "no time left", "eager": "out of memory", "compile": "wrong result: off"}
    found["measurements"][1]["left_out"] = left_out
    assert gpu.failures(found) == ["shape B, compile: wrong result: off"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("broken\nin many lines"), "RuntimeError: broken"),
        (torch.OutOfMemoryError(), "out of memory"),
    ],
)
@pytest.mark.parametrize("where", ["layer", "predict"])
def test_a_contestant_that_fails_is_listed(
    where: str, error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(Eager, where, broken)
    run(tmp_path, "fused", "eager")
    measured = document(tmp_path)["measurements"]
    assert [m["case"]["mode"] for m in measured] == MODES
    for m in measured:
        assert m["left_out"] == {"eager": reason} and list(m["contestants"]) == ["fused"]


@pytest.mark.parametrize("place", ["close_gates", "peak_memory", "make_task"])
def test_what_fails_besides_the_calls_loses_nothing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = getattr(gpu, place), []

    def late(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == {"close_gates": 1, "peak_memory": 2, "make_task": 4}[place]:
            raise torch.OutOfMemoryError
        return before(*arguments)

    monkeypatch.setattr(gpu, place, late)
    if place == "close_gates":
        with pytest.raises(SystemExit, match="shape B, fused: out of memory"):
            run(tmp_path, "fused", "eager")
    else:
        run(tmp_path, "fused", "eager")
    measured = document(tmp_path)["measurements"]
    missing = [m["left_out"] for m in measured]
    expected: dict[str, list[dict[str, str]]] = {
        "close_gates": [{}, {}, {"fused": "out of memory"}],
        "peak_memory": [{}, {"eager": "out of memory"}, {}, {}, {}],
        "make_task": [{}, {}, {"eager": "out of memory"}, {}, {}],
    }
    assert missing == expected[place]
    assert all(m["contestants"] for m in measured[:2])


def test_a_wrong_result_fails_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Eager.layer

    def wrong(*arguments: Any) -> Any:
        nodes, l0 = layer(*arguments)
        return 2 * nodes, l0

    monkeypatch.setattr(Eager, "layer", wrong)
    with pytest.raises(SystemExit, match="wrong result: eager at shape B computes something else: nodes"):
        run(tmp_path, "fused", "eager", PlainOfficial.name)
    for m in document(tmp_path)["measurements"]:
        assert list(m["contestants"]) == ["fused", PlainOfficial.name]


def test_nothing_is_compared_without_the_fused_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(gpu.KINDS["fused"], "layer", broken)
    with pytest.raises(SystemExit, match="shape B, fused: RuntimeError: broken"):
        run(tmp_path, "fused", "eager")
    [m] = document(tmp_path)["measurements"]
    assert m["contestants"] == {}


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(task: Task) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Task, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "fused", "eager")
    assert [m["case"]["mode"] for m in document(tmp_path)["measurements"]] == ["forward"]
    assert {path.name for path in tmp_path.iterdir()} == {"here.json", "here.md"}


def test_rounds_before_a_failure_are_kept() -> None:
    options = gpu._parse(["--quick"])
    options.quick, options.seconds = False, 60.0
    left = iter(range(7))

    def failing() -> None:
        if next(left) == 6:
            raise RuntimeError("late")

    failed: dict[str, str] = {}
    clock = gpu.Clock(torch.device("cpu"))
    clock.SAMPLE = 0.0
    found = gpu.timed(
        {"fused": lambda: None, "eager": failing}, clock.device, clock, options, math.inf, failed
    )
    assert failed == {"eager": "RuntimeError: late"}
    assert len(found["fused"]["ms"]) == 30 and len(found["eager"]["ms"]) == 4


def test_the_others_stay_where_the_fused_one_fails_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "count_open", lambda *_, **__: 5)
    monkeypatch.setattr(gpu.KINDS["fused"], "draw", broken)  # in forward and train, not in the comparison
    with pytest.raises(SystemExit, match="shape B, fused: out of memory"):
        run(tmp_path, "fused", "eager")
    measured = document(tmp_path)["measurements"]
    assert [list(m["contestants"]) for m in measured] == [["eager"]] * 2 + [["fused", "eager"]] * 3
    assert "| B | forward | – | – | – |  | fused: out of memory |" in (tmp_path / "here.md").read_text()


def test_a_gpus_calls_are_queued_behind_a_write_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 3.0

    class Flush:
        def zero_(self) -> None:
            log.append("write")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: log.append("wait"))
    clock = gpu.Clock(torch.device("cpu"))
    clock.device, clock.flush = torch.device("cuda"), Flush()
    assert clock(lambda: log.append("call"), 2) == 3.0
    assert log == ["write", "event", "call", "event"] * 2 + ["wait"]


def test_the_peak_has_the_inputs_that_were_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.random(Shape("", "", graphs=3, nodes=4, dim=5, hidden=6, edge_dim=2, edge_hidden=7))
    task = Task(Eager(problem.offsets), problem)
    for name, value in {
        "synchronize": None,
        "memory_allocated": 1000,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 1500,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(gpu.torch, "device", lambda _: contextlib.nullcontext())
    device = type("Device", (), {"type": "cuda"})()
    whole = gpu.required_bytes(problem, "train")
    assert gpu.peak_memory(task, problem, device) == {"peak": 500 + whole // 2, "inputs and outputs": whole}


def test_short_calls_are_repeated() -> None:
    clock = gpu.Clock(torch.device("cpu"))
    assert [clock.calls(ms) for ms in (7.0, 1.0, 0.4, 0.05, 0.0)] == [1, 1, 3, 20, 50]
    count = []
    assert clock(lambda: count.append(1), 3) > 0 and len(count) == 3


def test_the_official_approach_is_pygs_where_that_is_there() -> None:
    pytest.importorskip("torch_geometric")
    assert gpu._parse([]).contestants == ["fused", "official", "eager", "compile", "autotune"]
    assert issubclass(gpu.KINDS["official"], Contestant)
