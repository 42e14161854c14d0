"""The rows of CSV and parquet files, as batches of pyarrow arrays that know where each row stands."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

from .._extras import require
from .files import COMPRESSIONS, Source
from .vocabulary import FieldKind

__all__ = ["CsvRows", "ParquetRows", "Rows"]

_BLOCK_BYTES = 4 << 20
_BATCH_ROWS = 1 << 16
_END = "<end of file>"


class Rows(Protocol):
    """A table file."""

    def header(self) -> dict[str, FieldKind]:
        """The columns in order, and the kind that each has where the user names none."""

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Record batches of these columns."""

    def where(self, row: int) -> int | str:
        """Where the row with this number, counted from 0 over all batches, stands in the file."""


class CsvRows:
    """A CSV file; every cell comes as bytes, None where it is empty.

    Args:
        source: the file.
        separator: between cells.
        quote: the quote character; None takes quotes as they stand.
        names: of the columns, where the file has no header line.
    """

    def __init__(
        self, source: Source, separator: str, quote: str | None, names: Sequence[str] | None
    ) -> None:
        for what, character in (("separator", separator), ("quote", quote)):
            if character is not None and (len(character) != 1 or not character.isascii()):
                raise ValueError(f"{what}: expected one ASCII character, got {character!r}")
            if character in ("\n", "\r"):
                raise ValueError(f"{what}: expected no line break, got {character!r}")
        if separator == quote:
            raise ValueError(f"separator: expected another character than the quote, got {separator!r}")
        self._source = source
        self._separator = separator
        self._quote = quote
        self._names = None if names is None else list(names)
        self._wrong_records: list[int] = []  # numbers of the records with a wrong number of cells

    def header(self) -> dict[str, FieldKind]:
        """The columns, all categorical: the text of a cell does not tell a number from a code."""
        names = self._names
        if names is None:
            names = next((record for _, record in self._records()), None)
        if names is None:
            raise ValueError(f"{self._source.path}:1: expected a header line, got an empty file")
        if wrong := next((n for n in names if not n.isascii() and not _is_utf8(n)), None):
            raise ValueError(f"{self._source.path}:1: expected column names in UTF-8, got {wrong!a}")
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"{self._source.path}:1: expected distinct column names, got {twice!r} twice")
        return dict.fromkeys(names, "categorical")

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Record batches; rows with a wrong number of cells are malformed and never reach them."""
        pa, pa_csv = require("pyarrow", "train"), require("pyarrow.csv", "train")
        wrong: list[Any] = []
        if next(self._records(), None) is None:
            return  # pyarrow refuses a file without any line
        # A last row with a cell too many: pyarrow tells of it, unless an open quote has swallowed it.
        end = self._separator * len(self.header()) + _END
        ended = False

        def on_wrong_width(row: Any) -> str:
            nonlocal ended
            if row.text == end:
                ended = True
                return "skip"
            wrong.append(row)
            self._wrong_records.append(row.number)
            return "skip" if self._source.skip_bad_lines else "error"

        # Without threads pyarrow knows the number of a row that does not fit.
        options = {
            "read_options": pa_csv.ReadOptions(
                block_size=_BLOCK_BYTES, column_names=self._names, use_threads=False
            ),
            "parse_options": pa_csv.ParseOptions(
                delimiter=self._separator,
                quote_char=self._quote or False,
                newlines_in_values=self._quote is not None,
                invalid_row_handler=on_wrong_width,
            ),
            "convert_options": pa_csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.binary()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        }
        try:
            with self._source.open() as f:
                for batch in pa_csv.open_csv(_Ended(f, f"\n{end}\n".encode()), **options):
                    yield batch
                    while wrong:
                        self._refuse(wrong.pop(0))
        except pa.ArrowInvalid:
            if not wrong:
                self._last_line()  # which may know better
                raise
            self._refuse(wrong.pop(0))
        while wrong:
            self._refuse(wrong.pop(0))
        # An error even where bad lines are skipped: nobody knows how much of the file the quote took.
        if not ended:
            raise ValueError(
                f"{self._source.path}:{self._last_line()}: expected a closing quote, got the end of the file;"
                " quote=None takes quotes as they stand"
            )

    def where(self, row: int) -> int:
        """The line where an accepted row starts. Only messages ask, so the file is read again."""
        record = row + (1 if self._names is not None else 2)
        for wrong in sorted(self._wrong_records):
            record += wrong <= record
        return self._line_of(record)

    def _refuse(self, row: Any) -> None:
        line = self._line_of(row.number) if self._source.wants_message else 0
        self._source.malformed(line, f"expected {row.expected_columns} cells, got {row.actual_columns}")

    def _line_of(self, number: int) -> int:
        """The line of a record. Records count from 1, the header included, blank lines not, as in pyarrow."""
        return next(line for k, (line, _) in enumerate(self._records(), 1) if k == number)

    def _last_line(self) -> int:
        """The line where the last record starts."""
        line = 1
        for line, _ in self._records():  # noqa: B007
            pass
        return line

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of every record, by Python's own parser."""
        with self._source.open() as f:
            text = io.TextIOWrapper(f, encoding="utf-8-sig", errors="surrogateescape", newline="")
            records = csv.reader(
                text,
                delimiter=self._separator,
                quotechar=self._quote,
                quoting=csv.QUOTE_MINIMAL if self._quote else csv.QUOTE_NONE,
            )
            line = 1
            try:
                for record in records:
                    if record:
                        yield line, record
                    line = records.line_num + 1
            except csv.Error as error:
                limit = csv.field_size_limit()
                raise ValueError(
                    f"{self._source.path}:{line}: expected cells of at most {limit} characters,"
                    f" and every quote closed: {error}"
                ) from error


class _Ended:
    """A binary file with some bytes more at its end."""

    closed = False

    def __init__(self, file: IO[bytes], end: bytes) -> None:
        self._file, self._end = file, end

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if not data:
            data, self._end = self._end, b""
        return data

    def close(self) -> None:
        """The file is closed by who opened it."""


def _is_utf8(text: str) -> bool:
    """Whether decoding, which lets bytes that are none escape, found UTF-8 only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ParquetRows:
    """A parquet file."""

    def __init__(self, source: Source) -> None:
        pa, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
        if source.path.suffix.lower() in COMPRESSIONS:
            raise ValueError(f"{source.path}: a parquet file is compressed within; decompress this one first")
        self._source = source
        try:
            self._file = parquet.ParquetFile(source.path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{source.path}: expected a parquet file: {error}") from error

    def header(self) -> dict[str, FieldKind]:
        """The columns that hold scalars; floating-point and decimal ones are numeric."""
        types = require("pyarrow", "train").types
        return {
            column.name: "numeric"
            if types.is_floating(column.type) or types.is_decimal(column.type)
            else "categorical"
            for column in self._file.schema_arrow
            if not types.is_nested(column.type)
        }

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Record batches."""
        try:
            yield from self._file.iter_batches(_BATCH_ROWS, columns=columns)
        except OSError as error:
            raise ValueError(f"{self._source.path}: the file is damaged: {error}") from error

    def where(self, row: int) -> str:
        """A row of a parquet file has no line."""
        return f"row {row + 1}"
