"""The whole training step, an epoch, and the latency of predictions: the model and the official approach.

    python -m benchmarks.step             # needs about 4 GiB for the largest vocabulary
    python -m benchmarks.step --quick     # does it work? The figures mean nothing

The data are like Frappe's: ten fields, 5,382 features in all; for larger vocabularies the fields of users and
items grow, and values are drawn uniformly, which touches more rows than real data do. Both models begin from
the same weights and are trained by the same optimizer on the same loss: cross entropy with the penalty on
open edges.

- step: embedding lookup, model, loss, backward, optimizer, on batches of 1,024 that were collated before;
- epoch: all of it in shuffled batches, collating included, as PyG's DataLoader does it from a list of graphs
  in memory, and as l0sign_cuda.data.GraphDataset does it;
- inference: one batch of 1 or of 1,000 samples, collated before.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import l0sign_cuda
from l0sign_cuda import L0SIGN
from l0sign_cuda.data import GraphDataset

from . import environment, results
from .contestants import gated_message_passing
from .rounds import QUICK, Budget, Call, interleave, summary

BATCH_SIZE = 1024
FRAPPE_SAMPLES = 202_027  # 70 % of 288,609
L0_WEIGHT = 3.6e-4

# Values of Frappe's fields: user, item, daytime, weekday, weekend, homework, cost, weather, country, city.
_FIELDS = (957, 4082, 7, 7, 2, 3, 9, 2, 80, 233)
FRAPPE_FEATURES = sum(_FIELDS)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.2),
}


def frappe_like(samples: int, features: int = FRAPPE_FEATURES, seed: int = 0) -> GraphDataset:
    """Ten categorical fields of ``features`` values together, drawn uniformly, with labels of chance."""
    random = np.random.default_rng(seed)
    large, small = sum(_FIELDS[:2]), sum(_FIELDS[2:])
    users = (features - small) * _FIELDS[0] // large
    fields = [users, features - small - users, *_FIELDS[2:]]
    first = np.cumsum([0, *fields[:-1]])
    ids = np.stack(
        [start + random.integers(n, size=samples) for start, n in zip(first, fields, strict=True)], 1
    )
    return GraphDataset.from_dense(ids, labels=random.integers(2, size=samples), num_features=features)


class Contestant(ABC):
    """A model with its optimizer and its way to batches."""

    name: str
    model: nn.Module
    optimizers = OPTIMIZERS

    @abstractmethod
    def batches(self, data: GraphDataset, batch_size: int) -> Iterator[Any]:
        """The samples in shuffled, collated batches."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch."""

    @abstractmethod
    def logits(self, batch: Any) -> Tensor:
        """The predictions of a batch."""

    def with_optimizer(self, name: str) -> Contestant:
        self.optimizer = self.optimizers[name](self.model.parameters())
        return self

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(batch).backward()
        self.optimizer.step()

    def epoch(self, data: GraphDataset, batch_size: int = BATCH_SIZE) -> None:
        for batch in self.batches(data, batch_size):
            self.step(batch)


class Fused(Contestant):
    """This library's model."""

    name = "fused"

    def __init__(self, model: L0SIGN) -> None:
        self.model: L0SIGN = model

    def batches(self, data: GraphDataset, batch_size: int) -> Iterator[Any]:
        return data.iter_batches(None, batch_size, shuffle_seed=0)

    def loss(self, batch: Any) -> Tensor:
        output = self.model(batch.ids, batch.offsets, batch.values)
        return l0sign_cuda.empirical_risk(output, batch.labels, L0_WEIGHT)

    def logits(self, batch: Any) -> Tensor:
        logits: Tensor = self.model(batch.ids, batch.offsets, batch.values).logits
        return logits


