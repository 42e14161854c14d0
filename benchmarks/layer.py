"""The layer: all contestants by turns in one process, for each shape, mode and number of threads.

    python -m benchmarks.layer                  # about twelve minutes
    python -m benchmarks.layer --quick          # does it work? The figures mean nothing

All contestants run on the first number of threads that is given; the fused one alone also on the others, in
turn with them, and on lesser instruction sets, at the shapes of --detail. Beside graphs of unequal size it
computes as many pairs in graphs of one size.

Modes: "train" is forward with new noise and backward for all inputs and weights; "forward" is that forward
alone, ready for a backward; "inference" is predictions of the layer under a linear head, gates deterministic,
no gradient. Before anything is timed, each contestant's results are compared with the fused ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from l0sign_cuda import functional

from . import environment, results
from .contestants import CONTESTANTS, Fused, Task, check_equal
from .problems import MODES, ONE_SIZE, SHAPES, Problem, count_pairs, gflop, select
from .rounds import QUICK, Budget, Call, interleave, summary

# float32, in the Euclidean norm: sums of up to 33,000 probabilities, one after the other, and gradients that
# jump at a kink. What computes something else errs by far more.
_TOLERANCE = 2e-3
_COMPILED = ("compile", "repaired")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write, or with --part measure in this process alone."""
    options = _parse(arguments)
    if options.part:
        results.write_aside(options.part, json.dumps(measure(options)))
        return
    runs = environment.run_processes("benchmarks.layer", _processes(options), patient=options.quick)
    result = results.document("layer", options.quick, vars(options), runs)
    for path in results.write(result, options.out, options.name):
        print(path)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for, with the allocator and the kernels of this process."""
    before = environment.load_average()
    run = {**environment.process(), "peak": environment.peak_gflops(options.threads, options.quick)}
    measurements = []
    for at, name in enumerate(options.shapes):
        names = options.contestants
        if options.quick and at:
            names = [name for name in names if name not in _COMPILED]  # compiling takes the time
        threads = options.threads if name in options.detail else options.threads[:1]
        measurements += _measure_shape(name, names, threads, options)
    after = environment.load_average()
    return run | {"load_average": {"before": before, "after": after}, "measurements": measurements}


def _measure_shape(
    name: str, names: Sequence[str], threads: Sequence[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One measurement a mode and a number of threads."""
    [shape] = select([name], options.quick)
    torch.manual_seed(0)
    torch.set_num_threads(threads[0])
    torch.compiler.reset()
    problem = Problem.random(shape)
    tasks = {name: Task(CONTESTANTS[name](problem.offsets), problem) for name in names}
    expected = Task(Fused(problem.offsets), problem).results(seed=1)
    for name, task in tasks.items():
        _say(f"{shape.name}, {name}: compiling and comparing")
        check_equal(task.results(seed=1), expected, f"{name} at shape {shape.name}", _TOLERANCE)
    if shape.name in ONE_SIZE:
        [one_size] = select([shape.name], options.quick, ONE_SIZE)
        other = Problem.random(one_size)
        tasks[results.ONE_SIZE] = Task(Fused(other.offsets), other)

    sizes = shape.sizes()
    found = []
    for mode in options.modes:
        open_pairs = _open_pairs(problem, deterministic=mode == "inference")
        case = {
            "shape": shape.name,
            "about": shape.about,
            "mode": mode,
            "graphs": shape.graphs,
            "nodes": int(sizes.sum()),
            "pairs": count_pairs(sizes),
            "open_pairs": open_pairs,
            "gflop": gflop(shape, mode, open_pairs),
        }
        calls = {(threads[0], name): _on(threads[0], getattr(task, mode)) for name, task in tasks.items()}
        calls |= {(number, "fused"): _on(number, getattr(tasks["fused"], mode)) for number in threads[1:]}
        times = interleave(calls, _budget(options))
        for number in threads:
            timings = summary({name: seconds for (n, name), seconds in times.items() if n == number})
            shown = ", ".join(f"{name} {timing['median']:.3g} ms" for name, timing in timings.items())
            _say(f"{shape.name}, {number} thr., {mode}: {shown}")
            found.append({"case": case, "threads": number, "contestants": timings})
    return found


def _on(threads: int, call: Call) -> Call:
    """The call on this number of threads, which takes a third of a microsecond to set."""

    def run() -> None:
        torch.set_num_threads(threads)
        call()

    return run


def _open_pairs(problem: Problem, deterministic: bool) -> int:
    """The number of pairs with a gate above 0; of one draw, where gates are drawn."""
    seed = None if deterministic else 0
    _, gates, _ = functional.pair_gates(problem.edge_nodes, problem.edge, problem.offsets, seed=seed)
    return int((gates > 0).sum())


def _processes(options: argparse.Namespace) -> list[environment.Process]:
    """One for an allocator, one for a lesser instruction set."""
    found: list[environment.Process] = []
    bound = {} if options.quick else environment.bound(options.threads)
    for variables in environment.with_allocators(options.allocators).values():
        again = options.quick and found  # what compiles was seen to work
        names = [n for n in options.contestants if not (again and n in _COMPILED)]
        found.append(({**variables, **bound}, _forwarded(options, options.shapes, options.threads, names)))
    detail = [name for name in options.shapes if name in options.detail]
    if detail:
        alone = _forwarded(options, detail, options.threads[:1], ["fused"])
        found += [({"L0SIGN_CPU_CAPABILITY": name, **bound}, alone) for name in options.instruction_sets]
    return found


def _budget(options: argparse.Namespace) -> Budget:
    # Long samples: after another contestant's turn the first call finds nothing of its own in the caches.
    return QUICK if options.quick else Budget(options.seconds, min_rounds=3, sample=0.03, warmup=1)


def _forwarded(
    options: argparse.Namespace, shapes: Sequence[str], threads: Sequence[int], contestants: Sequence[str]
) -> list[str]:
    lists = {"--shapes": shapes, "--threads": threads, "--contestants": contestants}
    lists |= {"--modes": options.modes, "--detail": options.detail}
    words = [word for name, values in lists.items() for word in (name, *map(str, values))]
    return [*words, "--seconds", str(options.seconds), *["--quick"] * options.quick]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(CONTESTANTS)
    add = parser.add_argument
    add("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    add("--contestants", nargs="+", choices=names, default=names, help="default: all")
    add("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    add("--detail", nargs="*", choices=SHAPES, default=list("ABCD"), help="shapes; default: A B C D")
    add("--instruction-sets", nargs="*", choices=("avx2", "portable"), default=["avx2"], help="default: avx2")
    add("--allocators", nargs="+", choices=("default", "tuned"), default=["default"], help="default: default")
    add("--seconds", type=float, default=1.0, help="for each contestant and measurement; default: 1")
    results.add_options(parser)
    options = parser.parse_args(arguments)
    if "fused" not in options.contestants:
        options.contestants.insert(0, "fused")  # what the others are compared with
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
