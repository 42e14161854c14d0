"""Saved models: what comes back, what damage says, and that a killed writer leaves a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from l0sign_cuda import L0SIGN
from l0sign_cuda.checkpoint import (
    load_config,
    load_model,
    load_vocabulary,
    read_tensors,
    save_model,
    write_json,
    write_tensors,
    written_aside,
)
from l0sign_cuda.config import TrainConfig
from l0sign_cuda.data import Field, Vocabulary

IDS = torch.tensor([[0, 1, 2], [3, 4, 5]])


def words(count: int) -> Vocabulary:
    return Vocabulary([Field("word", values=[f"w{k}" for k in range(count)])])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gated": False},
        {"num_outputs": 3, "aggr": "sum", "iterations": 2, "head_bias": False},
        {"embedding_dim": 3, "hidden_dim": 5, "edge_dim": 2, "edge_hidden_dim": 7, "limits": (-0.3, 1.4)},
        {"temperature": 0.5, "aggr": "neighbor_mean", "l2_penalty": False},
        {"temperature": np.float32(0.5), "limits": np.array([-0.2, 1.2], np.float32)},
    ],
    ids=str,
)
def test_a_model_comes_back_as_it_was(tmp_path: Path, options: dict[str, Any]) -> None:
    model = L0SIGN(6, **options)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert not loaded.training
    for ours, theirs in zip(model.eval()(IDS), loaded(IDS), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    drawn, again = (each.train()(IDS, seed=3).logits for each in (model, loaded))  # the gates' options too
    assert torch.equal(drawn, again)


def test_vocabulary_and_config_come_back(tmp_path: Path) -> None:
    config = TrainConfig(lr=0.5, limits=(-0.2, 1.2))
    save_model(L0SIGN(6), tmp_path, words(6), config)
    assert load_vocabulary(tmp_path) == words(6)
    assert load_config(tmp_path) == config
    assert json.loads((tmp_path / "config.json").read_text())["training"]["lr"] == 0.5
    save_model(L0SIGN(6), tmp_path)
    assert load_vocabulary(tmp_path) is None and load_config(tmp_path) is None


def test_a_replaced_vocabulary_leaves_nothing_behind(tmp_path: Path) -> None:
    for count in (6, 7):
        save_model(L0SIGN(count), tmp_path, words(count))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 and names[0] == "config.json" and names[1] == "model.safetensors"


def test_whoever_reads_the_settings_reads_the_model(tmp_path: Path) -> None:
    save_model(L0SIGN(6), tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    save_model(L0SIGN(6), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("place", [0, 3, 40, -1, -500])
def test_a_changed_byte(tmp_path: Path, place: int) -> None:
    save_model(L0SIGN(6), tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 0x55
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        load_model(tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: .*not one that l0sign_cuda wrote"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"model": {"num_embeddings": 5}}, "the weights do not fit the settings in its header"),
        ({"model": None}, "the weights do not fit the settings in its header"),
        ({"training": {"lr": -1}}, "lr must be greater than 0"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_model(L0SIGN(6), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, header = read_tensors(file)
    write_tensors(file, tensors, header | change)
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        load_model(tmp_path)
        load_config(tmp_path)


def test_a_missing_vocabulary(tmp_path: Path) -> None:
    save_model(L0SIGN(6), tmp_path, words(6))
    for file in tmp_path.glob("vocabulary-*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"vocabulary-\w+\.json"):
        load_vocabulary(tmp_path)


def test_tensors_of_all_kinds_keep_their_bits(tmp_path: Path) -> None:
    tensors = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 4),
        "strided": torch.arange(12.0).reshape(3, 4).T,
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"value": float("nan"), "list": [1, "é"]})
    found, header = read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        # As bytes: numpy knows no bfloat16, and NaN equals nothing.
        bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (found[name], tensor)]
        assert torch.equal(*bits), name
    assert header["list"] == [1, "é"] and header["value"] != header["value"]


def test_a_failed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"x": [1, float("nan")]})
    with pytest.raises(RuntimeError), written_aside(file) as aside:
        aside.write_text("half of it")
        raise RuntimeError
    assert json.loads(file.read_text()) == {"x": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(IsADirectoryError, match="expected a file to write, got a directory"):
        write_json(tmp_path, {})
    with pytest.raises(FileNotFoundError, match=r"no/a\.json: there is no directory .*no$"):
        write_json(tmp_path / "no" / "a.json", {})


# Forks writers that save models of two sizes in turn, each with its vocabulary and all weights equal to its
# size, and kills them: at the n-th call that touches the disk, and at random moments.
_KILLS = """
import itertools, os, pathlib, random, signal, sys, time
import torch
from l0sign_cuda import L0SIGN
from l0sign_cuda.checkpoint import load_model, load_vocabulary, save_model
from l0sign_cuda.data import Field, Vocabulary

torch.set_num_threads(1)  # a forked child has no other threads
vocabularies = {n: Vocabulary([Field("word", values=[f"w{k}" for k in range(n)])]) for n in (50, 80)}
models = {n: L0SIGN(n) for n in vocabularies}
for n, model in models.items():
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, n)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write_until_dead(call):
    calls = itertools.count(1)

    def fatal(function):
        def wrapped(*arguments, **options):
            if next(calls) == call:
                die()
            return function(*arguments, **options)

        return wrapped

    if call:
        os.replace, os.fsync, pathlib.Path.unlink = map(fatal, (os.replace, os.fsync, pathlib.Path.unlink))
    for n in itertools.cycle((80, 50)):
        save_model(models[n], sys.argv[1], vocabularies[n])


seen = set()
save_model(models[50], sys.argv[1], vocabularies[50])
for call in [*range(1, 21), *[0] * 20]:
    child = os.fork()
    if not child:
        write_until_dead(call)
    if not call:
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    model = load_model(sys.argv[1])
    n = model.node_embedding.num_embeddings
    seen.add(n)
    assert load_vocabulary(sys.argv[1]) == vocabularies[n]
    assert all(bool((parameter == n).all()) for parameter in model.parameters())
assert seen == {50, 80}, seen
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_writer_leaves_a_whole_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLS, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
