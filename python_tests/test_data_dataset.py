"""GraphDataset: what it refuses, batches against a plain gather, splits, and saving that survives kill -9."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l0sign_cuda.data import Batch, Field, GraphDataset, Vocabulary
from l0sign_cuda.data import open as open_data


def ragged(values: bool = True, labels: bool = True) -> GraphDataset:
    """Four graphs over five features; the third is empty."""
    return GraphDataset(
        ids=[0, 3, 1, 4, 4, 2],
        offsets=[0, 2, 5, 5, 6],
        values=[1, 0.5, 2, 1, 1, -3] if values else None,
        labels=[1, 0, 0, 1] if labels else None,
        vocabulary=Vocabulary([Field("f", values=list("abcd")), Field("x", "numeric")]),
    )


def assert_same(left: GraphDataset, right: GraphDataset) -> None:
    for name in ("ids", "offsets", "values", "labels"):
        a, b = getattr(left, name), getattr(right, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, name)
    assert left.vocabulary == right.vocabulary
    assert left.num_features == right.num_features


def test_facts_of_a_ragged_and_of_a_dense_data_set() -> None:
    data = ragged()
    assert (len(data), data.num_features, data.max_nodes, data.graph_size) == (4, 5, 3, None)
    assert repr(data) == "GraphDataset(4 graphs of up to 3 nodes, 5 features, mean label 0.500)"
    dense = GraphDataset.from_dense(np.arange(6).reshape(3, 2))
    assert (len(dense), dense.num_features, dense.max_nodes, dense.graph_size) == (3, 6, 2, 2)
    assert repr(dense) == "GraphDataset(3 graphs of 2 nodes each, 6 features, unlabelled)"
    for labels in (None, []):  # and no mean of nothing
        empty = GraphDataset([], [0], labels=labels)
        assert repr(empty) == "GraphDataset(0 graphs of up to 0 nodes, 0 features, empty)"


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ids_keep_their_integer_type(dtype: type) -> None:
    assert GraphDataset(np.array([1, 0], dtype), [0, 2]).ids.dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [[0, 1]]}, "ids: expected shape [N], got [1, 2]"),
        ({"ids": [0.5, 1.0, 2.0]}, "ids: expected integers, got float64"),
        ({"ids": [0, -1, 2]}, "ids: expected 0 <= id < 3, got -1 to 2"),
        ({"num_features": 2}, "ids: expected 0 <= id < 2, got 0 to 2"),
        ({"offsets": [0, 2]}, "offsets: expected [B + 1] from 0 to 3, got 2 numbers from 0 to 2"),
        ({"offsets": [1, 3]}, "offsets: expected [B + 1] from 0 to 3, got 2 numbers from 1 to 3"),
        ({"offsets": [0, 2.5, 3]}, "offsets: expected integers, got float64"),
        ({"offsets": []}, "offsets: expected [B + 1] from 0 to 3, got shape [0]"),
        ({"offsets": [0, 2, 1, 3]}, "offsets: must not decrease, but do after graph 1"),
        ({"values": [1.0]}, "values: expected shape [3] like ids, got [1]"),
        ({"values": [1.0, np.nan, 1.0]}, "values: expected finite numbers, got nan"),
        ({"labels": [1.0]}, "labels: expected shape [2], one a graph, got [1]"),
        ({"labels": [1.0, np.inf]}, "labels: expected finite numbers, got inf"),
        (
            {"vocabulary": Vocabulary([Field("f", values=["a"])]), "num_features": 3},
            "num_features: the vocabulary has 1, got 3",
        ),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        GraphDataset(**{"ids": [0, 1, 2], "offsets": [0, 2, 3], **arguments})  # type: ignore[arg-type]
    assert str(error.value) == message


def test_from_dense_refuses_shapes() -> None:
    with pytest.raises(ValueError, match=r"ids: expected \[graphs, nodes\], got shape \[3\]"):
        GraphDataset.from_dense([1, 2, 3])
    with pytest.raises(ValueError, match=r"values: expected shape \[1, 2\], got \[2\]"):
        GraphDataset.from_dense([[1, 2]], values=[1.0, 2.0])


@st.composite
def data_sets(draw: st.DrawFn) -> GraphDataset:
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    if draw(st.booleans()):
        lengths = [draw(st.integers(0, 4))] * len(lengths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    total = sum(lengths)
    return GraphDataset(
        rng.integers(7, size=total, dtype=draw(st.sampled_from([np.int32, np.int64]))),
        np.cumsum([0, *lengths]),
        rng.normal(size=total) if draw(st.booleans()) else None,
        rng.normal(size=len(lengths)) if draw(st.booleans()) else None,
        num_features=7,
    )


@given(data_sets(), st.data())
@settings(max_examples=100, deadline=None)
def test_batch_equals_a_plain_gather(data: GraphDataset, drawn: st.DataObject) -> None:
    indices = drawn.draw(st.lists(st.integers(0, len(data) - 1), max_size=8))
    batch = data.batch(np.array(indices, np.int64))
    spans = [range(data.offsets[k], data.offsets[k + 1]) for k in indices]
    nodes = [i for span in spans for i in span]
    assert batch.ids.dtype == torch.int64
    assert batch.ids.reshape(-1).tolist() == data.ids[nodes].tolist()
    same_size = len(set(np.diff(data.offsets).tolist())) == 1 and data.offsets[-1] > 0
    if same_size:
        assert batch.offsets is None and batch.ids.shape == (len(indices), data.max_nodes)
    else:
        assert batch.offsets is not None and batch.offsets.dtype == torch.int64
        assert batch.offsets.tolist() == np.cumsum([0, *map(len, spans)]).tolist()
    assert batch.num_graphs == len(indices)
    for got, source, rows in ((batch.values, data.values, nodes), (batch.labels, data.labels, indices)):
        assert (got is None) == (source is None)
        if got is not None and source is not None:
            assert got.dtype == torch.float32
            assert got.reshape(-1).tolist() == source[rows].tolist()
    if batch.values is not None:
        assert batch.values.shape == batch.ids.shape


def test_whether_a_batch_is_dense_is_the_data_sets_matter() -> None:
    batch = ragged().batch([3, 3])  # two graphs of equal size in a ragged data set
    assert batch.offsets is not None and batch.offsets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("indices", "kind", "message"),
    [
        ([0, 4], IndexError, "indices: expected 0 <= index < 4, got 0 to 4"),
        ([-1], IndexError, "indices: expected 0 <= index < 4, got -1 to -1"),
        ([0.0], ValueError, "indices: expected integers [b], got float64 [1]"),
        ([[0]], ValueError, "indices: expected integers [b], got int64 [1, 1]"),
        ([True, False, True, False], ValueError, "indices: expected integers [b], got bool [4]"),
    ],
)
def test_batch_refusals(indices: list[object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        ragged().batch(indices)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_a_batch_moves_as_a_whole() -> None:
    batch = ragged(labels=False).batch([0, 1])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert moved.ids.is_meta and moved.offsets is not None and moved.offsets.is_meta
    assert moved.values is not None and moved.values.is_meta and moved.labels is None


def test_iter_batches_covers_the_indices_in_a_seeded_order() -> None:
    data = GraphDataset.from_dense(np.arange(10).reshape(10, 1))
    indices = np.array([1, 3, 5, 7, 9])

    def order(**options: object) -> list[list[int]]:
        return [b.ids[:, 0].tolist() for b in data.iter_batches(indices, 2, **options)]  # type: ignore[arg-type]

    assert order() == [[1, 3], [5, 7], [9]]
    shuffled = order(shuffle_seed=1)
    assert sorted(k for batch in shuffled for k in batch) == [1, 3, 5, 7, 9] and shuffled != order()
    assert order(shuffle_seed=1) == shuffled
    assert order(shuffle_seed=(1, 0)) != order(shuffle_seed=(1, 1))
    assert sum(b.num_graphs for b in data.iter_batches(None, 4)) == 10
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        data.iter_batches(indices, 0)


@given(st.integers(0, 300), st.lists(st.integers(1, 10), min_size=1, max_size=4), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_splits_are_disjoint_cover_all_and_have_the_asked_sizes(
    size: int, weights: list[int], seed: int
) -> None:
    data = GraphDataset(np.zeros(size, np.int32), np.arange(size + 1))
    fractions = [w / sum(weights) for w in weights]
    parts = data.split(fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(size))
    assert all(p.dtype == np.int64 and (np.diff(p) > 0).all() for p in parts)
    assert all(abs(len(p) - f * size) <= 1 for p, f in zip(parts, fractions, strict=True))


def test_split_is_70_15_15_and_seeded() -> None:
    data = GraphDataset(np.zeros(1000, np.int32), np.arange(1001))
    first, again, other = data.split(), data.split(), data.split(seed=1)
    assert [len(p) for p in first] == [700, 150, 150]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
    for fractions in ((0.5, 0.4), (1.2, -0.2), ()):
        with pytest.raises(ValueError, match="fractions: expected numbers from 0 that sum to 1"):
            data.split(fractions)


# -- saving --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        ragged(),
        ragged(values=False, labels=False),
        GraphDataset.from_dense(np.arange(6, dtype=np.int32).reshape(3, 2), labels=[0, 1, 0]),
        GraphDataset([], [0], num_features=3),
        GraphDataset([], [0, 0, 0], values=[], labels=[0, 1], num_features=3),
    ],
    ids=["ragged", "plain", "dense", "no-graphs", "empty-graphs"],
)
def test_what_is_saved_is_loaded(data: GraphDataset, mmap: bool, tmp_path: Path) -> None:
    data.save(tmp_path / "deep" / "down")
    loaded = GraphDataset.load(tmp_path / "deep" / "down", mmap=mmap, verify=True)
    assert_same(data, loaded)
    assert_same(data, open_data(tmp_path / "deep" / "down"))


def test_a_loaded_data_set_is_a_memory_map(tmp_path: Path) -> None:
    ragged().save(tmp_path)
    assert isinstance(GraphDataset.load(tmp_path).ids.base, np.memmap)
    assert GraphDataset.load(tmp_path).batch([1]).ids.tolist() == [1, 4, 4]
    loaded = GraphDataset.load(tmp_path, mmap=False)
    assert not isinstance(loaded.ids.base, np.memmap)


def test_overwriting_replaces_all_of_it_and_leaves_no_old_files(tmp_path: Path) -> None:
    ragged().save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    dense = GraphDataset.from_dense([[0, 1]])
    dense.save(tmp_path)
    assert_same(dense, GraphDataset.load(tmp_path))
    left = sorted(p.name.split("-")[0] for p in tmp_path.iterdir())
    assert left == ["dataset.json", "ids", "notes.txt", "offsets"]


def test_a_mapped_data_set_can_be_saved_over_itself(tmp_path: Path) -> None:
    ragged().save(tmp_path)
    GraphDataset.load(tmp_path).save(tmp_path)
    assert_same(ragged(), GraphDataset.load(tmp_path, verify=True))


def test_a_file_in_the_way_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match=r"x: expected a directory to write to, got a file"):
        ragged().save(tmp_path / "x")


def _manifest(directory: Path, **changes: object) -> None:
    path = directory / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _one(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


def _truncate(directory: Path) -> None:
    path = _one(directory, "ids-*")
    path.write_bytes(path.read_bytes()[:-4])


def _swap(directory: Path) -> None:
    shutil.copy(_one(directory, "labels-*"), _one(directory, "values-*"))
    content = json.loads((directory / "dataset.json").read_text())
    content["files"]["values"]["bytes"] = content["files"]["labels"]["bytes"]
    _manifest(directory, **content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "dataset.json").unlink(), r"dataset.json: missing; expected a directory"),
        (lambda d: (d / "dataset.json").write_text("{"), r"dataset.json: damaged or not"),
        (lambda d: (d / "dataset.json").write_text("[]"), r"dataset.json: damaged or not"),
        (lambda d: _manifest(d, version=2), r"dataset.json: expected version 1, got 2"),
        (lambda d: _manifest(d, format="x"), r"dataset.json: expected format 'l0sign_cuda.Gra.*', got 'x'"),
        (lambda d: _one(d, "offsets-*").unlink(), r"offsets-[0-9a-f]{16}.npy: missing"),
        (_truncate, r"ids-[0-9a-f]{16}.npy: truncated or changed: expected \d+ bytes, got \d+"),
        (_swap, r"values-[0-9a-f]{16}.npy: expected float32 \[6\], got float32 \[4\]"),
        (lambda d: _manifest(d, num_features=4), r"num_features: the vocabulary has 5, got 4"),
        (lambda d: _manifest(d, files={}), r"dataset.json names no 'ids'"),
    ],
)  # fmt: skip
def test_damage_is_named(damage: object, message: str, tmp_path: Path) -> None:
    ragged().save(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as error:
        GraphDataset.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_verify_sees_a_flipped_bit(tmp_path: Path) -> None:
    ragged().save(tmp_path)
    path = _one(tmp_path, "ids-*")
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    GraphDataset.load(tmp_path)
    with pytest.raises(ValueError, match=r"ids-[0-9a-f]{16}.npy: damaged"):
        GraphDataset.load(tmp_path, verify=True)


_KILL_AT_EVERY_STEP = """
    import os, pathlib, shutil, signal, sys, tempfile
    import numpy as np
    from l0sign_cuda.data import GraphDataset

    base = pathlib.Path(sys.argv[1])
    old = GraphDataset.from_dense(np.zeros((50, 2), np.int32), labels=np.zeros(50))
    new = GraphDataset.from_dense(np.ones((90, 3), np.int32), labels=np.ones(90))

    def die_at(step):
        # Every call that changes the directory counts; an array's file is cut in half.
        left = [step]
        def counted(function, partial=None):
            def call(*args, **kwargs):
                left[0] -= 1
                if not left[0]:
                    if partial:
                        partial(*args)
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return call
        def half(f, array):
            f.write(array.tobytes()[: array.nbytes // 2])
            f.flush()
        os.replace, os.fsync = counted(os.replace), counted(os.fsync)
        pathlib.Path.unlink = counted(pathlib.Path.unlink)
        np.save = counted(np.save, half)

    for step in range(1, 100):
        directory = base / str(step)
        old.save(directory)
        child = os.fork()
        if not child:
            die_at(step)
            new.save(directory)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        data = GraphDataset.load(directory, verify=True)
        found = "new" if len(data) == 90 else "old"
        expected = new if found == "new" else old
        assert (data.ids == expected.ids).all() and (data.labels == expected.labels).all()
        print(found, flush=True)
        new.save(directory)  # and a later save is not in the way of what was left behind
        assert len(list(directory.iterdir())) == 4, list(directory.iterdir())
        if not killed:
            break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_kill_9_at_any_step_of_a_save_leaves_the_old_data_set_or_the_new_one(tmp_path: Path) -> None:
    script = textwrap.dedent(_KILL_AT_EVERY_STEP)
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stderr
    found = result.stdout.split()
    assert found == sorted(found, reverse=True)  # old up to the switch, then new
    assert found.count("old") >= 8 and found.count("new") >= 4
