"""The guard against collapse: what went wrong in training, and what to change, in plain words.

L0-SIGN is easily over-regularised: too large an L0 weight closes all edges, too large a weight decay shrinks
the embeddings; either way the prediction becomes one constant. The paper's authors report unstable training
too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from .config import TrainConfig

# A prediction counts as constant when its logits spread less than the first of these, or, when they rank no
# better than chance, less than the second. Training may begin on a plateau: each holds from an epoch on.
_CONSTANT_STD, _CONSTANT_EPOCH = 1e-4, 2
_FLAT_STD, _FLAT_EPOCH = 1e-2, 3
_CHANCE_AUC = 0.01


class CollapseWarning(UserWarning):
    """Training collapsed: all edges closed, a constant prediction, or a loss that is not finite."""


class CollapseError(RuntimeError):
    """Training collapsed, and `on_collapse="raise"` asked for an error."""


class Collapse(NamedTuple):
    """A kind of collapse ("loss", "edges" or "constant") and what to tell the user."""

    kind: str
    message: str


def diagnose(
    epoch: int, loss: float, logits: Tensor, found: Mapping[str, float], config: TrainConfig
) -> Collapse | None:
    """Judge an epoch by its loss, and by logits and the metrics `found` from them; None: all is well."""
    if not math.isfinite(loss) or not bool(logits.isfinite().all()):
        return Collapse(
            "loss",
            f"epoch {epoch}: the loss or the prediction is no longer finite. Training ends here. Try "
            f"a smaller lr (now {config.lr:g}) or clip the gradient (clip_norm, now {config.clip_norm:g}).",
        )
    if config.gated and found["edges_kept"] == 0:
        return Collapse(
            "edges",
            f"epoch {epoch}: all edges are closed: no interaction is left to learn from. {_remedy(config)}",
        )
    # [B] or [B, K]: the spread over samples, not over classes.
    spread = logits.double().std(0, correction=0).max().item() if len(logits) > 1 else math.nan
    by_chance = abs(found.get("auc", math.nan) - 0.5) < _CHANCE_AUC
    constant = spread < _CONSTANT_STD and epoch >= _CONSTANT_EPOCH
    if constant or (by_chance and spread < _FLAT_STD and epoch >= _FLAT_EPOCH):
        return Collapse(
            "constant", f"epoch {epoch}: the prediction is the same for every sample. {_remedy(config)}"
        )
    return None


def _remedy(config: TrainConfig) -> str:
    advice = []
    if config.gated and config.l0_weight:
        advice.append(
            f"a smaller l0_weight (now {config.l0_weight:g}, over the {config.l0_reduction} of the pairs)"
        )
    if config.weight_decay:
        advice.append(f"a smaller weight_decay (now {config.weight_decay:g})")
    if config.gated and config.l0_weight:
        advice.append(f"a longer warm-up (l0_warmup_epochs, now {config.l0_warmup_epochs:g})")
    advice.append(f"another learning rate (lr, now {config.lr:g})")
    return "Try " + ", or ".join(advice) + "."
