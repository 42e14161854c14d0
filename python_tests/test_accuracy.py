"""The paper's experiments: every kind of trial runs, runs go on where they stopped, and results are whole."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import l0sign_cuda
from l0sign_cuda.data import GraphDataset, planted

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no part of the package

from benchmarks import results
from benchmarks.accuracy import (
    baselines,
    datasets,
    figures,
    gmail,
    graphs,
    kept,
    loop,
    models,
    rules,
    runner,
    tables,
)
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.experiments import EXPERIMENTS, Entry, Experiment, quick
from benchmarks.accuracy.loop import Problem
from benchmarks.accuracy.records import REVISION, Records, Trial

needs_deepctr = pytest.mark.skipif(
    importlib.util.find_spec("deepctr_torch") is None, reason="needs deepctr-torch (extra: bench)"
)
TRAINING = {
    "epochs": 2,
    "patience": 3,
    "batch_size": 256,
    "embedding_dim": 4,
    "lr": 0.01,
    "weight_decay": 1e-6,
}
DATA = planted(1200, num_fields=4, cardinality=4, num_interactions=2)
EXPERIMENT = Experiment(
    title="Made",
    data="planted",
    entries=(
        Entry("SIGN", "sign", {"gated": False, "weight_decay": 0.0}, {"lr": (0.01, 0.02)}),
        Entry("rule", "rule-rate"),
    ),
    seeds=(0, 1),
    protocol="Two points.",
    common={"epochs": 1, "embedding_dim": 4},
)

PLANTED = datasets.fingerprint(datasets.load("planted", None, Path()))


def problem(data: GraphDataset = DATA, seed: int = 0) -> Problem:
    return Problem(data, *datasets.split(data, seed))


# -------------------- models


@needs_deepctr
def test_factorization_machine_is_its_definition() -> None:
    """deepctr-torch's FM against Rendle's formula, from its own weights."""
    model = baselines.Baseline("fm", DATA, 4, seed=0)
    batch = DATA.batch(np.arange(50))
    local = batch.ids - model.first
    tables = [table.weight for table in model.model.embedding_dict.values()]
    vectors = torch.stack([table[column] for table, column in zip(tables, local.T, strict=True)], 1)
    first_order = [table.weight for table in model.model.linear_model.embedding_dict.values()]
    expected = sum(table[column, 0] for table, column in zip(first_order, local.T, strict=True))
    for i, j in itertools.combinations(range(4), 2):
        expected = expected + (vectors[:, i] * vectors[:, j]).sum(1)
    torch.testing.assert_close(model(batch, np.arange(50)).logits, expected + model.model.out.bias)
    assert expected.std() > 0


def test_plain_factorization_machine_is_its_definition() -> None:
    model = baselines.FactorizationMachine(DATA, 4)
    nn.init.normal_(model.weight.weight)
    ids = DATA.batch(np.arange(50)).ids
    expected = model.bias + sum(model.weight(ids[:, i])[:, 0] for i in range(4))
    for i, j in itertools.combinations(range(4), 2):
        expected = expected + (model.factors(ids[:, i]) * model.factors(ids[:, j])).sum(1)
    torch.testing.assert_close(model(DATA.batch(np.arange(50)), np.arange(50)).logits, expected)
    assert expected.std() > 0


@needs_deepctr
@pytest.mark.parametrize("name", [*baselines.KINDS, "fm-plain"])
def test_baselines_learn(name: str, tmp_path: Path) -> None:
    options = {**TRAINING, "epochs": 1}
    trained = models.train(name, "planted", problem(), options, 0, tmp_path / "cache")
    again = models.train(name, "planted", problem(), options, 0, tmp_path / "cache")
    assert trained.test == again.test
    other = models.train(name, "planted", problem(), options, 1, tmp_path / "cache")
    assert trained.test != other.test
    assert 0 < trained.test["logloss"] < 1 and trained.parameters > 4 * 16 + 16


def test_the_loop_is_the_librarys_training() -> None:
    """From the same weights, SIGN gets the losses and metrics that `l0sign_cuda.fit` gives it."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.model = l0sign_cuda.L0SIGN(DATA.num_features, 4, gated=False)

        def forward(self, batch: l0sign_cuda.data.Batch, indices: loop.Ints) -> loop.Outcome:
            return loop.Outcome(self.model(batch.ids).logits)

    options = {**TRAINING, "weight_decay": 1e-3, "epochs": 3, "gated": False}
    ours, theirs = loop.train(Wrapped(), problem(), options, 3), models.fit(problem(), options, 3)[1]
    for mine, its in zip(ours.history, theirs.history, strict=True):
        for name in ("loss", "auc", "accuracy", "logloss"):
            assert mine[name] == pytest.approx(its[name], rel=1e-5)
    assert ours.best_epoch == theirs.best_epoch and ours.parameters == theirs.parameters
    assert ours.test["auc"] == pytest.approx(theirs.test["auc"], rel=1e-5)


