"""Runs experiments and keeps their results; what was interrupted goes on, from records or from a kept result.

python -m benchmarks.accuracy table2-frappe --data ../shared/data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import environment
from ..results import RESULTS
from . import datasets, gmail, kept, runner
from .experiments import EXPERIMENTS, quick
from .records import Records

_NAMES = (*EXPERIMENTS, gmail.NAME)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__)
    add = parser.add_argument
    add(
        "experiment",
        nargs="+",
        choices=[*_NAMES, "all"],
        metavar="EXPERIMENT",
        help=", ".join(_NAMES),
    )
    add("--data", type=Path, help="directory of the data, where they are not made or already prepared")
    add(
        "--work",
        type=Path,
        default=environment.ROOT / "build" / "accuracy",
        help="finished trials, prepared data",
    )
    add(
        "--out",
        type=Path,
        help="results; default: benchmarks/results/accuracy, of --quick WORK/quick, where no result is "
        "replaced by less",
    )
    add("--seeds", type=int, nargs="+", help="default: those of the experiment")
    add("--rows", nargs="+", default=(), metavar="LABEL", help="run only these rows")
    add("--hours", type=float, default=float("inf"), help="begin no trial after so long")
    add("--threads", type=int, default=1, help="default: 1")
    add("--quick", action="store_true", help="made data, two epochs: whether it works")
    add("--assemble", action="store_true", help="run nothing; write the results of what is there")
    options = parser.parse_args(argv)
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    if wrong := [seed for seed in options.seeds or () if seed < 0]:
        parser.error(f"--seeds: expected numbers of at least 0, got {wrong[0]}")
    torch.set_num_threads(options.threads)
    try:
        return _run(parser, options)
    except (FileNotFoundError, ValueError) as error:  # data or a record that is not there, or damaged
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    out = options.out or (options.work / "quick" if options.quick else RESULTS / "accuracy")
    names = _NAMES if "all" in options.experiment else options.experiment
    experiments = [name for name in names if name != gmail.NAME]
    for name in experiments:
        labels = [entry.label for entry in EXPERIMENTS[name].entries]
        if unknown := [label for label in options.rows if label not in labels]:
            parser.error(f"--rows: {name} has no row {unknown[0]!r}, but {', '.join(map(repr, labels))}")
    complete = True
    for name in experiments:
        experiment = quick(EXPERIMENTS[name]) if options.quick else EXPERIMENTS[name]
        seeds = options.seeds or experiment.seeds
        before = kept.there(name, options.quick, out)
        known = kept.records_of(before)
        if not options.assemble:
            runner.run(
                experiment,
                options.data,
                options.work,
                seeds,
                options.rows,
                options.hours,
                lambda text: print(text, flush=True),
                known,
            )
        fingerprint = datasets.fingerprint(datasets.load(experiment.data, options.data, options.work))
        every = sorted({*experiment.seeds, *seeds})
        found = runner.rows(experiment, Records(options.work, known), every, fingerprint)
        result = kept.document(name, experiment, found, options.quick, fingerprint, before)
        complete &= not result["missing"]
        if not result["environments"]:
            print(f"{name}: no trial is done")
            continue
        there = 0 if before is None else kept.trials(before)
        if options.out is None and there > kept.trials(result):
            print(
                f"{name}: not written; the kept result has {there} trials, this {kept.trials(result)} "
                "(--out writes elsewhere)"
            )
            complete = False
            continue
        written, _ = kept.write(result, out)
        print(
            f"{written}: " + ("; ".join(["missing", *result["missing"]]) if result["missing"] else "complete")
        )
    if gmail.NAME in names and not options.assemble:
        written, _ = kept.write(gmail.result(options.data, options.work, options.quick), out)
        print(f"{written}: complete")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
