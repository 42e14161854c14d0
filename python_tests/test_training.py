"""fit: learning, schedules, early stopping, the guard against collapse, and exact continuation."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import l0sign_cuda
from l0sign_cuda import L0SIGN, data, evaluation, training
from l0sign_cuda.checkpoint import load_config, load_model
from l0sign_cuda.collapse import CollapseError, CollapseWarning, diagnose
from l0sign_cuda.config import TrainConfig
from l0sign_cuda.data import GraphDataset, PlantedData
from l0sign_cuda.evaluation import evaluate, predict
from l0sign_cuda.training import FitResult, Progress, fit

CLOCK = ("seconds", "samples_per_second")
# Settings under which the data below is learned in a second or two.
QUICK = TrainConfig(epochs=3, batch_size=64, weight_decay=0.0, l0_warmup_epochs=2, patience=0, num_threads=1)


@pytest.fixture(scope="module")
def planted() -> PlantedData:
    return data.planted(3000, num_fields=4, cardinality=4, num_interactions=1, noise=0.3)


@pytest.fixture(scope="module")
def parts(planted: PlantedData) -> list[tuple[GraphDataset, np.ndarray]]:
    return [(planted, indices) for indices in planted.split()]


@pytest.fixture(scope="module")
def ragged() -> GraphDataset:
    """Graphs of 0 to 6 nodes with values; the label says whether feature 0 is there."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 7, 400)
    ids = rng.integers(0, 12, lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = [float(0 in ids[a:b]) for a, b in pairwise(offsets)]
    return GraphDataset(ids, offsets, values=rng.uniform(0.5, 1.5, len(ids)), labels=labels, num_features=12)


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in history]


def assert_same(left: FitResult, right: FitResult) -> None:
    assert timeless(left.history) == timeless(right.history)
    for name, tensor in left.model.state_dict().items():
        assert torch.equal(tensor, right.model.state_dict()[name]), name
    assert (left.best_epoch, left.stopped) == (right.best_epoch, right.stopped)


# -------------------- learning


def test_learns_planted_interactions(planted: PlantedData, parts: list) -> None:
    train, valid, test = parts
    result = fit(train, valid, QUICK)
    assert evaluate(result.model, test)["auc"] > planted.optimal_auc - 0.03
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert not result.model.training
    assert result.stopped == "epochs" and result.collapse is None


def test_same_seed_same_numbers_other_seed_others(parts: list) -> None:
    short = QUICK.replace(epochs=1)
    first, again, other = (fit(parts[0], parts[1], short, seed=seed) for seed in (5, 5, 6))
    assert_same(first, again)
    assert first.history[0]["loss"] != other.history[0]["loss"]


def test_the_callers_generators_stay_as_they_are(parts: list) -> None:
    before = torch.get_rng_state()
    fit(parts[1], config=QUICK, epochs=1)
    assert torch.equal(before, torch.get_rng_state())


def test_threads_are_restored(parts: list) -> None:
    before = torch.get_num_threads()
    inside = []
    fit(
        parts[2],
        config=QUICK,
        epochs=1,
        num_threads=before + 1,
        progress=lambda event: inside.append(torch.get_num_threads()),
    )
    assert set(inside) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "options",
    [
        {"gated": False},
        {"optimizer": "adamw"},
        {"optimizer": "adagrad", "lr": 0.1},
        {"optimizer": "row_adam"},
        {"optimizer": "row_adagrad", "lr": 0.1, "clip_norm": 1.0, "weight_decay": 1e-4},
        {"optimizer": "row_adam", "precision": "bfloat16", "gated": False},
        {"precision": "bfloat16"},
        {"l2_weight": 1e-4, "clip_norm": 1.0},
        {"dropout": 0.1, "optimizer": "row_adam"},
        {"aggr": "neighbor_mean", "embedding_dim": 4, "edge_dim": 5, "limits": [-0.2, 1.2]},
        {"aggr": "sum", "iterations": 2, "lr": 0.02},
    ],
    ids=str,
)
def test_options_train(parts: list, options: dict[str, Any]) -> None:
    history = fit(parts[0], parts[1], QUICK, **options).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["auc"] > 0.55


