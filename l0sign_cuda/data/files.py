"""What every reader shares: opening plain and compressed files, and what happens to a malformed line."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .dataset import ReadReport
from .vocabulary import Vocabulary

__all__ = ["COMPRESSIONS", "Part", "Source", "open_binary"]

COMPRESSIONS = (".gz", ".xz")


class Part(NamedTuple):
    """Some graphs of a file, in its order. Whether ids are global yet is the reader's matter."""

    ids: NDArray[np.int64]  # [N]
    lengths: NDArray[np.int64]  # [B]
    values: NDArray[np.float32] | None  # [N]; None means all ones
    labels: NDArray[np.float32] | None  # [B]

    def slice(self, start: int, stop: int) -> Part:
        """Graphs start to stop - 1."""
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:stop].sum())
        return Part(
            self.ids[first:last],
            self.lengths[start:stop],
            None if self.values is None else self.values[first:last],
            None if self.labels is None else self.labels[start:stop],
        )

    @staticmethod
    def concatenate(parts: list[Part], labelled: bool) -> Part:
        """One part after the other; none at all is a part without graphs."""
        values = None
        if any(p.values is not None for p in parts):
            ones = (np.ones(len(p.ids), np.float32) if p.values is None else p.values for p in parts)
            values = np.concatenate(list(ones))
        labels = [p.labels for p in parts if p.labels is not None]
        return Part(
            np.concatenate([p.ids for p in parts] or [np.empty(0, np.int64)]),
            np.concatenate([p.lengths for p in parts] or [np.empty(0, np.int64)]),
            values,
            np.concatenate(labels or [np.empty(0, np.float32)]) if labelled else None,
        )


@dataclass
class Source:
    """A file being read, what to encode it with, and what to do with lines that do not fit."""

    path: Path
    vocabulary: Vocabulary | None = None
    unseen: Literal["error", "drop"] = "error"
    skip_bad_lines: bool = False
    report: ReadReport = field(default_factory=ReadReport)

    @property
    def wants_message(self) -> bool:
        """Whether the next message will be seen: finding a line's number may cost a pass over the file."""
        return not self.skip_bad_lines or len(self.report.examples) < self.report.MAX_EXAMPLES

    def malformed(self, where: int | str, message: str) -> None:
        """A line that does not fit: an error, or one more line skipped."""
        self._refuse_or_note(self.skip_bad_lines, where, message)
        self.report.bad_lines += 1

    def unknown(self, where: int | str, what: str, nodes: int) -> None:
        """Values that the vocabulary does not know: an error, or nodes dropped."""
        hint = "" if self.unseen == "drop" else "; unseen='drop' leaves such nodes out"
        self._refuse_or_note(self.unseen == "drop", where, f"{what} is not in the vocabulary{hint}")
        self.report.unseen += nodes

    def _refuse_or_note(self, note: bool, where: int | str, message: str) -> None:
        if not note:
            raise ValueError(f"{self.path}:{where}: {message}")
        self.report.note(f"{self.path}:{where}: {message}")

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The decompressed bytes. Damaged compression is a ValueError naming the file."""
        try:
            with open_binary(self.path) as f:
                yield f
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise ValueError(f"{self.path}: the compressed data is damaged or truncated: {error}") from error


def open_binary(path: Path) -> IO[bytes]:
    """Open for reading, decompressed where the suffix says so."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    return cast(IO[bytes], opener(path, "rb"))
