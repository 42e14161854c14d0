"""The whole training step: an epoch of real data, steps by the size of the vocabulary, and peak memory.

    python -m benchmarks.step             # needs ../shared/data, and about 5 GiB for the largest vocabulary
    python -m benchmarks.step --quick     # does it work? The figures mean nothing

A step is lookup, layer, head, loss, backward and optimizer on a batch of 1,024; in parts 1 and 2 collating
the batch from memory belongs to it. Each timed sample is a run of steps of one contestant, in turn.

1. epoch: all contestants on the training samples of Frappe and MovieLens tags. Its time is that of a step
   times the number of steps.
2. vocabulary: steps on data like Frappe's with larger tables of users and items, ids skewed and uniform;
   tables of all sizes take turns. Labels are chance there, and a model that learned from them would close
   edges, more or fewer by the size of its table, while training on Frappe opens them: the learning rate is
   next to nothing, so that the edges stay as they begin, nine tenths of them open.
3. memory: the most that a process takes that makes a model and trains it for 20 steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from l0sign_cuda.data import GraphDataset
from l0sign_cuda.memory import peak_memory

from . import environment, results, samples
from .models import MODELS, OPTIMIZERS, Model, make
from .rounds import QUICK, Budget, Call, Key, interleave, summary

BATCH_SIZE = 1024
LEARNING_RATE_OF_CHANCE = 1e-9  # where labels are chance
PARTS = ("epoch", "vocabulary", "memory")
_GROWING = ("fused", "fused, row-wise", "official")  # what is measured by vocabulary
_COMPILED = ("compile", "repaired")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Parts 1 and 2, in this process."""
    before = environment.load_average()
    torch.set_num_threads(options.threads)
    measurements = []
    if "epoch" in options.parts:
        measurements += list(_epochs(options))
    if "vocabulary" in options.parts:
        measurements += list(_vocabularies(options))
    load = {"before": before, "after": environment.load_average()}
    return {**environment.process(), "load_average": load, "measurements": measurements}


def _epochs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in ["made"] if options.quick else samples.REAL:
        data = samples.frappe_like(500) if options.quick else samples.real(name, options.data)
        torch.compiler.reset()
        models = _models(data, options.contestants)
        batches = {name: model.batches(data, _batch_size(options)) for name, model in models.items()}
        for optimizer in OPTIMIZERS:
            case: dict[str, Any] = {
                "part": "epoch",
                "data": name,
                "optimizer": optimizer,
                "features": data.num_features,
                "samples": len(data),
                "steps": len(data) / _batch_size(options),
                "extrapolated": True,  # the times are those of steps
            }
            yield _measured(case, _timed(models, batches, optimizer, options), options)


