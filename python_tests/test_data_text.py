"""libsvm and graph files: against a plain line-by-line parser, and every kind of malformed line."""

from __future__ import annotations

import gzip
import lzma
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l0sign_cuda import data
from l0sign_cuda.data import GraphDataset, Vocabulary, text


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_bytes(tmp_path: Path, content: str | bytes, **options: Any) -> GraphDataset:
    return data.read(write(tmp_path / "x.libsvm", content), **options)


def graphs(d: GraphDataset) -> list[list[tuple[str, float]]]:
    """Every graph as (name, value) pairs."""
    assert d.vocabulary is not None
    names = [d.vocabulary.pair(k)[1] for k in d.ids.tolist()]
    values = [1.0] * len(names) if d.values is None else d.values.tolist()
    nodes = list(zip(names, values, strict=True))
    return [nodes[a:b] for a, b in zip(d.offsets[:-1], d.offsets[1:], strict=True)]


def test_libsvm(tmp_path: Path) -> None:
    d = read_bytes(tmp_path, "1 7:0.5 3:2\n-1 3 7:1 3:-1e-3\n")
    assert d.labels is not None and d.labels.tolist() == [1, 0]
    assert graphs(d) == [
        [("7", 0.5), ("3", 2.0)],
        [("3", 1.0), ("7", 1.0), ("3", float(np.float32(-1e-3)))],
    ]
    assert d.ids.dtype == np.int32 and d.ids.tolist() == [1, 0, 0, 1, 0]  # sorted raw ids
    assert d.num_features == 2


def test_ids_that_are_dense_already_keep_their_number(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, "1 2 0\n0 1 3\n").ids.tolist() == [2, 0, 1, 3]


def test_sparse_ids_take_their_rank(tmp_path: Path) -> None:
    d = read_bytes(tmp_path, f"1 {2**63 - 1} 5\n0 {10**12} 5\n")
    assert d.ids.tolist() == [2, 0, 1, 0]
    assert d.vocabulary is not None and d.vocabulary.name(2) == f"id={2**63 - 1}"


def test_values_of_one_are_not_stored(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, "1 2:1 3:1.0 4:1e0\n").values is None
    assert read_bytes(tmp_path, "1 2:1 3:1.0 4:0\n").values is not None


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_endings_blank_lines_comments_tabs_and_a_byte_order_mark(
    ending: str, last: bool, tmp_path: Path
) -> None:
    lines = ["\ufeff1\t2:3  5 ", "", "# a comment 1:2:3", "0 2#5 6", "  1", "   ", "0 5:2 # end"]
    d = read_bytes(tmp_path, ending.join(lines) + (ending if last else ""))
    assert graphs(d) == [[("2", 3.0), ("5", 1.0)], [("2", 1.0)], [], [("5", 2.0)]]
    assert d.labels is not None and d.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n", "   "])
def test_files_without_graphs(content: str, tmp_path: Path) -> None:
    d = read_bytes(tmp_path, content)
    assert len(d) == 0 and d.num_features == 0 and d.labels is not None and len(d.labels) == 0
    vocabulary = Vocabulary.from_ids(np.arange(3))
    assert list(data.read_chunks(tmp_path / "x.libsvm", vocabulary=vocabulary)) == []


def test_without_labels(tmp_path: Path) -> None:
    d = read_bytes(tmp_path, "7:0.5 3\n3\n", labelled=False)
    assert d.labels is None
    assert graphs(d) == [[("7", 0.5), ("3", 1.0)], [("3", 1.0)]]


def test_graph_files(tmp_path: Path) -> None:
    path = write(tmp_path / "x.graph", "1.0 4 2 4 9\n-1.0 2 2 2\n1.0\n")
    d = data.read(path)
    assert [[n for n, _ in g] for g in graphs(d)] == [["4", "2", "9"], ["2"], []]
    assert d.labels is not None and d.labels.tolist() == [1, 0, 1]
    kept = data.read(path, duplicates="keep")
    assert [[n for n, _ in g] for g in graphs(kept)] == [["4", "2", "4", "9"], ["2", "2", "2"], []]
    with pytest.raises(ValueError, match=r"duplicates: expected 'keep' or 'unique', got 'no'"):
        data.read(path, duplicates="no")


