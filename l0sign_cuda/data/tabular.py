"""Tables: CSV, TSV and parquet, through pyarrow; a column is a field, a row a graph, a filled cell a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .files import Part, Source
from .rows import CsvRows, ParquetRows, Rows
from .vocabulary import Field, FieldKind, Vocabulary

__all__ = ["TableReader"]

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Column:
    name: str
    kind: FieldKind


class TableReader:
    """Reads one table. Without a vocabulary it builds one, which `finish` turns provisional ids into.

    Args:
        source: the file; its vocabulary, where it has one, decides the columns.
        format: "csv" or "parquet".
        label: the column with the label; None leaves the data unlabelled.
        categorical: columns whose every value is a feature of its own.
        numeric: columns that are one feature each, whose value is the number in the cell.
        ignore: columns to leave out of the default, which is: every other column, categorical (in a parquet
            file, floating-point columns are numeric).
        missing: "drop" leaves an empty cell's node out; "error" calls its line malformed.
        separator: between the cells of a CSV file.
        quote: of a CSV file; None takes quotes as they stand.
        columns: the names of the columns of a CSV file that has no header line.
    """

    def __init__(
        self,
        source: Source,
        format: Literal["csv", "parquet"],
        *,
        label: str | None = None,
        categorical: Sequence[str] | None = None,
        numeric: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        missing: Literal["drop", "error"] = "drop",
        separator: str = ",",
        quote: str | None = '"',
        columns: Sequence[str] | None = None,
    ) -> None:
        if missing not in ("drop", "error"):
            raise ValueError(f"missing: expected 'drop' or 'error', got {missing!r}")
        for name, value in (("categorical", categorical), ("numeric", numeric), ("ignore", ignore)):
            if isinstance(value, str):
                raise ValueError(f"{name}: expected a list of column names, got the string {value!r}")
        self._source = source
        self._label = label
        self._missing = missing
        self._rows: Rows = (
            ParquetRows(source) if format == "parquet" else CsvRows(source, separator, quote, columns)
        )
        self._columns = self._choose_columns(self._rows.header(), categorical, numeric, ignore)
        # A column: value -> position in its field.
        self._known: list[dict[bytes, int]] = [{} for _ in self._columns]
        if source.vocabulary is not None:
            for known, f in zip(self._known, source.vocabulary.fields, strict=True):
                known.update((v.encode(), k) for k, v in enumerate(map(str, f.values)))

    def parts(self) -> Iterator[Part]:
        """The table's graphs. Without a vocabulary a node's id is provisional: see `finish`."""
        pa = require("pyarrow", "train")
        wanted = [c.name for c in self._columns] + ([self._label] if self._label else [])
        first = 0
        try:
            for batch in self._rows.batches(wanted):
                yield self._encode(batch, first)
                first += batch.num_rows
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self._source.path}: {error}") from error

    def finish(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], Vocabulary]:
        """Provisional ids, which interleave the columns, to global ones; and the vocabulary they are from."""
        fields = (
            Field(c.name, c.kind, [v.decode() for v in known] if c.kind == "categorical" else ())
            for c, known in zip(self._columns, self._known, strict=True)
        )
        vocabulary = Vocabulary(fields)
        if not len(ids):
            return ids, vocabulary
        position, column = np.divmod(ids, len(self._columns))
        return vocabulary.offsets[column] + position, vocabulary

    def _choose_columns(
        self,
        header: dict[str, FieldKind],
        categorical: Sequence[str] | None,
        numeric: Sequence[str] | None,
        ignore: Sequence[str],
    ) -> list[_Column]:
        """The fields, in the order of the file, or of the vocabulary where there is one."""
        path, vocabulary = self._source.path, self._source.vocabulary
        kinds: dict[str, FieldKind]
        if vocabulary is not None:
            if categorical is not None or numeric is not None or ignore:
                raise ValueError(
                    "a vocabulary decides the columns: leave out categorical, numeric and ignore"
                )
            if not vocabulary.is_tabular:
                raise ValueError(f"{path}: a table needs a vocabulary of columns, got {vocabulary!r}")
            kinds = {f.name: f.kind for f in vocabulary.fields}
        else:
            kinds = {n: k for n, k in header.items() if n != self._label and n not in ignore}
            if categorical is not None or numeric is not None:
                named: dict[str, FieldKind] = dict.fromkeys(numeric or (), "numeric")
                if categorical is None:
                    categorical = [n for n in kinds if n not in named]
                if both := sorted(set(categorical) & set(named)):
                    raise ValueError(f"column {both[0]!r} cannot be both categorical and numeric")
                named.update(dict.fromkeys(categorical, "categorical"))
                order = {n: k for k, n in enumerate(header)}
                kinds = {n: named[n] for n in sorted(named, key=lambda n: order.get(n, -1))}
        for name in (*kinds, *ignore, *([self._label] if self._label else [])):
            if name not in header:
                nested = "; nested ones are not read" if isinstance(self._rows, ParquetRows) else ""
                raise ValueError(f"{path}: no column {name!r}; the columns are {', '.join(header)}{nested}")
        if self._label in kinds:
            raise ValueError(f"column {self._label!r} cannot be both the label and a feature")
        if not kinds:
            raise ValueError(f"{path}: expected at least one column of features")
        return [_Column(n, k) for n, k in kinds.items()]

    def _encode(self, batch: Any, first: int) -> Part:
        """A batch of rows, numbered from `first`, -> a part."""
        pa = require("pyarrow", "train")
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        rows = np.arange(first, first + batch.num_rows)
        good = self._good_rows(columns, rows)
        if not good.all():
            # Bad rows leave before their values could enter the vocabulary.
            columns = {n: cells.filter(pa.array(good)) for n, cells in columns.items()}
            rows = rows[good]
        ids = np.empty((len(rows), len(self._columns)), np.int64)
        values = None
        for k, column in enumerate(self._columns):
            cells = columns[column.name]
            if column.kind == "numeric":
                if values is None:
                    values = np.ones(ids.shape, np.float32)
                values[:, k] = _numbers(cells)[0]
                ids[:, k] = np.where(_is_null(cells), -1, 0)
            else:
                ids[:, k] = self._positions(k, cells, rows)
        present = ids >= 0
        if self._source.vocabulary is None:
            ids = ids * len(self._columns) + np.arange(len(self._columns))
        else:
            ids = ids + self._source.vocabulary.offsets[:-1]
        labels = _numbers(columns[self._label])[0] if self._label else None
        return Part(ids[present], present.sum(axis=1), None if values is None else values[present], labels)

    def _good_rows(self, columns: dict[str, Any], rows: Ints) -> Mask:
        """Which rows are well-formed, after reporting the others by their first bad cell."""
        good = np.ones(len(rows), np.bool_)
        bad: dict[int, str] = {}
        label = [_Column(self._label, "numeric")] if self._label else []
        for column in self._columns + label:
            cells = columns[column.name]
            if column.kind == "numeric":
                wrong, expected = _numbers(cells)[1], "a finite number"
            else:
                wrong, expected = _not_utf8(cells), "text in UTF-8"
            if column.name == self._label or self._missing == "error":
                wrong = wrong | _is_null(cells)
            for row in np.flatnonzero(wrong).tolist():
                needed = "a value" if column.kind == "categorical" and not cells[row].is_valid else expected
                bad.setdefault(row, f"column {column.name!r}: expected {needed}, got {_shown(cells[row])}")
        for row in sorted(bad):
            good[row] = False
            where = self._rows.where(int(rows[row])) if self._source.wants_message else 0
            self._source.malformed(where, bad[row])
        return good

    def _positions(self, k: int, cells: Any, rows: Ints) -> Ints:
        """Positions in the field of a column's cells; -1 where the cell is empty or its value unknown."""
        encoded = _text(cells).dictionary_encode()
        words = [w.encode() for w in encoded.dictionary.to_pylist()]
        known = self._known[k]
        # Python loops over the distinct values of a batch, not over its cells.
        if self._source.vocabulary is None:
            positions = [known.setdefault(w, len(known)) for w in words]
        else:
            positions = [known.get(w, -1) for w in words]
        table = np.array([*positions, -1], np.int64)
        codes = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
        result: Ints = table[codes]
        unknown = (result < 0) & (codes < len(words))
        if unknown.any():
            row = int(np.argmax(unknown))
            what = f"column {self._columns[k].name!r}: value {_shown(cells[row])}"
            self._source.unknown(self._rows.where(int(rows[row])), what, int(unknown.sum()))
        return result


