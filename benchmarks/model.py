"""The whole model at the reference shapes, and the latency of predictions.

    python -m benchmarks.model
    python -m benchmarks.model --quick    # does it work? The figures mean nothing

- train: lookup, gated layer, pooling, head and loss with new noise, and the backward for all weights;
- inference: predictions under no_grad, model.eval();
- latency: predictions of 1 and of 1,000 samples of Frappe's shape, also by the compiled model
  (torch.compile, and AOTInductor on what torch.export gives).

Batches are collated before. Before anything is timed, the predictions of all contestants are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from l0sign_cuda import functional
from l0sign_cuda.data import Batch

from . import environment, results, samples
from .contestants import check_equal
from .models import MODELS, Model, make
from .problems import SHAPES, Shape, count_pairs, gflop, select
from .rounds import QUICK, Budget, Call, interleave, summary

MODES = ("train", "inference", "latency")
_TOLERANCE = 1e-4
_NAMES = [name for name in MODELS if name != "fused, row-wise"]  # one row of a table is another's


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for, in this process."""
    before = environment.load_average()
    torch.set_num_threads(options.threads)
    peak = environment.peak_gflops([options.threads], options.quick)
    measurements = []
    modes = [mode for mode in options.modes if mode != "latency"]
    for shape in select(options.shapes, options.quick) if modes else []:
        measurements += list(_shape(shape, modes, options))
    if "latency" in options.modes:
        measurements += list(_latencies(options))
    load = {"before": before, "after": environment.load_average()}
    return {**environment.process(), "peak": peak, "load_average": load, "measurements": measurements}


def _shape(shape: Shape, modes: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    models, batches = _prepared(shape, options.contestants)
    for mode in modes:
        calls: dict[str, Call] = {}
        for name, model in models.items():
            model.model.train(mode == "train")
            calls[name] = _calling(model.backward if mode == "train" else model.predict, batches[name])
        open_pairs = _open_pairs(models["fused"], batches["fused"])
        yield _measured(_case(shape, mode, open_pairs), calls, options)


def _case(shape: Shape, mode: str, open_pairs: int) -> dict[str, Any]:
    return {
        "shape": shape.name,
        "about": shape.about,
        "mode": mode,
        "graphs": shape.graphs,
        "pairs": count_pairs(shape.sizes()),
        "open_pairs": open_pairs,
        "gflop": gflop(shape, mode, open_pairs, pooled=True),
    }


def _latencies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of Frappe's shape."""
    for graphs in (1, 1000):
        shape = replace(SHAPES["A"], graphs=graphs)
        names = [name for name in options.contestants if name not in ("compile", "repaired")]
        models, batches = _prepared(shape, names)
        calls: dict[str, Call] = {
            name: _calling(model.predict, batches[name]) for name, model in models.items()
        }
        if not options.quick:
            calls |= _compiled(models["fused"], batches["fused"])
        open_pairs = _open_pairs(models["fused"], batches["fused"])
        yield _measured(_case(shape, "latency", open_pairs), calls, options)


def _compiled(fused: Model, batch: Batch) -> dict[str, Call]:
    """The fused model under torch.compile, and as a package of AOTInductor."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    model, ids = fused.model.eval(), batch.ids
    compiled = torch.compile(model, dynamic=False)
    with torch.no_grad():
        program = torch.export.export(model, (ids,))
        with tempfile.TemporaryDirectory() as directory:
            path = aoti_compile_and_package(program, package_path=str(Path(directory) / "model.pt2"))
            package = aoti_load_package(path)
        expected = model(ids).logits
        for function in (compiled, package):
            torch.testing.assert_close(function(ids).logits, expected)

    @torch.no_grad()
    def call_compiled() -> None:
        compiled(ids)

    @torch.no_grad()
    def call_package() -> None:
        package(ids)

    return {"fused, torch.compile": call_compiled, "fused, AOTInductor": call_package}


def _prepared(shape: Shape, names: Sequence[str]) -> tuple[dict[str, Model], dict[str, Any]]:
    """Models in evaluation mode with a batch each, of the same samples; their predictions are compared."""
    torch.compiler.reset()
    data = samples.of_shape(shape)
    models = make(
        names, shape.nodes,
        num_embeddings=data.num_features, embedding_dim=shape.dim, hidden_dim=shape.hidden,
        edge_dim=shape.edge_dim, edge_hidden_dim=shape.edge_hidden,
    )  # fmt: skip
    batches, found = {}, {}
    for name, model in models.items():
        print(f"{shape.name}, {name}: compiling and comparing", file=sys.stderr, flush=True)
        batches[name] = model.collated(data)
        model.model.eval()
        found[name] = {"logits": model.predict(batches[name])}
    for name in models:
        check_equal(found[name], found["fused"], f"{name} at shape {shape.name}", _TOLERANCE)
    return models, batches


def _calling(function: Any, batch: Any) -> Call:
    return lambda: function(batch)


def _open_pairs(fused: Model, batch: Batch) -> int:
    """The number of pairs with a gate above 0; of one draw, in training mode."""
    model = fused.model
    assert model.edge_embedding is not None and model.interaction.edge is not None
    seed = 0 if model.training else None
    with torch.no_grad():
        edge_nodes, edge = model.edge_embedding(batch.ids), model.interaction.edge.weights()
        _, gates, _ = functional.pair_gates(edge_nodes, edge, seed=seed)
    return int((gates > 0).sum())


def _measured(case: dict[str, Any], calls: dict[str, Call], options: argparse.Namespace) -> dict[str, Any]:
    budget = QUICK if options.quick else Budget(options.seconds, min_rounds=3, sample=0.01, warmup=1)
    timings = summary(interleave(calls, budget))
    shown = ", ".join(f"{name} {timing['median']:.3g} ms" for name, timing in timings.items())
    print(f"{case['shape']}, {case['mode']}, {case['graphs']:,} graphs: {shown}", file=sys.stderr, flush=True)
    return {"case": case, "threads": options.threads, "contestants": timings}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in a process of its own, and write; with --part, this process alone."""
    options = _parse(arguments)
    if options.part:
        results.write_aside(options.part, json.dumps(measure(options)))
        return
    forwarded = [
        "--shapes",
        *options.shapes,
        "--modes",
        *options.modes,
        "--contestants",
        *options.contestants,
    ]
    forwarded += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
    forwarded += ["--quick"] * options.quick
    runs = environment.run_processes("benchmarks.model", [({}, forwarded)], patient=options.quick)
    result = results.document("model", options.quick, vars(options), runs)
    for path in results.write(result, options.out, options.name):
        print(path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    dense = [name for name, shape in SHAPES.items() if not shape.ragged]
    default = [name for name in _NAMES if name != "compile"]
    add = parser.add_argument
    add("--shapes", nargs="+", choices=dense, default=dense, help="default: all")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    add("--contestants", nargs="+", choices=_NAMES, default=default, help="default: all but compile")
    add("--threads", type=int, default=1, help="default: 1")
    add("--seconds", type=float, default=1.0, help="for each contestant and measurement")
    results.add_options(parser)
    options = parser.parse_args(arguments)
    if "fused" not in options.contestants:
        options.contestants.insert(0, "fused")  # what the others are compared with
    return options


if __name__ == "__main__":
    main()