def test_unique_keeps_the_first_value_and_the_order(tmp_path: Path) -> None:
    d = read_bytes(tmp_path, f"1 9:2 {2**62}:5 9:3\n0 9:4\n", duplicates="unique")
    assert graphs(d) == [[("9", 2.0), (str(2**62), 5.0)], [("9", 4.0)]]


@pytest.mark.parametrize(
    ("content", "targets", "expected"),
    [
        ("1 1\n-1 1\n", "auto", [1, 0]),
        ("1 1\n0 1\n", "auto", [1, 0]),
        ("-1 1\n3 1\n", "auto", [-1, 3]),
        ("1 1\n1 1\n", "auto", [1, 1]),
        ("-1 1\n-1 1\n", "auto", [0, 0]),
        ("-1 1\n0 1\n", "binary", [0, 0]),
        ("-1 1\n1 1\n", "real", [-1, 1]),
        ("0.25 1\n-7e2 1\n", "auto", [0.25, -700]),
    ],
)
def test_labels(content: str, targets: Any, expected: list[float], tmp_path: Path) -> None:
    labels = read_bytes(tmp_path, content, targets=targets).labels
    assert labels is not None and labels.tolist() == expected


def test_labels_that_are_not_binary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x.libsvm: expected labels -1, 0 and 1, got 3; targets='real'"):
        read_bytes(tmp_path, "-1 1\n3 1\n", targets="binary")
    path = tmp_path / "x.libsvm"
    with pytest.raises(ValueError, match=r"expected labels -1, 0 and 1, got 3"):  # "auto" decided on row 1
        list(data.read_chunks(path, num_features=9, chunk_rows=1))
    chunks = data.read_chunks(path, num_features=9, chunk_rows=1, targets="real")
    assert [c.labels.tolist() for c in chunks if c.labels is not None] == [[-1], [3]]
    with pytest.raises(ValueError, match="targets: expected 'auto', 'binary' or 'real', got 'x'"):
        read_bytes(tmp_path, "", targets="x")


MALFORMED = [
    ("abc 1:1", "a label (a finite number) first, got 'abc'"),
    ("nan 1:1", "a label (a finite number) first, got 'nan'"),
    ("inf 1:1", "a label (a finite number) first, got 'inf'"),
    ("1e99 1:1", "a label (a finite number) first, got '1e99'"),
    ("1:1 2:1", "a label (a finite number) first, got '1:1'"),
    ("1 -3:1", "an id (an integer from 0), got '-3:1'"),
    ("1 x", "an id (an integer from 0), got 'x'"),
    ("1 1.5:1", "an id (an integer from 0), got '1.5:1'"),
    ("1 +3", "an id (an integer from 0), got '+3'"),
    ("1 qid:3", "an id (an integer from 0), got 'qid:3'"),
    ("1 9223372036854775808:1", "an id (an integer from 0), got '9223372036854775808:1'"),
    ("1 99999999999999999999999", "an id (an integer from 0), got '99999999999999999999999'"),
    ("1 5:nan", "a finite value after the colon, got '5:nan'"),
    ("1 5:-inf", "a finite value after the colon, got '5:-inf'"),
    ("1 5:1e39", "a finite value after the colon, got '5:1e39'"),
    ("1 5:1_0", "a finite value after the colon, got '5:1_0'"),
    ("1 5:1e", "a finite value after the colon, got '5:1e'"),
    ("1 5:--1", "a finite value after the colon, got '5:--1'"),
    ("1 5:0x1", "a finite value after the colon, got '5:0x1'"),
    ("1 5:" + "9" * 100, "a finite value after the colon, got '5:" + "9" * 35 + "...'"),
    ("1 5:2:3", "'id' or 'id:value', got '5:2:3'"),
    ("1 5: 2", "'id' or 'id:value', got '5:'"),
    ("1 :5", "'id' or 'id:value', got ':5'"),
    ("1 5::2", "'id' or 'id:value', got '5::2'"),
    ("1 :", "'id' or 'id:value', got ':'"),
    (": 1", "'id' or 'id:value', got ':'"),
    ("1 2\r3", "an id (an integer from 0), got '2\\r3'"),
    ("1 2\0", "an id (an integer from 0), got '2\\x00'"),
    ("1 ٣", "an id (an integer from 0), got '٣'"),
]