def _is_null(cells: Any) -> Mask:
    nulls: Mask = cells.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _text(cells: Any) -> Any:
    """Cells of any scalar type as strings. Bytes must be UTF-8."""
    return cells.cast(require("pyarrow", "train").string())


def _not_utf8(cells: Any) -> Mask:
    pa = require("pyarrow", "train")
    if pa.types.is_binary(cells.type):
        try:
            _text(cells)
        except pa.ArrowInvalid:
            return np.array([not _is_utf8(cell) for cell in cells.to_pylist()])
    return np.zeros(len(cells), np.bool_)


def _is_utf8(cell: bytes | None) -> bool:
    try:
        return cell is None or cell.decode() is not None
    except UnicodeDecodeError:
        return False


def _numbers(cells: Any) -> tuple[NDArray[np.float32], Mask]:
    """Cells as float32, 0 where empty; and which are neither empty nor a number that is finite in float32."""
    pa, pc = require("pyarrow", "train"), require("pyarrow.compute", "train")
    types = pa.types
    wrong = np.zeros(len(cells), np.bool_)
    if not (types.is_integer(cells.type) or types.is_floating(cells.type) or types.is_decimal(cells.type)):
        if types.is_boolean(cells.type):
            cells = cells.cast(pa.uint8())
        not_utf8 = _not_utf8(cells)
        if not_utf8.any():
            cells = pc.if_else(pa.array(not_utf8), pa.scalar(None, cells.type), cells)
        text = pc.ascii_trim_whitespace(_text(cells))
        fits = pc.match_substring_regex(text, _NUMBER).fill_null(True)
        wrong = not_utf8 | ~fits.to_numpy(zero_copy_only=False)
        cells = pc.if_else(fits, text, pa.scalar(None, pa.string()))
    with np.errstate(over="ignore"):
        doubles = cells.cast(pa.float64(), safe=False).fill_null(0)
        numbers: NDArray[np.float32] = doubles.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers, wrong | ~np.isfinite(numbers)


def _shown(cell: Any) -> str:
    """A cell as messages show it."""
    value = cell.as_py()
    if value is None:
        return "an empty cell"
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...")
