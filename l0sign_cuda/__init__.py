"""L0-SIGN in PyTorch: detects beneficial feature interactions and predicts from them, with fused kernels.

>>> model = l0sign_cuda.L0SIGN(num_embeddings=1000)
>>> output = model(ids)  # int64 [B, n]
>>> l0sign_cuda.empirical_risk(output, labels, l0_weight=1e-4).backward()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import functional, reference
from ._version import __version__
from .functional import LayerOutput
from .layers import L0SIGNLayer, SIGNLayer
from .model import L0SIGN, L0SIGNOutput, RiskOutput
from .objective import empirical_risk

if TYPE_CHECKING:
    from . import data, integrations, interactions, optim
    from .checkpoint import load_model, save_model
    from .collapse import CollapseError, CollapseWarning
    from .config import TrainConfig
    from .estimator import L0SIGNClassifier
    from .evaluation import evaluate
    from .explanation import explain
    from .optim import parameter_groups
    from .training import FitResult, fit

__all__ = [
    "L0SIGN",
    "CollapseError",
    "CollapseWarning",
    "FitResult",
    "L0SIGNClassifier",
    "L0SIGNLayer",
    "L0SIGNOutput",
    "LayerOutput",
    "RiskOutput",
    "SIGNLayer",
    "TrainConfig",
    "__version__",
    "data",
    "empirical_risk",
    "evaluate",
    "explain",
    "fit",
    "functional",
    "integrations",
    "interactions",
    "load_model",
    "optim",
    "parameter_groups",
    "reference",
    "save_model",
]

# Imported when first asked for: they need more than torch, and a layer's user needs none of them.
_LAZY = {
    "CollapseError": "collapse",
    "CollapseWarning": "collapse",
    "FitResult": "training",
    "L0SIGNClassifier": "estimator",
    "TrainConfig": "config",
    "evaluate": "evaluation",
    "explain": "explanation",
    "fit": "training",
    "load_model": "checkpoint",
    "parameter_groups": "optim",
    "save_model": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in ("data", "integrations", "interactions", "optim"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
