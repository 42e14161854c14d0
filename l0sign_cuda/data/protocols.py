"""The paper's protocols: from raw logs of what users did to positives and sampled negatives."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .dataset import GraphDataset
from .files import Source
from .reader import read
from .vocabulary import Field, Vocabulary

__all__ = ["PROTOCOLS", "prepare_frappe", "prepare_movielens_tag"]

_FRAPPE_FIELDS = (
    "user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city",
)  # fmt: skip
# The separator is the one after the user; a tag may contain it, so the last one ends the tag.
_TAG_LINE = re.compile(r"(\d+)(::|;)(\d+)\2(.*)\2(\d+)")

Ints = NDArray[np.int64]

# Rounds of drawing weighted items again, until they are drawn one by one.
_REJECTIONS = 30


def prepare_frappe(
    logs: str | os.PathLike[str],
    seed: int = 0,
    negatives: int = 2,
    skip_bad_lines: bool = False,
    popularity: float = 0.0,
) -> GraphDataset:
    """The Frappe protocol: every log is a positive and is followed by its negatives, which have label 0.

    A negative has the same user and context and an app drawn from those that this user never used, uniformly
    unless `popularity` is set; no app comes twice in one context of a user. The original file gives 288,609
    graphs of 10 nodes over 5,382 features.

    Args:
        logs: the tab separated log with its header (user item cnt daytime weekday isweekend homework cost
            weather country city), plain, .gz or .xz. `cnt` is no feature.
        seed: decides the negatives.
        negatives: how many for each log.
        skip_bad_lines: leave malformed lines out and count them in the result's `report`.
        popularity: draw an app in proportion to its number of logs to this power. With 1 that an app is
            popular tells far less of whether a sample is positive, which makes the task harder.

    Raises:
        ValueError: "FILE:LINE: expected ..., got ..."; a column is missing; a user has too few unused apps;
            popularity is negative or not finite.
    """
    positives = read(
        logs,
        format="csv",
        separator="\t",
        quote=None,
        categorical=_FRAPPE_FIELDS,
        missing="error",
        skip_bad_lines=skip_bad_lines,
    )
    vocabulary = positives.vocabulary
    assert vocabulary is not None
    nodes = positives.ids.reshape(len(positives), len(_FRAPPE_FIELDS)).astype(np.int64)
    user, item = vocabulary.field_names.index("user"), vocabulary.field_names.index("item")
    context = np.delete(nodes, item, axis=1)
    return _with_negatives(
        positives,
        nodes,
        item,
        owner=nodes[:, user],
        context=_groups(context),
        negatives=negatives,
        seed=seed,
        popularity=popularity,
    )


def prepare_movielens_tag(
    tags: str | os.PathLike[str], seed: int = 0, negatives: int = 2, skip_bad_lines: bool = False
) -> GraphDataset:
    """The MovieLens-tag protocol: every (user, movie, tag) is a positive and is followed by its negatives.

    A negative has the same user and movie and a tag drawn uniformly from those that this user did not give to
    this movie; no tag comes twice for one user and movie. An application that the file repeats counts once.
    Tags are taken as they stand: case and spaces matter.

    Args:
        tags: lines "user::movie::tag::timestamp", or with ";" instead of "::", plain, .gz or .xz. A tag may
            contain the separator.
        seed: decides the negatives.
        negatives: how many for each positive.
        skip_bad_lines: leave malformed lines out and count them in the result's `report`.

    Raises:
        ValueError: "FILE:LINE: expected ..., got ..."; there are too few tags.
    """
    source = Source(Path(tags), skip_bad_lines=skip_bad_lines)
    seen: tuple[dict[str, int], ...] = ({}, {}, {})
    rows = {
        tuple(f.setdefault(v, len(f)) for f, v in zip(seen, r, strict=True)): None for r in _tag_lines(source)
    }
    vocabulary = Vocabulary(
        Field(n, values=list(f)) for n, f in zip(("user", "movie", "tag"), seen, strict=True)
    )
    nodes = np.array(list(rows), np.int64).reshape(-1, 3) + vocabulary.offsets[:-1]
    positives = GraphDataset.from_dense(nodes, vocabulary=vocabulary)
    positives.report = source.report
    group = _groups(nodes[:, :2])
    return _with_negatives(positives, nodes, 2, owner=group, context=group, negatives=negatives, seed=seed)


PROTOCOLS: dict[str, Callable[..., GraphDataset]] = {
    "frappe": prepare_frappe,
    "movielens-tag": prepare_movielens_tag,
}


def _tag_lines(source: Source) -> Iterator[tuple[str, str, str]]:
    with source.open() as f:
        for number, line in enumerate(f, 1):
            raw = line.rstrip(b"\r\n")
            try:
                match = _TAG_LINE.fullmatch(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                source.malformed(number, f"expected UTF-8 text, got {raw[:40]!r}")
                continue
            if match:
                yield match[1], match[3], match[4]
            elif raw.strip():
                shown = raw[:60].decode(errors="replace")
                source.malformed(number, f"expected 'user::movie::tag::timestamp', got {shown!r}")


def _with_negatives(
    positives: GraphDataset,
    nodes: Ints,  # [P, n]
    item: int,
    *,
    owner: Ints,  # [P]: negatives are items that this owner has no positive with
    context: Ints,  # [P]: no negative item comes twice in one context
    negatives: int,
    seed: int,
    popularity: float = 0.0,
) -> GraphDataset:
    """Each positive followed by `negatives` copies of it with another item."""
    if negatives < 0:
        raise ValueError(f"negatives: expected at least 0, got {negatives}")
    number = isinstance(popularity, (int, float)) and not isinstance(popularity, bool)
    if not number or not 0 <= popularity < math.inf:
        raise ValueError(f"popularity: expected a finite number of at least 0, got {popularity!r}")
    vocabulary = positives.vocabulary
    assert vocabulary is not None
    first, count = int(vocabulary.offsets[item]), len(vocabulary.fields[item])
    items, rng = nodes[:, item] - first, np.random.default_rng(seed)
    logits = popularity * np.log(np.bincount(items, minlength=count)) if popularity else None
    drawn = _draw(owner, context, items, count, negatives, rng, logits)
    graphs = np.repeat(nodes[:, None, :], 1 + negatives, axis=1)
    graphs[:, 1:, item] = drawn + first
    labels = np.zeros(graphs.shape[:2], np.float32)
    labels[:, 0] = 1
    ids = graphs.reshape(-1, nodes.shape[1]).astype(np.int32)
    data = GraphDataset.from_dense(ids, labels=labels.reshape(-1), vocabulary=vocabulary)
    data.report = positives.report
    return data


def _draw(
    owner: Ints,
    context: Ints,
    item: Ints,
    num_items: int,
    negatives: int,
    rng: np.random.Generator,
    logits: NDArray[np.float64] | None = None,
) -> Ints:
    """Items [P, negatives] that the owner has not, without repetition in a context.

    Uniform, or in proportion to exp(logits). By rejection: what collides is drawn again, so that each draw is
    distributed over what is still allowed.
    """
    owner, context = np.unique(owner, return_inverse=True)[1], np.unique(context, return_inverse=True)[1]
    used = np.unique(owner * num_items + item)
    free = num_items - np.bincount(used // num_items, minlength=int(owner.max(initial=-1)) + 1)
    wanted = negatives * np.bincount(context)
    owner_of = np.zeros(len(wanted), np.int64)
    owner_of[context] = owner
    if (short := wanted > free[owner_of]).any():
        at = int(np.argmax(short))
        raise ValueError(
            f"expected at least {wanted[at]} items without a positive to draw negatives from, "
            f"got {free[owner_of[at]]}"
        )
    owner, context = np.repeat(owner, negatives), np.repeat(context, negatives)
    drawn = np.zeros(len(owner), np.int64)
    taken = np.empty(0, np.int64)
    open_slots = np.arange(len(owner))
    ends = None if logits is None else np.cumsum(np.exp(logits - logits.max()))
    for _ in itertools.count() if logits is None else range(_REJECTIONS):
        if not len(open_slots):
            break
        if ends is None:
            drawn[open_slots] = rng.integers(num_items, size=len(open_slots))
        else:  # a product that is rounded up to the last end means the last item
            drawn[open_slots] = np.searchsorted(ends[:-1], rng.random(len(open_slots)) * ends[-1], "right")
        fresh = ~np.isin(owner[open_slots] * num_items + drawn[open_slots], used)
        keys = context[open_slots] * num_items + drawn[open_slots]
        fresh &= ~np.isin(keys, taken)
        candidates = np.flatnonzero(fresh)
        winners = candidates[np.unique(keys[candidates], return_index=True)[1]]
        taken = np.concatenate([taken, keys[winners]])
        open_slots = np.delete(open_slots, winners)
    for slot in open_slots:  # nearly all weight may lie on what is not allowed
        assert logits is not None  # without weights the rounds end when all are drawn
        scores = logits + rng.gumbel(size=num_items)
        for base, kept in ((owner[slot], used), (context[slot], taken)):
            scores[kept[kept // num_items == base] % num_items] = -np.inf
        drawn[slot] = np.argmax(scores)
        taken = np.append(taken, context[slot] * num_items + drawn[slot])
    return drawn.reshape(len(item), negatives)


def _groups(rows: Ints) -> Ints:
    """Equal rows get equal numbers. [P, k] -> [P]."""
    order = np.lexsort(rows.T)
    new = np.ones(len(rows), np.bool_)
    new[1:] = (np.diff(rows[order], axis=0) != 0).any(axis=1)
    groups = np.empty(len(rows), np.int64)
    groups[order] = np.cumsum(new) - 1
    return groups
