"""The baselines of Table 2, from deepctr-torch, driven by our own loop, and an FM to check its FM against.

Its models take one matrix of the ids within each field; its own `fit` copies that and is several times slower
than its `forward`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l0sign_cuda._extras import require
from l0sign_cuda.data import Batch, GraphDataset

from .loop import Ints, Outcome

#: Name -> (class, options). FM is DeepFM without its network, as its authors document it.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fm": ("DeepFM", {"dnn_hidden_units": ()}),
    "afm": ("AFM", {}),
    "nfm": ("NFM", {}),
    "deepfm": ("DeepFM", {}),
    "xdeepfm": ("xDeepFM", {"cin_layer_size": (32, 32)}),
    "autoint": ("AutoInt", {}),
}
#: Where a baseline has dropout: the arguments of its class.
DROPOUT = {
    "nfm": ("bi_dropout", "dnn_dropout"),
    "deepfm": ("dnn_dropout",),
    "xdeepfm": ("dnn_dropout",),
    "autoint": ("dnn_dropout",),
}
INIT_STD = 0.1  # of the embeddings, as L0SIGN's
_EXACT = 1 << 24  # deepctr-torch takes ids as float32


class Baseline(nn.Module):
    """A model of deepctr-torch over the fields of a data set whose graphs have one node a field."""

    def __init__(
        self, name: str, data: GraphDataset, embedding_dim: int, seed: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if data.vocabulary is None or not data.graph_size:
            raise ValueError("expected a data set with a vocabulary and one node for each field")
        if max(map(len, data.vocabulary.fields)) > _EXACT:
            raise ValueError(f"expected at most {_EXACT} values a field")
        deepctr = _deepctr()
        self.register_buffer("first", torch.from_numpy(np.asarray(data.vocabulary.offsets[:-1])))
        columns = [
            deepctr.inputs.SparseFeat(field.name, len(field), embedding_dim=embedding_dim)
            for field in data.vocabulary.fields
        ]
        kind, options = KINDS[name]
        # L2 comes from the optimizer, as for every model. "regression": the logit itself.
        unpenalised = {"l2_reg_linear": 0.0, "l2_reg_embedding": 0.0}
        if kind == "AutoInt":
            del unpenalised["l2_reg_linear"]
        if kind == "AFM":
            unpenalised["l2_reg_att"] = 0.0
        if dropout and name not in DROPOUT:
            raise ValueError(f"dropout: {name} has none, got {dropout}")
        dropouts = dict.fromkeys(DROPOUT.get(name, ()), dropout)
        self.model = getattr(deepctr.models, kind)(
            columns, columns, task="regression", seed=seed, **unpenalised, **dropouts, **options
        )
        # Its standard deviation of 0.0001 is that of the networks' weights too, and nearly a standstill.
        for module in self.model.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, INIT_STD if module.embedding_dim > 1 else 1e-4)
            elif isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward(self, batch: Batch, indices: Ints) -> Outcome:
        local: Tensor = batch.ids - self.first  # type: ignore[operator]
        return Outcome(self.model(local.float()).squeeze(-1))


class FactorizationMachine(nn.Module):
    """The factorization machine as its paper writes it (Rendle 2010, eq. 1, 5), in plain torch."""

    def __init__(self, data: GraphDataset, embedding_dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.weight = nn.Embedding(data.num_features, 1)
        self.factors = nn.Embedding(data.num_features, embedding_dim)
        nn.init.zeros_(self.weight.weight)
        nn.init.normal_(self.factors.weight, 0.0, INIT_STD)

    def forward(self, batch: Batch, indices: Ints) -> Outcome:
        factors = self.factors(batch.ids)  # [b, n, d]
        pairs = (factors.sum(1).square() - factors.square().sum(1)).sum(1) / 2
        return Outcome(self.bias + self.weight(batch.ids).sum((1, 2)) + pairs)


def _deepctr() -> ModuleType:
    """The package, imported without its only utility, which asks an index for newer versions."""
    if "deepctr_torch" not in sys.modules:
        silent = ModuleType("deepctr_torch.utils")
        silent.check_version = lambda version: None  # type: ignore[attr-defined]
        sys.modules.setdefault(silent.__name__, silent)
        require("deepctr_torch", "bench")
    require("deepctr_torch.inputs", "bench")
    require("deepctr_torch.models", "bench")
    return sys.modules["deepctr_torch"]
