"""Tables: CSV, TSV and parquet, through pyarrow; a column is a field, a row a graph, a filled cell a node."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .files import Part, Source
from .vocabulary import Field, FieldKind, Vocabulary

__all__ = ["TableReader"]

_BLOCK_BYTES = 4 << 20
_BATCH_ROWS = 1 << 16
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True)
class _Column:
    name: str
    kind: FieldKind


class TableReader:
    """Reads one table. Without a vocabulary it builds one, which `finish` turns provisional ids into.

    Args:
        source: the file; its vocabulary, where it has one, decides the columns.
        label: the column with the label; None leaves the data unlabelled.
        categorical: columns whose every value is a feature of its own.
        numeric: columns that are one feature each, whose value is the number in the cell.
        ignore: columns to leave out of the default, which is: every other column, categorical (in a parquet
            file, floating-point columns are numeric).
        missing: "drop" leaves an empty cell's node out; "error" calls its line malformed.
        separator, quote: of a CSV file; quote=None takes quotes as they stand.
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
        self._format = format
        self._label = label
        self._categorical = categorical
        self._numeric = numeric
        self._ignore = ignore
        self._missing = missing
        self._separator = separator
        self._quote = quote
        self._names = columns
        self._columns: list[_Column] = []
        self._known: list[dict[bytes, int]] = []  # a column: value -> position in its field
        self._bad_records: list[int] = []  # numbers of the CSV records that had a wrong number of cells

    def parts(self) -> Iterator[Part]:
        """The table's graphs. Without a vocabulary a node's id is provisional: see `finish`."""
        pa = require("pyarrow", "train")
        batches, where = self._csv_batches() if self._format == "csv" else self._parquet_batches()
        first = 0
        try:
            for batch in batches:
                rows = first
                first += batch.num_rows
                yield self._encode(batch, lambda row, rows=rows: where(rows + row))  # type: ignore[misc]
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

    # -- the two formats -----------------------------------------------------------------------------------

    def _csv_batches(self) -> tuple[Iterator[Any], Callable[[int], int | str]]:
        pa, pa_csv = require("pyarrow", "train"), require("pyarrow.csv", "train")

        wrong: list[Any] = []

        def wrong_width(row: Any) -> str:
            wrong.append(row)
            self._bad_records.append(row.number)
            return "skip" if self._source.skip_bad_lines else "error"

        self._choose_columns(self._csv_header())
        if not self._wanted():
            raise ValueError(f"{self._source.path}: expected at least one column to read")
        options = {
            "read_options": pa_csv.ReadOptions(block_size=_BLOCK_BYTES, column_names=self._names),
            "parse_options": pa_csv.ParseOptions(
                delimiter=self._separator,
                quote_char=self._quote or False,
                newlines_in_values=self._quote is not None,
                invalid_row_handler=wrong_width,
            ),
            "convert_options": pa_csv.ConvertOptions(
                include_columns=self._wanted(),
                column_types=dict.fromkeys(self._wanted(), pa.binary()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        }

        def batches() -> Iterator[Any]:
            try:
                with self._source.open() as f:
                    for batch in pa_csv.open_csv(f, **options):
                        yield batch
                        while wrong:
                            self._wrong_width(wrong.pop(0))
            except pa.ArrowInvalid:
                if not wrong:
                    raise
                self._wrong_width(wrong.pop(0))

        return batches(), self._line_of_row

    def _csv_header(self) -> dict[str, FieldKind]:
        if self._names is not None:
            return self._checked_header(list(self._names))
        with self._source.open() as f:
            # csv counts a blank line as an empty record; pyarrow skips it.
            header = next((r for r in self._records(f) if r), None)
        if header is None:
            raise ValueError(f"{self._source.path}:1: expected a header line, got an empty file")
        return self._checked_header(header)

    def _checked_header(self, names: list[str]) -> dict[str, FieldKind]:
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"{self._source.path}:1: expected distinct column names, got {twice!r} twice")
        return dict.fromkeys(names, "categorical")

    def _records(self, f: Any) -> Iterator[list[str]]:
        text = io.TextIOWrapper(f, encoding="utf-8-sig", errors="replace", newline="")
        quoting = csv.QUOTE_MINIMAL if self._quote else csv.QUOTE_NONE
        self._csv_reader = csv.reader(
            text, delimiter=self._separator, quotechar=self._quote or None, quoting=quoting
        )
        return iter(self._csv_reader)

    def _line_of_row(self, row: int) -> int:
        """The line where an accepted row starts. Only errors ask, so the file is read again."""
        record = row + (1 if self._names is not None else 2)  # numbered from 1, the header included
        for bad in sorted(self._bad_records):
            record += bad <= record
        return self._line_of_record(record)

    def _line_of_record(self, number: int) -> int:
        with self._source.open() as f:
            line = 1
            for record in self._records(f):
                number -= bool(record)
                if not number:
                    break
                line = self._csv_reader.line_num + 1
        return line

    def _wrong_width(self, row: Any) -> None:
        expected, got = row.expected_columns, row.actual_columns
        self._source.malformed(
            self._line_of_record(row.number) if self._source.wants_message else 0,
            f"expected {expected} cells, got {got}",
        )

    def _parquet_batches(self) -> tuple[Iterator[Any], Callable[[int], int | str]]:
        pa, pa_parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")

        try:
            file = pa_parquet.ParquetFile(self._source.path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self._source.path}: expected a parquet file: {error}") from error
        header = self._checked_header(list(file.schema_arrow.names))
        for column in file.schema_arrow:
            if pa.types.is_nested(column.type):
                header.pop(column.name)
            elif pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
                header[column.name] = "numeric"
        self._choose_columns(header)
        return file.iter_batches(_BATCH_ROWS, columns=self._wanted()), lambda row: f"row {row + 1}"

    # -- columns -------------------------------------------------------------------------------------------

    def _wanted(self) -> list[str]:
        return [c.name for c in self._columns] + ([self._label] if self._label else [])

    def _choose_columns(self, header: dict[str, FieldKind]) -> None:
        """Decide the fields, in the order of the file, or of the vocabulary where there is one."""
        vocabulary = self._source.vocabulary
        if vocabulary is not None:
            if self._categorical is not None or self._numeric is not None or self._ignore:
                raise ValueError(
                    "a vocabulary decides the columns: leave out categorical, numeric and ignore"
                )
            if not vocabulary.is_tabular:
                raise ValueError(
                    f"{self._source.path}: a table needs a vocabulary of columns, got {vocabulary!r}"
                )
            self._columns = [_Column(f.name, f.kind) for f in vocabulary.fields]
            self._known = [
                {v.encode(): k for k, v in enumerate(map(str, f.values))} if f.kind == "categorical" else {}
                for f in vocabulary.fields
            ]
        else:
            kinds = {n: k for n, k in header.items() if n != self._label and n not in self._ignore}
            if self._categorical is not None or self._numeric is not None:
                numeric = dict.fromkeys(self._numeric or (), "numeric")
                rest = self._categorical
                if rest is None:
                    rest = [n for n in kinds if n not in numeric]
                if both := sorted(set(rest) & set(numeric)):
                    raise ValueError(f"column {both[0]!r} cannot be both categorical and numeric")
                chosen: dict[str, Any] = {**dict.fromkeys(rest, "categorical"), **numeric}
                order = {name: k for k, name in enumerate(header)}
                kinds = {n: chosen[n] for n in sorted(chosen, key=lambda n: order.get(n, -1))}
            self._columns = [_Column(n, k) for n, k in kinds.items()]
            self._known = [{} for _ in self._columns]
        for name in [*self._wanted(), *self._ignore]:
            if name not in header:
                raise ValueError(
                    f"{self._source.path}: no column {name!r}; the columns are {', '.join(header)}"
                )
        if any(c.name == self._label for c in self._columns):
            raise ValueError(f"column {self._label!r} cannot be both the label and a feature")

    # -- cells to nodes ------------------------------------------------------------------------------------

    def _encode(self, batch: Any, where: Callable[[int], int | str]) -> Part:
        """One batch of rows -> a part. Bad rows leave before their values could enter the vocabulary."""
        pa = require("pyarrow", "train")
        columns = {name: batch.column(k) for k, name in enumerate(batch.schema.names)}
        bad: dict[int, str] = {}
        numbers: dict[str, NDArray[np.float32]] = {}
        for column in [*self._columns, *([_Column(self._label, "numeric")] if self._label else [])]:
            cells = columns[column.name]
            if column.kind == "numeric":
                numbers[column.name], wrong = _numbers(cells)
            else:
                columns[column.name], wrong = _words(cells)
            what = f"column {column.name!r}: expected " + (
                "UTF-8 text" if column.kind != "numeric" else "a finite number"
            )
            for row in np.flatnonzero(wrong).tolist():
                bad.setdefault(row, f"{what}, got {_shown(cells[row])}")
            if column.name == self._label or self._missing == "error":
                for row in np.flatnonzero(cells.is_null().to_numpy(zero_copy_only=False)).tolist():
                    bad.setdefault(row, f"column {column.name!r}: expected a value, got an empty cell")
        keep = np.ones(batch.num_rows, np.bool_)
        for row in sorted(bad):
            self._source.malformed(where(row) if self._source.wants_message else 0, bad[row])
            keep[row] = False
        at = np.flatnonzero(keep)

        ids = np.empty((len(at), len(self._columns)), np.int64)
        values = np.ones(ids.shape, np.float32) if any(c.kind == "numeric" for c in self._columns) else None
        for k, column in enumerate(self._columns):
            cells = (
                columns[column.name] if len(at) == batch.num_rows else columns[column.name].take(pa.array(at))
            )
            if column.kind == "numeric":
                assert values is not None
                ids[:, k] = np.where(cells.is_null().to_numpy(zero_copy_only=False), -1, 0)
                values[:, k] = numbers[column.name][at]
            else:
                ids[:, k] = self._positions(k, cells, lambda row: where(int(at[row])))
        present = ids >= 0
        if self._source.vocabulary is None:
            ids = ids * len(self._columns) + np.arange(len(self._columns))
        else:
            ids = ids + self._source.vocabulary.offsets[:-1]
        labels = numbers[self._label][at] if self._label else None
        return Part(ids[present], present.sum(axis=1), None if values is None else values[present], labels)

    def _positions(self, k: int, cells: Any, where: Callable[[int], int | str]) -> NDArray[np.int64]:
        """Positions in the field of a column's cells; -1 where the cell is empty or its value unknown."""
        encoded = cells.dictionary_encode()
        words = encoded.dictionary.to_pylist()
        known = self._known[k]
        if self._source.vocabulary is None:
            # A Python loop over the distinct values of a batch, not over its cells.
            positions = [known.setdefault(w, len(known)) for w in words]
        else:
            positions = [known.get(w, -1) for w in words]
        table = np.array([*positions, -1], np.int64)
        codes = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
        result = table[codes]
        unknown = (result < 0) & (codes < len(words))
        if unknown.any():
            row = int(np.argmax(unknown))
            what = f"column {self._columns[k].name!r}: value {_shown(cells[row])}"
            self._source.unknown(where(row), what, int(unknown.sum()))
        return result


def _words(cells: Any) -> tuple[Any, NDArray[np.bool_]]:
    """Cells as UTF-8 in a binary array, and which are not UTF-8."""
    pa = require("pyarrow", "train")
    if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
        return cells.cast(pa.string()).cast(pa.binary()), np.zeros(len(cells), np.bool_)
    try:
        cells.cast(pa.string())
        return cells, np.zeros(len(cells), np.bool_)
    except pa.ArrowInvalid:
        return cells, np.array([not _is_utf8(c) for c in cells.to_pylist()])


def _is_utf8(cell: bytes | None) -> bool:
    try:
        return cell is None or cell.decode() is not None
    except UnicodeDecodeError:
        return False


def _numbers(cells: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cells as float32, and which are neither empty nor a finite number."""
    pa, pc = require("pyarrow", "train"), require("pyarrow.compute", "train")

    empty = cells.is_null().to_numpy(zero_copy_only=False)
    wrong = np.zeros(len(cells), np.bool_)
    if (
        pa.types.is_binary(cells.type)
        or pa.types.is_string(cells.type)
        or pa.types.is_large_string(cells.type)
    ):
        if not pa.types.is_string(cells.type):
            wrong = _words(cells)[1]
            cells = pc.if_else(pa.array(wrong), pa.scalar(None, cells.type), cells).cast(pa.string())
        cells = pc.ascii_trim_whitespace(cells)
        fits = pc.match_substring_regex(cells, _NUMBER).fill_null(True)
        wrong |= ~fits.to_numpy(zero_copy_only=False)
        cells = pc.if_else(fits, cells, pa.scalar(None, pa.string()))
    elif pa.types.is_boolean(cells.type):
        cells = cells.cast(pa.uint8())
    with np.errstate(over="ignore"):
        numbers = (
            cells.cast(pa.float64(), safe=False)
            .fill_null(0)
            .to_numpy(zero_copy_only=False)
            .astype(np.float32)
        )
    return numbers, wrong | (~np.isfinite(numbers) & ~empty)


def _shown(cell: Any) -> str:
    value = cell.as_py()
    shown = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(shown if len(shown) <= 40 else shown[:37] + "...")
