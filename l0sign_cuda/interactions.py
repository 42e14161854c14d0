"""Which pairs of fields a model finds beneficial: how often their edge is open."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .config import TrainConfig
from .evaluation import Part, Samples, evaluating
from .functional import pair_gates
from .model import L0SIGN


class Interaction(NamedTuple):
    """A pair of fields, and what the model's gates say about it."""

    first: str
    second: str
    open_share: float
    """The share of the samples with this pair in which its edge is open."""
    mean_gate: float
    samples: int


def field_interactions(
    model: L0SIGN, samples: Samples, *, batch_size: int | None = None
) -> list[Interaction]:
    """All pairs of fields that meet in the samples, strongest first: by open share, then by mean gate.

    The data set's vocabulary tells the field of each feature. The pair of a node with itself, which carries
    the feature's own effect, does not count; two nodes of one field do.
    """
    part = Part(samples)
    vocabulary = part.data.vocabulary
    if vocabulary is None:
        raise ValueError("the data set has no vocabulary, so the fields of its features are unknown")
    edge = model.interaction.edge
    if model.edge_embedding is None or edge is None:
        raise ValueError("the model has no gates, so it selects no interactions")
    names = vocabulary.field_names
    count = len(names)
    sums = np.zeros((3, count * count))  # pairs, open ones, gates
    layer, embedding = model.interaction, model.edge_embedding
    with evaluating(model), torch.no_grad():
        for batch in part.batches(batch_size or TrainConfig().batch_size):
            there = batch.to(embedding.weight.device)
            pairs = pair_gates(
                embedding(there.ids),
                edge.weights(),
                there.offsets,
                temperature=layer.temperature,
                limits=layer.limits,
                backend=layer.backend,
            )
            index, gates = pairs[0].cpu().numpy(), pairs[1].double().cpu().numpy()
            fields = np.sort(vocabulary.field_of(batch.ids.reshape(-1).numpy())[index], axis=0)
            apart = index[0] != index[1]
            key = (fields[0] * count + fields[1])[apart]
            for total, weights in zip(sums, (None, gates[apart] > 0, gates[apart]), strict=True):
                total += np.bincount(key, weights, minlength=count * count)
    found = []
    for key in np.flatnonzero(sums[0]).tolist():
        total, open_ones, gate = sums[:, key].tolist()
        pair = names[key // count], names[key % count]
        found.append(Interaction(*pair, open_ones / total, gate / total, int(total)))
    return sorted(found, key=lambda pair: (-pair.open_share, -pair.mean_gate, pair.first, pair.second))