def test_moving_average_is_what_is_validated_and_kept(parts: list, tmp_path: Path) -> None:
    """Against the definition, from the weights after each step."""
    train, valid, test = parts
    decay, average = 0.95, {}
    original = torch.optim.Adam.step

    def step(optimizer: torch.optim.Adam, *args: Any) -> None:
        original(optimizer, *args)
        for group, params in enumerate(found["params"] for found in optimizer.param_groups):
            for index, param in enumerate(params):
                new = param.detach().clone()
                average.setdefault((group, index), []).append(new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        result = fit(train, valid, QUICK, epochs=1, ema_decay=decay, out=tmp_path)
    kept = l0sign_cuda.parameter_groups(result.model, 0.01)
    for group, params in enumerate(found["params"] for found in kept):
        for index, param in enumerate(params):
            weights = average[group, index]
            shares = decay ** torch.arange(len(weights) - 1, -1, -1, dtype=torch.float64)
            mean = sum(share * weight.double() for share, weight in zip(shares, weights, strict=True))
            torch.testing.assert_close(param.detach(), (mean / shares.sum()).float())
    plain = fit(train, valid, QUICK, epochs=1)
    assert result.history[0]["loss"] == plain.history[0]["loss"]
    assert result.history[0]["auc"] != plain.history[0]["auc"]
    assert evaluate(result.model, valid)["auc"] == result.history[0]["auc"]
    loaded = load_model(tmp_path)
    assert evaluate(loaded, test) == evaluate(result.model, test)


def test_moving_average_of_untouched_rows_is_refused(parts: list) -> None:
    with pytest.raises(ValueError, match=r"ema_decay must be 0 with optimizer 'row_adam', got 0\.9"):
        fit(parts[0], parts[1], QUICK, optimizer="row_adam", ema_decay=0.9)
    with pytest.raises(ValueError, match="ema_decay must be less than 1, got 1"):
        QUICK.replace(ema_decay=1)


def test_ragged_graphs_with_values(ragged: GraphDataset) -> None:
    result = fit(ragged, ragged, QUICK, epochs=15, batch_size=32, lr=0.03)
    assert evaluate(result.model, ragged)["auc"] > 0.95


def test_classes_and_values(ragged: GraphDataset) -> None:
    sizes = np.diff(ragged.offsets)
    classes = GraphDataset(ragged.ids, ragged.offsets, labels=np.minimum(sizes, 2), num_features=12)
    result = fit(classes, classes, QUICK, loss="cross_entropy", epochs=12, lr=0.03, aggr="sum")
    found = evaluate(result.model, classes, loss="cross_entropy")
    assert predict(result.model, classes).shape == (400, 3)
    assert found["accuracy"] > 0.9 and set(found) == {"accuracy", "logloss", "edges_kept"}

    values = GraphDataset(ragged.ids, ragged.offsets, labels=sizes / 6, num_features=12)
    result = fit(values, values, QUICK, loss="mse", epochs=12, lr=0.03, aggr="sum")
    assert evaluate(result.model, values, loss="mse")["rmse"] < 0.5 * np.std(sizes / 6)
    assert result.best_epoch == 1 + int(np.argmin([row["rmse"] for row in result.history]))


def test_l0_reduction_mean_is_the_sum_divided_by_the_pairs(parts: list) -> None:
    by_mean = fit(parts[0], parts[1], QUICK, epochs=1, l0_weight=0.5, l0_reduction="mean")
    by_sum = fit(
        parts[0], parts[1], QUICK, epochs=1, l0_weight=0.5 / 10, l0_reduction="sum"
    )  # 4 nodes, 10 pairs
    assert by_mean.history[0]["loss"] == pytest.approx(by_sum.history[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "row_adam", "row_adagrad"])
def test_only_the_edge_network_is_spared_weight_decay(parts: list, optimizer: str) -> None:
    config = QUICK.replace(weight_decay=0.5, optimizer=optimizer)
    trainer = training._Trainer(training.Part(parts[0]), None, config, None, None)
    decay = {
        id(parameter): group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    spared = {name for name, parameter in trainer.model.named_parameters() if decay[id(parameter)] == 0}
    assert spared == {
        "interaction.edge.hidden.weight",
        "interaction.edge.hidden.bias",
        "interaction.edge.out.weight",
        "interaction.edge.out.bias",
    }
    assert {value for value in decay.values()} == {0.0, 0.5}


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "row_adam"])
def test_the_edge_network_has_a_learning_rate_of_its_own(parts: list, optimizer: str) -> None:
    """A step of Adam or Adagrad is at most lr from the start, whatever the gradient."""
    config = QUICK.replace(lr=0.01, edge_lr_factor=0.1, optimizer=optimizer, epochs=1, batch_size=10**6)
    steps = {}
    for epochs in (0, 1):
        model = fit(parts[0], config=config.replace(epochs=epochs)).model
        steps[epochs] = model.state_dict()
    moved = {name: (steps[1][name] - steps[0][name]).abs().max().item() for name in steps[0]}
    edge = [moved.pop(name) for name in list(moved) if name.startswith("interaction.edge.")]
    assert max(edge) == pytest.approx(0.001, rel=1e-2)
    assert min(moved.values()) == pytest.approx(0.01, rel=1e-2)


