"""Reading a file, whole or in chunks, by its suffix or a named format."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._checks import positive
from .dataset import GraphDataset
from .files import COMPRESSIONS, Part, Source
from .tabular import TableReader
from .text import read_text
from .vocabulary import Vocabulary

__all__ = ["FORMATS", "open_dataset", "read", "read_chunks"]

FORMATS = ("libsvm", "graph", "csv", "tsv", "parquet")
_SUFFIXES = {
    ".libsvm": "libsvm",
    ".libfm": "libsvm",
    ".svm": "libsvm",
    ".svmlight": "libsvm",
    ".graph": "graph",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}

Unseen = Literal["error", "drop"]
Targets = Literal["auto", "binary", "real"]


def open_dataset(path: str | os.PathLike[str], **options: Any) -> GraphDataset:
    """A directory that `GraphDataset.save` wrote, or any file that `read` reads.

    Args:
        path: the directory or file.
        options: of `GraphDataset.load` or of `read`.
    """
    return GraphDataset.load(path, **options) if Path(path).is_dir() else read(path, **options)


def read(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    vocabulary: Vocabulary | None = None,
    unseen: Unseen = "error",
    skip_bad_lines: bool = False,
    targets: Targets = "auto",
    **options: Any,
) -> GraphDataset:
    """Read a whole file into a GraphDataset whose `report` says what was left out.

    Formats, by suffix, or by `format` where the suffix does not tell; .gz and .xz may follow it, but for
    parquet:

    - "libsvm" (.libsvm .libfm .svm .svmlight): "label id:value id ...", in any order, also repeated; an id
      without a value has the value 1. "#" starts a comment.
    - "graph" (.graph): "label id id ...". A node that is repeated in a graph counts once.
    - "csv" (.csv), "tsv" (.tsv .tab), "parquet" (.parquet .pq): a row is a graph, a column a field, an empty
      cell no node. A categorical column has a feature a value, a numeric column one feature with the cell as
      its value.

    Blank lines are skipped.

    Args:
        path: the file.
        format: one of `FORMATS`.
        vocabulary: encode with this one. Without, one is built: sorted raw ids, or for a table the fields in
            the order of the columns and their values in the order of first appearance.
        unseen: what a value that `vocabulary` does not have is: an "error", or a node to "drop", counted.
        skip_bad_lines: leave malformed lines out, count them and keep the first few messages.
        targets: "auto" turns labels -1 into 0 where all labels are -1 or 1; "binary" does so and refuses
            labels other than -1, 0 and 1; "real" keeps labels as they are.
        options: for libsvm and graph `labelled=True` (lines start with a label), `duplicates` "keep" or
            "unique", `num_features=J` (ids are already 0..J-1; no vocabulary is built); for tables `label`,
            `categorical`, `numeric`, `ignore`, `missing`, `separator`, `quote`, `columns`: see
            `tabular.TableReader`.

    Raises:
        ValueError: "FILE:LINE: expected ..., got ..."; a file or its compression is damaged, a format
            unknown.
        FileNotFoundError: there is no such file.
    """
    source = Source(Path(path), vocabulary, unseen, skip_bad_lines)
    reading = _start(source, format, options)
    part = Part.concatenate(list(reading.parts), reading.labelled)
    ids, vocabulary = (part.ids, vocabulary) if reading.finish is None else reading.finish(part.ids)
    labels = _Targets(targets, source.path).convert(part.labels)
    return _dataset(part._replace(ids=ids, labels=labels), source, vocabulary, reading.num_features)


def read_chunks(
    path: str | os.PathLike[str],
    *,
    chunk_rows: int = 65_536,
    format: str | None = None,
    vocabulary: Vocabulary | None = None,
    unseen: Unseen = "error",
    skip_bad_lines: bool = False,
    targets: Targets = "auto",
    **options: Any,
) -> Iterator[GraphDataset]:
    """Like `read`, as data sets of `chunk_rows` graphs (the last may be smaller), in constant memory.

    All chunks share one `report`, which counts up to the end of the file. A `vocabulary` is needed, or
    `num_features` for integer ids, since one that is built is only complete at the end of a file.
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows: expected at least 1, got {chunk_rows}")
    source = Source(Path(path), vocabulary, unseen, skip_bad_lines)
    reading = _start(source, format, options)
    if reading.finish is not None:
        raise ValueError("read_chunks needs a vocabulary (or num_features where ids are already 0..J-1)")
    converter = _Targets(targets, source.path)
    return (
        _dataset(
            part._replace(labels=converter.convert(part.labels)), source, vocabulary, reading.num_features
        )
        for part in _rechunk(reading.parts, chunk_rows, reading.labelled)
    )


class _Reading(NamedTuple):
    parts: Iterator[Part]
    labelled: bool
    num_features: int | None
    finish: Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], Vocabulary]] | None  # None: ids are final


