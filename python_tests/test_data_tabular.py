"""CSV, TSV and parquet: fields, vocabularies, missing cells, and every kind of malformed row."""

from __future__ import annotations

import gzip
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l0sign_cuda import data
from l0sign_cuda.data import Field, GraphDataset, Vocabulary, rows

TABLE = """user,app,price,clicked
ann,21,0.5,1
bob,7,2,0
ann,99,,1
,21,-1e-3,0
"""


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_text(tmp_path: Path, content: str | bytes, **options: Any) -> GraphDataset:
    return data.read(write(tmp_path / "t.csv", content), **options)


def graphs(d: GraphDataset) -> list[dict[str, float]]:
    """Every graph as name -> value."""
    assert d.vocabulary is not None
    values = np.ones(len(d.ids)) if d.values is None else d.values
    nodes = [(d.vocabulary.name(k), float(v)) for k, v in zip(d.ids.tolist(), values, strict=True)]
    return [dict(nodes[a:b]) for a, b in zip(d.offsets[:-1], d.offsets[1:], strict=True)]


def test_categorical_and_numeric_columns(tmp_path: Path) -> None:
    d = read_text(tmp_path, TABLE, label="clicked", numeric=["price"])
    assert d.vocabulary is not None
    assert d.vocabulary.field_names == ("user", "app", "price")  # the file's order
    assert d.vocabulary.offsets.tolist() == [0, 2, 5, 6]
    assert [d.vocabulary.name(k) for k in range(6)] == [
        "user=ann", "user=bob", "app=21", "app=7", "app=99", "price",
    ]  # fmt: skip
    assert graphs(d) == [
        {"user=ann": 1, "app=21": 1, "price": 0.5},
        {"user=bob": 1, "app=7": 1, "price": 2},
        {"user=ann": 1, "app=99": 1},
        {"app=21": 1, "price": float(np.float32(-1e-3))},
    ]
    assert d.labels is not None and d.labels.tolist() == [1, 0, 1, 0]
    assert d.ids.dtype == np.int32


def test_by_default_every_other_column_is_categorical(tmp_path: Path) -> None:
    d = read_text(tmp_path, TABLE, label="clicked", ignore=["app"])
    assert d.vocabulary is not None and d.vocabulary.field_names == ("user", "price")
    assert d.values is None
    assert [sorted(g) for g in graphs(d)] == [
        ["price=0.5", "user=ann"], ["price=2", "user=bob"], ["user=ann"], ["price=-1e-3"],
    ]  # fmt: skip
    unlabelled = read_text(tmp_path, TABLE, categorical=["app"])
    assert unlabelled.labels is None
    assert unlabelled.vocabulary is not None and unlabelled.vocabulary.field_names == ("app",)


def test_cells_are_text_as_it_stands(tmp_path: Path) -> None:
    d = read_text(tmp_path, 'a\n007\n7\n NA\nnan\n"x,""y"\n"two\nlines"\n')
    names = [next(iter(g)) for g in graphs(d)]
    assert names == ["a=007", "a=7", "a= NA", "a=nan", 'a=x,"y', "a=two\nlines"]
    plain = read_text(tmp_path, 'a,b\n"x,y"\n', quote=None)
    assert graphs(plain) == [{'a="x': 1, 'b=y"': 1}]


