"""What can be trained, by name: the rules, the library's models, baselines, graph networks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import l0sign_cuda
from l0sign_cuda import functional
from l0sign_cuda.checkpoint import written_aside
from l0sign_cuda.config import TrainConfig
from l0sign_cuda.data import PlantedData
from l0sign_cuda.demo import DETECTED, score
from l0sign_cuda.evaluation import Part, measure, run
from l0sign_cuda.interactions import field_interactions

from . import baselines, graphs, loop, rules
from .loop import Problem, Trained

#: "sign" is the library's model and training, with gates or without; "sign-edges" is SIGN on a share of the
#: edges that a trained L0-SIGN predicts, or of all others.
MODELS = (*rules.KINDS, "sign", *baselines.KINDS, "fm-plain", *graphs.KINDS, "sign-edges")

_BATCH = 4096
_OF_GATES = (
    "edge_dim", "edge_hidden_dim", "edge_lr", "temperature", "limits",
    "l0_weight", "l0_reduction", "l0_warmup_epochs",
)  # fmt: skip
# Options that came after the first trials: unless they are set, a trial is the same without them.
_LATER = {"dropout": 0.0, "ema": 0.0, "init_std": 0.1}
# What trials call otherwise than the library.
_NAMES = {"edge_lr": "edge_lr_factor", "ema": "ema_decay"}
_NO_MATTER = ("seed", "device", "num_threads", "checkpoint_steps", "on_collapse")


def _config(options: Mapping[str, Any]) -> TrainConfig:
    return TrainConfig.from_mapping({_NAMES.get(k, k): v for k, v in options.items()}, "options")


def resolved(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the library's defaults and what the code fixes, which decide a trial too."""
    if name == "sign":
        own = {key: value for key, value in options.items() if key == "stages"}
        config = _config({k: v for k, v in options.items() if k not in own}).to_dict()
        config |= {name: config.pop(librarys) for name, librarys in _NAMES.items()}
        unset = [name for name, default in _LATER.items() if config[name] == default]
        unused = {*_NO_MATTER, *unset, *(() if config["gated"] else _OF_GATES)}
        return own | {key: value for key, value in config.items() if key not in unused}
    fixed: dict[str, Any] = {}
    if name in baselines.KINDS:
        fixed = {"init_std": baselines.INIT_STD, "deepctr": list(baselines.KINDS[name])}
    elif name == "fm-plain":
        fixed = {"init_std": baselines.INIT_STD}
    elif name in graphs.KINDS or name == "sign-edges":
        fixed = {"hidden": graphs.HIDDEN}
    if "source" in options:
        fixed["source"] = resolved("sign", options["source"])
    return {**options, **fixed}


def train(
    name: str, dataset: str, problem: Problem, options: Mapping[str, Any], seed: int, cache: Path
) -> Trained:
    """Train a model on a problem, which is the data set of that name.

    Args:
        name: one of MODELS.
        dataset: the name of the data set.
        problem: its samples.
        options: those of an entry.
        seed: of the weights and of the order of samples.
        cache: a file for what other trials may want again, named for that.
    """
    if name in rules.KINDS:
        return rules.train(name, dataset, problem)
    if name == "sign":
        return fit(problem, options, seed)[1]
    torch.manual_seed(seed)
    if name in baselines.KINDS:
        model: torch.nn.Module = baselines.Baseline(
            name, problem.data, options["embedding_dim"], seed, options.get("dropout", 0.0)
        )
    elif name == "fm-plain":
        model = baselines.FactorizationMachine(problem.data, options["embedding_dim"])
    elif name in graphs.KINDS:
        model = graphs.make(name, problem.data, options)
    elif name == "sign-edges":
        laid = _laid_edges(problem, options, seed, cache)
        torch.manual_seed(seed)
        model = graphs.make("sign-conv", problem.data, options, laid)
    else:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    return loop.train(model, problem, options, seed)


