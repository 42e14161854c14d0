"""One training loop for every model that is not the library's own; `l0sign_cuda.fit` trains those alike."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from l0sign_cuda import metrics, parameter_groups
from l0sign_cuda.data import GraphDataset
from l0sign_cuda.training import averaged

Ints = NDArray[np.int64]


class Problem(NamedTuple):
    """A data set, and the samples of each part."""

    data: GraphDataset
    train: Ints
    valid: Ints
    test: Ints


class Trained(NamedTuple):
    """What is kept of a training."""

    valid: dict[str, float]
    test: dict[str, float]
    best_epoch: int
    stopped: str
    history: list[dict[str, float]]
    parameters: int
    seconds: float
    """the fastest epoch: other work on the machine makes them slower, never faster"""


class Outcome(NamedTuple):
    """What a model makes of (a batch of b graphs, their indices in the data set)."""

    logits: Tensor  # [b]
    l0_penalty: Tensor | None = None  # scalar: the expected share of open pairs, its mean over the graphs
    open_edges: int = 0
    pairs: int = 0


def train(model: nn.Module, problem: Problem, options: Mapping[str, Any], seed: int) -> Trained:
    """Adam on the cross entropy; the model then has the weights of the best epoch by the metric `monitor`.

    Samples come in the order in which `l0sign_cuda.fit` takes them. As there, the network that the gates come
    from has no weight decay, and `edge_lr` times the learning rate; with `ema` the average counts.
    """
    data, monitor = problem.data, options.get("monitor", "auc")
    assert data.labels is not None
    rates = options["lr"], options.get("edge_lr", 1.0)
    optimizer = torch.optim.Adam(
        parameter_groups(model, *rates, weight_decay=options["weight_decay"]), fused=True
    )
    average = None
    if options.get("ema"):
        average = averaged(model, options["ema"])
    judged = model if average is None else average.module
    history: list[dict[str, float]] = []
    best, best_epoch, weights, stopped = math.nan, 0, copy.deepcopy(model.state_dict()), "epochs"
    for epoch in range(options["epochs"]):
        began, total = time.perf_counter(), 0.0
        model.train()
        order = problem.train[np.random.default_rng((seed, epoch)).permutation(len(problem.train))]
        for start in range(0, len(order), options["batch_size"]):
            indices = order[start : start + options["batch_size"]]
            batch = data.batch(indices)
            outcome = model(batch, indices)
            assert batch.labels is not None
            loss = F.binary_cross_entropy_with_logits(outcome.logits, batch.labels)
            if outcome.l0_penalty is not None:
                loss = loss + options["l0_weight"] * outcome.l0_penalty
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            total += float(loss.detach()) * len(indices)
        seconds = time.perf_counter() - began
        found = measure(judged, data, problem.valid, options["batch_size"])
        history.append({"epoch": epoch + 1, "loss": total / len(order), **found, "seconds": seconds})
        if math.isnan(best) or metrics.is_better(monitor, found[monitor], best):
            best, best_epoch, weights = found[monitor], epoch + 1, copy.deepcopy(judged.state_dict())
        elif epoch + 1 - best_epoch >= options["patience"]:
            stopped = "patience"
            break
    model.load_state_dict(weights)
    return Trained(
        measure(model, data, problem.valid, options["batch_size"]),
        measure(model, data, problem.test, options["batch_size"]),
        best_epoch,
        stopped,
        history,
        count_parameters(model),
        fastest_epoch(history),
    )


@torch.no_grad()
def measure(model: nn.Module, data: GraphDataset, indices: Ints, batch_size: int) -> dict[str, float]:
    """The metrics on some samples, and the share of all pairs whose edge is open."""
    assert data.labels is not None
    model.eval()
    parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    outcomes = [model(data.batch(part), part) for part in parts]
    logits = torch.cat([outcome.logits for outcome in outcomes])
    pairs = sum(outcome.pairs for outcome in outcomes)
    found = metrics.compute(logits, torch.from_numpy(np.asarray(data.labels[indices])), "bce")
    if pairs:
        found["edges_kept"] = sum(outcome.open_edges for outcome in outcomes) / pairs
    return found


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def fastest_epoch(history: list[dict[str, float]]) -> float:
    """Its seconds; NaN without an epoch."""
    return min((row["seconds"] for row in history), default=math.nan)
