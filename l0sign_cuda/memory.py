"""How much memory this process has taken."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory() -> dict[str, int]:
    """The most bytes that were in use at once: `host`, of RAM, and with a GPU `device`, of its memory.

    `host` is the resident set, which includes the program and those pages of memory-mapped files that the
    system keeps at hand; where the system does not tell, it is left out.
    """
    found = {}
    host = _peak_resident()
    if host is not None:
        found["host"] = host
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device"] = sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    return found


def _peak_resident() -> int | None:
    # Linux reports here what this program took; getrusage also counts the process that started it.
    match = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.M) if _STATUS.exists() else None
    if match:
        return int(match.group(1)) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
