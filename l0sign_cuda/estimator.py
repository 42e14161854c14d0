"""L0-SIGN as a scikit-learn classifier."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ._extras import require
from .config import TrainConfig
from .data import Field, GraphDataset, Vocabulary
from .evaluation import predict
from .interactions import Interaction, field_interactions
from .training import fit

require("sklearn", "train")  # names the extra where it is missing
from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.utils.validation import check_is_fitted  # noqa: E402

# The labels decide the loss.
_OPTIONS = {spec.name: spec.default for spec in fields(TrainConfig) if spec.name != "loss"}
_OWN_OPTIONS = {"validation_fraction": 0.1}
_INTERACTION_SAMPLES = 100_000


class L0SIGNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify rows of categorical features, and tell which pairs of them matter.

        >>> classifier = L0SIGNClassifier(epochs=5).fit(X, y)
        >>> classifier.predict_proba(X)
        >>> classifier.interactions_[:10]

    X is an array or a DataFrame [B, n] of categorical columns (integers, strings, or floats: 1.0 is the
    category 1), or a `GraphDataset`. A value that `fit` did not see, NaN and None are left out of their row's
    graph. y has two classes or more, of any kind.

    Args:
        validation_fraction: the share of rows that picks the best epoch and stops training early; 0: none.
        options: the hyper-parameters of `TrainConfig` except `loss`, by keyword.

    Attributes:
        classes_: the classes, sorted [K].
        model_: the trained `L0SIGN`.
        vocabulary_: from (column, value) to the model's features; None after a `GraphDataset` that has none.
        history_: one row an epoch, see `FitResult`.
        interactions_: pairs of columns, by how often their edge is open; with the mean gate, and what they
            add to the logit (of several classes: the first one's).
    """

    def __init__(self, **options: Any) -> None:
        for name in options:
            if name not in _OPTIONS and name not in _OWN_OPTIONS:
                raise TypeError(f"unknown option {name!r}; known: {', '.join([*_OWN_OPTIONS, *_OPTIONS])}")
        for name, default in (_OWN_OPTIONS | _OPTIONS).items():
            setattr(self, name, options.get(name, default))

    # scikit-learn reads the parameters from here, and so does help().
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
        + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in (_OWN_OPTIONS | _OPTIONS).items()
        ]
    )

    def fit(self, X: ArrayLike | GraphDataset, y: ArrayLike | None = None) -> L0SIGNClassifier:
        """Train on X [B, n] and y [B]; with a `GraphDataset`, y may be its labels."""
        options = {name: getattr(self, name) for name in _OPTIONS}
        if y is None:
            y = X.labels if isinstance(X, GraphDataset) else None
            if y is None:
                raise ValueError("y is missing")
        self.classes_, classes = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y needs two classes or more, got {len(self.classes_)}")
        if isinstance(X, GraphDataset):
            self.vocabulary_ = X.vocabulary
        else:
            columns, names = _columns(X)
            self.n_features_in_ = len(columns)
            if hasattr(X, "columns"):
                self.feature_names_in_ = np.asarray(names, dtype=object)
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            self.vocabulary_ = Vocabulary(
                Field(name, values=_categories(column)[0])
                for name, column in zip(names, columns, strict=True)
            )
        data = self._dataset(X, classes)
        config = TrainConfig(**options, loss="bce" if len(self.classes_) == 2 else "cross_entropy")
        train, valid = _split(classes, self.validation_fraction, config.seed)
        result = fit((data, train), (data, valid) if len(valid) else None, config)
        self.model_, self.history_ = result.model, result.history
        self.interactions_: list[Interaction] = []
        if config.gated and self.vocabulary_ is not None:
            self.interactions_ = field_interactions(self.model_, (data, train[:_INTERACTION_SAMPLES]))
        return self

    def predict_proba(self, X: ArrayLike | GraphDataset) -> NDArray[np.float64]:
        """Probabilities of the classes, [B, K] in the order of `classes_`."""
        check_is_fitted(self, "model_")
        logits = predict(self.model_, self._dataset(X), batch_size=self.batch_size).double()
        if logits.dim() == 1:
            return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], 1).numpy()
        return torch.softmax(logits, 1).numpy()

    def predict(self, X: ArrayLike | GraphDataset) -> NDArray[Any]:
        """The most probable class of each row, [B]."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(1)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = tags.input_tags.string = tags.input_tags.allow_nan = True
        return tags

    def _dataset(self, X: ArrayLike | GraphDataset, labels: ArrayLike | None = None) -> GraphDataset:
        if isinstance(X, GraphDataset):
            if labels is None:
                return X
            return GraphDataset(X.ids, X.offsets, X.values, labels, X.vocabulary, X.num_features)
        columns, _ = _columns(X)
        if self.vocabulary_ is None:
            raise ValueError(
                "the classifier was fitted on a GraphDataset without a vocabulary: give it another"
            )
        expected = len(self.vocabulary_.fields)
        if len(columns) != expected:
            raise ValueError(f"X has {len(columns)} columns, but the classifier was fitted on {expected}")
        return _encode(columns, self.vocabulary_, labels)


def _columns(X: Any) -> tuple[list[NDArray[Any]], list[str]]:
    """The columns of an array or a DataFrame, and their names."""
    if hasattr(X, "columns"):
        names = [str(name) for name in X.columns]
        columns = [np.asarray(X[name]) for name in X.columns]
    else:
        array = np.asarray(X)
        if array.ndim != 2:
            raise ValueError(f"X must be two-dimensional [rows, columns], got shape {list(array.shape)}")
        names = [f"x{k}" for k in range(array.shape[1])]
        columns = list(array.T)
    return columns, names


def _categories(column: NDArray[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct values of a column, as strings, and every row's place among them: -1 where it is missing.

    Each value is named on its own, so that a row means the same in any company.
    """
    if column.dtype.kind == "O":  # values of several types, which may not sort
        names = [_name(value) for value in column]
        distinct = sorted({name for name in names if name is not None})
        at = {name: k for k, name in enumerate(distinct)}
        return distinct, np.array([-1 if name is None else at[name] for name in names], np.int64)
    values, place = np.unique(column, return_inverse=True)
    if len(values) and values[-1] != values[-1]:  # NaN sorts last
        values = values[:-1]
        place = np.where(place == len(values), -1, place)
    return [str(_name(value)) for value in values], place.astype(np.int64, copy=False)


def _name(value: Any) -> str | None:
    # 1.0 is category 1: a table of mixed columns turns integers into floats on the way here.
    if isinstance(value, (float, np.floating)):
        value = float(value)
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return None if value is None else str(value)


def _encode(columns: list[NDArray[Any]], vocabulary: Vocabulary, labels: ArrayLike | None) -> GraphDataset:
    """A graph a row; unknown and missing values are left out."""
    ids = np.empty((len(columns[0]) if columns else 0, len(columns)), np.int64)
    for k, (column, field) in enumerate(zip(columns, vocabulary.fields, strict=True)):
        names, place = _categories(column)
        found = field.find(names)
        known_ids = np.where(found < 0, -1, found + vocabulary.offsets[k])
        ids[:, k] = np.append(known_ids, -1)[place]
    known = ids >= 0
    offsets = np.concatenate([[0], np.cumsum(known.sum(1))])
    return GraphDataset(ids[known], offsets, labels=labels, vocabulary=vocabulary)


def _split(
    classes: NDArray[np.intp], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, validation) rows, with the same share of every class."""
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {fraction}")
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(classes):
        rows = random.permutation(np.flatnonzero(classes == label))
        held.append(rows[: int(fraction * len(rows))])
    valid = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(classes)), valid), valid
