"""Metrics of predictions. Each is defined on one-class and empty data too, as NaN where it has no meaning."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ._extras import require

Loss = Literal["bce", "mse", "cross_entropy"]

#: The metrics of predictions that were trained with a loss; the first one judges an epoch by default.
METRICS: dict[str, tuple[str, ...]] = {
    "bce": ("auc", "accuracy", "logloss"),
    "cross_entropy": ("logloss", "accuracy"),
    "mse": ("rmse",),
}
#: Metrics that are better when smaller.
SMALLER_IS_BETTER = frozenset({"logloss", "rmse"})


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve; NaN where a class is missing or a score is not finite."""
    if labels.unique().numel() < 2 or not bool(scores.isfinite().all()):
        return math.nan
    value = require("sklearn.metrics", "train").roc_auc_score(labels.cpu().numpy(), scores.cpu().numpy())
    return float(value)


def compute(logits: Tensor, labels: Tensor, loss: Loss) -> dict[str, float]:
    """The metrics that fit the loss, from logits [B] or [B, K] and labels [B].

    bce: auc, accuracy, logloss. cross_entropy: accuracy, logloss. mse: rmse.
    """
    logits = logits.double()
    if loss == "mse":
        return {"rmse": math.sqrt(F.mse_loss(logits, labels.double()).item()) if len(labels) else math.nan}
    if loss == "cross_entropy":
        hits = logits.argmax(-1) == labels.long()
        return {
            "accuracy": hits.double().mean().item(),
            "logloss": F.cross_entropy(logits, labels.long()).item() if len(labels) else math.nan,
        }
    hits = (logits > 0) == (labels > 0.5)
    return {
        "auc": auc(logits, labels),
        "accuracy": hits.double().mean().item(),
        "logloss": F.binary_cross_entropy_with_logits(logits, labels.double()).item()
        if len(labels)
        else math.nan,
    }


def is_better(name: str, value: float, best: float) -> bool:
    """Whether `value` of metric `name` beats `best`; NaN beats nothing."""
    return value < best if name in SMALLER_IS_BETTER else value > best