def test_the_loop_takes_the_best_epoch_and_stops() -> None:
    class Worse(nn.Module):
        """Its logits know the labels less with every step."""

        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.Parameter(torch.zeros(()))

        def forward(self, batch: l0sign_cuda.data.Batch, indices: loop.Ints) -> loop.Outcome:
            if self.training:
                self.steps.data += 1
            hidden = torch.from_numpy(np.random.default_rng(0).normal(size=len(batch.labels))).float()
            return loop.Outcome(batch.labels + self.steps.detach() * hidden + 0 * self.steps)

    trained = loop.train(Worse(), problem(), {**TRAINING, "epochs": 9, "patience": 2}, 0)
    assert trained.best_epoch == 1 and len(trained.history) == 3 and trained.stopped == "patience"
    assert trained.valid["auc"] == trained.history[0]["auc"] > trained.history[2]["auc"]


def test_rules_count_over_the_training_samples() -> None:
    data = GraphDataset.from_dense(
        [[0, 2], [0, 3], [1, 2], [0, 2], [1, 3], [1, 2]],
        labels=[1, 0, 0, 1, 1, 0],
        vocabulary=planted(0, num_fields=2, cardinality=2, num_interactions=0).vocabulary,
    )
    made = Problem(data, np.arange(3), np.arange(3, 6), np.arange(3, 6))
    seen = rules.train("rule-seen", "planted", made)
    assert seen.test["auc"] == 0.75 and seen.test["accuracy"] == pytest.approx(2 / 3)
    # Of the item 2 one of two was positive, of the item 3 none of one: with two samples of 1/3, 5/12 and 2/9.
    rate = rules.train("rule-rate", "planted", made)
    assert rate.test["auc"] == 0.25 and rate.test["accuracy"] == pytest.approx(1 / 3)
    assert "logloss" not in rate.test
    both = rules.train("rule-both", "planted", made)
    assert both.test["auc"] == 0.5 and both.test["accuracy"] == pytest.approx(2 / 3)


def test_stages_are_moments_of_one_training() -> None:
    options = {**TRAINING, "loss": "mse", "optimizer": "adagrad", "patience": 0}
    staged = models.fit(problem(), {**options, "stages": [1, 3]}, 0)[1]
    assert [row["epoch"] for row in staged.history] == [1, 3] and "logloss" not in staged.test
    for epochs, row in zip((1, 3), staged.history, strict=True):
        direct = models.fit(problem(), {**options, "epochs": epochs}, 0)[1]
        assert row["test auc"] == direct.test["auc"] and row["valid accuracy"] == direct.valid["accuracy"]
    row = {"label": "SIGN", "seeds": [{"history": staged.history}]}
    text = "\n".join(tables._curves([row]))
    assert "SIGN: test AUC" in text and f"| 3 | {staged.history[1]['test auc']:.4f} |" in text
    assert staged.test["accuracy"] > 0.4, "one half parts the classes"


