"""The `l0sign` command: every subcommand, what it writes, what it refuses, and how it is interrupted."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import l0sign_cuda
from l0sign_cuda import cli, data
from l0sign_cuda.cli import main
from l0sign_cuda.config import TrainConfig

FRAPPE = Path(__file__).parents[2] / "shared" / "data" / "frappe" / "frappe.csv.xz"
QUICK = ["--epochs", "2", "--batch-size", "64", "--weight-decay", "0", "--num-threads", "1"]


def l0sign(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "l0sign_cuda", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def call(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of planted interactions."""
    planted = data.planted(2000, num_fields=3, cardinality=4, num_interactions=1, noise=0.3)
    path = tmp_path_factory.mktemp("table") / "planted.csv"
    rows = np.column_stack([planted.labels, planted.ids.reshape(-1, 3) % 4]).astype(int)
    np.savetxt(path, rows, fmt="%d", delimiter=",", header="y,a,b,c", comments="")
    return path


@pytest.fixture(scope="module")
def prepared(table: Path) -> Path:
    out = table.parent / "prepared"
    assert call("prepare", table, "--label", "y", "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def run(prepared: Path) -> Path:
    """A trained run; tests only read it."""
    out = prepared.parent / "run"
    assert call("train", prepared, "--out", out, *QUICK) == 0
    return out


def metrics(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


def numbers(run: Path) -> Any:
    """Everything in metrics.json that no clock decides."""
    content = metrics(run)
    for row in content["epochs"]:
        del row["seconds"], row["samples_per_second"]
    return content["epochs"], content["valid"], content["test"], content["best_epoch"], content["stopped"]


# -------------------- from raw data to predictions


@pytest.mark.slow
def test_every_step_as_a_command(table: Path, tmp_path: Path) -> None:
    prepared, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "p.csv"
    done = l0sign("prepare", table, "--label", "y", "--out", prepared)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "2000 graphs of 3 nodes each, 12 features" in done.stdout

    done = l0sign("train", prepared, "--out", run, *QUICK)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["epoch", "loss", "auc", "accuracy", "logloss", "edges", "kept", "samples/s"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert re.fullmatch(r"peak memory: [\d,]+ MiB", lines[-2])

    done = l0sign("evaluate", run, prepared, "--part", "test", "--json", tmp_path / "e.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e.json").read_text()) == metrics(run)["test"]

    done = l0sign("predict", run, table, "--label", "y", "--out", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(out.read_text().splitlines()) == 2001


def test_metrics_json(run: Path) -> None:
    content = metrics(run)
    for part in ("test", "valid"):
        assert content[part].keys() == {"auc", "accuracy", "logloss", "edges_kept"}
        assert 0.5 < content[part]["auc"] <= 1
    assert [row["epoch"] for row in content["epochs"]] == [1, 2]
    assert content["valid"]["auc"] == content["epochs"][content["best_epoch"] - 1]["auc"]
    assert (
        content["settings"] == TrainConfig(epochs=2, batch_size=64, weight_decay=0, num_threads=1).to_dict()
    )
    assert content["data"]["samples"] == {"train": 1400, "valid": 300, "test": 300}
    assert content["versions"]["torch"] == torch.__version__
    assert content["machine"]["cores"] == os.cpu_count()
    assert 50e6 < content["peak_memory_bytes"]["host"] < 50e9


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "copies"), [("row_adagrad", 3), ("row_adam", 4), ("adam", 6)])
def test_memory_of_training_is_bounded(tmp_path: Path, optimizer: str, copies: int) -> None:
    """By so many times the tables: the model, its best weights, the optimizer's state, dense gradients.

    Each copy is two tensors, which may take a large page of 2 MiB more than they need.
    """
    peaks, tables = [], 500_000 * (8 + 8) * 4
    for features in (5_000, 500_000):
        ids = np.random.default_rng(0).integers(features, size=(3000, 10))
        samples = data.GraphDataset.from_dense(ids, labels=ids[:, 0] % 2, num_features=features)
        samples.save(tmp_path / "data")
        options = ["--optimizer", optimizer, "--epochs", 2, "--overwrite", "--num-threads", 1]
        done = l0sign("train", tmp_path / "data", "--out", tmp_path / "run", *options)
        assert done.returncode == 0, done.stderr
        peaks.append(metrics(tmp_path / "run")["peak_memory_bytes"]["host"])
    assert copies / 2 * tables < peaks[1] - peaks[0] < copies * (tables + 2 * 2**21)


def test_metrics_csv_has_the_same_rows(run: Path) -> None:
    with open(run / "metrics.csv", newline="") as file:
        rows = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
    assert rows == metrics(run)["epochs"]


def test_the_model_loads_in_python(run: Path, prepared: Path) -> None:
    model, dataset = l0sign_cuda.load_model(run), data.open(prepared)
    _, _, test = dataset.split((0.7, 0.15, 0.15), seed=0)
    assert l0sign_cuda.evaluate(model, (dataset, test)) == pytest.approx(metrics(run)["test"], abs=1e-6)


def test_predict_streams_what_evaluate_measures(
    run: Path, table: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    read_chunks = data.read_chunks
    sizes = []

    def small_chunks(*arguments: Any, **options: Any) -> Any:
        for chunk in read_chunks(*arguments, chunk_rows=300, **options):
            sizes.append(len(chunk))
            yield chunk

    monkeypatch.setattr(data, "read_chunks", small_chunks)
    assert call("predict", run, table, "--label", "y", "--out", tmp_path / "p.csv") == 0
    assert call("evaluate", run, table, "--label", "y", "--json", tmp_path / "streamed.json") == 0
    assert sizes == 2 * ([300] * 6 + [200])
    assert call("evaluate", run, prepared, "--json", tmp_path / "whole.json") == 0
    streamed, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("streamed", "whole"))
    assert streamed == pytest.approx(whole, rel=1e-9)

    monkeypatch.setattr(cli, "_PIECE", 320)  # whole batches
    assert call("evaluate", run, prepared, "--part", "test", "--json", tmp_path / "part.json") == 0
    part = json.loads((tmp_path / "part.json").read_text())
    assert part == pytest.approx(metrics(run)["test"], rel=1e-9)
    capsys.readouterr()
    assert call("predict", run, prepared) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "p.csv").read_text()
    header, *lines = text.splitlines()
    assert header == "probability"
    probabilities, labels = np.array(lines, float), data.open(prepared).labels
    logloss = -np.mean(np.where(labels == 1, np.log(probabilities), np.log1p(-probabilities)))
    assert logloss == pytest.approx(whole["logloss"], rel=1e-6)
    assert np.mean((probabilities > 0.5) == labels) == whole["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "libsvm", "directory"])
def test_predict_takes_memory_that_does_not_grow(tmp_path: Path, kind: str) -> None:
    """Of a file 8 times as long, and of a prepared directory but for the pages of its files."""
    labels, ids = np.tile([0, 1], 500), np.arange(3000).reshape(-1, 3) % 12
    separator, suffix = (" ", "libsvm") if kind == "libsvm" else (",", "csv")
    names = [f"{1_000_000_000_000_000_000 + k}" if kind == "csv" else str(k) for k in range(12)]
    rows = [[str(y), *(names[k] for k in row)] for y, row in zip(labels, ids, strict=True)]
    text = "".join(separator.join(row) + "\n" for row in rows)
    reading = [] if kind == "libsvm" else ["--label", "y"]

    def make(name: str, copies: int) -> Path:
        path = tmp_path / f"{name}.{suffix}"
        with open(path, "w") as file:
            file.write("" if kind == "libsvm" else "y,a,b,c\n")
            file.writelines([text] * copies)
        if kind == "directory":
            assert call("prepare", path, *reading, "--out", tmp_path / name) == 0
            return tmp_path / name
        return path

    assert call("train", make("small", 1), *reading, "--out", tmp_path / "run", "--epochs", 0) == 0
    # pyarrow reads 32 blocks ahead: with small ones, no more than the shorter file holds.
    program = (
        "import sys; from l0sign_cuda.cli import main; from l0sign_cuda.memory import peak_memory;"
        "from l0sign_cuda.data import rows; rows._BLOCK_BYTES = 1 << 18;"
        "assert main(sys.argv[1:]) == 0; print(peak_memory()['host'])"
    )
    peaks, out = [], tmp_path / "out.csv"
    for copies in (150, 1200):
        arguments = ["predict", tmp_path / "run", make("large", copies), *reading, "--out", out]
        command = [sys.executable, "-c", program, *map(str, arguments)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        with open(out) as file:
            assert sum(1 for _ in file) == 1 + copies * len(labels)
    more = 1_050_000
    mapped = more * (3 * 4 + 8 + 4) if kind == "directory" else 0
    # The samples alone are 36 bytes each, and their predictions in Python more than 100.
    assert peaks[1] - peaks[0] < mapped + more * 30, [f"{peak / 1e6:.0f} MB" for peak in peaks]


def test_unlabelled_rows_and_unknown_values(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "new.csv").write_text("a,b,c\n1,2,3\n1,never seen,3\n")
    assert call("predict", run, tmp_path / "new.csv") == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert "1 unknown values left out" in captured.err and "never seen" in captured.err


def test_classes_and_values(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{k % 3},{rng.integers(5)},{k % 3}" for k in range(300)]
    (tmp_path / "t.csv").write_text("\n".join(["y,a,b", *lines]) + "\n")
    for loss, header in (
        ("cross_entropy", "class,probability_0,probability_1,probability_2"),
        ("mse", "value"),
    ):
        options = ["--label", "y", "--loss", loss, "--aggr", "sum", *QUICK]
        assert call("train", tmp_path / "t.csv", "--out", tmp_path / loss, *options) == 0
        capsys.readouterr()
        assert call("predict", tmp_path / loss, tmp_path / "t.csv") == 0
        written = capsys.readouterr().out.splitlines()
        assert written[0] == header and len(written) == 301
        assert call("evaluate", tmp_path / loss, tmp_path / "t.csv", "--label", "y") == 0
        assert ("rmse" if loss == "mse" else "accuracy") in capsys.readouterr().out
    first = [float(text) for text in (written[1], written[2])]
    assert all(np.isfinite(first))


def test_given_parts_are_not_split(tmp_path: Path, capsys: Any) -> None:
    for name, rows in (("train", 60), ("valid", 20), ("test", 10)):
        lines = [f"{k % 2} {k % 2}:1 {2 + k % 3}:1" for k in range(rows)]
        (tmp_path / f"{name}.libsvm").write_text("\n".join(lines) + "\n")
    files = [
        tmp_path / "train.libsvm",
        "--valid",
        tmp_path / "valid.libsvm",
        "--test",
        tmp_path / "test.libsvm",
    ]
    assert call("train", *files, "--out", tmp_path / "run", *QUICK) == 0
    content = metrics(tmp_path / "run")
    assert content["data"]["samples"] == {"train": 60, "valid": 20, "test": 10}
    assert content["data"]["split"] is None
    assert content["test"]["auc"] is not None


def test_a_part_is_that_of_training(prepared: Path, table: Path, tmp_path: Path, capsys: Any) -> None:
    """A run's test samples are those of its own split, whatever the default is."""
    whole = data.open(prepared)
    for number, shares in enumerate([(0.9, 0.05, 0.05), (0.5, 0, 0.5), (0.6, 0.4, 0)]):
        out = tmp_path / str(number)
        assert call("train", prepared, "--out", out, "--split", *shares, *QUICK, "--seed", 3) == 0
        parts = dict(zip(("train", "valid", "test"), whole.split(shares, 3), strict=True))
        record = metrics(out)
        # As after a kill in the first epoch, where the run has told nothing yet.
        (out / "metrics.json").unlink()
        for name, part in parts.items():
            capsys.readouterr()
            arguments = ["evaluate", out, prepared, "--part", name, "--json", tmp_path / "e.json"]
            if not len(part):
                assert call(*arguments) == 2 and "there are no samples" in capsys.readouterr().err
                continue
            assert call(*arguments) == 0
            assert capsys.readouterr().out.splitlines()[2].split()[0] == str(len(part))
            found = json.loads((tmp_path / "e.json").read_text())
            assert record.get(name) in (None, pytest.approx(found, rel=1e-9))
            assert call("predict", out, prepared, "--part", name, "--out", tmp_path / "p.csv") == 0
            expected = torch.sigmoid(
                l0sign_cuda.evaluation.predict(l0sign_cuda.load_model(out), (whole, part))
            )
            assert np.loadtxt(tmp_path / "p.csv", skiprows=1) == pytest.approx(expected.numpy(), rel=1e-6)
    out, same = tmp_path / "0", ["--split", 0.9, 0.05, 0.05]
    raw = [table, "--label", "y", "--part", "test"]  # the file that was prepared is as good
    assert call("evaluate", out, *raw) == call("evaluate", out, *raw, *same) == 0


def test_a_part_of_no_split_or_of_another_is_refused(prepared: Path, tmp_path: Path, capsys: Any) -> None:
    whole, out = data.open(prepared), tmp_path / "run"
    shares = 0.9, 0.05, 0.05
    assert call("train", prepared, "--out", out, "--split", *shares, *QUICK) == 0
    fewer = data.GraphDataset.from_dense(
        whole.ids.reshape(-1, 3)[:300], labels=whole.labels[:300], vocabulary=whole.vocabulary
    )
    other = data.GraphDataset.from_dense(
        whole.ids.reshape(-1, 3), labels=1 - whole.labels, vocabulary=whole.vocabulary
    )
    fewer.save(tmp_path / "fewer")
    other.save(tmp_path / "other")
    given = ["--valid", tmp_path / "fewer", "--test", tmp_path / "fewer"]
    assert call("train", prepared, "--out", tmp_path / "given", *given, *QUICK) == 0

    def refused(run: Path, samples: Path, *arguments: Any) -> str:
        capsys.readouterr()
        assert call("evaluate", run, samples, "--part", "test", *arguments) == 2
        return str(capsys.readouterr().err)

    assert "--split: expected none, or that of the run, 1800 / 100 / 100 samples; got 1400 / 300 / 300" in (
        refused(out, prepared, "--split", 0.7, 0.15, 0.15)
    )
    assert "expected the 2000 samples that its training split" in refused(out, tmp_path / "fewer")
    assert "read with the same options; got others" in refused(out, tmp_path / "other")
    assert "trained on all 2000 samples that it was given, and split none" in (
        refused(tmp_path / "given", prepared)
    )
    # Python's own parts are no split that a command could repeat.
    train, valid, _ = whole.split(shares, seed=9)
    config = TrainConfig(epochs=0, num_threads=1)
    l0sign_cuda.fit((whole, train), (whole, valid), config, out=tmp_path / "python")
    assert "got others" in refused(tmp_path / "python", prepared)

    # Without the checkpoint metrics.json tells, and without both --split must.
    for run in (out, tmp_path / "given"):
        (run / "state.safetensors").unlink()
    assert "trained with --valid or --test" in refused(tmp_path / "given", prepared)
    assert "expected the 2000 samples that its training split, got 300" in refused(out, tmp_path / "fewer")
    assert "got 1400 / 300 / 300" in refused(out, prepared, "--split", 0.7, 0.15, 0.15)
    assert call("evaluate", out, prepared, "--part", "test") == 0
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "100"
    (out / "metrics.json").write_text('{"data": {"split": [1, 0, 0]}}')
    assert "metrics.json: damaged" in refused(out, prepared)
    (out / "metrics.json").unlink()
    assert "has no record of its split (state.safetensors or metrics.json)" in refused(out, prepared)
    assert call("evaluate", out, prepared, "--part", "test", "--split", *shares) == 0


def test_plain_sign_keeps_all_edges(prepared: Path, tmp_path: Path) -> None:
    assert call("train", prepared, "--out", tmp_path / "run", "--no-gates", *QUICK) == 0
    assert metrics(tmp_path / "run")["test"]["edges_kept"] == 1


def test_row_wise_optimizers(prepared: Path, tmp_path: Path) -> None:
    for optimizer in ("row_adam", "row_adagrad"):
        out = tmp_path / optimizer
        assert call("train", prepared, "--out", out, "--optimizer", optimizer, *QUICK, "--epochs", 1) == 0
        assert call("train", prepared, "--out", out, "--resume", "--epochs", 2) == 0
        whole = tmp_path / f"{optimizer}-whole"
        assert call("train", prepared, "--out", whole, "--optimizer", optimizer, *QUICK) == 0
        assert numbers(out) == numbers(whole)
        assert metrics(out)["settings"]["optimizer"] == optimizer


def test_collapse_is_told(prepared: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--l0-weight", 50, "--lr", 0.05, "--edge-lr-factor", 1, "--on-collapse", "stop"]
    assert call("train", prepared, "--out", tmp_path / "run", *QUICK, *options) == 0
    assert "warning: epoch 1: all edges are closed" in capsys.readouterr().out
    assert "all edges are closed" in metrics(tmp_path / "run")["collapse"]
    options[-1] = "raise"
    assert call("train", prepared, "--out", tmp_path / "other", *QUICK, *options) == 2
    assert "l0sign: error: epoch 1: all edges are closed" in capsys.readouterr().err


# -------------------- config files


OTHERS = {"weight_decay": 1e-6, "gated": False, "limits": [-0.2, 1.2]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "c.toml",
            'optimizer = "adagrad"\nlr = 5e-2\nweight_decay = 1e-6\ngated = false\nlimits = [-0.2, 1.2]',
        ),
        ("c.yaml", "optimizer: adagrad\nlr: 5e-2\nweight_decay: 1e-6\ngated: false\nlimits: [-0.2, 1.2]"),
        ("c.json", json.dumps({"optimizer": "adagrad", "lr": 0.05, **OTHERS})),
    ],
)
def test_config_files(tmp_path: Path, prepared: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    config = TrainConfig.from_file(path)
    assert config == TrainConfig(
        optimizer="adagrad", lr=0.05, weight_decay=1e-6, gated=False, limits=(-0.2, 1.2)
    )
    options = ["--config", path, "--lr", "0.2", "--epochs", "0"]
    assert call("train", prepared, "--out", tmp_path / "run", *options) == 0
    assert metrics(tmp_path / "run")["settings"] == config.replace(lr=0.2, epochs=0).to_dict()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "learning_rate = 1", "unknown key 'learning_rate'; known keys: embedding_dim, "),
        ("c.yaml", "batchsize: 1", "unknown key 'batchsize' (did you mean 'batch_size'?); known keys"),
        ("c.toml", "lr = ", "c.toml: not valid TOML"),
        ("c.yaml", "lr: [1", "c.yaml: not valid YAML"),
        ("c.json", "[1]", "c.json: expected `name = value` pairs, found list"),
        ("c.ini", "", "c.ini: a config file ends in one of .toml"),
        ("c.toml", "lr = -1", "c.toml: lr must be greater than 0, got -1"),
        ("c.toml", "lr = true", "c.toml: lr must be a finite number, got True"),
        ("c.toml", "epochs = 1.5", "c.toml: epochs must be a whole number, got 1.5"),
        ("c.toml", "gated = 1", "c.toml: gated must be true or false, got 1"),
        (
            "c.toml",
            'optimizer = "sgd"',
            "c.toml: optimizer must be one of adam, adamw, adagrad, row_adam, row_adagrad; got 'sgd'",
        ),
        ("c.toml", "limits = [0, 1]", "c.toml: limits must be (gamma < 0, zeta > 1), got (0.0, 1.0)"),
        ("c.toml", "limits = [1]", "c.toml: limits must be 2 numbers, got [1]"),
    ],
)
def test_config_files_that_do_not_fit(
    tmp_path: Path, prepared: Path, capsys: Any, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    assert call("train", prepared, "--out", tmp_path / "run", "--config", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# -------------------- refusals


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.libsvm").write_text("1 3:1\nnonsense\n")
    done = l0sign("train", tmp_path / "bad.libsvm", "--out", tmp_path / "run")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"l0sign: error: {tmp_path}/bad.libsvm:2: ")
    assert done.stderr.count("\n") == 1
    debugged = l0sign("train", tmp_path / "bad.libsvm", "--out", tmp_path / "run", "--debug")
    assert "Traceback" in debugged.stderr and debugged.returncode != 0


def test_refusals(run: Path, prepared: Path, table: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "other.csv"
    other.write_text("y,a\n1,2\n0,3\n")
    assert call("prepare", other, "--label", "y", "--out", tmp_path / "other") == 0
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9])
    for arguments, message in [
        (["train", tmp_path / "no.csv", "--out", tmp_path / "r"], "no.csv: no such file"),
        (["train", table, "--out", tmp_path / "r"], "no labels; for a table, --label names their column"),
        (["train", prepared, "--out", run], "holds a run: give --resume, --overwrite or another --out"),
        (["train", prepared, "--out", run, "--resume", "--overwrite"], "exclude each other"),
        (["train", prepared, "--out", run, "--resume", "--lr", "1"], "the run has lr = 0.01"),
        (["train", prepared, "--out", tmp_path / "r", "--batch-size", "0"], "batch_size must be at least 1"),
        (["train", prepared, "--out", tmp_path / "r", "--device", "abacus"], "device must be auto, cpu"),
        (["train", prepared, "--out", tmp_path / "r", "--split", "1", "1", "1"], "fractions"),
        (
            ["prepare", "criteo", table, "--out", tmp_path / "p"],
            "a protocol (frappe, movielens-tag) and FILE",
        ),
        (["prepare", table, "--label", "z", "--out", tmp_path / "p"], "'z'"),
        (["evaluate", tmp_path, prepared], "model.safetensors: no such file"),
        (["evaluate", damaged, prepared], "model.safetensors: damaged"),
        (["evaluate", run, tmp_path / "other"], "prepared with another vocabulary than the model's"),
        (["predict", run, tmp_path / "no.csv"], "no.csv: no such file"),
        (["predict", run, other, "--duplicates", "keep"], "duplicates"),
    ]:
        capsys.readouterr()
        assert call(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, (arguments, error)


def test_usage_errors(capsys: Any) -> None:
    unknown = ["train", "d", "--out", "o", "--optimizer", "sgd"]
    for arguments in (["train"], ["fly"], unknown, ["train", "d", "--o", "abbreviated"]):
        with pytest.raises(SystemExit) as stop:
            call(*arguments)
        assert stop.value.code == 2
        assert "usage: l0sign" in capsys.readouterr().err


def test_a_failed_prediction_leaves_no_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b,c\n1,2,3\n1,2\n")
    assert call("predict", run, tmp_path / "bad.csv", "--out", tmp_path / "p.csv") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv"]
    assert call("predict", run, tmp_path / "bad.csv", "--skip-bad-lines", "--out", tmp_path / "p.csv") == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 2


def test_a_reader_that_leaves_is_no_error(run: Path, prepared: Path) -> None:
    code = "import sys; from l0sign_cuda.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "predict", str(run), str(prepared)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_version_and_doctor(capsys: Any) -> None:
    done = l0sign("--version")
    assert (done.returncode, done.stdout) == (0, f"l0sign {l0sign_cuda.__version__}\n")
    assert call("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["versions"]["l0sign_cuda"] == l0sign_cuda.__version__


def test_an_unknown_instruction_set_is_one_line(run: Path, prepared: Path) -> None:
    environment = os.environ | {"L0SIGN_CPU_CAPABILITY": "sse"}

    def without(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "l0sign_cuda", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    evaluated = without("evaluate", run, prepared, "--device", "cpu")
    assert evaluated.returncode == 2 and evaluated.stderr.count("\n") == 1
    assert "error: L0SIGN_CPU_CAPABILITY: expected one of" in evaluated.stderr
    doctor = without("doctor")
    assert doctor.returncode == 1 and doctor.stderr == ""
    assert "CPU kernels:  none: L0SIGN_CPU_CAPABILITY: expected one of" in doctor.stdout
    assert "got sse" in json.loads(without("doctor", "--json").stdout)["cpu"]["missing"]


# -------------------- interruption

LONG = ["--epochs", "6", "--batch-size", "8", "--num-threads", "1", "--patience", "0", "--weight-decay", "0"]


def interrupt(command: list[str], signal_number: int, lines: int) -> subprocess.Popen[str]:
    """Start the command and send the signal shortly after it has printed so many lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "l0sign_cuda", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts programs in the background lets them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal_number)
    return process


@pytest.mark.slow
def test_interrupted_runs_resume_to_the_same_numbers(prepared: Path, tmp_path: Path, capsys: Any) -> None:
    assert call("train", prepared, "--out", tmp_path / "whole", *LONG) == 0

    out = tmp_path / "stopped"
    command = ["train", str(prepared), "--out", str(out), *LONG]
    for number, lines in ((signal.SIGINT, 2), (signal.SIGTERM, 1)):
        process = interrupt(command, number, lines)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "the same command with --resume continues" in errors and "Traceback" not in errors
        command = [*command[:4], "--resume"]
    assert metrics(out)["test"] is None and 1 <= len(metrics(out)["epochs"]) < 6
    assert call("evaluate", out, prepared) == 0  # what there is can be used

    process = interrupt([*command, "--checkpoint-steps", "20"], signal.SIGKILL, 1)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    assert call("train", prepared, "--out", out, "--resume") == 0
    assert numbers(out) == numbers(tmp_path / "whole")
    models = [l0sign_cuda.load_model(path).state_dict() for path in (out, tmp_path / "whole")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_resume_without_a_run_starts_one(prepared: Path, tmp_path: Path, capsys: Any) -> None:
    assert call("train", prepared, "--out", tmp_path / "run", "--resume", *QUICK) == 0
    assert "holds no checkpoint: starting from the beginning" in capsys.readouterr().err
    assert call("train", prepared, "--out", tmp_path / "run", "--overwrite", "--epochs", "1") == 0
    assert len(metrics(tmp_path / "run")["epochs"]) == 1


# -------------------- real data


@pytest.mark.slow
@pytest.mark.skipif(not FRAPPE.exists(), reason="the Frappe logs are not here (../shared/data)")
def test_frappe_from_logs_to_metrics(tmp_path: Path, capsys: Any) -> None:
    assert call("prepare", "frappe", FRAPPE, "--out", tmp_path / "frappe") == 0
    assert "288609 graphs of 10 nodes each, 5382 features" in capsys.readouterr().out
    options = ["--epochs", "1", "--l0-weight", "0.01"]
    assert call("train", tmp_path / "frappe", "--out", tmp_path / "run", *options) == 0
    assert metrics(tmp_path / "run")["test"]["auc"] > 0.92


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_has_a_sample(
    command: str, size: int, run: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command, run, prepared, "--batch-size", size) == 2
    out, err = capsys.readouterr()
    assert not out and f"batch_size: expected an integer of at least 1, got {size}" in err


def test_training_needs_samples(
    table: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("y,a,b,c\n")
    for arguments in ([prepared, "--split", 0, 0.5, 0.5], [empty, "--label", "y"]):
        assert call("train", *arguments, "--out", tmp_path / "run") == 2
        assert f"{arguments[0]}: no training samples" in capsys.readouterr().err


def test_a_protocol_names_the_option_it_does_not_take(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("prepare", "frappe", table, "--label", "y", "--out", tmp_path / "out") == 2
    assert "frappe: the protocol takes no option 'label'" in capsys.readouterr().err


def test_predict_writes_nothing_where_it_cannot_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", run, tmp_path / "absent.csv") == 2
    out, err = capsys.readouterr()
    assert not out and "absent.csv: no such file" in err
