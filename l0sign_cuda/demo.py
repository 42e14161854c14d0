"""`l0sign demo`: SIGN and L0-SIGN on data whose interactions are known, because they were planted."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import data, report
from ._version import __version__
from .checkpoint import write_json
from .config import TrainConfig
from .evaluation import evaluate
from .interactions import Interaction, field_interactions
from .training import Progress, fit

# The labels depend on pairs alone (no single feature tells anything), so learning starts late. The penalty
# must not close the edges before that: it rises slowly, to a weight that leaves open what pays for itself.
# Weight decay would keep the embeddings small all that time. So small a problem gains nothing from threads.
SETTINGS = TrainConfig(
    epochs=14,
    batch_size=256,
    edge_dim=16,
    l0_weight=0.3,
    l0_warmup_epochs=10,
    weight_decay=0.0,
    patience=0,
    device="cpu",
    num_threads=1,
)
#: A pair of fields counts as detected when its edge is open in more than this share of the test samples.
DETECTED = 0.5


def run(out: str | Path, progress: Callable[[str, Progress], None] | None = None) -> str:
    """Train both models, write metrics.json and epochs.png into `out`, and return the tables as text."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    planted = data.planted()
    train, valid, test = planted.split()
    names = planted.vocabulary.field_names if planted.vocabulary else ()
    truth = {(names[i], names[j]) for i, j in planted.interactions}
    rows: list[dict[str, Any]] = []
    epochs: dict[str, list[dict[str, float]]] = {}
    found: list[Interaction] = []
    for name, config in (("SIGN", SETTINGS.replace(gated=False)), ("L0-SIGN", SETTINGS)):
        shown = None if progress is None else partial(progress, name)
        result = fit((planted, train), (planted, valid), config, progress=shown)
        epochs[name] = result.history
        row: dict[str, Any] = {"model": name, **evaluate(result.model, (planted, test))}
        if config.gated:
            found = field_interactions(result.model, (planted, test))
            row |= score({(pair.first, pair.second) for pair in found if pair.open_share > DETECTED}, truth)
        rows.append(row)
    pairs = [{**pair._asdict(), "planted": (pair.first, pair.second) in truth} for pair in found]
    write_json(
        out / "metrics.json",
        {
            "models": rows,
            "optimal_auc": planted.optimal_auc,
            "planted": sorted(truth),
            "interactions": pairs,
            "epochs": epochs,
            "settings": SETTINGS.to_dict(),
            "versions": {
                "l0sign_cuda": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        },
    )
    report.plot_epochs(epochs, out / "epochs.png", planted.optimal_auc)
    open_pairs = [
        {**pair, "planted": "yes" if pair["planted"] else "no"}
        for pair in pairs
        if pair["open_share"] > DETECTED
    ]
    columns = ["model", "auc", "logloss", "edges_kept", "precision", "recall"]
    return "\n".join(
        [
            f"{len(test)} test samples; the best AUC there can be is {planted.optimal_auc:.4f}",
            report.table(rows, columns),
            "",
            f"pairs of fields whose edge is open in more than {100 * DETECTED:g} % of the test samples "
            f"({len(truth)} of {len(pairs)} were planted):",
            report.table(open_pairs, ["first", "second", "open_share", "mean_gate", "planted"]) or "none",
            "",
            report.printable(f"written: {out / 'metrics.json'}, {out / 'epochs.png'}"),
        ]
    )


def score(detected: set[tuple[str, str]], truth: set[tuple[str, str]]) -> dict[str, float]:
    """Precision and recall of detected pairs; the precision of nothing is NaN."""
    hits = len(detected & truth)
    return {"precision": hits / len(detected) if detected else float("nan"), "recall": hits / len(truth)}
