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
from .model import L0SIGN, L0SIGNOutput
from .objective import empirical_risk

if TYPE_CHECKING:
    from . import data
    from .estimator import L0SIGNClassifier
    from .training import fit

__all__ = [
    "L0SIGN",
    "L0SIGNClassifier",
    "L0SIGNLayer",
    "L0SIGNOutput",
    "LayerOutput",
    "SIGNLayer",
    "__version__",
    "data",
    "empirical_risk",
    "fit",
    "functional",
    "reference",
]

# Imported when first asked for: they need more than torch, and a layer's user needs none of them.
_LAZY = {
    "data": ("data", None),
    "fit": ("training", "fit"),
    "L0SIGNClassifier": ("estimator", "L0SIGNClassifier"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = importlib.import_module(f".{module}", __name__)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