# -------------------- graphs


def ragged() -> GraphDataset:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 6, size=300)
    ids = rng.integers(20, size=sizes.sum())
    return GraphDataset(
        ids, np.concatenate([[0], sizes.cumsum()]), labels=rng.integers(2, size=300), num_features=20
    )


def test_chains_join_neighbours_of_a_graph() -> None:
    data = GraphDataset([5, 3, 4, 7, 7], [0, 3, 5], labels=[0, 1])
    batch = graphs.Graphs.of(data.batch(np.arange(2)), np.arange(2))
    edges = set(map(tuple, graphs.Chain(loops=False)(batch).T.tolist()))
    assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3)}
    assert graphs.Chain(loops=True)(batch).shape[1] == 6 + 5


def test_all_pairs_join_every_two_nodes_of_a_graph() -> None:
    data = GraphDataset([5, 3, 4, 7, 7, 2], [0, 3, 5, 6], labels=[0, 1, 0])
    found = graphs.AllPairs()(graphs.Graphs.of(data.batch(np.arange(3)), np.arange(3)))
    edges = {(0, 1), (0, 2), (1, 2), (3, 4)}
    assert sorted(map(tuple, found.T.tolist())) == sorted(edges | {(b, a) for a, b in edges})


def test_edges_that_are_laid_down_are_those_of_each_sample() -> None:
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    laid = np.random.default_rng(0).random((4, 6)) < 0.5
    data = GraphDataset.from_dense(np.arange(12).reshape(4, 3), labels=[0, 1, 0, 1])
    chosen = np.array([2, 0])
    found = graphs.Given(laid, 3)(graphs.Graphs.of(data.batch(chosen), chosen))
    expected = {
        (3 * at + a, 3 * at + b)
        for at, graph in enumerate(chosen)
        for k, (i, j) in enumerate(pairs)
        if laid[graph, k]
        for a, b in ((i, j), (j, i))
    }
    assert set(map(tuple, found.T.tolist())) == expected and found.shape[1] == len(expected)


def test_a_share_of_edges_is_drawn_in_each_graph() -> None:
    edges = np.random.default_rng(1).random((50, 15)) < 0.6
    for share in (0, 0.2, 0.5, 1):
        chosen = graphs.share_of(edges, share, seed=0)
        assert not (chosen & ~edges).any()
        assert (chosen.sum(1) == np.rint(share * edges.sum(1))).all()
    assert (graphs.share_of(edges, 0.5, 0) != graphs.share_of(edges, 0.5, 1)).any()


