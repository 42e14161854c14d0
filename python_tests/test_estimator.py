"""L0SIGNClassifier as scikit-learn expects a classifier to be."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from l0sign_cuda import data
from l0sign_cuda.config import TrainConfig
from l0sign_cuda.estimator import L0SIGNClassifier

QUICK = {"epochs": 6, "batch_size": 64, "weight_decay": 0.0, "l0_warmup_epochs": 2, "num_threads": 1}


class Frame:
    """The part of a DataFrame that the classifier uses."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._data = {name: np.asarray(values) for name, values in columns.items()}
        self.columns = list(columns)

    def __getitem__(self, name: str) -> Any:
        return self._data[name]


@pytest.fixture(scope="module")
def planted() -> data.PlantedData:
    return data.planted(2000, num_fields=4, cardinality=4, num_interactions=1, noise=0.2)


@pytest.fixture(scope="module")
def X(planted: data.PlantedData) -> Any:
    return planted.ids.reshape(-1, 4) % 4


@pytest.fixture(scope="module")
def y(planted: data.PlantedData) -> Any:
    return np.where(planted.labels == 1, "yes", "no")


@pytest.fixture(scope="module")
def fitted(X: Any, y: Any) -> L0SIGNClassifier:
    return L0SIGNClassifier(**QUICK).fit(X[:1600], y[:1600])


def test_row_wise_optimizer(X: Any, y: Any) -> None:
    classifier = L0SIGNClassifier(**QUICK, optimizer="row_adam").fit(X[:1600], y[:1600])
    assert classifier.score(X[1600:], y[1600:]) > 0.8