class Official(Contestant):
    """The model with torch's embeddings and PyG's message passing, from the same weights."""

    name = "official"

    def __init__(self, model: L0SIGN) -> None:
        self.model: L0SIGN = copy.deepcopy(model)
        self.passing = gated_message_passing()

    def batches(self, data: GraphDataset, batch_size: int) -> Iterator[Any]:
        from torch_geometric.loader import DataLoader

        return iter(DataLoader(_graphs(data), batch_size, shuffle=batch_size < len(data)))

    def outputs(self, batch: Any, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """(logits [B], the sum of the probabilities of open edges [B])."""
        from torch_geometric.nn import global_mean_pool

        model = self.model
        assert model.edge_embedding is not None and model.interaction.edge is not None
        x, e = model.node_embedding(batch.x), model.edge_embedding(batch.x)
        networks = model.interaction.message.weights(), model.interaction.edge.weights()
        nodes, l0 = self.passing(x, e, batch.edge_index, batch.batch, batch.num_graphs, *networks, noise)
        return model.head(global_mean_pool(nodes, batch.batch, batch.num_graphs)).squeeze(-1), l0

    def loss(self, batch: Any) -> Tensor:
        logits, l0 = self.outputs(batch, torch.rand(batch.edge_index.shape[1]))
        return F.binary_cross_entropy_with_logits(logits, batch.y) + L0_WEIGHT * l0.mean()

    def logits(self, batch: Any) -> Tensor:
        return self.outputs(batch, None)[0]


def _graphs(data: GraphDataset) -> list[Any]:
    """A PyG graph for each sample, its pairs listed; samples of one size share the list."""
    from torch_geometric.data import Data

    whole = data.batch(np.arange(len(data)))
    pairs = torch.triu_indices(whole.ids.shape[1], whole.ids.shape[1])
    assert whole.labels is not None
    return [
        Data(x=x, edge_index=pairs, y=y, num_nodes=x.shape[0])
        for x, y in zip(whole.ids, whole.labels.split(1), strict=True)
    ]


def contestants(features: int) -> list[Contestant]:
    """The models of a vocabulary, from the same weights."""
    torch.manual_seed(0)
    model = L0SIGN(features, l2_penalty=False)
    return [Fused(model), Official(model)]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, with the allocator and the kernels of this process."""
    before = environment.load_average()
    measurements = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for measurement in itertools.chain(_steps(options), _epoch(options), _latency(options)):
            case, timings = measurement["case"], measurement["contestants"]
            shown = ", ".join(f"{name} {timing['median']:.3g} ms" for name, timing in timings.items())
            about = f"{case['measure']}, {case['of']}, {case['features']:,} features, {threads} thr."
            print(f"{about}: {shown}", file=sys.stderr, flush=True)
            measurements.append(measurement | {"threads": threads})
    load = {"before": before, "after": environment.load_average()}
    return {**environment.process(), "load_average": load, "measurements": measurements}


def _steps(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    size = 64 if options.quick else BATCH_SIZE
    for features in options.features:
        data = frappe_like(8 * size, features)
        for optimizer in OPTIMIZERS:
            calls: dict[str, Call] = {}
            for contestant in contestants(features):
                batches = itertools.cycle(list(contestant.batches(data, size)))
                calls[contestant.name] = _stepping(contestant.with_optimizer(optimizer), batches)
            yield _measured("training step", "optimizer", optimizer, features, calls, _budget(options))


def _stepping(contestant: Contestant, batches: Iterator[Any]) -> Call:
    return lambda: contestant.step(next(batches))


def _epoch(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    samples = 500 if options.quick else FRAPPE_SAMPLES
    data = frappe_like(samples)
    calls: dict[str, Call] = {}
    for contestant in contestants(FRAPPE_FEATURES):
        calls[contestant.name] = _epochs(contestant.with_optimizer("adam"), data)
    budget = Budget(min_rounds=1, max_rounds=1 if options.quick else 3, seconds=600, warmup=0)
    yield _measured(f"epoch of {samples:,} samples", "optimizer", "adam", FRAPPE_FEATURES, calls, budget)


def _epochs(contestant: Contestant, data: GraphDataset) -> Call:
    return lambda: contestant.epoch(data)


def _latency(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for samples in (1, 1000):
        data = frappe_like(samples)
        calls: dict[str, Call] = {}
        for contestant in contestants(FRAPPE_FEATURES):
            contestant.model.eval()
            calls[contestant.name] = _predicting(contestant, next(contestant.batches(data, samples)))
        yield _measured("inference", "samples", str(samples), FRAPPE_FEATURES, calls, _budget(options))


def _predicting(contestant: Contestant, batch: Any) -> Call:
    return torch.no_grad()(lambda: contestant.logits(batch))


def _measured(
    measure: str, unit: str, of: str, features: int, calls: Mapping[str, Call], budget: Budget
) -> dict[str, Any]:
    case = {"measure": measure, "unit": unit, "of": of, "features": features}
    return {"case": case, "contestants": summary(interleave(calls, budget))}


def _budget(options: argparse.Namespace) -> Budget:
    return QUICK if options.quick else Budget(seconds=options.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with each allocator in a process of its own, and write; with --part, this process alone."""
    options = _parse(arguments)
    if options.part:
        results.write_aside(options.part, json.dumps(measure(options)))
        return
    arguments = ["--seconds", str(options.seconds), *["--quick"] * options.quick]
    arguments += ["--features", *map(str, options.features), "--threads", *map(str, options.threads)]
    allocators = environment.with_allocators(options.allocators)
    processes = [(variables, arguments) for variables in allocators.values()]
    runs = environment.run_processes("benchmarks.step", processes, patient=options.quick)
    result = results.document("step", options.quick, vars(options), runs)
    for path in results.write(result, options.out, options.name):
        print(path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--features", nargs="+", type=int, help="default: 5,382, 100,000 and 5,000,000")
    add("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    add("--allocators", nargs="+", choices=("default", "tuned"), default=["default", "tuned"])
    add("--seconds", type=float, default=3.0, help="for each contestant and measure")
    add("--quick", action="store_true", help="small batches, a few rounds: looks at function, not at time")
    add("--out", type=Path, default=results.RESULTS, help="directory; default: benchmarks/results")
    add("--name", help="of the files, without suffix; default: date and kind")
    add("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.features is None:
        options.features = (
            [FRAPPE_FEATURES, 20_000] if options.quick else [FRAPPE_FEATURES, 100_000, 5_000_000]
        )
    return options


if __name__ == "__main__":
    main()