def test_separators_suffixes_and_headers(tmp_path: Path) -> None:
    tsv = data.read(write(tmp_path / "t.tsv", "a\tb\n1\t2,3\n"))
    assert graphs(tsv) == [{"a=1": 1, "b=2,3": 1}]
    assert graphs(read_text(tmp_path, "a;b\n1;2\n", separator=";")) == [{"a=1": 1, "b=2": 1}]
    bare = read_text(tmp_path, "1,2\n3,4\n", columns=["x", "y"], label="x", targets="real")
    assert graphs(bare) == [{"y=2": 1}, {"y=4": 1}] and bare.labels is not None
    assert bare.labels.tolist() == [1, 3]
    marked = read_text(tmp_path, "\ufeffa,b\r\n1,2\r\n\r\n3,4")
    assert graphs(marked) == [{"a=1": 1, "b=2": 1}, {"a=3": 1, "b=4": 1}]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files(suffix: str, compress: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(10**9, size=(20_000, 2)).tolist()
    content = compress(("a,b\n" + "".join(f"{x},{y}\n" for x, y in cells)).encode())
    d = data.read(write(tmp_path / f"t.csv{suffix}", content))
    assert len(d) == 20_000 and d.vocabulary is not None
    assert d.vocabulary.name(int(d.ids[-1])) == f"b={cells[-1][1]}"
    cut = write(tmp_path / f"cut.csv{suffix}", content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cut.csv{suffix}: the compressed data is damaged or truncated"):
        data.read(cut)


def test_a_header_alone_is_no_graphs(tmp_path: Path) -> None:
    d = read_text(tmp_path, "a,b,y\n", label="y", numeric=["b"])
    assert len(d) == 0 and d.num_features == 1 and d.labels is not None and len(d.labels) == 0
    for empty in ("", "\n\n"):
        with pytest.raises(ValueError, match=r"t.csv:1: expected a header line, got an empty file"):
            read_text(tmp_path, empty)
    assert len(read_text(tmp_path, "", columns=["a"])) == 0


MALFORMED = [
    ("ann,1", "expected 3 cells, got 2"),
    ("ann,1,2,0", "expected 3 cells, got 4"),
    ("ann,x,1", "column 'price': expected a finite number, got 'x'"),
    ("ann,nan,1", "column 'price': expected a finite number, got 'nan'"),
    ("ann,inf,1", "column 'price': expected a finite number, got 'inf'"),
    ("ann,1e39,1", "column 'price': expected a finite number, got '1e39'"),
    ("ann,1_0,1", "column 'price': expected a finite number, got '1_0'"),
    ("ann,1,yes", "column 'y': expected a finite number, got 'yes'"),
    ("ann,1,", "column 'y': expected a finite number, got an empty cell"),
    (b"\xff,1,1", "column 'user': expected text in UTF-8, got '\ufffd'"),
    (b"ann,\xff,1", "column 'price': expected a finite number, got '\ufffd'"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED)
def test_malformed_rows(row: str | bytes, message: str, tmp_path: Path) -> None:
    raw = row.encode() if isinstance(row, str) else row
    content = b'user,price,y\n"two\nlines",1,0\n\nbob, 2 ,1\n' + raw + b"\neve,3,0\n"
    with pytest.raises(ValueError) as error:
        read_text(tmp_path, content, label="y", numeric=["price"])
    assert str(error.value) == f"{tmp_path / 't.csv'}:6: {message}"
    d = read_text(tmp_path, content, label="y", numeric=["price"], skip_bad_lines=True)
    assert graphs(d) == [
        {"user=two\nlines": 1, "price": 1},
        {"user=bob": 1, "price": 2},
        {"user=eve": 1, "price": 3},
    ]
    assert d.num_features == 4  # what a bad row held is in no vocabulary
    assert d.report.bad_lines == 1 and d.report.examples == [f"{tmp_path / 't.csv'}:6: {message}"]


def test_missing_cells_can_be_malformed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t.csv:4: column 'price': expected a finite number, got an empty"):
        read_text(tmp_path, TABLE, label="clicked", numeric=["price"], missing="error")
    d = read_text(tmp_path, TABLE, label="clicked", missing="error", skip_bad_lines=True)
    assert len(d) == 2 and d.graph_size == 3 and d.report.bad_lines == 2


def test_lines_are_told_across_batches_and_bad_widths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_BLOCK_BYTES", 64)
    lines = ["a,b", *(f"{k},{k}" for k in range(40)), "1", *(f"{k},{k}" for k in range(40)), "1,2,3", "x,1"]
    content = "\n".join([*lines, *("5,5" for _ in range(30)), "6,z"])
    d = read_text(tmp_path, content, numeric=["a"], skip_bad_lines=True)
    assert len(d) == 111 and d.report.bad_lines == 3
    assert sorted(d.report.examples) == [
        f"{tmp_path / 't.csv'}:42: expected 2 cells, got 1",
        f"{tmp_path / 't.csv'}:83: expected 2 cells, got 3",
        f"{tmp_path / 't.csv'}:84: column 'a': expected a finite number, got 'x'",
    ]
    with pytest.raises(ValueError, match=r"t.csv:42: expected 2 cells, got 1"):
        read_text(tmp_path, content, numeric=["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "z"}, "no column 'z'; the columns are user, app, price, clicked"),
        ({"numeric": ["z"]}, "no column 'z'; the columns are user, app, price, clicked"),
        ({"ignore": ["z"]}, "no column 'z'; the columns are user, app, price, clicked"),
        ({"label": "app", "categorical": ["app"]}, "column 'app' cannot be both the label and a feature"),
        ({"numeric": ["app"], "categorical": ["app"]}, "column 'app' cannot be both categorical and numeric"),
        ({"categorical": "app"}, "categorical: expected a list of column names, got the string 'app'"),
        ({"categorical": []}, "expected at least one column of features"),
        ({"missing": "x"}, "missing: expected 'drop' or 'error', got 'x'"),
        ({"separator": ",,"}, "separator: expected one ASCII character, got ',,'"),
        ({"quote": ""}, "quote: expected one ASCII character, got ''"),
        ({"columns": ["a", "a"]}, "expected distinct column names, got 'a' twice"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        read_text(tmp_path, TABLE, **options)
    assert message in str(error.value)


# -- a known vocabulary --------------------------------------------------------------------------------------


def test_a_known_vocabulary_decides_columns_and_ids(tmp_path: Path) -> None:
    known = read_text(tmp_path, TABLE, label="clicked", numeric=["price"]).vocabulary
    assert known is not None
    d = read_text(tmp_path, "price,extra,app,user\n3,?,7,bob\n4,?,21,ann\n", vocabulary=known)
    assert d.vocabulary is known and d.labels is None
    assert graphs(d) == [{"user=bob": 1, "app=7": 1, "price": 3}, {"user=ann": 1, "app=21": 1, "price": 4}]
    labelled = read_text(tmp_path, "y,app,user,price\n1,7,bob,1\n", vocabulary=known, label="y")
    assert labelled.labels is not None and labelled.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"t.csv: no column 'price'; the columns are app, user"):
        read_text(tmp_path, "app,user\n7,bob\n", vocabulary=known)
    with pytest.raises(ValueError, match="a vocabulary decides the columns"):
        read_text(tmp_path, TABLE, vocabulary=known, categorical=["app"])
    with pytest.raises(ValueError, match="a table needs a vocabulary of columns, got Vocabulary"):
        read_text(tmp_path, TABLE, vocabulary=Vocabulary.from_ids(np.arange(3)))


def test_unseen_values(tmp_path: Path) -> None:
    known = Vocabulary([Field("a", values=["1"]), Field("b", values=["2"])])
    content = "a,b\n1,2\n1,3\n4,\n"
    where = tmp_path / "t.csv"
    with pytest.raises(ValueError) as error:
        read_text(tmp_path, content, vocabulary=known)
    said = "value '4' is not in the vocabulary; unseen='drop' leaves such nodes out"
    assert str(error.value) == f"{where}:4: column 'a': {said}"
    d = read_text(tmp_path, content, vocabulary=known, unseen="drop")
    assert graphs(d) == [{"a=1": 1, "b=2": 1}, {"a=1": 1}, {}]
    assert d.report.unseen == 2
    assert d.report.examples == [
        f"{where}:4: column 'a': value '4' is not in the vocabulary",
        f"{where}:3: column 'b': value '3' is not in the vocabulary",
    ]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_chunks_are_the_file(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BLOCK_BYTES", 50)
    content = "a,x,y\n" + "".join(f"{k % 7},{k if k % 3 else ''},{k % 2}\n" for k in range(60))
    whole = read_text(tmp_path, content, label="y", numeric=["x"])
    options: dict[str, Any] = {"label": "y", "vocabulary": whole.vocabulary}
    chunks = list(data.read_chunks(tmp_path / "t.csv", chunk_rows=size, **options))
    assert [len(c) for c in chunks] == [size] * (60 // size) or size == 1000
    assert [g for c in chunks for g in graphs(c)] == graphs(whole)
    assert [v for c in chunks if c.labels is not None for v in c.labels] == [0, 1] * 30
    with pytest.raises(ValueError, match="read_chunks needs a vocabulary"):
        data.read_chunks(tmp_path / "t.csv", label="y")


# -- parquet -------------------------------------------------------------------------------------------------


def parquet(tmp_path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    return tmp_path / "t.parquet"


def test_parquet(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        user=pa.array([5, 6, None], pa.int64()),
        name=pa.array(["a", "b", "a"]).dictionary_encode(),
        flag=pa.array([True, False, None]),
        price=pa.array([0.5, None, 2.0]),
        tags=pa.array([["x"], [], None]),
        y=pa.array([-1, 1, 1], pa.int8()),
    )
    d = data.read(path, label="y")
    assert graphs(d) == [
        {"user=5": 1, "name=a": 1, "flag=true": 1, "price": 0.5},
        {"user=6": 1, "name=b": 1, "flag=false": 1},
        {"name=a": 1, "price": 2},
    ]
    assert d.labels is not None and d.labels.tolist() == [0, 1, 1]
    assert d.vocabulary is not None
    assert [f.kind for f in d.vocabulary.fields] == ["categorical"] * 3 + ["numeric"]
    chosen = data.read(path, categorical=["price"], numeric=["user", "flag"])
    assert graphs(chosen)[0] == {"user": 5, "flag": 1, "price=0.5": 1}
    with pytest.raises(ValueError, match=r"no column 'tags'; the columns are user, name, flag, price, y"):
        data.read(path, categorical=["tags"])


def test_one_vocabulary_for_csv_and_parquet(tmp_path: Path) -> None:
    d = data.read(parquet(tmp_path, a=[3, 4], b=["x", "y"]))
    again = read_text(tmp_path, "b,a\ny,4\n", vocabulary=d.vocabulary)
    assert again.ids.tolist() == d.ids[2:].tolist()


def test_malformed_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path, a=[1.0, 2.0, float("nan")], s=["1", "2", "three"], y=[1, 0, 1])
    with pytest.raises(ValueError) as error:
        data.read(path, label="y")
    assert str(error.value) == f"{path}:row 3: column 'a': expected a finite number, got 'nan'"
    with pytest.raises(
        ValueError, match=r"t.parquet:row 3: column 's': expected a finite number, got 'three'"
    ):
        data.read(path, label="s", ignore=["a"])
    d = data.read(path, label="y", skip_bad_lines=True)
    assert len(d) == 2 and d.report.bad_lines == 1
    with pytest.raises(ValueError, match=r"x.parquet: expected a parquet file"):
        data.read(write(tmp_path / "x.parquet", "no"))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m == "pyarrow" or m.startswith("pyarrow.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pyarrow.*l0sign[-_]cuda\[train\]"):
        read_text(tmp_path, TABLE)
    assert len(data.read(write(tmp_path / "t.libsvm", "1 2:3\n"))) == 1  # needs numpy only


def test_read_names(tmp_path: Path) -> None:
    path = write(tmp_path / "apps.csv", 'item\tname\n21\tGmail\n7\t"quoted\n9\t\n')
    names = data.read_names(path, key="item", name="name")
    assert names == {"21": "Gmail", "7": '"quoted'}
    vocabulary = Vocabulary([Field("app", values=["7", "21", "3"])]).with_names("app", names)
    assert [vocabulary.name(k) for k in range(3)] == ['app="quoted', "app=Gmail", "app=3"]
    with pytest.raises(ValueError, match=r"apps.csv: no column 'title'; the columns are item, name"):
        data.read_names(path, key="item", name="title")


@pytest.mark.parametrize("skip_bad_lines", [False, True])
@pytest.mark.parametrize("rest", ['3,"x\n5,6\n', '"3,4\n5,6', '3,4\n"', '3,"' + "x\n" * 3_000_000])
def test_a_quote_that_is_not_closed_swallows_nothing_silently(
    tmp_path: Path, rest: str, skip_bad_lines: bool
) -> None:
    with pytest.raises(ValueError, match=r"t\.csv:[34]: expected"):
        read_text(tmp_path, f"a,b\n1,2\n{rest}", skip_bad_lines=skip_bad_lines)


def test_a_closed_quote_may_end_a_file(tmp_path: Path) -> None:
    assert graphs(read_text(tmp_path, 'a,b\n1,2\n3,"x\ny"')) == [
        {"a=1": 1, "b=2": 1},
        {"a=3": 1, "b=x\ny": 1},
    ]


def test_a_cell_that_is_too_long_to_name_lines_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.csv:2: expected cells of at most \d+ characters"):
        read_text(tmp_path, f"a,b\n1,{'x' * 200_000}\n3\n")


def test_a_header_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.csv:1: expected column names in UTF-8, got"):
        read_text(tmp_path, b"a,\xff\n1,2\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": '"'}, "separator: expected another character than the quote, got '\"'"),
        ({"separator": "\n"}, r"separator: expected no line break, got '\\n'"),
        ({"quote": "\r"}, r"quote: expected no line break, got '\\r'"),
    ],
)
def test_characters_that_tell_nothing_apart(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path, TABLE, **options)


def test_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    path = parquet(tmp_path, a=[1, 2], nested=[[1], [2]])
    with pytest.raises(ValueError, match="no column 'nested'; the columns are a; nested ones are not read"):
        data.read(path, categorical=["nested"])
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"t\.parquet\.gz: a parquet file is compressed within"):
        data.read(write(tmp_path / "t.parquet.gz", gzip.compress(content)))
    with pytest.raises(ValueError, match=r"damaged\.parquet: the file is damaged"):
        data.read(write(tmp_path / "damaged.parquet", content[:4] + bytes(40) + content[44:]))