@pytest.mark.parametrize(("line", "message"), MALFORMED)
@pytest.mark.parametrize("last", [True, False])
def test_malformed_lines(line: str, message: str, last: bool, tmp_path: Path) -> None:
    good = "0 1:1\n\n"
    content = good + line + ("" if last else "\n1 2:0.5\n")
    with pytest.raises(ValueError) as error:
        read_bytes(tmp_path, content)
    assert str(error.value) == f"{tmp_path / 'x.libsvm'}:3: expected {message}"
    d = read_bytes(tmp_path, content, skip_bad_lines=True)
    assert graphs(d) == [[("1", 1.0)]] + ([] if last else [[("2", 0.5)]])
    assert d.report.bad_lines == 1
    assert d.report.examples == [f"{tmp_path / 'x.libsvm'}:3: expected {message}"]


def test_a_colon_is_no_part_of_a_graph_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x.graph:1: expected an id \(an integer from 0\), got '2:3'"):
        data.read(write(tmp_path / "x.graph", "1 2:3\n"))


def test_all_bad_lines_are_counted_and_the_first_few_told(tmp_path: Path) -> None:
    d = read_bytes(tmp_path, "".join(f"1 {k} x{k}\n0 {k}\n" for k in range(50)), skip_bad_lines=True)
    assert len(d) == 50 and d.report.bad_lines == 50
    places = [m.removeprefix(str(tmp_path / "x.libsvm")) for m in d.report.examples]
    assert places == [f":{2 * k + 1}: expected an id (an integer from 0), got 'x{k}'" for k in range(5)]


def test_line_numbers_run_on_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_BLOCK_BYTES", 32)
    content = "# c\n\n" + "1 22:3 4\n" * 100 + "0 bad\n" + "1 5\n" * 20
    with pytest.raises(ValueError, match=r":103: expected an id"):
        read_bytes(tmp_path, content)
    d = read_bytes(tmp_path, content, skip_bad_lines=True)
    assert len(d) == 120 and d.report.bad_lines == 1


def naive(content: bytes, colons: bool, labelled: bool) -> tuple[list[Any], int]:
    """The definition: one line after another, as plain Python reads it."""

    def number(word: bytes) -> float:
        if not re.fullmatch(rb"[0-9+\-.eE]+", word):
            raise ValueError(word)
        with np.errstate(over="ignore"):
            value = float(np.float32(float(word)))
        if not np.isfinite(value):
            raise ValueError(word)
        return value

    found, bad = [], 0
    for line in (content.removeprefix(b"\xef\xbb\xbf") + b"\n").replace(b"\r\n", b"\n").split(b"\n"):
        words = [w for w in re.split(rb"[ \t]", line.partition(b"#")[0]) if w]
        if not words:
            continue
        try:
            label = number(words.pop(0)) if labelled else None
            nodes = []
            for word in words:
                id_, colon, value = word.partition(b":") if colons else (word, b"", b"")
                if not re.fullmatch(rb"[0-9]{1,19}", id_) or int(id_) >= 2**63:
                    raise ValueError(word)
                nodes.append((str(int(id_)), number(value) if colon else 1.0))
            found.append((label, nodes))
        except ValueError:
            bad += 1
    return found, bad


PIECES = st.sampled_from(
    b"1 0 -1 23 4:5 6:0.25 7:1e-3 007 9223372036854775807 9223372036854775808 +1 .5 5. e5 1e400 8:+.5".split()
    + b"1: :2 1:2:3 nan - : # \xff \0 \r".split(b" ")
)
SPACES = st.sampled_from([b" ", b"\t", b"\n", b"\r\n", b"  ", b" \n", b"\n\n", b""])
FILES = st.lists(st.tuples(PIECES, SPACES), max_size=25).map(lambda pairs: b"".join(a + b for a, b in pairs))


