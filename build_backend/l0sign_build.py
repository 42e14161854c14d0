"""In-tree PEP 517 backend: setuptools, plus torch as a build requirement only where none is installed.

The binary needs torch's headers, and they should be those of the torch that will load it. A build frontend
hides the installed packages from the build, but not where they lie, so the headers are found without
importing torch. Everything that the build has to decide about its surroundings is decided here;
CMakeLists.txt is only told. Standard library only: this file runs before any requirement is there.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MINIMUM_TORCH = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"
DEFAULT_ARCHITECTURES = (80, 90, 100, 120)

ConfigSettings = dict[str, Any] | None


class Torch(NamedTuple):
    """An installed torch: its headers and its version."""

    include: Path
    version: str


class BuildError(Exception):
    """The build cannot go on; the message says why and what to do."""


# --- torch ----------------------------------------


def _environment_paths() -> list[str]:
    """Where this environment's packages lie, whether or not they can be imported now."""
    paths = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    if _sees_system_packages():
        paths.append(site.getusersitepackages())
        paths += site.getsitepackages([sys.base_prefix, sys.base_exec_prefix])
        # Debian keeps what its own packages install outside every scheme of `site`.
        paths.append(f"{sys.base_prefix}/lib/python3/dist-packages")
    return paths


def _sees_system_packages() -> bool:
    if sys.prefix == sys.base_prefix:
        return True
    config = Path(sys.prefix, "pyvenv.cfg")
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return (
        re.search(r"^include-system-site-packages\s*=\s*true", text, re.MULTILINE | re.IGNORECASE) is not None
    )


def _torch_in(package: Path) -> Torch | None:
    include, version_file = package / "include", package / "version.py"
    if not (include / "torch/csrc/stable/library.h").is_file() or not version_file.is_file():
        return None
    match = re.search(
        r"^__version__\s*=\s*['\"]([^'\"]+)", version_file.read_text(encoding="utf-8"), re.MULTILINE
    )
    return Torch(include, match.group(1)) if match else None


def find_torch(paths: Iterable[str] | None = None, environ: Mapping[str, str] = os.environ) -> Torch | None:
    """Find the torch to build against without importing it.

    `L0SIGN_TORCH_DIR` (the directory of the torch package) decides if it is set. Otherwise the environment
    that asks for the build comes first, then whatever can be imported: there a frontend puts the build
    requirements.
    """
    override = environ.get("L0SIGN_TORCH_DIR")
    if override:
        torch = _torch_in(Path(override).expanduser())
        if torch is None:
            raise BuildError(f"L0SIGN_TORCH_DIR={override} holds no torch with include/torch/csrc/stable.")
        return torch
    for path in [*_environment_paths(), *sys.path] if paths is None else paths:
        torch = _torch_in(Path(path, "torch"))
        if torch is not None:
            return torch
    return None


