"""The layer on a GPU: all contestants by turns, for the reference shapes with 64 times the graphs.

    python -m benchmarks.gpu                        # about 8 minutes, into benchmarks/results
    python -m benchmarks.gpu --device cpu --quick   # does it work? The figures mean nothing

Medians over rounds in which every contestant has its turn; :class:`Clock` says what of a call is counted.
Before anything is timed, results are compared with the fused ones. Inference is measured with 0, 50 and 80 %
of the gates closed. Where torch_geometric cannot be imported, "official, plain torch" stands for "official".

FORMULAS says what the fused time's shares of the device's roofs and the memory are. A contestant that fails
is listed with the reason, and what was measured stays: results are written after every measurement. A wrong
result, or a fused contestant that fails, is listed too and makes the exit code 1 in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from l0sign_cuda import functional

from . import environment, results
from .contestants import (
    CONTESTANTS,
    Compiled,
    Contestant,
    Official,
    PlainOfficial,
    Task,
    WrongResult,
    check_equal,
    dense_layer,
    has_pyg,
    mlp,
)
from .problems import SHAPES, Problem, Shape, count_pairs, gflop
from .rounds import Call, summary

FACTOR = 64  # a GPU's batch over a CPU's
CLOSED = (0.0, 0.5, 0.8)
FORMULAS = {
    "copy roof": "bytes that the mode has to read and write, each once, over the fused median, over the rate "
    "of a large copy. Forward: v, e and weights; v' and the sum of pi. Train: these, the incoming gradients "
    "and those of v, e and weights. Inference: v, e, weights and head; predictions. Offsets and ids are not "
    "counted.",
    "matrix roof": "gflop (problems.gflop: the least multiply-adds of the formulation, those outside of "
    "products included, closed pairs without a message) over the fused median, over the rate of a large "
    "product in the type in use. tf32x3 is float32 in three products of tf32: a third of the rate of tf32.",
    "memory": "peak of a training step, over the bytes of its inputs and outputs as counted for the copy "
    "roof. In the peak: what the step allocates, and its inputs as the contestant has them; not what was "
    "made before it from the sizes of the graphs (edge lists, masks).",
}
_TOLERANCE = 2e-3  # as in benchmarks.layer
_NO_TIME, _WRONG = "no time left", "wrong result"

Document = dict[str, Any]
T = TypeVar("T")


class Autotuned(Compiled):
    """torch.compile with max-autotune, launched like the others: without CUDA graphs."""

    name = "autotune"

    def make_function(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        return torch.compile(dense_layer, dynamic=False, fullgraph=True, mode="max-autotune-no-cudagraphs")


KINDS: dict[str, type[Contestant]] = {
    name: kind for name, kind in CONTESTANTS.items() if name != "repaired"
} | {kind.name: kind for kind in (Autotuned, PlainOfficial)}


class Clock:
    """Milliseconds of a call on a device.

    On a GPU: from an event before the call to one after it. All calls of a sample, of at least SAMPLE ms
    together, are queued without waiting, and before each a write of LEAD times the L2 cache is queued, which
    is not counted: every call finds the cache cold, and its launches are queued by the host while the GPU
    writes. What the GPU waits for the host is counted only where launching takes longer than the write, or
    the call itself waits for the GPU. On a CPU: the time of the call.
    """

    SAMPLE = 1.0  # ms
    LEAD = 8
    MOST = 50  # calls in a sample

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda = device.type == "cuda"
        cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else 1 << 17
        self.flush = torch.empty(self.LEAD * cache, dtype=torch.int8, device=device)

    def __call__(self, call: Call, calls: int = 1) -> float:
        """The mean of this many calls."""
        if self.device.type != "cuda":
            return sum(self._on_cpu(call) for _ in range(calls)) / calls
        events = [self._queue(call) for _ in range(calls)]
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in events) / calls

    def calls(self, elapsed: float) -> int:
        """How many calls of so many ms a sample takes."""
        return max(1, min(self.MOST, math.ceil(self.SAMPLE / max(elapsed, 1e-6))))

    def _queue(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        start.record()
        call()
        end.record()
        return start, end

    def _on_cpu(self, call: Call) -> float:
        self.flush.zero_()
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)


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
        "formulas": FORMULAS,
        "roofs": roofs(device, clock, options.quick),
        "measurements": [],
    }
    for name in options.shapes:
        shape = replace(SHAPES[name], graphs=SHAPES[name].graphs * FACTOR)
        shape = shape.tiny() if options.quick else shape

        def add(measurement: Document) -> None:
            add_shares(measurement, document["roofs"], product_type(device))
            document["measurements"].append(measurement)
            write(document, options.out, options.name)  # what is measured is kept

        failed: dict[str, str] = {}
        attempt(failed, "fused", partial(measure, shape, device, clock, options, deadline, add))
        if failed:  # outside of any contestant, as when the GPU is lost
            add({"case": case_of(shape) | {"mode": "rest"}, "contestants": {}, "left_out": failed})
    print(table(document))
    if wrong := failures(document):
        sys.exit("\n".join(["benchmarks.gpu: failed", *wrong]))


def measure(
    shape: Shape,
    device: torch.device,
    clock: Clock,
    options: argparse.Namespace,
    deadline: float,
    add: Callable[[Document], None],
) -> None:
    """Add one measurement a mode, as soon as it is there."""
    torch.manual_seed(0)
    torch.compiler.reset()
    problem = moved(Problem.random(shape), device)
    left_out: dict[str, str] = {}
    tasks = compared(problem, shape, options, deadline, left_out)
    if "fused" not in tasks:
        add({"case": case_of(shape) | {"mode": "all"}, "contestants": {}, "left_out": left_out})
        return

    def measured(
        mode: str, label: str, of: Problem, calls: Mapping[str, Call], failed: dict[str, str]
    ) -> Document:
        open_pairs = count_open(of, deterministic=mode == "inference")
        case = case_of(shape) | {"mode": label, "open_pairs": open_pairs}
        case |= {"gflop": gflop(shape, mode, open_pairs), "bytes": required_bytes(of, mode)}
        timings = timed(calls, device, clock, options, deadline, failed)
        return {"case": case, "contestants": timings, "left_out": failed}

    add(measured("forward", "forward", problem, {n: t.forward for n, t in tasks.items()}, dict(left_out)))
    failed = dict(left_out)
    found = measured("train", "train", problem, {n: t.train for n, t in tasks.items()}, failed)
    found["memory"] = {
        name: attempt(failed, name, partial(peak_memory, task, problem, device))
        for name, task in tasks.items()
    }
    add(found)
    for closed in CLOSED:
        failed, shut = dict(left_out), close_gates(problem, closed)
        made = {name: attempt(failed, name, partial(make_task, name, shut, device)) for name in tasks}
        calls = {name: task.inference for name, task in made.items() if task}
        add(measured("inference", f"inference, {closed:.0%} closed", shut, calls, failed))


def case_of(shape: Shape) -> Document:
    """What is measured, without its mode."""
    pairs = count_pairs(shape.sizes())
    return {"shape": shape.name, "about": shape.about, "graphs": shape.graphs, "pairs": pairs}


def compared(
    problem: Problem, shape: Shape, options: argparse.Namespace, deadline: float, left_out: dict[str, str]
) -> dict[str, Task]:
    """The tasks whose results are those of the fused one, which is the first; the others are in left_out."""
    device = problem.nodes.device
    tasks: dict[str, Task] = {}
    expected: dict[str, torch.Tensor] = {}

    def compare(name: str) -> None:
        task = make_task(name, problem, device)
        with torch.device(device):
            found = task.results(seed=1)
        check_equal(found, expected or found, f"{name} at shape {shape.name}", _TOLERANCE)
        expected.update(expected or found)
        tasks[name] = task

    for name in options.contestants:
        if time.monotonic() > deadline:
            left_out[name] = _NO_TIME
            continue
        _say(f"{shape.name}, {name}: compiling and comparing")
        attempt(left_out, name, partial(compare, name))
        if name == "fused" and not tasks:
            break  # there is nothing to compare with
    return tasks


def attempt(failed: dict[str, str], name: str, call: Callable[[], T]) -> T | None:
    """What the call of a contestant returns; where it fails None, and the reason in ``failed``."""
    try:
        return call()
    except torch.OutOfMemoryError:
        failed[name] = "out of memory"
    except WrongResult as error:
        failed[name] = f"{_WRONG}: {error}"
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # after an illegal access a GPU refuses everything
            torch.cuda.empty_cache()
    return None


def failures(document: Document) -> list[str]:
    """What makes the run a failed one: wrong results, and whatever the fused contestant did not compute."""
    found = {
        f"shape {m['case']['shape']}, {name}: {why}": None
        for m in document["measurements"]
        for name, why in m["left_out"].items()
        if why.startswith(_WRONG) or (name == "fused" and why != _NO_TIME)
    }
    return list(found)


def moved(problem: Problem, device: torch.device) -> Problem:
    """The problem on the device."""

    def move(value: Any) -> Any:
        return tuple(map(move, value)) if isinstance(value, tuple) else value.to(device)

    return Problem(**{field.name: move(getattr(problem, field.name)) for field in fields(Problem)})


def count_open(problem: Problem, deterministic: bool) -> int:
    """The number of pairs with a gate above 0; of one draw, where gates are drawn."""
    out = functional.l0_sign(
        problem.nodes, problem.edge_nodes, problem.message, problem.edge, problem.offsets,
        seed=None if deterministic else 0, l2_penalty=False, backend="fused",
    )  # fmt: skip
    assert out.num_edges is not None
    return int(out.num_edges.sum())


def required_bytes(problem: Problem, mode: str) -> int:
    """Bytes of the inputs and outputs of a mode, each once, as FORMULAS says."""
    leaves = [problem.nodes, problem.edge_nodes, *problem.weights]
    if mode == "inference":  # there are as many predictions as sums of pi
        return _bytes([*leaves, problem.head, problem.grad_l0])
    # An incoming gradient has the size of its output.
    outputs = [problem.grad_nodes, problem.grad_l0]
    return _bytes(leaves + outputs) * (2 if mode == "train" else 1)


def product_type(device: torch.device) -> str:
    """The type in which the fused kernels multiply float32."""
    if device.type != "cuda":
        return "fp32"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def add_shares(measurement: Document, found: Document, product: str) -> None:
    """The fused time's shares of the measured roofs, where there is one."""
    if "fused" not in measurement["contestants"]:
        return
    case, seconds = measurement["case"], 1e-3 * measurement["contestants"]["fused"]["median"]
    measurement["shares"] = {
        "copy": case["bytes"] / seconds / (1e9 * found["copy_gb_s"]),
        "matrix": case["gflop"] / seconds / (1e3 * found[f"{product}_tflop_s"]),
        "product": product,
    }


