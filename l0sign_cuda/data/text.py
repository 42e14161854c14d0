"""Text files with integer ids: libsvm ("label id:value id ...") and graph files ("label id id ...").

Blocks of whole lines are parsed as byte arrays; there is no Python loop over tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .files import Part, Source

__all__ = ["read_text"]

_BLOCK_BYTES = 1 << 20  # the working arrays of a block stay in the processor's cache
_MAX_ID = int(np.iinfo(np.int64).max)
_MAX_DIGITS = len(str(_MAX_ID))
_WIDE = 64  # bytes; longer numbers are parsed one by one

_IS_SPACE = np.isin(np.arange(256), [*b" \t\n"])
_IS_NUMERIC = np.isin(np.arange(256), [*b"0123456789+-.eE"])

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def read_text(
    source: Source,
    *,
    colons: bool,
    labelled: bool = True,
    duplicates: Literal["keep", "unique"] = "keep",
    num_features: int | None = None,
) -> Iterator[Part]:
    """The graphs of a text file. Ids are raw without a vocabulary.

    Args:
        source: the file.
        colons: whether an id may be followed by ":value".
        labelled: whether a line starts with its label.
        duplicates: "unique" keeps only the first of equal ids in a graph.
        num_features: J where the file's ids are already 0..J-1; a larger one is malformed.
    """
    if duplicates not in ("keep", "unique"):
        raise ValueError(f"duplicates: expected 'keep' or 'unique', got {duplicates!r}")
    limit = _MAX_ID + 1 if num_features is None else num_features
    with source.open() as f:
        line = 1
        for block in _blocks(f):
            text = block
            if b"\r" in text:
                text = text.replace(b"\r\n", b"\n")
            if b"#" in text:
                text = re.sub(rb"#[^\n]*", b"", text)
            part, lines = _parse(source, text, line, colons, labelled, limit)
            line += block.count(b"\n")
            if source.vocabulary is not None:
                part = _encode(source, part, lines)
            if duplicates == "unique":
                part = _without_duplicates(part)
            if len(part.lengths):
                yield part


def _blocks(f: IO[bytes]) -> Iterator[bytes]:
    """Blocks of whole lines; the last line gets its newline, and a byte order mark is dropped."""
    rest: list[bytes] = []
    data = f.read(_BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
    while data:
        cut = data.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, data[:cut]])
            rest = []
        rest.append(data[cut:])
        data = f.read(_BLOCK_BYTES)
    if last := b"".join(rest):
        yield last + b"\n"


class _Bad(NamedTuple):
    tokens: Ints  # first byte of each offending token
    expected: str


def _parse(
    source: Source, text: bytes, first_line: int, colons: bool, labelled: bool, limit: int
) -> tuple[Part, Ints]:
    """A block of whole lines -> its graphs and their line numbers [B]. Blank lines are no graphs."""
    data = np.frombuffer(text, np.uint8)
    inside = ~_IS_SPACE[data]
    colon = data == ord(":") if colons else np.zeros(len(data), np.bool_)
    inside &= ~colon
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if inside[0]:
        edges = np.concatenate([[0], edges])
    # Pieces are what stands between spaces and colons: labels, ids and values.
    starts, ends = edges[0::2], edges[1::2]
    newlines = np.flatnonzero(data == ord("\n"))
    per_line = np.diff(np.searchsorted(starts, newlines), prepend=0)
    line_of = np.repeat(np.arange(len(newlines)), per_line)
    bad: list[_Bad] = []

    is_value = colon[np.maximum(starts - 1, 0)]
    at = np.flatnonzero(colon)
    # A colon at either edge of the block is caught too: its neighbour is then itself or the final newline.
    lonely = at[~(inside[np.maximum(at - 1, 0)] & inside[at + 1])]
    if len(lonely):
        bad.append(_Bad(lonely, "'id' or 'id:value'"))
    if is_value.any():
        double = is_value.copy()
        double[1:] &= is_value[:-1]
        double[:1] = False
        if double.any():
            bad.append(_Bad(starts[double], "'id' or 'id:value'"))

    is_label = np.zeros(len(starts), np.bool_)
    if labelled:
        is_label[(np.cumsum(per_line) - per_line)[per_line > 0]] = True
        with_colon = is_label & (colon[ends] | is_value)
        if with_colon.any():
            bad.append(_Bad(starts[with_colon], "a label (a finite number) first"))
    is_id = ~is_label & ~is_value

    ids, wrong = _parse_ids(data, starts[is_id], ends[is_id], limit)
    if wrong.any():
        expected = "an id (an integer from 0" + (")" if limit > _MAX_ID else f" to {limit - 1})")
        bad.append(_Bad(starts[is_id][wrong], expected))
    labels = None
    if labelled:
        labels, wrong = _parse_numbers(data, starts[is_label], ends[is_label])
        if wrong.any():
            bad.append(_Bad(starts[is_label][wrong], "a label (a finite number) first"))
    values = None
    if is_value.any():
        numbers, wrong = _parse_numbers(data, starts[is_value], ends[is_value])
        if wrong.any():
            bad.append(_Bad(starts[is_value][wrong], "a finite value after the colon"))
        values = np.ones(len(ids), np.float32)
        if not bad:  # else ids and values do not pair up
            values[(np.cumsum(is_id) - 1)[np.flatnonzero(is_value) - 1]] = numbers

    if bad:
        lines = _report(source, bad, text, newlines, first_line)
        # Parse again without the bad lines: the common case then needs no bookkeeping for this one.
        kept = [b"" if k in lines else line for k, line in enumerate(text.split(b"\n"))]
        return _parse(source, b"\n".join(kept), first_line, colons, labelled, limit)

    rows = per_line > 0
    lengths = np.bincount(line_of[is_id], minlength=len(newlines))[rows]
    if values is not None and (values == 1).all():
        values = None
    return Part(ids, lengths, values, labels), first_line + np.flatnonzero(rows)


def _parse_ids(data: Bytes, starts: Ints, ends: Ints, limit: int) -> tuple[Ints, Mask]:
    """Decimal digits -> ids, and which are wrong: not digits, or not below limit."""
    lengths = ends - starts
    wrong = lengths > _MAX_DIGITS
    result = np.zeros(len(starts), np.uint64)  # holds every number of 19 digits
    for k in range(min(int(lengths.max(initial=0)), _MAX_DIGITS)):
        active = lengths > k
        digit = data[np.minimum(starts + k, len(data) - 1)] - np.uint8(ord("0"))  # wraps around below "0"
        wrong |= active & (digit > 9)
        result = np.where(active, result * np.uint64(10) + digit, result)
    wrong |= result > np.uint64(limit - 1)
    return result.astype(np.int64), wrong


def _parse_numbers(data: Bytes, starts: Ints, ends: Ints) -> tuple[NDArray[np.float32], Mask]:
    """Decimal numbers -> float32, and which are wrong: no number, or not finite in float32."""
    lengths = ends - starts
    result = (data[starts] - np.uint8(ord("0"))).astype(np.float32)
    rest = np.flatnonzero((lengths > 1) | (result > 9))
    wrong = np.zeros(len(starts), np.bool_)
    if not len(rest):
        return result, wrong
    width = min(int(lengths[rest].max()), _WIDE)
    columns = np.arange(width)
    characters = data[np.minimum(starts[rest, None] + columns, len(data) - 1)]
    beyond = columns >= lengths[rest, None]
    characters[beyond] = 0
    # Letters other than an exponent's, and underscores, would mean something to Python.
    plain = (_IS_NUMERIC[characters] | beyond).all(axis=1) & (lengths[rest] <= _WIDE)
    words = np.ascontiguousarray(characters).view(f"S{width}").reshape(-1)
    numbers = np.full(len(rest), np.nan)
    try:
        numbers[plain] = words[plain].astype(np.float64)
    except ValueError:  # some word, such as "1e", is none: find which
        numbers[plain] = [_number(w) for w in words[plain].tolist()]
    for k in np.flatnonzero(lengths[rest] > _WIDE):
        word = data[starts[rest[k]] : ends[rest[k]]]
        numbers[k] = _number(word.tobytes()) if _IS_NUMERIC[word].all() else np.nan
    with np.errstate(over="ignore"):
        result[rest] = numbers
    wrong[rest] = ~np.isfinite(result[rest])
    return result, wrong


def _number(word: bytes) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")


def _report(source: Source, bad: list[_Bad], text: bytes, newlines: Ints, first_line: int) -> set[int]:
    """Report every bad line once, by its first offence; return their positions in the block."""
    offences = sorted((int(at), b.expected) for b in bad for at in b.tokens)
    lines: set[int] = set()
    at_line = np.searchsorted(newlines, [at for at, _ in offences]).tolist()
    for (at, expected), line in zip(offences, at_line, strict=True):
        if line not in lines:
            lines.add(line)
            start = int(newlines[line - 1]) + 1 if line else 0
            word = _word_at(text[start : int(newlines[line])], at - start)
            source.malformed(first_line + line, f"expected {expected}, got {word}")
    return lines


def _word_at(line: bytes, at: int) -> str:
    """The word around a position, quoted and shortened, for messages."""
    start = max(line.rfind(b" ", 0, at), line.rfind(b"\t", 0, at)) + 1
    shown = re.split(rb"[ \t]", line[start:], maxsplit=1)[0].decode(errors="replace")
    return repr(shown if len(shown) <= 40 else shown[:37] + "...")


def _encode(source: Source, part: Part, lines: Ints) -> Part:
    """Raw ids -> ids of the vocabulary; unknown ones go."""
    assert source.vocabulary is not None
    ids = source.vocabulary.fields[0].find_ids(part.ids)
    unknown = ids < 0
    if not unknown.any():
        return part._replace(ids=ids)
    node = int(np.argmax(unknown))
    row = np.repeat(np.arange(len(part.lengths)), part.lengths)
    source.unknown(int(lines[row[node]]), f"id {part.ids[node]}", int(unknown.sum()))
    return _keep_nodes(part._replace(ids=ids), row, ~unknown)


def _without_duplicates(part: Part) -> Part:
    """Keep the first of equal ids in a graph, and the order."""
    row = np.repeat(np.arange(len(part.lengths)), part.lengths)
    order = np.lexsort((part.ids, row))  # stable: the first of equals comes first
    same = (np.diff(part.ids[order], prepend=-1) == 0) & (np.diff(row[order], prepend=-1) == 0)
    if not same.any():
        return part
    keep = np.ones(len(row), np.bool_)
    keep[order[same]] = False
    return _keep_nodes(part, row, keep)


def _keep_nodes(part: Part, row: NDArray[np.integer[Any]], keep: Mask) -> Part:
    lengths = np.bincount(row[keep], minlength=len(part.lengths))
    values = None if part.values is None else part.values[keep]
    return part._replace(ids=part.ids[keep], lengths=lengths, values=values)
