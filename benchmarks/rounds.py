"""Timing by turns: each round times every contestant once, so that all see the same machine."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Call = Callable[[], object]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    A contestant leaves when it has had ``seconds``, but not before ``min_rounds``.
    """

    seconds: float = 2.0
    min_rounds: int = 5
    max_rounds: int = 50
    sample: float = 0.003  # seconds that a timed sample lasts at least: quick calls are repeated in it
    warmup: int = 2


QUICK = Budget(seconds=0.05, min_rounds=2, max_rounds=3, sample=0.0, warmup=1)


def interleave(calls: Mapping[Key, Call], budget: Budget) -> dict[Key, list[float]]:
    """Seconds a call, one figure a round: round k of a list is round k of all.

    Each round begins with another contestant, so that none always follows the same one.
    """
    spent = dict.fromkeys(calls, 0.0)
    times: dict[Key, list[float]] = {name: [] for name in calls}
    with collector_off():
        repeats = {name: _warm_up(call, budget) for name, call in calls.items()}
        for number in range(budget.max_rounds):
            active = [n for n in calls if number < budget.min_rounds or spent[n] < budget.seconds]
            if not active:
                break
            start = number % len(active)
            for name in active[start:] + active[:start]:
                elapsed = _time(calls[name], repeats[name])
                spent[name] += elapsed
                times[name].append(elapsed / repeats[name])
    return times


def summary(times: Mapping[str, Sequence[float]], over: str = "fused") -> dict[str, dict[str, Any]]:
    """Per contestant: ms of all rounds, median, p10, p90, and the median of the per-round ratios over one."""
    found: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        ms = [1e3 * value for value in seconds]
        base = times.get(over)
        ratios = [value / ref for value, ref in zip(seconds, base, strict=False)] if base else []
        found[name] = {
            "ms": [float(f"{value:.5g}") for value in ms],
            "median": statistics.median(ms),
            "p10": quantile(ms, 0.1),
            "p90": quantile(ms, 0.9),
            "ratio": statistics.median(ratios) if ratios else None,
        }
    return found


def quantile(values: Sequence[float], at: float) -> float:
    """The value at a share of the sorted values, between two neighbours where it falls there."""
    ordered = sorted(values)
    position = at * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection within a timed call."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _warm_up(call: Call, budget: Budget) -> int:
    """Call a few times, a slow one once; how often a timed sample is to repeat the call."""
    if not budget.warmup:
        return 1
    call()  # compiles, where there is something to compile
    for _ in range(budget.warmup):
        once = _time(call, 1)
        if once > 0.3:
            break
    return max(1, math.ceil(budget.sample / max(once, 1e-7)))


def _time(call: Call, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - began