@pytest.mark.parametrize("edges", ["chain", "all", "predicted"])
@pytest.mark.parametrize("name", graphs.KINDS)
def test_graph_networks_train(name: str, edges: str, tmp_path: Path) -> None:
    if name != "sign-conv":
        pytest.importorskip("torch_geometric")
    data = ragged()
    torch.manual_seed(0)
    model = graphs.make(name, data, {**TRAINING, "edges": edges})
    batch = data.batch(np.arange(40))
    outcome = model(batch, np.arange(40))
    (outcome.logits.sum() + (0 if outcome.l0_penalty is None else outcome.l0_penalty)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    options = {**TRAINING, "edges": edges, "l0_weight": 0.02}
    trained = models.train(name, "made", problem(data), options, 0, tmp_path / "cache")
    assert ("edges_kept" in trained.test) == (edges == "predicted")


def test_sign_on_all_pairs_is_sign() -> None:
    model = graphs.make("sign-conv", DATA, TRAINING, np.ones((len(DATA), 10), np.bool_))
    same = l0sign_cuda.L0SIGN(DATA.num_features, 4, gated=False)
    same.node_embedding.weight.data = model.embedding.weight.data
    same.interaction.message.load_state_dict(model.convolutions[0].message.state_dict())
    same.head.load_state_dict(model.head.state_dict())
    batch = DATA.batch(np.arange(30))
    torch.testing.assert_close(model(batch, np.arange(30)).logits, same(batch.ids).logits)


def test_sign_runs_on_predicted_and_reversed_edges(tmp_path: Path) -> None:
    cache = tmp_path / "edges.npy"
    source = {**TRAINING, "l0_weight": 2.0, "l0_reduction": "mean", "lr": 0.1}
    made = problem()
    for edges in ("predicted", "reversed"):
        options = {**TRAINING, "edges": edges, "share": 1.0, "source": source}
        models.train("sign-edges", "planted", made, options, 0, cache)
    model, trained = models.fit(made, source, 0)
    open_pairs = models.predicted_edges(model, made)
    assert (np.load(cache) == open_pairs).all()
    assert open_pairs[made.test].mean() == pytest.approx(trained.test["edges_kept"])


# -------------------- data


def test_copies_of_a_graph_are_found() -> None:
    data = GraphDataset([1, 2, 1, 2, 2, 1, 1, 2], [0, 2, 4, 6, 8], labels=[1, 1, 1, 0])
    assert datasets.first_copies(data).tolist() == [0, 2], "whatever their labels"
    part = datasets.subset(data, np.array([2, 3]))
    assert part.ids.tolist() == [2, 1, 1, 2] and part.labels.tolist() == [1, 0] and part.num_features == 3


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="twitter"):
        datasets.load("twitter", tmp_path, tmp_path / "work")


# -------------------- figures


def test_the_strongest_pairs_of_a_feature_are_its_own() -> None:
    model, _ = models.fit(problem(), {**TRAINING, "epochs": 1}, 0)
    found = gmail.interactions(model, DATA, problem().test, DATA.vocabulary, "f1=2", least=2)
    strengths = [abs(pair["mean_contribution"]) for pair in found["strongest"]]
    assert strengths == sorted(strengths, reverse=True) and len(strengths) > 3
    assert all("f1=2" in (pair["first"], pair["second"]) for pair in found["strongest"])
    assert min(pair["samples"] for pair in found["strongest"]) >= 2
    for sample in found["samples"]:
        assert "f1=2" in sample["nodes"]
        total = sample["bias"] + sum(pair["contribution"] for pair in sample["pairs"])
        assert total == pytest.approx(sample["logit"], abs=1e-5)


def test_figures_are_drawn_from_kept_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, _ = models.fit(problem(), {**TRAINING, "epochs": 1}, 0)
    found = gmail.interactions(model, DATA, problem().test, DATA.vocabulary, "f1=2", least=2)
    (tmp_path / "fig6-frappe.json").write_text(json.dumps(found))
    metrics = {"auc": 0.9, "accuracy": 0.8, "edges_kept": 0.5}
    seeds = [{"history": [{"epoch": epoch, **metrics} for epoch in (1, 2)], "test": metrics}] * 2
    for name, labels in (("fig4", ("L0-SIGN", "SIGN")), ("fig5", ("predicted, 0.2", "reversed, 0.2"))):
        rows = [{"label": label, "seeds": done} for label, done in zip(labels, (seeds, []), strict=True)]
        (tmp_path / f"{name}-frappe.json").write_text(json.dumps({"rows": rows}))
    *others, path = drawn = figures.draw(tmp_path, tmp_path / "figures")
    assert [path.stem for path in drawn] == ["fig4-frappe", "fig5-frappe", "fig6-frappe"]
    shown = [other.read_text() for other in others]
    assert "L0-SIGN" in shown[0] and "-- SIGN --" not in shown[0], "a row without seeds is left out"
    assert "predicted edges" in shown[1] and "reversed edges" not in shown[1]
    first = path.read_text()
    assert first.startswith("<?xml") and "strongest pairs of f1=2" in first.replace("<!--", "")
    assert figures.draw(tmp_path, tmp_path / "figures") == drawn and path.read_text() == first