def fit(problem: Problem, options: Mapping[str, Any], seed: int) -> tuple[l0sign_cuda.L0SIGN, Trained]:
    """The library's own training; options are those of its config.

    With the option "stages", numbers of epochs, training pauses at each of them to measure the model there;
    the history has a row a stage instead of a row an epoch.
    """
    options = {"on_collapse": "ignore", **options, "seed": seed}
    stages = options.pop("stages", None)
    config = _config(options)
    train, valid = ((problem.data, part) for part in (problem.train, problem.valid))
    if stages is None:
        result = l0sign_cuda.fit(train, valid, config)
        history = result.history
        found = _measured(result.model, problem, config)
    else:
        history = []
        with tempfile.TemporaryDirectory() as directory:
            for epochs in stages:
                result = l0sign_cuda.fit(train, valid, config, out=directory, resume=True, epochs=epochs)
                found = _measured(result.model, problem, config)
                about = {"epoch": epochs, "seconds": loop.fastest_epoch(result.history)}
                history.append({**about, **{f"{of} {k}": v for of in found for k, v in found[of].items()}})
    if isinstance(problem.data, PlantedData) and config.gated:
        found["test"] |= _detected(result.model, problem.data, problem)
    return result.model, Trained(
        found["valid"],
        found["test"],
        result.best_epoch,
        result.stopped,
        history,
        loop.count_parameters(result.model),
        loop.fastest_epoch(history),
    )


def _measured(
    model: l0sign_cuda.L0SIGN, problem: Problem, config: TrainConfig
) -> dict[str, dict[str, float]]:
    """The metrics of validation and test samples; after training on squares, one half parts the classes."""
    found = {}
    for name, indices in (("valid", problem.valid), ("test", problem.test)):
        part = Part((problem.data, indices))
        predictions = run(model, part, config.batch_size)
        squares = config.loss == "mse"
        logits = predictions.logits - 0.5 if squares else predictions.logits
        found[name] = measure(predictions._replace(logits=logits), torch.from_numpy(part.labels()), "bce")
        if squares:
            del found[name]["logloss"]
    return found


def _detected(model: l0sign_cuda.L0SIGN, data: PlantedData, problem: Problem) -> dict[str, float]:
    """Precision (0 where nothing is open) and recall of the pairs of fields that are mostly open."""
    assert data.vocabulary is not None
    names = data.vocabulary.field_names
    found = field_interactions(model, (data, problem.test))
    scores = score(
        {(pair.first, pair.second) for pair in found if pair.open_share > DETECTED},
        {(names[i], names[j]) for i, j in data.interactions},
    )
    return {name: 0.0 if math.isnan(value) else value for name, value in scores.items()}


def _laid_edges(problem: Problem, options: Mapping[str, Any], seed: int, cache: Path) -> NDArray[np.bool_]:
    """A random share of the edges that L0-SIGN predicts for each sample, of the others, or of all."""
    if not cache.exists():
        model, _ = fit(problem, options["source"], seed)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(cache) as aside, open(aside, "wb") as file:
            np.save(file, predicted_edges(model, problem))
    edges = np.load(cache)
    drawn_from = {"predicted": edges, "reversed": ~edges, "all": np.ones_like(edges)}
    return graphs.share_of(drawn_from[options["edges"]], options["share"], seed)


@torch.no_grad()
def predicted_edges(model: l0sign_cuda.L0SIGN, problem: Problem) -> NDArray[np.bool_]:
    """Which pairs i <= j of each graph have an open gate, bool [B, n (n + 1) / 2]."""
    data, layer = problem.data, model.interaction
    if model.edge_embedding is None or layer.edge is None or not data.graph_size:
        raise ValueError("expected a model with gates, and graphs of one size")
    found = []
    for start in range(0, len(data), _BATCH):
        ids = data.batch(np.arange(start, min(start + _BATCH, len(data)))).ids
        _, gates, _ = functional.pair_gates(
            model.edge_embedding(ids),
            layer.edge.weights(),
            temperature=layer.temperature,
            limits=layer.limits,
        )
        found.append((gates > 0).reshape(len(ids), -1).numpy())
    return np.concatenate(found)