def make_task(name: str, problem: Problem, device: torch.device) -> Task:
    """A contestant with a problem that is on the device."""
    with torch.device(device):
        return Task(KINDS[name](problem.offsets), problem)


def close_gates(problem: Problem, share: float) -> Problem:
    """The problem with an edge bias that closes this share of the pairs' deterministic gates."""
    random = torch.Generator().manual_seed(0)
    i, j = torch.randint(int(problem.offsets[-1]), (2, 4096), generator=random).to(problem.nodes.device)
    logits = mlp(problem.edge_nodes[i] * problem.edge_nodes[j], problem.edge).squeeze(-1)
    # sigmoid(a) 1.2 - 0.1 reaches 0 at -ln 11; with nothing closed, gates are as they come.
    shift = -math.log(11) - logits.quantile(share) if share else 0.0
    return replace(problem, edge=(*problem.edge[:3], problem.edge[3] + shift))


def timed(
    calls: Mapping[str, Call],
    device: torch.device,
    clock: Clock,
    options: argparse.Namespace,
    deadline: float,
    failed: dict[str, str],
) -> Document:
    """Each contestant's times, by turns; who fails or finds no time left is named in ``failed``.

    Whoever has failed keeps the rounds before.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    rounds = 2 if options.quick else 30
    running = list(calls)
    with torch.device(device):
        for number in range(-2, rounds):  # two to warm up, of which the second tells how long a call takes
            for name in tuple(running):
                spent = 1e-3 * sum(times[name]) * repeats[name]
                late = time.monotonic() > deadline
                if number > 2 and (late or spent > options.seconds):
                    running.remove(name)
                    continue
                if late:
                    failed[name] = _NO_TIME
                    running.remove(name)
                    continue
                elapsed = attempt(failed, name, partial(clock, calls[name], repeats[name]))
                if elapsed is None:
                    running.remove(name)
                elif number >= 0:
                    times[name].append(elapsed)
                elif number == -1 and not options.quick:
                    repeats[name] = clock.calls(elapsed)
    found = summary({name: [1e-3 * ms for ms in values] for name, values in times.items() if values})
    for name, timing in found.items():
        timing["calls"] = repeats[name]
    return found


def peak_memory(task: Task, problem: Problem, device: torch.device) -> Document | None:
    """Bytes of a training step: its peak, and those of its inputs and outputs, as FORMULAS says."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.device(device):
        task.train()
    torch.cuda.synchronize(device)
    inputs = _bytes([*task.leaves(), *task.grads])
    peak = torch.cuda.max_memory_allocated(device) - before + inputs
    return {"peak": peak, "inputs and outputs": required_bytes(problem, "train")}