# -------------------- runs


def test_a_run_goes_on_and_tells_what_is_missing(tmp_path: Path) -> None:
    records = Records(tmp_path)

    def rows() -> list[runner.Row]:
        return runner.rows(EXPERIMENT, records, EXPERIMENT.seeds, PLANTED)

    assert not runner.run(EXPERIMENT, tmp_path, tmp_path, EXPERIMENT.seeds, hours=-1)
    lines: list[str] = []
    assert runner.run(EXPERIMENT, tmp_path, tmp_path, (0,), ["SIGN"], say=lines.append)
    assert len(lines) == 2, "seed 0 has been trained for the grid"
    result = kept.document("made", EXPERIMENT, rows(), quick=False)
    assert result["missing"] == ["SIGN: seed 1", "rule: seeds 0, 1"]
    assert result["rows"][0]["n"] == 1 and result["rows"][0]["deviation"]["auc"] is None
    assert runner.run(EXPERIMENT, tmp_path, tmp_path, EXPERIMENT.seeds, say=lines.append)
    assert len(lines) == 5
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert runner.run(EXPERIMENT, tmp_path, tmp_path, EXPERIMENT.seeds)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert not kept.document("made", EXPERIMENT, rows(), quick=False)["missing"]


def test_the_point_of_the_best_validation_metric_is_chosen(tmp_path: Path) -> None:
    records = Records(tmp_path)
    experiment = replace(EXPERIMENT, entries=EXPERIMENT.entries[:1])
    for lr, auc in ((0.01, 0.6), (0.02, 0.7)):
        options = models.resolved(
            "sign", {**experiment.common, "gated": False, "weight_decay": 0.0, "lr": lr}
        )
        # Test metrics say the opposite, and must not be looked at.
        records.keep(Trial("planted", "sign", options, 0), {"valid": {"auc": auc}, "test": {"auc": 1 - auc}})
        [row] = runner.rows(experiment, records, (0,), ())
        assert (row.chosen is None) == (lr == 0.01)
    assert row.chosen is not None and row.chosen["lr"] == 0.02
    [row] = runner.rows(replace(experiment, monitor="logloss"), Records(tmp_path / "none"), (0,), ())
    assert row.chosen is None


def test_trials_differ_in_their_names() -> None:
    trial = Trial("planted", "sign", {"lr": 0.1, "gated": True}, 0)
    assert trial.key() == Trial("planted", "sign", {"gated": True, "lr": 0.1}, 0).key()
    others = [trial._replace(seed=1), trial._replace(options={"lr": 0.2, "gated": True})]
    others.append(trial._replace(fingerprint=(1, 2)))
    assert len({trial.key(), *(other.key() for other in others)}) == 4


@needs_deepctr
def test_what_the_code_fixes_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module, constant in (("fm", baselines, "INIT_STD"), ("gcn", graphs, "HIDDEN")):
        before = models.resolved(name, TRAINING)
        monkeypatch.setattr(module, constant, 7)
        assert models.resolved(name, TRAINING) != before


def test_seeds_share_their_test_samples() -> None:
    parts = [datasets.split(DATA, seed) for seed in (0, 1, 2)]
    assert all((np.sort(np.concatenate(part)) == np.arange(len(DATA))).all() for part in parts)
    assert all((part[2] == parts[0][2]).all() for part in parts)
    assert [list(map(len, part)) for part in parts] == [[840, 180, 180]] * 3
    assert (parts[1][1] != parts[2][1]).any() and (parts[0][1] != parts[1][1]).any()
    assert all((a == b).all() for a, b in zip(parts[0], DATA.split(seed=0), strict=True))


