"""Loads the compiled module `_C` once, when `ops` is imported; keeps the original error of a failure.

`import l0sign_cuda` never fails because of the binary: the plain PyTorch reference, the readers and
`l0sign doctor` work without it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import re
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ._version import __version__

_MINIMUM_TORCH = (2, 10)
_REBUILD = (
    "rebuild it in the source directory: `make build`, or `pip install --force-reinstall --no-deps .` "
    "in the environment that holds torch"
)

_lock = threading.Lock()
_module: ModuleType | None = None
_error: Exception | None = None


def load() -> ModuleType:
    """Return the compiled module, loading it on the first call; this registers `torch.ops.l0sign_cuda.*`.

    Raises ImportError with the original reason and the remedy, the same on every call.
    """
    global _module, _error
    with _lock:
        if _module is None and _error is None:
            try:
                _module = _import()
            except Exception as error:
                _error = error
    if _module is None:
        raise ImportError(
            f"the compiled part of l0sign_cuda cannot be used: {type(_error).__name__}: {_error}\n"
            f"  Remedy: {_remedy(_error)}."
        ) from _error
    return _module


def load_error() -> Exception | None:
    """Return what went wrong in loading the compiled module, or None if it is there."""
    try:
        load()
    except ImportError:
        return _error
    return None


def is_available() -> bool:
    """Whether the compiled module can be used."""
    return _module is not None or load_error() is None


def build_info() -> dict[str, Any]:
    """Return what the binary was built with and for.

    The keys are version, compiler, torch_target, torch_headers, cpu_instruction_sets, cuda_version (None
    without CUDA), cuda_architectures and cuda_operators.
    """
    info: dict[str, Any] = load().build_info()
    return info


def cuda_operators() -> frozenset[str]:
    """Return the names of the operators that have a CUDA kernel in this build."""
    return frozenset(build_info()["cuda_operators"])


def cpu_capability() -> str:
    """Return the CPU kernels in use: "avx512", "avx2" or "portable".

    The environment variable L0SIGN_CPU_CAPABILITY, read when kernels are first asked for, asks for a lesser
    one; RuntimeError where it asks for one that this processor or build does not have.
    """
    capability: str = load().cpu_capability()
    return capability


def room() -> Any:
    """Memory for what a CPU forward leaves for its backward, known by its ``number``.

    None where the kernels leave nothing, or there is no such memory: it only saves work.
    """
    if not _leaves_something():
        return None
    try:
        return load().Room()
    except MemoryError:
        return None


@functools.cache
def _leaves_something() -> bool:
    return cpu_capability() != "portable"  # kKeeps in csrc/cpu/kept.h


def _import() -> ModuleType:
    if _version_pair(torch.__version__) < _MINIMUM_TORCH:
        raise ImportError(f"torch {torch.__version__} is too old")
    module = importlib.import_module(f"{__package__}._C")
    built = module.build_info()["version"]
    if built != __version__:
        raise ImportError(f"{module.__file__} was built for l0sign_cuda {built}, but this is {__version__}")
    return module


def _version_pair(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def _remedy(error: Exception | None) -> str:
    if _version_pair(torch.__version__) < _MINIMUM_TORCH:
        return "pip install 'torch>=2.10'"
    if not isinstance(error, ModuleNotFoundError):
        return _REBUILD
    here = Path(__file__).parent
    present = sorted(file.name for file in here.glob("_C*.so"))
    wanted = f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    found = f"there is only {', '.join(present)}" if present else "it was never built there"
    return f"{here} has no {wanted} ({found}); {_REBUILD}"
