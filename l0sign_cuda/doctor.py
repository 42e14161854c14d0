"""`l0sign doctor`: which versions meet here, which kernels will run, and what is missing for the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch

from . import _extension
from ._version import __version__

_DISTRIBUTION = "l0sign-cuda"
_EXTRAS = {  # what each is for; "dev" is for working on l0sign_cuda itself
    "train": "l0sign prepare, train, evaluate, predict",
    "report": "plots and reports",
    "pyg": "PyTorch Geometric",
    "dist": "TorchRec",
    "bench": "benchmarks",
}


def report() -> dict[str, Any]:
    """Gather everything that `l0sign doctor` prints, as plain data."""
    error = _extension.load_error()
    info = _extension.build_info() if error is None else None
    return {
        "versions": {
            "l0sign_cuda": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": _installed("numpy"),
            "compiler": info["compiler"] if info else None,
            "torch_headers": info["torch_headers"] if info else None,
            "cuda_build": info["cuda_version"] if info else None,
            "cuda_torch": torch.version.cuda,
        },
        "binary": {"available": error is None, "error": _load_message(), "build": info},
        "cpu": _cpu(info),
        "gpu": _gpu(info),
        "extras": _extras(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return 1 if the compiled module or its CPU kernels cannot be used, else 0."""
    parser = argparse.ArgumentParser(prog="l0sign doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args(argv)
    found = report()
    print(json.dumps(found, indent=2) if arguments.json else _text(found))
    return 0 if found["cpu"]["missing"] is None else 1


def _load_message() -> str | None:
    try:
        _extension.load()
    except ImportError as error:
        return str(error)
    return None


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu(info: dict[str, Any] | None) -> dict[str, Any]:
    kernels, missing = None, None if info else "the compiled module"
    if info:
        try:
            kernels = _extension.cpu_capability()
        except RuntimeError as error:  # the environment asks for what is not there
            missing = str(error)
    return {
        "kernels": kernels,
        "built": info["cpu_instruction_sets"] if info else [],
        "threads": torch.get_num_threads(),
        "missing": missing,
    }


def _gpu(info: dict[str, Any] | None) -> dict[str, Any]:
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            devices.append({"name": torch.cuda.get_device_name(index), "capability": f"{major}.{minor}"})
    operators = info["cuda_operators"] if info else []
    architectures = info["cuda_architectures"] if info else []
    missing = _gpu_obstacle(info, devices)
    return {
        "kernels": [] if missing else operators,
        "built": operators,
        "architectures": architectures,
        "devices": devices,
        "missing": missing,
    }


def _gpu_obstacle(info: dict[str, Any] | None, devices: list[dict[str, str]]) -> str | None:
    """What keeps the CUDA kernels from running, the first reason there is."""
    if info is None:
        return "the compiled module"
    if info["cuda_version"] is None:
        return "CUDA kernels: this build has none. Put nvcc on PATH and rebuild with L0SIGN_CUDA=1"
    if torch.version.cuda is None:
        return f"a torch with CUDA: {torch.__version__} is built for the CPU"
    if not devices:
        return "a GPU that torch can use"
    for device in devices:
        if not runs_on(info["cuda_architectures"], device["capability"]):
            return (
                f"kernels for compute capability {device['capability']} ({device['name']}). "
                f"Rebuild with TORCH_CUDA_ARCH_LIST={device['capability']}"
            )
    return None


def runs_on(architectures: Sequence[str], capability: str) -> bool:
    """Whether code for `architectures` ("80-real", "90a-real", "120") runs on a GPU of `capability` ("9.0").

    Machine code runs on the same major version from its minor version on; what also holds PTX, on all later
    GPUs. Code for "90a" runs on exactly that GPU, for "100f" within its family.
    """
    device = int(capability.replace(".", ""))
    for architecture in architectures:
        match = re.fullmatch(r"(\d+)([af]?)(-real)?", architecture)
        if match is None:
            continue
        built, suffix, real_only = int(match.group(1)), match.group(2), match.group(3)
        if device == built or (device > built and suffix != "a" and device // 10 == built // 10):
            return True
        if device > built and not suffix and not real_only:
            return True
    return False


def _extras() -> dict[str, dict[str, Any]]:
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return {}
    found = {}
    for extra, purpose in _EXTRAS.items():
        names = [name for name in map(lambda text: _requirement(text, extra), requirements) if name]
        missing = [name for name in names if _installed(name) is None]
        found[extra] = {
            "for": purpose,
            "missing": missing,
            "install": f'pip install "{_DISTRIBUTION}[{extra}]"',
        }
    return found


def _requirement(text: str, extra: str) -> str | None:
    """Return the distribution's name if this line of the metadata is asked for by `extra`, here."""
    name, _, marker = text.partition(";")
    wanted = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
    if wanted is None or wanted.group(1) != extra:
        return None
    python = re.search(r"python_version < ['\"](\d+)\.(\d+)['\"]", marker)
    if python and sys.version_info[:2] >= (int(python.group(1)), int(python.group(2))):
        return None
    match = re.match(r"[\w.-]+", name.strip())
    return match.group(0) if match else None


def _text(found: dict[str, Any]) -> str:
    versions, cpu, gpu = found["versions"], found["cpu"], found["gpu"]
    rows = [
        ("l0sign_cuda", versions["l0sign_cuda"]),
        ("python", versions["python"]),
        ("torch", f"{versions['torch']} (CUDA {versions['cuda_torch'] or 'no'})"),
        ("numpy", versions["numpy"] or "not installed"),
    ]
    if found["binary"]["available"]:
        cuda = versions["cuda_build"]
        rows += [
            ("binary", f"{versions['compiler']}, torch {versions['torch_headers']} headers"),
            ("CUDA build", f"{cuda}, {' '.join(gpu['architectures'])}" if cuda else "no"),
            (
                "CPU kernels",
                f"none: {cpu['missing']}"
                if cpu["missing"]
                else f"{cpu['kernels']} (built: {' '.join(cpu['built'])}; {cpu['threads']} threads)",
            ),
        ]
    else:
        rows.append(("binary", f"BROKEN: {found['binary']['error']}"))
    rows.append(
        ("GPU kernels", f"none; missing: {gpu['missing']}" if gpu["missing"] else " ".join(gpu["kernels"]))
    )
    rows += [
        ("GPU", f"{device['name']}, compute capability {device['capability']}") for device in gpu["devices"]
    ]
    for extra, state in found["extras"].items():
        missing = (
            f"missing {', '.join(state['missing'])}: {state['install']}" if state["missing"] else "installed"
        )
        rows.append((f"[{extra}]", f"{missing} (for {state['for']})"))
    return "\n".join(f"{label + ':':<13} {value}" for label, value in rows)