def test_a_result_is_not_replaced_by_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recipe-planted", "--quick", "--work", str(tmp_path / "work"), "--seeds", "0"]
    assert main(command) == 1, "the second seed is missing"
    path = tmp_path / "work" / "quick" / "recipe-planted-quick.json"
    assert results.read(path)["missing"] and results.read(path)["seeds"] == [0, 1]
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*command, "--assemble", "--work", str(tmp_path / "less")]) == 1
    # Of another revision, so that it stands in for no record.
    older = before.replace(f'"revision": {REVISION}'.encode(), b'"revision": 0')
    assert older != before
    path.write_bytes(older)
    for record in list((tmp_path / "work" / "trials").iterdir())[1:]:
        record.unlink()
    assert main([*command, "--assemble"]) == 1 and "not written" in capsys.readouterr().out
    assert path.read_bytes() == older
    assert main([*command, "--assemble", "--out", str(path.parent)]) == 1
    assert path.read_bytes() != older


def test_a_run_goes_on_from_a_kept_result(tmp_path: Path) -> None:
    def go(work: str, *labels: str, before: dict | None = None) -> tuple[dict, list[str]]:
        lines: list[str] = []
        known, seeds = kept.records_of(before), EXPERIMENT.seeds
        runner.run(EXPERIMENT, None, tmp_path / work, seeds, labels, say=lines.append, kept=known)
        rows = runner.rows(EXPERIMENT, Records(tmp_path / work, known), seeds, PLANTED)
        return kept.document("made", EXPERIMENT, rows, False, PLANTED, before), lines

    def figures(result: dict) -> list[object]:
        without = {"written", "seconds", "load_average", "environment", "environments"}
        return [
            {k: v for k, v in row.items() if k not in without}
            | {"seeds": [{k: v for k, v in seed.items() if k not in without} for seed in row["seeds"]]}
            for row in result["rows"]
        ]

    part, lines = go("first", "SIGN")
    assert len(lines) == 3 and part["missing"] == ["rule: seeds 0, 1"]
    part = json.loads(json.dumps(part))
    assert kept.trials(part) == 3 and kept.there("made", False, tmp_path) is None
    whole, lines = go("second", before=part)
    assert len(lines) == 2 and not whole["missing"], "only the rule was left to run"
    assert kept.trials(whole) == 5 and figures(whole)[0] == figures(part)[0]
    assert figures(go("third")[0]) == figures(whole), "as if it had been run at once"

    # An older result says of no trial where it ran, and keeps what it says of all.
    older = json.loads(json.dumps(part))
    for one in (one for row in older["rows"] for one in (*row["points"], *row["seeds"])):
        one["environment"] = None
    older["environments"][0]["git"]["commit"] = "of old"
    mixed = go("second", before=older)[0]
    assert [e["trials"] for e in mixed["environments"]] == [3, 2]
    assert mixed["environments"][0] == older["environments"][0]
    again, lines = go("fourth", before=json.loads(json.dumps(mixed)))
    assert not lines and again["environments"] == mixed["environments"]

    # The point that is chosen now has not met the test samples; trained again it is no longer the best.
    [trained, alone] = part["rows"][0]["points"]
    other = next(p for p in (trained, alone) if p["options"] != part["rows"][0]["chosen"])
    other["valid"]["auc"] = 1.0
    result, lines = go("fifth", "SIGN", before=part)
    assert len(lines) == 1 and figures(result)[0]["chosen"] == figures(whole)[0]["chosen"]
    for change in ({"revision": 0}, {"fingerprint": [0]}):
        assert len(go(f"sixth{change}", "SIGN", before={**part, **change})[1]) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--seeds", "0", "-1"], "--seeds: expected numbers of at least 0, got -1"),
        (["--data", "nowhere"], "frappe: no frappe/frappe.csv.xz in the directory that --data names"),
        ([], "frappe: expected --data, a directory with frappe/frappe.csv.xz"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fig4-frappe", "--work", str(tmp_path), *options])
    assert ended.value.code == 2 and capsys.readouterr().err.endswith(f"error: {message}\n")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    trial = Trial("planted", "sign", {}, 0)
    Records(tmp_path).keep(trial, {"valid": {}})
    path = tmp_path / "trials" / f"{trial.key()}.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match=f"{trial.key()}.json: not a finished trial"):
        Records(tmp_path).find(trial)


def test_a_table_says_where_a_choice_or_a_training_ended() -> None:
    seed = {"seed": 0, "stopped": "epochs", "epochs": 40, "best_epoch": 38}
    row = {"label": "FM", "grid": {"lr": [1, 2, 3], "weight_decay": [1, 2, 3]}, "seeds": [seed]}
    row |= {"chosen": {"lr": 2, "weight_decay": 3}, "mean": {}, "deviation": {}, "n": 0, "parameters": None}
    result = {"data": "", "protocol": "", "columns": ["auc"], "common": {"patience": 5}, "missing": []}
    lines = list(tables.tables({**result, "rows": [row]}))
    assert lines[-3].endswith("beyond which there may be better: FM (weight_decay 3).")
    assert lines[-1] == "Still getting better when the epochs ended: FM (seed 0)."
    early = {**row, "chosen": {"lr": 2, "weight_decay": 2}, "seeds": [{**seed, "best_epoch": 35}]}
    assert list(tables.tables({**result, "rows": [early]}))[-1].startswith("| FM |")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_kept_results_are_of_the_experiments_as_they_are(name: str) -> None:
    there = kept.there(name, False, results.RESULTS / "accuracy")
    if there is None:
        pytest.skip("not run")
    experiment = EXPERIMENTS[name]
    assert there["protocol"] == experiment.protocol
    assert [row["label"] for row in there["rows"]] == [entry.label for entry in experiment.entries]
    shown = (results.RESULTS / "accuracy" / f"{name}.md").read_text(encoding="utf-8")
    assert shown == results.table(there)


def test_fig6_is_an_experiment_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fig6-frappe", "--quick", "--work", str(tmp_path), "--out", str(tmp_path)]
    assert main(command) == 0
    found = results.read(tmp_path / "fig6-frappe-quick.json")
    text = (tmp_path / "fig6-frappe-quick.md").read_text()
    sample = found["samples"][1]
    strongest = max(sample["pairs"], key=lambda pair: abs(pair["contribution"]))
    line = (
        f"| {' | '.join(strongest['names'])} | {strongest['gate']:.4f} | {strongest['contribution']:+.4f} |"
    )
    assert line in text and f"logit {sample['logit']:.4f}, bias {sample['bias']:.4f}" in text
    assert f"Strongest pairs of {found['feature']}:" in text
    with pytest.raises(SystemExit):
        main(["fig6-frappe", "--work", str(tmp_path)])
    assert "frappe: expected --data, a directory with frappe/frappe.csv.xz" in capsys.readouterr().err


def test_rows_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipe-planted", "--rows", "none"])
    assert "no row 'none'" in capsys.readouterr().err


@needs_deepctr
def test_the_command_writes_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    command = ["table2-frappe", "--quick", "--work", str(work), "--out", str(out)]
    assert main([*command, "--seeds", "0", "--rows", "SIGN", "seen with this user"]) == 1
    result = results.read(out / "table2-frappe-quick.json")
    assert result["missing"] and [row["n"] for row in result["rows"]].count(1) == 2
    assert "Missing: " in (out / "table2-frappe-quick.md").read_text()
    assert main(command) == 0
    text = (out / "table2-frappe-quick.json").read_text()
    assert not json.loads(text)["missing"] and str(tmp_path) not in text
    assert "| DeepFM | 0." in (out / "table2-frappe-quick.md").read_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_whole(name: str) -> None:
    experiment = EXPERIMENTS[name]
    for made in (experiment, quick(experiment)):
        assert made.data in datasets.DATASETS
        assert all(entry.model in models.MODELS for entry in made.entries)
        labels = [entry.label for entry in made.entries]
        assert len(set(labels)) == len(labels)
        assert made.tuning_seed in made.seeds