def _vocabularies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All sizes by turns, so that their ratios are those of one machine."""
    names = [name for name in options.contestants if name in _GROWING]
    models: dict[tuple[int, str], Model] = {}
    for ids in ("skewed", "uniform"):
        batches = {}
        for features in options.features:
            data = samples.frappe_like(100 * _batch_size(options), features, ids == "skewed")
            if ids == "skewed":
                models |= {(features, name): model for name, model in _models(data, names).items()}
            for name in names:
                batches[features, name] = models[features, name].batches(data, _batch_size(options))
        for optimizer in OPTIMIZERS:
            times = _timed(models, batches, optimizer, options, LEARNING_RATE_OF_CHANCE)
            for features in options.features:
                case = {"part": "vocabulary", "ids": ids, "optimizer": optimizer, "features": features}
                yield _measured(case, {name: times[features, name] for name in names}, options)


def _models(data: GraphDataset, names: Iterable[str]) -> dict[str, Model]:
    assert data.graph_size
    return make(names, data.graph_size, num_embeddings=data.num_features)


def _timed(
    models: Mapping[Key, Model],
    batches: Mapping[Key, Iterator[Any]],
    optimizer: str,
    options: argparse.Namespace,
    learning_rate: float | None = None,
) -> dict[Key, list[float]]:
    """Seconds a step, by turns."""
    for model in models.values():
        model.use_optimizer(optimizer, learning_rate)
    # Long samples: after another contestant's turn the first step finds nothing of its own in the caches.
    budget = QUICK if options.quick else Budget(options.seconds, min_rounds=3, sample=0.1, warmup=1)
    return interleave({key: _stepping(model, batches[key]) for key, model in models.items()}, budget)


def _stepping(model: Model, batches: Iterator[Any]) -> Call:
    return lambda: model.step(next(batches))


def _measured(
    case: dict[str, Any], times: Mapping[str, Sequence[float]], options: argparse.Namespace
) -> dict[str, Any]:
    timings = summary(times)
    about = ", ".join(f"{key} {value}" for key, value in case.items() if key not in ("extrapolated", "steps"))
    shown = ", ".join(f"{name} {timing['median']:.3g} ms" for name, timing in timings.items())
    print(f"{about}: {shown}", file=sys.stderr, flush=True)
    return {"case": case, "threads": options.threads, "contestants": timings}


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Part 3, of the one contestant and the one vocabulary of this process, with Adam."""
    torch.set_num_threads(options.threads)
    [name], [features] = options.contestants, options.features
    data = samples.frappe_like(20 * _batch_size(options), features)
    program = peak_memory()["host"]
    assert data.graph_size
    [model] = make([name], data.graph_size, num_embeddings=features).values()
    model.use_optimizer("adam")
    batches = model.batches(data, _batch_size(options))
    for _ in range(20):
        model.step(next(batches))
    return {
        "contestant": name,
        "features": features,
        "optimizer": "adam",
        "program_bytes": program,
        "peak_bytes": peak_memory()["host"],
    }


def _batch_size(options: argparse.Namespace) -> int:
    return 64 if options.quick else BATCH_SIZE


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each part in processes of their own, and write; with --part, this process alone."""
    options = _parse(arguments)
    if options.part:
        found = measure_memory(options) if options.parts == ["memory"] else measure(options)
        results.write_aside(options.part, json.dumps(found))
        return
    timed = [part for part in options.parts if part != "memory"]
    runs: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    if timed:
        runs = _run(options, [_forwarded(options, timed, options.contestants, options.features)])
    if "memory" in options.parts:
        names = [name for name in options.contestants if name in _GROWING]
        each = itertools.product(options.features, names)
        memory = _run(options, [_forwarded(options, ["memory"], [name], [n]) for n, name in each])
    result = results.document("step", options.quick, vars(options), runs) | {"memory": memory}
    for path in results.write(result, options.out, options.name):
        print(path)


def _run(options: argparse.Namespace, arguments: Sequence[list[str]]) -> list[dict[str, Any]]:
    processes: list[environment.Process] = [({}, words) for words in arguments]
    return environment.run_processes("benchmarks.step", processes, patient=options.quick)


def _forwarded(
    options: argparse.Namespace, parts: Sequence[str], contestants: Sequence[str], features: Sequence[int]
) -> list[str]:
    words = ["--parts", *parts, "--contestants", *contestants, "--features", *map(str, features)]
    words += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
    return [*words, "--data", str(options.data), *["--quick"] * options.quick]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--contestants", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    add("--features", nargs="+", type=int, help="default: 5,382, 100,000 and 5,000,000")
    add("--data", type=Path, default=samples.DATA, help="directory with frappe/ and ml-10m/")
    add("--threads", type=int, default=1, help="default: 1")
    add("--seconds", type=float, default=2.0, help="for each contestant and measurement")
    results.add_options(parser)
    options = parser.parse_args(arguments)
    if options.features is None:
        larger = [20_000] if options.quick else [100_000, 5_000_000]
        options.features = [samples.FRAPPE_FEATURES, *larger]
    if not options.part and options.parts == ["memory"]:
        parser.error("--parts memory: needs another part, whose run tells the circumstances")
    if "fused" not in options.contestants and options.parts != ["memory"]:
        options.contestants.insert(0, "fused")  # what the others are compared with
    return options


if __name__ == "__main__":
    main()