@given(FILES, st.integers(1, 40), st.booleans(), st.booleans())
@example(b"\xef\xbb\xbf1 2\n", 64, True, True)
@settings(max_examples=400, deadline=None)
def test_against_a_plain_parser_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block: int, colons: bool, labelled: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(content)
    expected, bad = naive(content, colons, labelled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK_BYTES", max(block, 3))
        d = data.read(
            path,
            format="libsvm" if colons else "graph",
            duplicates="keep",
            labelled=labelled,
            skip_bad_lines=True,
            targets="real",
        )
    labels = [None] * len(d) if d.labels is None else d.labels.tolist()
    assert list(zip(labels, graphs(d), strict=True)) == expected
    assert d.report.bad_lines == bad


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
@settings(max_examples=100, deadline=None)
def test_values_are_read_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.getbasetemp() / "floats.libsvm"
    path.write_text("1 " + " ".join(f"{k}:{v!r}" for k, v in enumerate(values)))
    d = data.read(path)
    got = np.ones(len(values), np.float32) if d.values is None else d.values
    np.testing.assert_array_equal(got, np.array(values, np.float32))


def test_a_long_number_is_a_number(tmp_path: Path) -> None:
    d = read_bytes(tmp_path, "1 5:0." + "0" * 70 + "0 6:0.5" + "0" * 90 + "\n")
    assert graphs(d) == [[("5", 0.0), ("6", 0.5)]]


# -- vocabularies --------------------------------------------------------------------------------------------


def test_a_known_vocabulary(tmp_path: Path) -> None:
    known = read_bytes(tmp_path, "1 10 20 30\n").vocabulary
    d = read_bytes(tmp_path, "1 30:2 10\n0 20\n", vocabulary=known)
    assert d.ids.tolist() == [2, 0, 1] and d.num_features == 3 and d.vocabulary is known


def test_unseen_ids(tmp_path: Path) -> None:
    known = Vocabulary.from_ids(np.array([10, 20]))
    content = "# one\n1 10:2 7:3\n0 8 9\n1 20:4\n"
    with pytest.raises(ValueError) as error:
        read_bytes(tmp_path, content, vocabulary=known, skip_bad_lines=True)
    where = tmp_path / "x.libsvm"
    assert str(error.value) == (
        f"{where}:2: id 7 is not in the vocabulary; unseen='drop' leaves such nodes out"
    )
    d = read_bytes(tmp_path, content, vocabulary=known, unseen="drop")
    assert graphs(d) == [[("10", 2.0)], [], [("20", 4.0)]]
    assert d.report.unseen == 3 and d.report.bad_lines == 0
    assert d.report.examples == [f"{where}:2: id 7 is not in the vocabulary"]
    with pytest.raises(ValueError, match="unseen: expected 'error' or 'drop', got 'x'"):
        read_bytes(tmp_path, content, vocabulary=known, unseen="x")


def test_num_features_takes_ids_as_they_are(tmp_path: Path) -> None:
    d = read_bytes(tmp_path, "1 5 2\n", num_features=7)
    assert d.ids.tolist() == [5, 2] and d.num_features == 7 and d.vocabulary is None
    with pytest.raises(ValueError, match=r":1: expected an id \(an integer from 0 to 4\), got '5'"):
        read_bytes(tmp_path, "1 5 2\n", num_features=5)
    with pytest.raises(ValueError, match="needs a vocabulary of raw ids, without num_features"):
        read_bytes(tmp_path, "1 5\n", num_features=7, vocabulary=Vocabulary.from_ids(np.arange(7)))


def test_a_vocabulary_of_columns_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a libsvm file needs a vocabulary of raw ids, got Vocabulary"):
        read_bytes(tmp_path, "1 5\n", vocabulary=Vocabulary([data.Field("a", values=["5"])]))


# -- chunks, compression, formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
def test_chunks_are_the_file(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_BLOCK_BYTES", 100)
    rng = np.random.default_rng(0)
    lines = [f"{k % 2} " + " ".join(f"{i}:{i}" for i in rng.integers(9, size=k % 5)) for k in range(50)]
    whole = read_bytes(tmp_path, "\n".join([*lines, "0 x"]), num_features=9, skip_bad_lines=True)
    chunks = list(
        data.read_chunks(tmp_path / "x.libsvm", chunk_rows=rows, num_features=9, skip_bad_lines=True)
    )
    assert [len(c) for c in chunks[:-1]] == [rows] * (len(chunks) - 1)
    assert len(whole) == 50 == sum(map(len, chunks))
    assert np.concatenate([c.ids for c in chunks]).tolist() == whole.ids.tolist()
    assert np.concatenate([np.diff(c.offsets) for c in chunks]).tolist() == np.diff(whole.offsets).tolist()
    assert np.concatenate([c.labels for c in chunks if c.labels is not None]).tolist() == [0, 1] * 25
    assert whole.values is not None
    values = [np.ones(len(c.ids), np.float32) if c.values is None else c.values for c in chunks]
    assert np.concatenate(values).tolist() == whole.values.tolist()
    assert chunks[-1].report.bad_lines == 1


def test_chunks_need_to_know_the_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "x.libsvm", "1 2\n")
    with pytest.raises(ValueError, match="read_chunks needs a vocabulary"):
        data.read_chunks(path)
    with pytest.raises(ValueError, match="chunk_rows: expected at least 1, got 0"):
        data.read_chunks(path, chunk_rows=0, num_features=3)


def test_chunks_come_before_the_file_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_BLOCK_BYTES", 64)
    path = write(tmp_path / "x.libsvm", "1 2\n" * 100 + "bad\n")
    chunks = data.read_chunks(path, chunk_rows=10, num_features=3)
    assert len(next(chunks)) == 10
    with pytest.raises(ValueError, match=":101: expected a label"):
        list(chunks)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files(suffix: str, compress: Any, tmp_path: Path) -> None:
    content = compress(b"1 3:2\n0 4\n" * 5000)
    d = data.read(write(tmp_path / f"x.libfm{suffix}", content))
    assert len(d) == 10_000 and graphs(d)[:2] == [[("3", 2.0)], [("4", 1.0)]]
    cut = write(tmp_path / f"cut.libfm{suffix}", content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cut.libfm{suffix}: the compressed data is damaged or truncated"):
        data.read(cut)
    plain = write(tmp_path / f"plain.libfm{suffix}", b"1 3:2\n")
    with pytest.raises(
        ValueError, match=rf"plain.libfm{suffix}: the compressed data is damaged or truncated"
    ):
        data.read(plain)


def test_formats(tmp_path: Path) -> None:
    for suffix in (".libsvm", ".libfm", ".svm", ".svmlight", ".LIBSVM"):
        assert len(data.read(write(tmp_path / f"x{suffix}", "1 2:3\n"))) == 1
    path = write(tmp_path / "x.data", "1 2\n")
    with pytest.raises(ValueError) as error:
        data.read(path)
    assert str(error.value) == (
        f"{path}: the suffix '.data' tells no format; pass format=, one of libsvm, graph, csv, tsv, parquet"
    )
    assert len(data.read(path, format="graph")) == 1
    with pytest.raises(ValueError, match="format: expected one of libsvm, graph, csv, tsv, parquet, got 'x'"):
        data.read(path, format="x")
    with pytest.raises(FileNotFoundError, match=r"absent.libsvm: no such file"):
        data.read(tmp_path / "absent.libsvm")
    with pytest.raises(ValueError, match="a graph file takes no option 'label'; it takes labelled, dupl"):
        data.read(path, format="graph", label="x")


def test_a_file_of_frappes_size_takes_seconds_at_most(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(5382, size=(28_861, 10))
    lines = "".join("1 " + " ".join(f"{i}:1" for i in row) + "\n" for row in ids.tolist())
    path = write(tmp_path / "big.libfm", lines * 10)
    start = time.process_time()
    d = data.read(path)
    took = time.process_time() - start
    assert (d.ids.reshape(10, -1, 10) == ids).all()
    assert took < 5  # 0.45 s of processor time where this was written; a loop over tokens takes longer


@pytest.mark.parametrize("number", [9.5, -1, 0])
def test_num_features_is_a_number_of_features(tmp_path: Path, number: Any) -> None:
    path = tmp_path / "t.graph"
    path.write_text("1 2 3\n")
    with pytest.raises(ValueError, match="num_features: expected an integer of at least 1, got"):
        data.read(path, num_features=number)
