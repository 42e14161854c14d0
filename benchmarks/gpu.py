"""The layer on a GPU: all contestants by turns, for the reference shapes with 64 times the graphs.

    python -m benchmarks.gpu                        # about 8 minutes, into benchmarks/results
    python -m benchmarks.gpu --device cpu --quick   # does it work? The figures mean nothing

Times are those of device events around one call, the L2 cache overwritten before it; medians over rounds
in which every contestant has its turn. Before anything is timed, results are compared with the fused ones.
Inference is measured with 0, 50 and 80 % of the gates closed. Memory is the peak during a training step
beyond what was allocated before it, over the bytes of the gradients that the step returns. A contestant that
runs out of memory, or for which no time is left, is listed as such.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import environment, results
from .contestants import CONTESTANTS, Compiled, Contestant, Task, check_equal, dense_layer, mlp
from .problems import SHAPES, Problem, Shape, count_pairs
from .rounds import summary

FACTOR = 64  # a GPU's batch over a CPU's
CLOSED = (0.0, 0.5, 0.8)
_TOLERANCE = 2e-3  # as in benchmarks.layer

Document = dict[str, Any]


class Autotuned(Compiled):
    """torch.compile with max-autotune, launched like the others: without CUDA graphs."""

    name = "autotune"

    def make_function(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        return torch.compile(dense_layer, dynamic=False, fullgraph=True, mode="max-autotune-no-cudagraphs")


KINDS: dict[str, type[Contestant]] = {
    name: kind for name, kind in CONTESTANTS.items() if name != "repaired"
} | {"autotune": Autotuned}


class Clock:
    """Milliseconds of a call on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda = device.type == "cuda"
        cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else 1 << 20
        self.flush = torch.empty(2 * cache, dtype=torch.int8, device=device)

    def __call__(self, call: Callable[[], object]) -> float:
        self.flush.zero_()
        if self.device.type != "cuda":
            began = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - began)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    options = _parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: there is no CUDA device")
    deadline = time.monotonic() + 60 * options.minutes
    clock = Clock(device)
    document: Document = {
        "format": 1,
        "kind": "gpu",
        "quick": options.quick,
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": environment.versions() | {"cuda": torch.version.cuda},
        "git": environment.git(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "roofs": roofs(device, clock, options.quick),
        "measurements": [],
    }
    for name in options.shapes:
        shape = replace(SHAPES[name], graphs=SHAPES[name].graphs * FACTOR)
        shape = shape.tiny() if options.quick else shape
        document["measurements"] += measure(shape, device, clock, options, deadline)
        write(document, options.out, options.name)  # what is measured is kept
    print(table(document))


def measure(
    shape: Shape, device: torch.device, clock: Clock, options: argparse.Namespace, deadline: float
) -> list[Document]:
    """One measurement a mode."""
    torch.manual_seed(0)
    torch.compiler.reset()
    problem = Problem.random(shape)
    tasks, left_out = {}, {}
    expected: Mapping[str, torch.Tensor] = {}
    for name in options.contestants:
        if time.monotonic() > deadline:
            left_out[name] = "no time left"
            continue
        _say(f"{shape.name}, {name}: compiling and comparing")
        try:
            task = make_task(name, problem, device)
            with torch.device(device):
                found = task.results(seed=1)
            expected = expected or found  # the first is the fused one
            check_equal(found, dict(expected), f"{name} at shape {shape.name}", _TOLERANCE)
        except torch.OutOfMemoryError:
            left_out[name] = "out of memory"
        except ImportError as error:
            left_out[name] = str(error)
        else:
            tasks[name] = task
        if device.type == "cuda":
            torch.cuda.empty_cache()

    pairs = count_pairs(shape.sizes())
    case = {"shape": shape.name, "about": shape.about, "graphs": shape.graphs, "pairs": pairs}
    measured = []
    for mode in ("forward", "train"):
        found_mode = timed({n: getattr(t, mode) for n, t in tasks.items()}, device, clock, options, deadline)
        measured.append({"case": case | {"mode": mode}, **found_mode})
    measured[-1]["memory"] = {name: peak_memory(task, device) for name, task in tasks.items()}
    for closed in CLOSED:
        shut = {name: make_task(name, close_gates(problem, closed), device) for name in tasks}
        found_mode = timed({n: t.inference for n, t in shut.items()}, device, clock, options, deadline)
        measured.append({"case": case | {"mode": f"inference, {closed:.0%} closed"}, **found_mode})
    for measurement in measured:
        measurement["left_out"] = left_out | measurement["left_out"]
    return measured


def make_task(name: str, problem: Problem, device: torch.device) -> Task:
    """A contestant with the problem on the device."""

    def move(value: Any) -> Any:
        return tuple(map(move, value)) if isinstance(value, tuple) else value.to(device)

    moved = Problem(**{field: move(getattr(problem, field)) for field in problem.__dataclass_fields__})
    with torch.device(device):
        return Task(KINDS[name](moved.offsets), moved)


def close_gates(problem: Problem, share: float) -> Problem:
    """The problem with an edge bias that closes this share of the pairs' deterministic gates."""
    i, j = torch.randint(int(problem.offsets[-1]), (2, 4096), generator=torch.Generator().manual_seed(0))
    logits = mlp(problem.edge_nodes[i] * problem.edge_nodes[j], problem.edge).squeeze(-1)
    # sigmoid(a) 1.2 - 0.1 reaches 0 at -ln 11; with nothing closed, gates are as they come.
    shift = -math.log(11) - logits.quantile(share) if share else torch.zeros(())
    return replace(problem, edge=(*problem.edge[:3], problem.edge[3] + shift))


def timed(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    clock: Clock,
    options: argparse.Namespace,
    deadline: float,
) -> Document:
    """Each contestant's times, by turns; who runs out of memory or finds no time left is named."""
    left_out: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    rounds = 2 if options.quick else 30
    with torch.device(device):
        for number in range(rounds + 2):
            for name, call in calls.items():
                if name in left_out or (number > 4 and sum(times[name]) > 1e3 * options.seconds):
                    continue
                if time.monotonic() > deadline and number < 4:
                    left_out[name] = "no time left"
                    continue
                try:
                    elapsed = clock(call)
                except torch.OutOfMemoryError:
                    left_out[name] = "out of memory"
                    continue
                if number >= 2:  # two to warm up
                    times.setdefault(name, []).append(elapsed)
    whole = {name: [1e-3 * ms for ms in values] for name, values in times.items() if name not in left_out}
    return {"contestants": summary(whole) if "fused" in whole else {}, "left_out": left_out}


def peak_memory(task: Task, device: torch.device) -> Document | None:
    """Bytes of a training step: the peak, and what it returns."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.device(device):
        gradients = task.train()
    torch.cuda.synchronize(device)
    floor = sum(gradient.numel() * gradient.element_size() for gradient in gradients)
    return {"peak": torch.cuda.max_memory_allocated(device) - before, "floor": floor}


def roofs(device: torch.device, clock: Clock, quick: bool) -> Document:
    """What the device reaches: copies in GB/s (read and written), and products of matrices in TFLOP/s."""
    size = 1 << (20 if quick else 28)
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    side = 256 if quick else 8192
    matrix = torch.randn(side, side, device=device)
    before = torch.get_float32_matmul_precision()

    def best(call: Callable[[], object]) -> float:
        return 1e-3 * min(clock(call) for _ in range(5))

    found = {"copy_gb_s": 2 * source.numel() * 4 / best(lambda: target.copy_(source)) / 1e9}
    for precision, name in (("highest", "fp32"), ("high", "tf32")):
        torch.set_float32_matmul_precision(precision)
        found[f"{name}_tflop_s"] = 2 * side**3 / best(lambda: matrix @ matrix) / 1e12
    torch.set_float32_matmul_precision(before)
    return found


def table(document: Document) -> str:
    """The measurements in Markdown."""
    about = f"{document['device']}, torch {document['versions']['torch']}, commit {document['git']['commit']}"
    lines = [f"# The layer on a GPU: {about}", ""]
    if document["quick"]:
        lines += ["A quick run: these figures mean nothing.", ""]
    roofs_text = ", ".join(f"{name} {value:,.0f}" for name, value in document["roofs"].items())
    lines += [f"Roofs: {roofs_text}.", ""]
    lines += [
        "| shape | mode | fused, ns a sample | others over fused | left out |",
        "|---|---|---:|---|---|",
    ]
    for m in document["measurements"]:
        case, timings = m["case"], m["contestants"]
        fused = f"{1e6 * timings['fused']['median'] / case['graphs']:.3g}" if timings else "–"
        others = ", ".join(f"{n} {t['ratio']:.3g}" for n, t in timings.items() if n != "fused")
        missing = ", ".join(f"{name}: {why}" for name, why in m["left_out"].items())
        lines.append(f"| {case['shape']} | {case['mode']} | {fused} | {others} | {missing} |")
    lines += ["", "| shape | peak memory of a training step over the gradients it returns |", "|---|---|"]
    for m in document["measurements"]:
        known = {name: value for name, value in m.get("memory", {}).items() if value}
        if known:
            cells = ", ".join(f"{name} {v['peak'] / v['floor']:.3g}" for name, v in known.items())
            lines.append(f"| {m['case']['shape']} | {cells} |")
    return "\n".join(lines) + "\n"


def write(document: Document, directory: Path, name: str | None) -> None:
    """JSON and the table, aside and then renamed."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = name or f"{document['written'][:10]}-gpu"
    results.write_aside(directory / f"{stem}.json", json.dumps(document, indent=1) + "\n")
    results.write_aside(directory / f"{stem}.md", table(document))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shapes = list(SHAPES)
    add = parser.add_argument
    add("--shapes", nargs="+", choices=shapes, default=shapes, help="default: all")
    add("--contestants", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    add("--seconds", type=float, default=1.0, help="for each contestant, shape and mode")
    add("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    add("--device", default="cuda")
    add("--quick", action="store_true", help="tiny shapes, two rounds: looks at function, not at time")
    add("--out", type=Path, default=results.RESULTS, help="directory; default: benchmarks/results")
    add("--name", help="of the files, without suffix; default: date and kind")
    options = parser.parse_args(arguments)
    options.contestants = ["fused", *(name for name in options.contestants if name != "fused")]
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