def test_fit_predict_score(fitted: L0SIGNClassifier, X: Any, y: Any) -> None:
    assert list(fitted.classes_) == ["no", "yes"]
    assert fitted.score(X[1600:], y[1600:]) > 0.8
    probabilities = fitted.predict_proba(X[1600:])
    assert probabilities.shape == (400, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    assert (fitted.predict(X[1600:]) == np.where(probabilities[:, 1] > 0.5, "yes", "no")).all()
    assert 1 <= len(fitted.history_) <= 6 and "auc" in fitted.history_[0]


def test_interactions_are_ranked(planted: data.PlantedData, fitted: L0SIGNClassifier) -> None:
    pairs = fitted.interactions_
    assert len(pairs) == 6
    assert {(pair.first, pair.second) for pair in pairs} == {
        (f"x{i}", f"x{j}") for i in range(4) for j in range(i + 1, 4)
    }
    assert [pair.open_share for pair in pairs] == sorted((pair.open_share for pair in pairs), reverse=True)
    ((i, j),) = planted.interactions
    (found,) = [pair for pair in pairs if (pair.first, pair.second) == (f"x{i}", f"x{j}")]
    assert found.open_share > 0.5 and 0 < found.mean_gate <= 1 and 1438 <= found.samples <= 1442


def test_strings_frames_and_floats_mean_the_same(fitted: L0SIGNClassifier, X: Any, y: Any) -> None:
    few = L0SIGNClassifier(**QUICK | {"epochs": 1})
    expected = few.fit(X, y).predict_proba(X)
    frame = Frame({name: X[:, k] for k, name in enumerate("abcd")})
    for same in (X.astype(float), X.astype(str), X.astype(object), frame):
        np.testing.assert_array_equal(clone(few).fit(same, y).predict_proba(same), expected)
    np.testing.assert_array_equal(few.predict_proba(X.astype(float)), expected)
    named = clone(few).fit(frame, y)
    assert list(named.feature_names_in_) == ["a", "b", "c", "d"]
    assert named.interactions_[0].first in "abcd"


def test_unknown_values_are_left_out(fitted: L0SIGNClassifier, X: Any) -> None:
    rows = X[:2].copy()
    rows[0, 1] = 99  # one node less
    rows[1] = 99  # nothing is left: the bias speaks
    probabilities = fitted.predict_proba(rows)
    assert np.isfinite(probabilities).all()
    dataset = fitted._dataset(rows)
    assert dataset.offsets.tolist() == [0, 3, 3]
    bias = fitted.model_.head.bias.item()
    assert probabilities[1, 1] == pytest.approx(1 / (1 + np.exp(-bias)), rel=1e-6)


@pytest.mark.parametrize("kind", [np.float64, np.float32, object])
def test_a_row_means_the_same_alone_and_in_company(X: Any, y: Any, kind: Any) -> None:
    mixed = X.astype(kind)
    mixed[::7, 1] = 1.5
    mixed[3, 1], mixed[4, 2], mixed[5, 3] = np.nan, np.inf, -np.inf
    if kind is object:
        mixed[6, 0], mixed[8, 0] = None, "word"
    classifier = L0SIGNClassifier(**QUICK | {"epochs": 1, "validation_fraction": 0}).fit(mixed, y)
    assert set(classifier.vocabulary_.field("x1").values) == {"0", "1", "1.5", "2", "3"}
    assert set(classifier.vocabulary_.field("x2").values) == {"0", "1", "2", "3", "inf"}
    rows = mixed[:30]
    graphs = classifier._dataset(rows)
    missing = [3, 6] if kind is object else [3]
    assert [k for k, size in enumerate(np.diff(graphs.offsets)) if size < 4] == missing
    alone = np.concatenate([classifier._dataset(row[None]).ids for row in rows])
    np.testing.assert_array_equal(alone, graphs.ids)
    # A batch of one is summed in another order than a batch of thirty.
    np.testing.assert_allclose(
        np.concatenate([classifier.predict_proba(row[None]) for row in rows]),
        classifier.predict_proba(rows),
        rtol=1e-5,
    )


def test_classes(X: Any) -> None:
    y = (X[:, 0] + X[:, 1]) % 3 + 10
    classifier = L0SIGNClassifier(**QUICK | {"epochs": 10, "lr": 0.03}).fit(X, y)
    assert list(classifier.classes_) == [10, 11, 12]
    assert classifier.predict_proba(X[:5]).shape == (5, 3)
    assert classifier.score(X, y) > 0.9


def test_a_graph_data_set(planted: data.PlantedData, y: Any) -> None:
    classifier = L0SIGNClassifier(**QUICK).fit(planted)
    assert classifier.score(planted, planted.labels) > 0.8
    assert classifier.interactions_[0].first in planted.vocabulary.field_names
    assert L0SIGNClassifier(**QUICK | {"epochs": 1}).fit(planted, y).predict(planted).dtype == y.dtype


def test_parameters_are_those_of_the_config() -> None:
    classifier = L0SIGNClassifier(lr=0.5)
    parameters = classifier.get_params()
    assert parameters["lr"] == 0.5 and parameters["validation_fraction"] == 0.1
    assert {name for name in TrainConfig().to_dict()} - parameters.keys() == {"loss"}
    assert classifier.set_params(epochs=2).epochs == 2
    assert clone(classifier).get_params() == classifier.get_params()
    assert "lr=0.5" in repr(classifier)
    with pytest.raises(TypeError, match="unknown option 'learning_rate'"):
        L0SIGNClassifier(learning_rate=1)
    with pytest.raises(ValueError, match="Invalid parameter 'nothing'"):
        classifier.set_params(nothing=1)


def test_cross_validation_pipeline_and_grid_search(X: Any, y: Any) -> None:
    pipeline = make_pipeline(OrdinalEncoder(), L0SIGNClassifier(**QUICK))
    assert cross_val_score(pipeline, X, y, cv=2).mean() > 0.75
    search = GridSearchCV(L0SIGNClassifier(**QUICK), {"lr": [1e-9, 0.01]}, cv=2).fit(X, y)
    assert search.best_params_ == {"lr": 0.01}


def test_pickle(fitted: L0SIGNClassifier, X: Any) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X[:9]), fitted.predict_proba(X[:9]))


def test_refusals(fitted: L0SIGNClassifier, X: Any, y: Any) -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        L0SIGNClassifier().predict(X)
    with pytest.raises(ValueError, match="X has 3 columns, but the classifier was fitted on 4"):
        fitted.predict(X[:, :3])
    with pytest.raises(ValueError, match="was fitted on a GraphDataset without a vocabulary"):
        graphs = data.GraphDataset.from_dense(X, labels=y == "yes")
        L0SIGNClassifier(epochs=0).fit(graphs).predict(X)
    with pytest.raises(ValueError, match="two-dimensional"):
        fitted.predict(X[0])
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        L0SIGNClassifier().fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match="y is missing"):
        L0SIGNClassifier().fit(X)
    with pytest.raises(ValueError, match=r"labels: expected shape \[2000\].* got \[5\]"):
        L0SIGNClassifier().fit(X, y[:5])
    with pytest.raises(ValueError, match="validation_fraction"):
        L0SIGNClassifier(validation_fraction=1.0).fit(X, y)
