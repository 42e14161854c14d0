"""Which interactions a model finds beneficial over a data set: by pair of fields, and by pair of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _checks
from .config import TrainConfig
from .data import Vocabulary
from .evaluation import Part, Samples
from .explanation import check_model, check_vocabulary, pair_terms
from .model import L0SIGN

_PENDING = 1 << 20  # rows that wait to be added to sums by key


class Interaction(NamedTuple):
    """A pair of fields or of features, and what the model makes of it in the samples that have it."""

    first: str
    second: str
    open_share: float
    """The share of its occurrences in which the edge is open: one a sample, or several where nodes share a
    field."""
    mean_gate: float
    samples: int
    """How many samples have the pair."""
    support: int
    """How many samples have it with an open edge."""
    mean_contribution: float
    """What an occurrence adds to the logit; 0 where it is closed."""
    mean_strength: float
    """The mean of |contribution|: a pair of fields that adds here and subtracts there is strong too."""


class Survey:
    """Gathers what a model makes of the pairs in any number of samples, in memory for the distinct pairs.

    A pair is one of different nodes: that of a node with itself, which carries the feature's own effect, does
    not count. Two nodes of one field do.

    Args:
        model: gated or not; without gates every pair is open.
        vocabulary: tells the field and the name of each feature.
        output: which of the model's K outputs the contributions are to.

    Raises:
        ValueError, TypeError, IndexError: model, vocabulary or output do not fit, by name.
    """

    def __init__(self, model: L0SIGN, vocabulary: Vocabulary, *, output: int = 0) -> None:
        self._model, self._vocabulary, self._output = check_model(model, output), vocabulary, output
        check_vocabulary(self._model, vocabulary)
        self._fields, self._features = _SumsByKey(), _SumsByKey()
        self.samples = 0
        """how many samples were added"""

    def add(self, samples: Samples, *, batch_size: int | None = None) -> None:
        """Add samples, whose features are those of the vocabulary.

        Raises:
            ValueError: weights or contributions that are not finite; the message names the weights.
        """
        part = Part(samples)
        (size,) = _checks.positive(batch_size=TrainConfig().batch_size if batch_size is None else batch_size)
        fields, features = len(self._vocabulary.fields), len(self._vocabulary)
        device = self._model.node_embedding.weight.device
        for batch in part.batches(size):
            ids = batch.ids.reshape(-1).numpy()
            field = self._vocabulary.field_of(ids)
            if batch.offsets is None:
                sample = np.repeat(np.arange(batch.num_graphs), batch.ids.shape[1])
            else:
                sample = np.repeat(np.arange(batch.num_graphs), np.diff(batch.offsets.numpy()))
            for terms in pair_terms(self._model, *batch.to(device)[:3], output=self._output):
                index = terms.pairs.cpu().numpy()
                apart = index[0] != index[1]
                index, gates = index[:, apart], terms.gates.double().cpu().numpy()[apart]
                contributions = terms.contributions.cpu().numpy()[apart]
                is_open = gates != 0
                numbers = [np.ones_like(gates), is_open, gates, contributions, np.abs(contributions)]
                columns = np.stack(numbers, 1)
                self._fields.add(_keys(field[index], fields), sample[index[0]], columns)
                # The gate of two features is the same in every sample: what is closed here is so everywhere.
                index = index[:, is_open]
                self._features.add(_keys(ids[index], features), sample[index[0]], columns[is_open])
        self.samples += len(part)

    def fields(self) -> list[Interaction]:
        """All pairs of fields that met, strongest first: by open share, then by mean gate."""
        keys, totals = self._fields.result()
        names = self._vocabulary.field_names
        found = _named(keys, totals, len(names), names.__getitem__)
        return sorted(found, key=lambda pair: (-pair.open_share, -pair.mean_gate, pair.first, pair.second))

    def features(
        self, count: int = 20, *, min_support: int = 1
    ) -> tuple[list[Interaction], list[Interaction]]:
        """The open pairs of features that add most to the logit, and those that subtract most.

        Args:
            count: how many of each, at most; they are ordered by mean contribution.
            min_support: leave out pairs that are open in fewer samples.
        """
        count, min_support = _checks.positive(count=count, min_support=min_support)
        keys, totals = self._features.result()
        enough = totals[:, 6] >= min_support
        keys, totals = keys[enough], totals[enough]
        mean = totals[:, 3] / totals[:, 0]
        order = np.argsort(mean, kind="stable")

        def named(chosen: NDArray[np.int64]) -> list[Interaction]:
            return _named(keys[chosen], totals[chosen], len(self._vocabulary), self._vocabulary.name)

        negative, positive = order[:count], order[::-1][:count]
        return named(positive[mean[positive] > 0]), named(negative[mean[negative] < 0])


def field_interactions(
    model: L0SIGN, samples: Samples, *, batch_size: int | None = None, output: int = 0
) -> list[Interaction]:
    """All pairs of fields that meet in the samples, strongest first: by open share, then by mean gate.

    The data set's vocabulary tells the field of each feature. What counts as a pair: :class:`Survey`.
    """
    return _survey(model, samples, batch_size, output).fields()


def feature_interactions(
    model: L0SIGN,
    samples: Samples,
    count: int = 20,
    *,
    min_support: int = 1,
    batch_size: int | None = None,
    output: int = 0,
) -> tuple[list[Interaction], list[Interaction]]:
    """The pairs of features that add most to the logit, and those that subtract most: see :class:`Survey`."""
    return _survey(model, samples, batch_size, output).features(count, min_support=min_support)


def by_sign(pairs: Iterable[Interaction], count: int = 20) -> tuple[list[Interaction], list[Interaction]]:
    """The pairs, as of fields, that add most to the logit in the mean, and those that subtract most.

    At most `count` of each, strongest first; those whose mean contribution is 0 are neither.
    """
    (count,) = _checks.positive(count=count)
    ordered = sorted(pairs, key=lambda pair: pair.mean_contribution)
    return (
        [pair for pair in ordered[::-1] if pair.mean_contribution > 0][:count],
        [pair for pair in ordered if pair.mean_contribution < 0][:count],
    )


def _survey(model: L0SIGN, samples: Samples, batch_size: int | None, output: int) -> Survey:
    vocabulary = Part(samples).data.vocabulary
    if vocabulary is None:
        raise ValueError("the data set has no vocabulary, so the fields of its features are unknown")
    survey = Survey(model, vocabulary, output=output)
    survey.add(samples, batch_size=batch_size)
    return survey


class _SumsByKey:
    """Pairs, added up by key: rows [occurrences, open, gate, contribution, strength, samples, support]."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self._waiting = 0

    def add(
        self, keys: NDArray[np.int64], sample: NDArray[np.int64], occurrences: NDArray[np.float64]
    ) -> None:
        """Add occurrences [k, 5] with keys [k] in samples [k], all those of a sample at once."""
        once = _first_in_sample(keys, sample)
        is_open = occurrences[:, 1] > 0
        once_open = np.zeros_like(once)
        once_open[is_open] = _first_in_sample(keys[is_open], sample[is_open])
        self._parts.append(_sum_by(keys, np.column_stack([occurrences, once, once_open])))
        self._waiting += len(self._parts[-1][0])
        # Putting together costs as much as the table is large: so not before as much has come in.
        if self._waiting > max(_PENDING, len(self._parts[0][0])):
            self.result()

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The keys, sorted [K], and their sums [K, m]."""
        if len(self._parts) != 1:
            keys = [np.zeros(0, np.int64), *(keys for keys, _ in self._parts)]
            rows = [np.zeros((0, 7)), *(rows for _, rows in self._parts)]
            self._parts = [_sum_by(np.concatenate(keys), np.concatenate(rows))]
        self._waiting = 0
        return self._parts[0]


def _sum_by(
    keys: NDArray[np.int64], rows: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    distinct, place = np.unique(keys, return_inverse=True)
    sums = [np.bincount(place, column, minlength=len(distinct)) for column in rows.T]
    return distinct, np.stack(sums, 1)


def _first_in_sample(keys: NDArray[np.int64], sample: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries are the first of their key in their sample: [k]."""
    order = np.lexsort((keys, sample))
    first = np.ones(len(keys), bool)
    same = (np.diff(keys[order]) == 0) & (np.diff(sample[order]) == 0)
    first[order[1:][same]] = False
    return first


def _keys(pairs: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """One number for each unordered pair [2, k] of numbers below `size`."""
    low, high = np.sort(pairs, axis=0)
    return low * size + high


def _named(
    keys: NDArray[np.int64], totals: NDArray[np.float64], size: int, name: Callable[[int], str]
) -> list[Interaction]:
    return [
        Interaction(
            name(key // size),
            name(key % size),
            is_open / count,
            gate / count,
            int(samples),
            int(support),
            contribution / count,
            strength / count,
        )
        for key, (count, is_open, gate, contribution, strength, samples, support) in zip(
            keys.tolist(), totals.tolist(), strict=True
        )
    ]
