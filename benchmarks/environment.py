"""What a figure depends on: the machine, versions, allocator, commit, and the core's arithmetic peak."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import l0sign_cuda
from l0sign_cuda._extension import build_info, cpu_capability

from . import CORES

ROOT = Path(__file__).resolve().parents[1]

# glibc returns large blocks to the system and faults them in anew for each tensor; this makes it keep them.
TUNED_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2000000000"}

# Threads that wait for each other give their core away: slower, but far quicker on a machine with other work.
PATIENT = {"OMP_WAIT_POLICY": "passive"}

# Each thread stays on a core of its own.
_BOUND = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}


def machine() -> dict[str, Any]:
    """The processor, its cores that this process may use, and the memory."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(CORES),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
    }


def versions() -> dict[str, str | None]:
    """Of everything that computes."""
    return {
        "l0sign_cuda": l0sign_cuda.__version__,
        "torch": torch.__version__,
        "torch_geometric": _installed("torch_geometric"),
        "numpy": _installed("numpy"),
        "python": platform.python_version(),
        "compiler": build_info()["compiler"],
    }


def git() -> dict[str, Any]:
    """The commit, and whether tracked files differ from it; None where this is no git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def process() -> dict[str, Any]:
    """What may differ between processes of one run: the allocator, the kernels, threads."""
    threading_variables = ("OMP_", "GOMP_", "KMP_", "MKL_")
    return {
        "allocator": allocator(os.environ),
        "instruction_set": cpu_capability(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(threading_variables)},
    }


def allocator(environment: Mapping[str, str]) -> dict[str, Any]:
    """The allocator's settings: "tuned" as TUNED_ALLOCATOR says, "default", or "other"."""
    found = {name: environment.get(name) for name in TUNED_ALLOCATOR}
    preload = [Path(name).name for name in environment.get("LD_PRELOAD", "").replace(":", " ").split()]
    if found == TUNED_ALLOCATOR and not preload:
        name = "tuned"
    else:
        name = "other" if preload or any(found.values()) else "default"
    return {"name": name, **found, "preload": preload}


Process = tuple[Mapping[str, str], Sequence[str]]
"""Environment variables and arguments"""


def run_processes(module: str, processes: Sequence[Process], patient: bool) -> list[dict[str, Any]]:
    """What a module of this package measures in processes of their own, one after the other.

    Each is given --part FILE besides its arguments, and writes JSON there. The failure of one is this one's.

    Args:
        module: its name, for `python -m`.
        processes: of the variables that set the allocator, each process has those given here alone.
        patient: threads wait for each other without spinning.
    """
    if not patient and load_average()[0] > 0.5:
        print(
            f"this machine is busy, load average {load_average()[0]}: figures will tell little",
            file=sys.stderr,
        )
    inherited = {name: value for name, value in os.environ.items() if name not in TUNED_ALLOCATOR}
    found = []
    with tempfile.TemporaryDirectory() as directory:
        part = Path(directory) / "part.json"
        for variables, arguments in processes:
            command = [sys.executable, "-m", module, "--part", str(part), *arguments]
            environment = {**inherited, **variables, **(PATIENT if patient else {})}
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
            found.append(json.loads(part.read_text(encoding="utf-8")))
            part.unlink()
    return found


def with_allocators(allocators: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """The variables of each allocator, "default" or "tuned"."""
    return {name: TUNED_ALLOCATOR if name == "tuned" else {} for name in allocators}


def bound(threads: Sequence[int]) -> Mapping[str, str]:
    """The variables that keep threads on cores of their own, where there are several, and a core for each.

    Some systems leave two threads on one core for many milliseconds while another is free: a second thread
    then looks as if it were no help, or harm. What the caller has set about places is left alone.
    """
    chosen = any(name in os.environ for name in (*_BOUND, "GOMP_CPU_AFFINITY", "KMP_AFFINITY"))
    return {} if chosen or not 1 < max(threads) <= len(CORES) else _BOUND


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes: on an idle machine no more than this process itself."""
    return [round(value, 2) for value in os.getloadavg()]


_FMA_LOOP = r"""
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vector __attribute__((vector_size(BYTES)));
/* 12 chains hide the latency of two units; the result depends on all of them. Returns operations done. */
extern "C" double fma_loop(long rounds, float *sink) {
  vector chain[12], factor = {}, term = {};
  factor += 0.999f;
  term += 0.001f;
  for (int k = 0; k < 12; ++k) chain[k] = factor + (float)k;
  for (long i = 0; i < rounds; ++i)
    for (int k = 0; k < 12; ++k) chain[k] = chain[k] * factor + term;
  for (int k = 0; k < 12; ++k) *sink += chain[k][0];
  return 2.0 * rounds * 12 * (BYTES / sizeof(float));
}
"""


def peak_gflops(threads: Sequence[int], quick: bool = False) -> dict[str, Any]:
    """The rate of float32 multiply-add of 1, 2, ... threads at once, in 1e9 operations a second.

    Measured by a loop of independent FMAs, compiled here for this processor; where there is no compiler, by
    torch.mm on 512 x 512 matrices, which reaches less than the peak, so that shares of it come out too high.
    The best of many short samples: what the cores can do, not what other programs left of them.
    """
    with tempfile.TemporaryDirectory() as directory:
        loop = _compile_loop(Path(directory))
        seconds = 0.05 if quick else 1.0
        rates = {str(n): _rate(loop, n, seconds) for n in threads}
    return {"method": "fma loop" if loop else "torch.mm 512", "gflops": rates}


def _compile_loop(directory: Path) -> Any:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    source, library = directory / "loop.cpp", directory / "loop.so"
    source.write_text(_FMA_LOOP)
    options = ["-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared"]
    built = subprocess.run([compiler, *options, str(source), "-o", str(library)], capture_output=True)
    if built.returncode:
        return None
    function = ctypes.CDLL(str(library)).fma_loop
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]
    return function


def _rate(loop: Any, threads: int, seconds: float) -> float:
    """The sum of the threads' best rates."""
    best = [0.0] * threads
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def work(at: int) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {CORES[at % len(CORES)]})  # of this thread alone
        sink = ctypes.c_float()
        matrix = torch.randn(512, 512)
        out = torch.empty(512, 512)
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            began = time.perf_counter()
            if loop:
                done = loop(100_000, ctypes.byref(sink))
            else:
                torch.mm(matrix, matrix, out=out)
                done = 2.0 * 512**3
            best[at] = max(best[at], done / (time.perf_counter() - began) / 1e9)

    workers = [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(before)
    return sum(best)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