def test_row_adagrad_is_adagrad(parts: list) -> None:
    """Rows that a batch does not touch stay as they are with either; rounding adds up over the steps."""
    options = {"epochs": 1, "lr": 0.1, "clip_norm": 0.05}
    dense, sparse = (fit(*parts[:2], QUICK, optimizer=kind, **options) for kind in ("adagrad", "row_adagrad"))
    assert sparse.history[0]["loss"] == pytest.approx(dense.history[0]["loss"], rel=1e-4)
    for name, tensor in dense.model.state_dict().items():
        torch.testing.assert_close(sparse.model.state_dict()[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_the_trained_model_may_go_on_with_any_optimizer(parts: list) -> None:
    model = fit(parts[2], config=QUICK, epochs=1, optimizer="row_adam").model
    model(torch.tensor([[0, 5]])).logits.sum().backward()
    assert not model.node_embedding.weight.grad.is_sparse


@pytest.mark.parametrize("optimizer", ["adam", "row_adam"])
@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_gradients_are_clipped(parts: list, optimizer: str, max_norm: float) -> None:
    config = QUICK.replace(optimizer=optimizer)
    trainer = training._Trainer(training.Part(parts[0]), None, config, None, None)
    batch = next(trainer.train.batches(64))
    l0sign_cuda.empirical_risk(trainer.model(*batch[:3], seed=1), batch.labels).backward()

    def gradient() -> torch.Tensor:
        grads = [parameter.grad for parameter in trainer.model.parameters()]
        return torch.cat([grad.to_dense().flatten() for grad in grads if grad is not None])

    before = gradient()
    training._clip_gradients(trainer.model, max_norm)
    expected = before * min(1.0, max_norm / before.norm().item())
    assert before.norm() > 1e-2
    torch.testing.assert_close(gradient(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("labels", "loss", "message"),
    [
        (None, "bce", "the samples have no labels"),
        ([0, 1, 2], "bce", "loss 'bce' needs labels 0 and 1, found 2"),
        ([0, 1, 0.5], "cross_entropy", r"needs classes 0\.\.K-1 as labels, found 0.5"),
        ([0, 1, -1], "cross_entropy", r"needs classes 0\.\.K-1 as labels, found -1"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, loss: str, message: str) -> None:
    dataset = GraphDataset.from_dense([[0, 1]] * 3, labels=labels)
    with pytest.raises(ValueError, match=message):
        fit(dataset, loss=loss, epochs=1)


def test_no_samples_and_foreign_validation_samples() -> None:
    dataset = GraphDataset.from_dense([[0, 1]] * 3, labels=[0, 1, 0])
    with pytest.raises(ValueError, match="there are no samples"):
        fit((dataset, np.arange(0)), epochs=1)
    wider = GraphDataset.from_dense([[0, 7]] * 3, labels=[0, 1, 0])
    with pytest.raises(
        ValueError, match="the validation samples have 8 features, the training samples only 2"
    ):
        fit(dataset, wider, epochs=1)


# -------------------- schedules and early stopping


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([500], r"train \(indices\): expected values in 0\.\.99 .*, got 500"),
        ([True], r"train: expected indices \[B\], integers, got bool"),
        ([[0]], r"train: expected indices \[B\], integers, got int64 of shape \[1, 1\]"),
        ([], "there are no samples"),
    ],
)
def test_indices_that_do_not_fit(chosen: Any, message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        fit((data.planted(100), chosen))


def test_samples_that_are_none() -> None:
    samples: Any = [1, 2]
    with pytest.raises(TypeError, match=r"train: expected a GraphDataset, .* got \[1, 2\]"):
        fit(samples)


def test_evaluate_refuses_what_it_does_not_know() -> None:
    model, samples = l0sign_cuda.L0SIGN(80), data.planted(10)
    wrong: Any = "x"
    with pytest.raises(ValueError, match=r"loss: expected one of 'bce', .* got 'x'"):
        evaluate(model, samples, loss=wrong)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size: expected an integer of at least 1, got {size}"):
            evaluate(model, samples, batch_size=size)


def test_a_seed_is_one_that_torch_takes() -> None:
    with pytest.raises(ValueError, match="seed must be at most 9223372036854775807"):
        TrainConfig(seed=10**23)


def test_a_monitor_must_fit_the_loss() -> None:
    assert TrainConfig(loss="mse").monitored == "rmse"
    with pytest.raises(ValueError, match="monitor must be auto or one of rmse for loss 'mse'; got 'auc'"):
        TrainConfig(loss="mse", monitor="auc")


@pytest.mark.parametrize(
    ("warmup", "done", "expected"),
    [(0, 0, 0.02), (0, 3, 0.02), (4, 0, 0), (4, 1, 0.005), (4, 2.5, 0.0125), (4, 4, 0.02), (4, 9, 0.02)],
)
def test_warm_up_is_linear_and_then_constant(warmup: float, done: float, expected: float) -> None:
    assert TrainConfig(l0_weight=0.02, l0_warmup_epochs=warmup).l0_weight_at(done) == pytest.approx(expected)


def test_warm_up_reaches_every_step(parts: list, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    risk = L0SIGN.risk

    def spy(*args: Any, l0_weight: torch.Tensor, **options: Any) -> Any:
        seen.append(l0_weight[0].item() * 10)  # it is of the mean of ten pairs
        return risk(*args, l0_weight=l0_weight, **options)

    monkeypatch.setattr(L0SIGN, "risk", spy)
    config = QUICK.replace(epochs=3, batch_size=1050, l0_weight=0.4, l0_warmup_epochs=2)  # two steps an epoch
    result = fit(parts[0], parts[1], config)
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert [row["l0_weight"] for row in result.history] == pytest.approx([0.2, 0.4, 0.4])


def test_early_stopping_waits_for_patience(parts: list) -> None:
    # A model that does not move has the same AUC in every epoch: the first is the best.
    result = fit(parts[0], parts[1], QUICK, epochs=9, lr=1e-20, patience=2, on_collapse="ignore")
    assert (result.stopped, result.best_epoch, len(result.history)) == ("patience", 1, 3)


def test_the_best_epoch_is_restored(parts: list) -> None:
    train, valid, _ = parts
    result = fit(train, valid, QUICK, epochs=5, lr=0.2, on_collapse="ignore")  # too fast: it goes up and down
    values = [row["auc"] for row in result.history]
    assert result.best_epoch == 1 + int(np.argmax(values))
    assert evaluate(result.model, valid)["auc"] == max(values)


def test_monitor_picks_the_metric(parts: list) -> None:
    train, valid, _ = parts
    result = fit(train, valid, QUICK, epochs=5, lr=0.2, monitor="logloss", on_collapse="ignore")
    assert result.best_epoch == 1 + int(np.argmin([row["logloss"] for row in result.history]))


def test_without_validation_the_last_epoch_counts(parts: list) -> None:
    result = fit(parts[0], config=QUICK, patience=1)
    assert (result.best_epoch, result.stopped) == (3, "epochs")
    assert "auc" not in result.history[0] and 0 < result.history[0]["edges_kept"] <= 1


def test_one_class_validation_is_no_trap(planted: PlantedData, parts: list) -> None:
    positives = (planted, np.flatnonzero(planted.labels == 1)[:50])
    result = fit(parts[0], positives, QUICK, patience=1)
    assert (result.best_epoch, result.stopped) == (3, "epochs")
    assert all(math.isnan(row["auc"]) for row in result.history)


# -------------------- collapse

CLOSED = {"l0_weight": 50.0, "l0_warmup_epochs": 0, "lr": 0.05, "epochs": 3}


def test_closed_edges_are_told_once(parts: list) -> None:
    with pytest.warns(CollapseWarning) as caught:
        result = fit(parts[0], parts[1], QUICK, **CLOSED)
    (message,) = [str(warning.message) for warning in caught]
    assert "all edges are closed" in message
    assert "a smaller l0_weight (now 50" in message and "warm-up" in message and "weight_decay" not in message
    assert result.collapse == message
    assert (result.stopped, len(result.history)) == ("epochs", 3)


def test_collapse_can_stop_raise_or_be_ignored(parts: list, tmp_path: Path) -> None:
    with pytest.warns(CollapseWarning):
        result = fit(parts[0], parts[1], QUICK, **CLOSED, on_collapse="stop")
    assert result.stopped == "collapse" and len(result.history) < 3
    with pytest.raises(CollapseError, match="all edges are closed"):
        fit(parts[0], parts[1], QUICK, **CLOSED, on_collapse="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(parts[0], parts[1], QUICK, **CLOSED, on_collapse="ignore").stopped == "epochs"


def test_a_constant_prediction_is_told(parts: list) -> None:
    with pytest.warns(CollapseWarning, match="the same for every sample.*a smaller weight_decay .now 10"):
        fit(parts[0], parts[1], QUICK, gated=False, weight_decay=10.0)


def test_a_loss_that_is_not_finite_ends_training(parts: list) -> None:
    with pytest.warns(CollapseWarning, match="no longer finite.*a smaller lr"):
        result = fit(parts[0], parts[1], QUICK, gated=False, lr=1e30)
    assert result.stopped == "collapse" and len(result.history) == 1
    assert result.best_epoch == 0
    assert all(tensor.isfinite().all() for tensor in result.model.state_dict().values())


def test_diagnose_leaves_a_healthy_start_alone() -> None:
    config, found = TrainConfig(), {"auc": 0.5, "edges_kept": 1.0}
    flat = torch.linspace(-5e-3, 5e-3, 100)
    assert diagnose(1, 0.7, flat, found, config) is None  # the first epochs may lie on a plateau
    late = diagnose(9, 0.7, flat, found, config)
    assert late is not None and late.kind == "constant"
    assert diagnose(9, 0.7, flat, {**found, "auc": 0.6}, config) is None
    assert diagnose(9, 0.7, 1000 * flat, found, config) is None
    spread_by_class = torch.tensor([[1.0, -1.0]]).expand(50, 2)
    constant = diagnose(2, 0.7, spread_by_class, found, config)
    assert constant is not None and constant.kind == "constant"


# -------------------- continuation


@pytest.mark.parametrize(
    "options",
    [
        *({"optimizer": name} for name in ("adam", "adamw", "adagrad", "row_adam", "row_adagrad")),
        {"ema_decay": 0.9},
        {"dropout": 0.2},
    ],
    ids=str,
)
def test_resume_after_an_epoch_is_exact(parts: list, tmp_path: Path, options: dict[str, Any]) -> None:
    train, valid, _ = parts
    config = QUICK.replace(weight_decay=1e-5, **options)
    whole = fit(train, valid, config, epochs=3)
    fit(train, valid, config, epochs=1, out=tmp_path)
    continued = fit(train, valid, out=tmp_path, resume=True, epochs=3)
    assert_same(whole, continued)


def interrupt_at(epoch: int, step: int) -> Any:
    def progress(event: Progress) -> None:
        if (event.epoch, event.step, event.row) == (epoch, step, None):
            signal.raise_signal(signal.SIGINT)

    return progress


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where a shell has started pytest in the background and it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("step", [1, 17, 33])  # 33 is the epoch's last: validation is yet to come
def test_ctrl_c_within_an_epoch_and_resume_are_exact(parts: list, tmp_path: Path, step: int) -> None:
    train, valid, _ = parts
    whole = fit(train, valid, QUICK)
    with pytest.raises(KeyboardInterrupt):
        fit(train, valid, QUICK, out=tmp_path, progress=interrupt_at(2, step))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = training.read_header(tmp_path / "state.safetensors")["state"]
    assert (state["epoch"], state["step"]) == (1, step)
    assert_same(whole, fit(train, valid, out=tmp_path, resume=True))


def test_checkpoints_within_an_epoch(parts: list, tmp_path: Path) -> None:
    train, valid, _ = parts
    places = []

    def look(event: Progress) -> None:
        state = training.read_header(tmp_path / "state.safetensors")["state"]
        places.append((state["epoch"], state["step"]))

    fit(train, valid, QUICK, epochs=1, checkpoint_steps=10, out=tmp_path, progress=look)
    assert sorted(set(places)) == [(0, 0), (0, 10), (0, 20), (0, 30), (1, 0)]


def test_resume_starts_where_there_is_nothing(parts: list, tmp_path: Path) -> None:
    result = fit(parts[0], parts[1], QUICK, epochs=1, out=tmp_path / "new", resume=True)
    assert len(result.history) == 1


def test_resume_of_a_finished_run_computes_nothing(parts: list, tmp_path: Path) -> None:
    first = fit(parts[0], parts[1], QUICK, epochs=1, out=tmp_path)
    assert_same(first, fit(parts[0], parts[1], out=tmp_path, resume=True))


def test_a_collapsed_run_goes_on_if_asked(parts: list, tmp_path: Path) -> None:
    with pytest.raises(CollapseError):
        fit(parts[0], parts[1], QUICK, **CLOSED, on_collapse="raise", out=tmp_path)
    assert fit(parts[0], parts[1], out=tmp_path, resume=True).stopped == "collapse"
    continued = fit(parts[0], parts[1], out=tmp_path, resume=True, on_collapse="warn")
    assert (continued.stopped, len(continued.history)) == ("epochs", 3)
    assert continued.collapse is not None


@pytest.mark.parametrize("file", ["write_tensors", "write_model"])
@pytest.mark.parametrize("call", [1, 2, 3])  # the start, the first epoch, the second
def test_a_run_killed_between_its_two_files_resumes_to_its_model(
    parts: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, call: int
) -> None:
    train, valid, _ = parts
    whole = fit(train, valid, QUICK, epochs=2)
    assert whole.best_epoch == 2  # so that every epoch writes both files
    write, calls = getattr(training, file), count(1)

    def fatal(*arguments: Any) -> None:
        if next(calls) == call:
            raise SystemExit
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, file, fatal)
        with pytest.raises(SystemExit):
            fit(train, valid, QUICK, epochs=2, out=tmp_path)
    resumed = fit(train, valid, QUICK, epochs=2, out=tmp_path, resume=True)
    assert_same(whole, resumed)
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name


def test_a_run_that_ended_on_a_loss_that_is_not_finite_does_not_go_on(parts: list, tmp_path: Path) -> None:
    lost = {"gated": False, "lr": 1e30, "on_collapse": "ignore", "out": tmp_path}
    first = fit(parts[0], parts[1], QUICK, **lost)
    for policy in ("warn", "ignore"):
        told: list[Progress] = []
        options: dict[str, Any] = {"on_collapse": policy, "progress": told.append}
        with pytest.warns(CollapseWarning, match=r"not finite, and cannot go on\. Start another"):
            again = fit(parts[0], parts[1], out=tmp_path, resume=True, **options)
        assert [event.message is not None for event in told] == [True]  # for whoever shows progress
        assert repr(timeless(first.history)) == repr(timeless(again.history))  # NaN and all
        assert (again.stopped, again.best_epoch) == ("collapse", 0)


def test_more_patience_goes_on(parts: list, tmp_path: Path) -> None:
    still = {"lr": 1e-20, "on_collapse": "ignore", "out": tmp_path}
    fit(parts[0], parts[1], QUICK, epochs=9, patience=1, **still)
    assert len(fit(parts[0], parts[1], resume=True, out=tmp_path).history) == 2
    assert len(fit(parts[0], parts[1], resume=True, out=tmp_path, patience=3).history) == 4


def test_a_run_from_before_the_edge_factor_goes_on_at_one_rate(
    parts: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(*parts[:2], QUICK, edge_lr_factor=1.0, epochs=2)
    stored = TrainConfig.to_dict
    monkeypatch.setattr(
        TrainConfig,
        "to_dict",
        lambda config: {name: value for name, value in stored(config).items() if name != "edge_lr_factor"},
    )
    fit(*parts[:2], QUICK, edge_lr_factor=1.0, epochs=1, out=tmp_path)
    monkeypatch.undo()
    assert "edge_lr_factor" not in training.read_header(tmp_path / "state.safetensors")["config"]
    assert training.stored_config(tmp_path) == QUICK.replace(edge_lr_factor=1.0, epochs=1)
    assert load_config(tmp_path) == QUICK.replace(edge_lr_factor=1.0, epochs=1)
    assert_same(whole, fit(*parts[:2], out=tmp_path, resume=True, epochs=2))


def test_resume_refuses_other_settings_and_other_samples(parts: list, tmp_path: Path) -> None:
    train, valid, test = parts
    fit(train, valid, QUICK, epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"the run has lr = 0\.01, which cannot become 0\.5 when it resumes"):
        fit(train, valid, out=tmp_path, resume=True, lr=0.5)
    with pytest.raises(ValueError, match=r"state\.safetensors: the run was started on other samples"):
        fit(train, test, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume needs the directory"):
        fit(train, valid, resume=True)


def test_resume_refuses_samples_that_differ_in_one_number(ragged: GraphDataset, tmp_path: Path) -> None:
    def changed(name: str, at: int) -> GraphDataset:
        arrays = {key: getattr(ragged, key).copy() for key in ("ids", "offsets", "values", "labels")}
        arrays[name][at] = {"ids": 11 - arrays["ids"][at], "labels": 1 - arrays["labels"][at]}.get(
            name, arrays[name][at] + 0.5
        )
        return GraphDataset(**arrays, num_features=12)

    indices = np.arange(200)
    fit((ragged, indices), config=QUICK, epochs=1, out=tmp_path)
    swapped = indices.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    offsets = ragged.offsets.copy()
    offsets[1 + np.argmin(offsets == 0)] -= 1  # a node moves from one graph to the next
    shifted = GraphDataset(ragged.ids, offsets, ragged.values, ragged.labels, num_features=12)
    others = [(changed(name, 7), indices) for name in ("ids", "values", "labels")]
    for other in [*others, (shifted, indices), (ragged, swapped)]:
        with pytest.raises(ValueError, match="the run was started on other samples"):
            fit(other, out=tmp_path, resume=True)
    # The same numbers in another width, and from a file, are the same samples.
    ragged.save(tmp_path / "data")
    for same in (
        GraphDataset.load(tmp_path / "data"),
        GraphDataset(
            ragged.ids.astype(np.int32), ragged.offsets, ragged.values, ragged.labels, num_features=12
        ),
    ):
        assert len(fit((same, indices), out=tmp_path, resume=True).history) == 1


def test_a_checksum_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch, parts: list) -> None:
    whole = evaluation.Part(parts[0]).fingerprint()
    monkeypatch.setattr(evaluation, "_CHUNK", 7)
    assert evaluation.Part(parts[0]).fingerprint() == whole


def test_a_run_is_not_overwritten_by_accident(parts: list, tmp_path: Path) -> None:
    fit(parts[0], parts[1], QUICK, epochs=1, out=tmp_path)
    with pytest.raises(FileExistsError, match="holds a run"):
        fit(parts[0], parts[1], QUICK, epochs=1, out=tmp_path)
    (tmp_path / "state.safetensors").unlink()
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"holds a model .* cannot be resumed: overwrite it"):
            fit(parts[0], parts[1], QUICK, epochs=1, out=tmp_path, resume=resume)
    other = fit(parts[0], parts[1], QUICK, epochs=1, seed=3, out=tmp_path, overwrite=True)
    assert other.config.seed == 3


def test_a_missing_extra_is_named() -> None:
    from l0sign_cuda._extras import require

    with pytest.raises(ImportError, match=r'no_such_module.*pip install "l0sign_cuda\[train\]"'):
        require("no_such_module.part", "train")