def roofs(device: torch.device, clock: Clock, quick: bool) -> Document:
    """What the device reaches: copies in GB/s (read and written), and products of matrices in TFLOP/s."""
    size = 1 << (20 if quick else 28)
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    side = 256 if quick else 8192
    matrix = torch.randn(side, side, device=device)
    before = torch.get_float32_matmul_precision()

    def best(call: Call) -> float:
        clock(call)
        return 1e-3 * min(clock(call) for _ in range(5))

    def rate(matrix: torch.Tensor) -> float:
        return 2 * side**3 / best(lambda: matrix @ matrix) / 1e12

    found = {"copy_gb_s": 2 * source.numel() * 4 / best(lambda: target.copy_(source)) / 1e9}
    for precision, name in (("highest", "fp32"), ("high", "tf32")):
        torch.set_float32_matmul_precision(precision)
        found[f"{name}_tflop_s"] = rate(matrix)
    torch.set_float32_matmul_precision(before)
    found["tf32x3_tflop_s"] = found["tf32_tflop_s"] / 3
    found["bf16_tflop_s"] = rate(matrix.bfloat16())
    return found


def table(document: Document) -> str:
    """The measurements in Markdown."""
    about = f"{document['device']}, torch {document['versions']['torch']}, commit {document['git']['commit']}"
    lines = [f"# The layer on a GPU: {about}", ""]
    if document["quick"]:
        lines += ["A quick run: these figures mean nothing.", ""]
    roofs_text = ", ".join(f"{name} {value:,.4g}" for name, value in document["roofs"].items())
    lines += [f"Roofs: {roofs_text}.", ""]
    lines += [
        "| shape | mode | fused, ns a sample | copy roof | matrix roof | others over fused | left out |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for m in document["measurements"]:
        case, timings, shares = m["case"], m["contestants"], m.get("shares")
        fused = f"{1e6 * timings['fused']['median'] / case['graphs']:.3g}" if "fused" in timings else "–"
        copy = f"{100 * shares['copy']:.3g}%" if shares else "–"
        matrix = f"{100 * shares['matrix']:.3g}% ({shares['product']})" if shares else "–"
        others = ", ".join(f"{n} {t['ratio']:.3g}" for n, t in timings.items() if n != "fused" and t["ratio"])
        missing = ", ".join(f"{name}: {why}" for name, why in m["left_out"].items()).replace("|", "\\|")
        cells = (case["shape"], case["mode"], fused, copy, matrix, others, missing)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| shape | peak memory of a training step over its inputs and outputs |", "|---|---|"]
    for m in document["measurements"]:
        known = {name: value for name, value in m.get("memory", {}).items() if value}
        if known:
            ratios = ", ".join(f"{n} {v['peak'] / v['inputs and outputs']:.3g}" for n, v in known.items())
            lines.append(f"| {m['case']['shape']} | {ratios} |")
    lines += ["", *(f"- {name}: {formula}" for name, formula in document["formulas"].items())]
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
    names = [name for name in KINDS if name != PlainOfficial.name]
    add("--contestants", nargs="+", choices=KINDS, default=names, help="default: all")
    add("--seconds", type=float, default=1.0, help="for each contestant, shape and mode")
    add("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    add("--device", default="cuda")
    add("--quick", action="store_true", help="tiny shapes, two rounds: looks at function, not at time")
    add("--out", type=Path, default=results.RESULTS, help="directory; default: benchmarks/results")
    add("--name", help="of the files, without suffix; default: date and kind")
    options = parser.parse_args(arguments)
    instead = {} if has_pyg() else {Official.name: PlainOfficial.name}
    asked = [instead.get(name, name) for name in options.contestants]
    options.contestants = list(dict.fromkeys(["fused", *asked]))
    return options


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
