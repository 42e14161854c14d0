"""Explanations sum to the prediction; the interactions of a data set are those that were planted in it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import l0sign_cuda
from l0sign_cuda import L0SIGN, data, explanation, functional, interactions, metrics
from l0sign_cuda.data import Field, GraphDataset, Vocabulary
from l0sign_cuda.demo import score
from l0sign_cuda.evaluation import predict
from l0sign_cuda.interactions import (
    Interaction,
    Survey,
    by_sign,
    feature_interactions,
    field_interactions,
)

FEATURES = 40
SIZES = (4, 0, 1, 7, 3)


def make_model(dtype: torch.dtype = torch.float64, **options: Any) -> L0SIGN:
    """A model whose messages are large, and whose gates are open, closed and in between."""
    model = L0SIGN(FEATURES, 3, 5, 4, 6, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.to(dtype)


def make_batch(layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    ids = torch.randint(FEATURES, (5, 4) if layout == "dense" else (sum(SIZES),))
    offsets = None if layout == "dense" else torch.tensor([0, *np.cumsum(SIZES)])
    values = None if layout == "ragged" else torch.randn(ids.shape).to(dtype)
    return ids, offsets, values


def sums(found: l0sign_cuda.explanation.Explanations) -> list[float]:
    return [entry.bias + sum(pair.contribution for pair in entry.interactions) for entry in found]


# -------------------- single samples


@pytest.mark.parametrize("layout", ["dense", "ragged", "valued"])
@pytest.mark.parametrize("aggr", ["mean", "neighbor_mean", "sum"])
@pytest.mark.parametrize(
    "options",
    [{}, {"gated": False}, {"iterations": 3}, {"num_outputs": 3}, {"head_bias": False}],
    ids=["plain", "ungated", "iterated", "outputs", "no-bias"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_contributions_and_bias_are_the_logit(
    dtype: torch.dtype, options: dict[str, Any], aggr: str, layout: str
) -> None:
    model, batch = make_model(dtype, aggr=aggr, **options), make_batch(layout, dtype)
    with torch.no_grad():
        expected = model.eval()(*batch)
    model.train()
    for output in range(options.get("num_outputs", 1)):
        found = l0sign_cuda.explain(model, *batch, output=output)
        logits = expected.logits if expected.logits.dim() == 1 else expected.logits[:, output]
        assert [entry.logit for entry in found] == logits.tolist()
        # The terms are computed in float64; what is left is the model's own rounding: at most 3.6 eps here.
        largest = max(sum(abs(pair.contribution) for pair in entry.interactions) for entry in found)
        assert sums(found) == pytest.approx(
            logits.tolist(), abs=8 * torch.finfo(dtype).eps * (largest + 1), rel=0
        )
        assert largest > 0.01
        assert [len(entry.interactions) for entry in found] == expected.num_edges.tolist()
    assert model.training


def test_an_entry_says_which_pairs_and_how_strong() -> None:
    vocabulary = Vocabulary([Field("user", values=["ann", "bob"]), Field("price", "numeric")])
    model = L0SIGN(3, 2, 2, gated=False).double()
    with torch.no_grad():
        model.node_embedding.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]))
        model.interaction.message.hidden.weight.copy_(torch.eye(2))
        model.interaction.message.hidden.bias.zero_()
        model.interaction.message.out.weight.copy_(torch.eye(2))
        model.interaction.message.out.bias.fill_(1.0)
        model.head.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.head.bias.fill_(0.25)
    ids, values = torch.tensor([[1, 2]]), torch.tensor([[1.0, 4.0]]).double()
    (entry,) = l0sign_cuda.explain(model, ids, values=values, vocabulary=vocabulary)
    assert entry.nodes == ("user=bob", "price") and entry.values == (1.0, 4.0) and entry.bias == 0.25
    # u = (3, -1), (2, 2); z = relu(u * u') + 1; w . z; times (x + x') / n^2
    expected = {
        (0, 0): ((9 + 1) - 2 * (1 + 1)) * 1 / 4,
        (0, 1): ((6 + 1) - 2 * (0 + 1)) * (1 + 4) / 4,
        (1, 1): ((4 + 1) - 2 * (4 + 1)) * 4 / 4,
    }
    assert {pair[:2]: pair.contribution for pair in entry.interactions} == pytest.approx(expected)
    assert [pair[:2] for pair in entry.interactions] == [(0, 1), (1, 1), (0, 0)]  # by |contribution|
    assert all(pair.gate == 1 for pair in entry.interactions)
    assert entry.interactions[0].names == ("user=bob", "price")
    assert entry.logit == pytest.approx(0.25 + sum(expected.values()))


def test_gates_are_those_of_the_model_and_closed_pairs_are_left_out() -> None:
    model, (ids, offsets, _) = make_model(), make_batch("ragged", torch.float64)
    model.eval()
    index, gates, _ = functional.pair_gates(
        model.edge_embedding(ids), model.interaction.edge.weights(), offsets
    )
    assert 0 < int((gates > 0).sum()) < len(gates)
    open_pairs = {
        (*pair, round(gate, 12))
        for *pair, gate in zip(*index.tolist(), gates.tolist(), strict=True)
        if gate > 0
    }
    found = l0sign_cuda.explain(model, ids, offsets)
    starts = offsets.tolist()
    assert open_pairs == {
        (start + pair.i, start + pair.j, round(pair.gate, 12))
        for start, entry in zip(starts, found, strict=False)
        for pair in entry.interactions
    }


def test_a_sequence_of_samples() -> None:
    model, batch = make_model(), make_batch("ragged", torch.float64)
    found = l0sign_cuda.explain(model, *batch)
    assert len(found) == 5 and found[-1] == found[4] and found[1:3] == [found[1], found[2]]
    assert found[1].interactions == [] and found[1].logit == found[1].bias == model.head.bias.item()
    assert found[3].nodes == tuple(map(str, batch[0][5:12].tolist()))
    assert "5 samples" in repr(found)
    with pytest.raises(IndexError, match=r"0\.\.4, got 5"):
        found[5]
    assert len(l0sign_cuda.explain(model, torch.zeros((0, 4), dtype=torch.int64))) == 0


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(iterations=2), make_batch("ragged", torch.float64)
    whole = list(l0sign_cuda.explain(model, *batch))
    monkeypatch.setattr(explanation, "_PAIRS", 5)
    monkeypatch.setattr(explanation, "_HIDDEN_PAIRS", 2)
    pieces = [len(terms.gates) for terms in explanation.pair_terms(model, *batch)]
    assert pieces == [10, 1, 28, 6]
    for entry, piece in zip(whole, l0sign_cuda.explain(model, *batch), strict=True):
        assert [pair[:3] for pair in piece.interactions] == [pair[:3] for pair in entry.interactions]
        assert [pair.contribution for pair in piece.interactions] == pytest.approx(
            [pair.contribution for pair in entry.interactions], rel=1e-12
        )


def test_what_does_not_fit_is_refused_by_name() -> None:
    model, ids = make_model(num_outputs=2), torch.zeros((1, 2), dtype=torch.int64)
    with pytest.raises(TypeError, match="model: expected an L0SIGN, got Linear"):
        l0sign_cuda.explain(torch.nn.Linear(2, 2), ids)
    with pytest.raises(IndexError, match=r"output: expected 0\.\.1, got 2"):
        l0sign_cuda.explain(model, ids, output=2)
    with pytest.raises(TypeError, match="output: expected an integer, got float"):
        l0sign_cuda.explain(model, ids, output=0.0)
    with pytest.raises(IndexError, match=r"ids: expected values in 0\.\.39"):
        l0sign_cuda.explain(model, ids + FEATURES)
    with pytest.raises(ValueError, match="offsets: expected int64"):
        l0sign_cuda.explain(model, ids[0])
    with pytest.raises(ValueError, match="values: expected shape"):
        l0sign_cuda.explain(model, ids, values=torch.ones(3))
    with pytest.raises(ValueError, match="vocabulary: expected the model's 40 features, got one of 2"):
        l0sign_cuda.explain(model, ids, vocabulary=Vocabulary([Field("a", values=["x", "y"])]))
    with pytest.raises(TypeError, match="vocabulary: expected a Vocabulary, got list"):
        l0sign_cuda.explain(model, ids, vocabulary=["x"] * FEATURES)


def test_bfloat16_misses_the_logit_by_its_rounding() -> None:
    model, batch = make_model(torch.bfloat16), make_batch("dense", torch.bfloat16)
    found = l0sign_cuda.explain(model, *batch)
    for entry, total in zip(found, sums(found), strict=True):
        # The model rounds its sums, and at last the logit, by 2^-8: at most 2.3 times that of all here.
        terms = sum(abs(pair.contribution) for pair in entry.interactions) + abs(entry.bias)
        assert abs(total - entry.logit) <= 4 * 2**-8 * terms


def test_a_compiled_model_is_explained_as_the_model() -> None:
    model, (ids, *_) = make_model(), make_batch("dense", torch.float64)
    vocabulary = Vocabulary([Field("a", values=map(str, range(FEATURES)))])
    dataset = GraphDataset.from_dense(ids.numpy(), vocabulary=vocabulary)
    compiled = torch.compile(model, backend="eager")
    assert list(l0sign_cuda.explain(compiled, ids)) == list(l0sign_cuda.explain(model, ids))
    assert field_interactions(compiled, dataset) == field_interactions(model, dataset)


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize(
    "name", ["edge_embedding.weight", "node_embedding.weight", "interaction.edge.out.bias", "head.weight"]
)
def test_weights_that_are_not_finite_are_refused_by_name(name: str, backend: str) -> None:
    model = make_model(backend=backend, gated=True)
    for edge in model.interaction.edge.out.parameters():
        edge.data.abs_()  # some pairs are open
    model.get_parameter(name).data.reshape(-1)[0] = torch.nan
    ids = torch.tensor([[0, 1, 2]])
    vocabulary = Vocabulary([Field("a", values=map(str, range(FEATURES)))])
    dataset = GraphDataset.from_dense(ids.numpy(), vocabulary=vocabulary)
    for call in (lambda: l0sign_cuda.explain(model, ids), lambda: feature_interactions(model, dataset)):
        with pytest.raises(
            ValueError, match=f"model: expected finite weights, got NaN or infinity in {name}$"
        ):
            call()
    if name.endswith("embedding.weight"):  # samples without that feature can be explained
        assert all(np.isfinite(entry.logit) for entry in l0sign_cuda.explain(model, ids + 1))


def test_values_that_are_not_finite_are_refused() -> None:
    values = torch.tensor([[1.0, torch.inf]]).double()
    with pytest.raises(ValueError, match="values: expected finite numbers, got NaN or infinity"):
        l0sign_cuda.explain(make_model(gated=False), torch.tensor([[0, 1]]), values=values)
    with pytest.raises(ValueError, match=r"expected finite predictions, .*: values too large"):
        l0sign_cuda.explain(
            make_model(gated=False), torch.tensor([[0, 1]]), values=values.new_full((1, 2), 1e200)
        )


# -------------------- a data set


def test_tables_are_means_over_the_samples_that_have_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(Field(name, values=map(str, range(10))) for name in "abcd")
    model = make_model()
    ids, offsets, _ = make_batch("ragged", torch.float64)
    dataset = GraphDataset(ids.numpy(), offsets.numpy(), vocabulary=vocabulary)
    by_field, by_feature = defaultdict(list), defaultdict(list)
    for index, gates, contributions in explanation.pair_terms(model, ids, offsets, None):
        terms = zip(*index.tolist(), gates.tolist(), contributions.tolist(), strict=True)
        for i, j, gate, contribution in terms:
            if i != j:
                sample = int((offsets[1:] <= i).sum())
                pair = sorted((int(ids[i]), int(ids[j])))
                by_field[tuple("abcd"[k // 10] for k in pair)].append((sample, gate, contribution))
                if gate > 0:
                    by_feature[tuple(map(vocabulary.name, pair))].append((sample, gate, contribution))
    assert any(len(terms) > len({sample for sample, *_ in terms}) for terms in by_field.values())

    def check(pair: Interaction, terms: list[tuple[int, float, float]]) -> None:
        sample, gates, contributions = np.array(terms).T
        assert (pair.samples, pair.support) == (len({*sample}), len({*sample[gates > 0]}))
        numbers = [pair.open_share, pair.mean_gate, pair.mean_contribution, pair.mean_strength]
        means = [(gates > 0).mean(), gates.mean(), contributions.mean(), np.abs(contributions).mean()]
        assert numbers == pytest.approx(means)

    monkeypatch.setattr(interactions, "_PENDING", 4)
    found = field_interactions(model, dataset, batch_size=2)
    assert len(found) == len(by_field)
    for pair in found:
        check(pair, by_field[pair.first, pair.second])
    positive, negative = feature_interactions(model, dataset, 100, batch_size=2)
    assert len(positive) + len(negative) == len(by_feature)
    for pair in positive + negative:
        check(pair, by_feature[pair.first, pair.second])
    means = [pair.mean_contribution for pair in [*positive, *negative[::-1]]]
    assert means == sorted(means, reverse=True) and means[0] > 0 > means[-1]
    assert feature_interactions(model, dataset, 1)[0][0] == pytest.approx(positive[0])
    raising, lowering = by_sign(found)
    assert {*raising, *lowering} == {pair for pair in found if pair.mean_contribution}
    means = [pair.mean_contribution for pair in [*raising, *lowering[::-1]]]
    assert means == sorted(means, reverse=True) and means[0] > 0 > means[-1]
    assert by_sign(found, 1) == (raising[:1], lowering[:1])
    with_support = feature_interactions(model, dataset, min_support=2)
    assert all(pair.support > 1 for side in with_support for pair in side)


def test_a_survey_of_nothing_and_of_data_without_names() -> None:
    vocabulary = Vocabulary([Field("a", values=map(str, range(FEATURES)))])
    survey = Survey(make_model(), vocabulary)
    assert survey.fields() == [] and survey.features() == ([], [])
    nameless = GraphDataset.from_dense(np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match="no vocabulary"):
        field_interactions(make_model(), nameless)
    for size in (39, 41):
        with pytest.raises(ValueError, match=f"vocabulary: expected the model's {size} features"):
            Survey(L0SIGN(size), vocabulary)
    with pytest.raises(IndexError, match=r"output: expected 0\.\.0, got 1"):
        Survey(make_model(), vocabulary, output=1)


SAMPLES = 8000
HELD_OUT = np.arange(7000, SAMPLES)


@pytest.fixture(scope="module", params=[0, 1, 2])
def trained(request: pytest.FixtureRequest) -> tuple[data.PlantedData, L0SIGN]:
    """Planted data, and a model trained on its first 7000 samples."""
    planted = data.planted(
        SAMPLES, num_fields=5, cardinality=4, num_interactions=2, noise=0.4, seed=request.param
    )
    config = l0sign_cuda.TrainConfig(
        epochs=12, batch_size=128, l0_weight=0.3, l0_warmup_epochs=6, weight_decay=0, num_threads=1
    )
    return planted, l0sign_cuda.fit((planted, np.arange(7000)), None, config).model


def test_the_planted_interactions_are_found(trained: tuple[data.PlantedData, L0SIGN]) -> None:
    planted, model = trained
    truth = {(f"f{i}", f"f{j}") for i, j in planted.interactions}
    found = field_interactions(model, (planted, HELD_OUT))
    # What is open holds all that was planted, and here up to two pairs that were not ...
    by_gate = score({(pair.first, pair.second) for pair in found if pair.open_share > 0.5}, truth)
    assert by_gate["recall"] == 1 and by_gate["precision"] >= 0.5
    # ... but those bring little: the strength tells the planted ones exactly.
    strongest = max(pair.mean_strength for pair in found)
    by_strength = {(pair.first, pair.second) for pair in found if pair.mean_strength > strongest / 2}
    assert score(by_strength, truth) == {"precision": 1, "recall": 1}
    # By feature too: what adds most and what subtracts most are values of planted pairs.
    for side in feature_interactions(model, (planted, HELD_OUT), 10):
        assert len(side) == 10
        assert {(pair.first.split("=")[0], pair.second.split("=")[0]) for pair in side} <= truth


def test_only_a_planted_edge_is_missed_when_it_is_removed(trained: tuple[data.PlantedData, L0SIGN]) -> None:
    """By brute force: the model is computed again without each pair of fields in turn."""
    planted, model = trained
    batch = planted.batch(HELD_OUT)
    whole = predict(model, (planted, HELD_OUT))
    found = l0sign_cuda.explain(model, batch.ids)
    full_auc = metrics.auc(whole, batch.labels)
    for i in range(5):
        for j in range(i + 1, 5):
            without = _predict_without(model, batch.ids, (i, j))
            # Taking the pair's contributions away is the same.
            removed = [
                sum(pair.contribution for pair in entry.interactions if pair[:2] == (i, j)) for entry in found
            ]
            torch.testing.assert_close(without, whole - torch.tensor(removed), rtol=1e-5, atol=1e-5)
            drop = full_auc - metrics.auc(without, batch.labels)
            assert drop > 0.05 if (i, j) in planted.interactions else drop < 0.01, (i, j, drop)


@torch.no_grad()
def _predict_without(model: L0SIGN, ids: Tensor, removed: tuple[int, int]) -> Tensor:
    """The model's logits with one pair of positions closed in every sample."""
    n = ids.shape[1]
    index, gates, _ = functional.pair_gates(model.edge_embedding(ids), model.interaction.edge.weights())
    i, j = index % n
    gates = torch.where((i == removed[0]) & (j == removed[1]), 0, gates)
    apart = i != j
    nodes = functional.sign(
        model.node_embedding(ids),
        model.interaction.message.weights(),
        edge_index=torch.cat([index, index.flip(0)[:, apart]], 1),
        edge_weight=torch.cat([gates, gates[apart]]),
    )
    return model.head(nodes.mean(1)).squeeze(-1)