def is_supported(version: str) -> bool:
    """Whether this torch has the stable ABI that the binary is built for."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match.group(1)), int(match.group(2))) >= MINIMUM_TORCH


def torch_requirements() -> list[str]:
    """Return the build requirement for torch: none where a usable one is installed."""
    torch = find_torch()
    return [] if torch is not None and is_supported(torch.version) else [TORCH_REQUIREMENT]


def require_torch() -> Torch:
    """Return the torch to build against, or say what is missing."""
    torch = find_torch()
    if torch is None:
        raise BuildError(
            f"no torch was found for {sys.prefix}. Install {TORCH_REQUIREMENT} there first, or set "
            "L0SIGN_TORCH_DIR to the directory of its package. "
            "(uv builds elsewhere: give it --no-build-isolation.)"
        )
    if not is_supported(torch.version):
        raise BuildError(
            f"torch {torch.version} in {torch.include.parent} is too old: {TORCH_REQUIREMENT} is needed."
        )
    return torch


# --- CUDA ----------------------------------------


def find_nvcc(environ: Mapping[str, str] = os.environ) -> str | None:
    """Find nvcc by CUDACXX, CUDA_HOME or CUDA_PATH, on PATH, or in /usr/local/cuda.

    `L0SIGN_CUDA=0` builds without it, `L0SIGN_CUDA=1` makes a missing one an error.
    """
    choice = environ.get("L0SIGN_CUDA", "")
    if choice not in ("", "0", "1"):
        raise BuildError(f"L0SIGN_CUDA={choice} is not understood: 0 builds without CUDA, 1 insists on it.")
    if choice == "0":
        return None
    candidates = [environ.get("CUDACXX", "")]
    candidates += [f"{environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    for candidate in [*filter(None, candidates), "nvcc", "/usr/local/cuda/bin/nvcc"]:
        nvcc = shutil.which(candidate, path=environ.get("PATH"))
        if nvcc:
            return nvcc
    if choice == "1":
        raise BuildError("L0SIGN_CUDA=1, but there is no nvcc: put it on PATH, or set CUDA_HOME or CUDACXX.")
    return None


def supported_architectures(nvcc: str) -> set[int]:
    """Return the compute capabilities (80, 90, ...) that this nvcc can build for."""
    listing = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout
    return {int(number) for number in re.findall(r"\bsm_(\d+)\b", listing)}


def cuda_architectures(wanted: str | None, supported: set[int]) -> list[str]:
    """Translate torch's "8.0;9.0+PTX" into CMake's ["80-real", "90"].

    Without a wish: the default architectures that nvcc knows, with PTX for the newest, so that later GPUs
    run it too.
    """
    if not wanted or not wanted.strip():
        numbers = [number for number in DEFAULT_ARCHITECTURES if number in supported]
        if not numbers:
            raise BuildError(f"this nvcc knows none of the architectures {list(DEFAULT_ARCHITECTURES)}.")
        return [f"{number}-real" for number in numbers[:-1]] + [str(numbers[-1])]
    architectures = []
    for item in re.split(r"[;,\s]+", wanted.strip("; ,\t\n")):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if match is None:
            raise BuildError(
                f'TORCH_CUDA_ARCH_LIST: "{item}" is not understood; write for example "8.0;9.0+PTX".'
            )
        number = match.group(1) + match.group(2)
        if int(number) not in supported:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: this nvcc cannot build for {item}; it knows {sorted(supported)}."
            )
        architectures.append(number + match.group(3) + ("" if match.group(4) else "-real"))
    return list(dict.fromkeys(architectures))


# --- PEP 517 and PEP 660 ----------------------------------------


def _setuptools() -> Any:
    from setuptools import build_meta

    return build_meta


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    """PEP 517 hook."""
    return _setuptools().get_requires_for_build_wheel(config_settings) + torch_requirements()


def get_requires_for_build_editable(config_settings: ConfigSettings = None) -> list[str]:
    """PEP 660 hook."""
    return _setuptools().get_requires_for_build_editable(config_settings) + torch_requirements()


def get_requires_for_build_sdist(config_settings: ConfigSettings = None) -> list[str]:
    """PEP 517 hook: an sdist holds no binary and needs no torch."""
    return _setuptools().get_requires_for_build_sdist(config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: ConfigSettings = None) -> str:
    """PEP 517 hook."""
    return _setuptools().prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: ConfigSettings = None
) -> str:
    """PEP 660 hook."""
    return _setuptools().prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str, config_settings: ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    """PEP 517 hook."""
    # setuptools packs whatever an earlier build left in build/lib*, files removed from the tree included.
    for stale in Path("build").glob("lib*"):
        shutil.rmtree(stale)
    return _setuptools().build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    """PEP 660 hook."""
    return _setuptools().build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: ConfigSettings = None) -> str:
    """PEP 517 hook."""
    return _setuptools().build_sdist(sdist_directory, config_settings)