def _start(source: Source, format: str | None, options: dict[str, Any]) -> _Reading:
    format = format or _format_of(source.path)
    if source.unseen not in ("error", "drop"):
        raise ValueError(f"unseen: expected 'error' or 'drop', got {source.unseen!r}")
    if not source.path.is_file():
        raise FileNotFoundError(f"{source.path}: no such file")
    _check_options(source.path, format, options)
    if format in ("libsvm", "graph"):
        num_features = options.get("num_features")
        if num_features is not None:
            (num_features,) = positive(num_features=num_features)
        if source.vocabulary is not None and (source.vocabulary.is_tabular or num_features is not None):
            what = f"got {source.vocabulary!r}" if source.vocabulary.is_tabular else "without num_features"
            raise ValueError(f"{source.path}: a {format} file needs a vocabulary of raw ids, {what}")
        defaults = {"duplicates": "unique" if format == "graph" else "keep"}
        parts = read_text(source, colons=format == "libsvm", **{**defaults, **options})
        final = source.vocabulary is not None or num_features is not None
        return _Reading(
            parts, options.get("labelled", True), num_features, None if final else _number_raw_ids
        )
    if format in ("csv", "tsv", "parquet"):
        defaults = {"separator": "\t"} if format == "tsv" else {}
        kind: Literal["csv", "parquet"] = "parquet" if format == "parquet" else "csv"
        table = TableReader(source, kind, **{**defaults, **options})
        finish = table.finish if source.vocabulary is None else None
        return _Reading(table.parts(), options.get("label") is not None, None, finish)
    raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")


def _check_options(path: Path, format: str, options: dict[str, Any]) -> None:
    """Refuse options that belong to another format."""
    reader = read_text if format in ("libsvm", "graph") else TableReader
    known = [p.name for p in inspect.signature(reader).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in known if name != "colons"]  # the format decides it
    for name in options:
        if format in FORMATS and name not in known:
            raise ValueError(f"{path}: a {format} file takes no option {name!r}; it takes {', '.join(known)}")


def _format_of(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    try:
        return _SUFFIXES[plain.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"{path}: the suffix {plain.suffix!r} tells no format; pass format=, one of {', '.join(FORMATS)}"
        ) from None


def _number_raw_ids(raw: NDArray[np.int64]) -> tuple[NDArray[np.int64], Vocabulary]:
    """Raw ids -> their ranks and the vocabulary of all of them, in order."""
    largest = int(raw.max(initial=0))
    if largest > 4 * len(raw) + 1_000_000:
        known, ids = np.unique(raw, return_inverse=True)
        return ids.reshape(-1), Vocabulary.from_ids(known)
    # Ids that are dense enough are ranked without a sort.
    present = np.zeros(largest + 1, np.bool_)
    present[raw] = True
    return (np.cumsum(present) - 1)[raw], Vocabulary.from_ids(np.flatnonzero(present))


def _rechunk(parts: Iterator[Part], rows: int, labelled: bool) -> Iterator[Part]:
    waiting: list[Part] = []
    have = 0
    for part in parts:
        waiting.append(part)
        have += len(part.lengths)
        if have < rows:
            continue
        whole = Part.concatenate(waiting, labelled)
        cut = have - have % rows
        yield from (whole.slice(k, k + rows) for k in range(0, cut, rows))
        waiting, have = [whole.slice(cut, have)], have - cut
    if have:
        yield Part.concatenate(waiting, labelled)


def _dataset(
    part: Part, source: Source, vocabulary: Vocabulary | None, num_features: int | None
) -> GraphDataset:
    largest = len(vocabulary) if vocabulary is not None else num_features or 0
    ids = part.ids.astype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64, copy=False)
    offsets = np.zeros(len(part.lengths) + 1, np.int64)
    np.cumsum(part.lengths, out=offsets[1:])
    return GraphDataset(ids, offsets, part.values, part.labels, vocabulary, num_features, source.report)


class _Targets:
    """Labels as the model wants them; what "auto" once decided holds for the rest of the file."""

    def __init__(self, mode: Targets, path: Path) -> None:
        if mode not in ("auto", "binary", "real"):
            raise ValueError(f"targets: expected 'auto', 'binary' or 'real', got {mode!r}")
        self._mode = mode
        self._path = path

    def convert(self, labels: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        if labels is None or not len(labels):
            return labels
        if self._mode == "auto" and (labels != 1).any():
            self._mode = "binary" if np.isin(labels, (-1, 1)).all() else "real"
        if self._mode != "binary":
            return labels
        if not (fits := np.isin(labels, (-1, 0, 1))).all():
            raise ValueError(
                f"{self._path}: expected labels -1, 0 and 1, got {labels[~fits][0]:g}; "
                "targets='real' takes any"
            )
        return np.maximum(labels, 0)
