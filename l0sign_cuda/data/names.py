"""Readable names for the values of a field, from a table beside the data."""

from __future__ import annotations

import os
from pathlib import Path

from .files import Source
from .rows import CsvRows

__all__ = ["read_names"]


def read_names(
    path: str | os.PathLike[str], key: str, name: str, separator: str = "\t", quote: str | None = None
) -> dict[str, str]:
    """Value -> readable name from two columns of a CSV file, for `Vocabulary.with_names`.

        >>> apps = read_names("apps.csv", key="item", name="name")
        >>> vocabulary = vocabulary.with_names("item", apps)  # name(978) is now "item=Gmail"

    Raises:
        ValueError: "FILE:LINE: expected ..., got ...", or a column is missing.
    """
    rows = CsvRows(Source(Path(path)), separator, quote, None)
    header = rows.header()
    for column in (key, name):
        if column not in header:
            raise ValueError(f"{path}: no column {column!r}; the columns are {', '.join(header)}")
    names: dict[str, str] = {}
    for batch in rows.batches([key, name]):
        keys, values = (column.cast("string").to_pylist() for column in batch.columns)
        names.update((k, v) for k, v in zip(keys, values, strict=True) if k is not None and v is not None)
    return names
