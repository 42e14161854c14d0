"""Benchmarks: this library against what one would write without it. See README.md here."""

import os

# The cores that this process may use. Asked before torch loads, whose OpenMP puts the first thread on one of
# them where it is told to (environment.bound).
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
