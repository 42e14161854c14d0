"""Drives the CMake build; all metadata is in pyproject.toml."""

import contextlib
import fcntl
import importlib
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

import l0sign_build  # noqa: E402 (found through the line above)


def tool_directories() -> list[str]:
    """Where the cmake and ninja that pip installed lie; without them PATH decides."""
    directories = []
    for module, attribute in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):
        with contextlib.suppress(ImportError):
            directories.append(getattr(importlib.import_module(module), attribute))
    return directories


class CMakeBuild(build_ext):
    """Builds with CMake and ninja in build/cmake-*, which stays: a rebuild compiles what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and put the module where setuptools expects it."""
        import pybind11

        environ = {**os.environ, "PATH": os.pathsep.join([*tool_directories(), os.environ.get("PATH", "")])}
        torch = l0sign_build.require_torch()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "Python_EXECUTABLE": sys.executable,
            "L0SIGN_VERSION": self.distribution.get_version(),
            "L0SIGN_TORCH_INCLUDE": torch.include,
            "L0SIGN_TORCH_VERSION": torch.version,
            "L0SIGN_PYBIND11_INCLUDE": pybind11.get_include(),
            "L0SIGN_CUDA": "OFF",
        }
        nvcc = l0sign_build.find_nvcc()
        if nvcc:
            architectures = l0sign_build.cuda_architectures(
                os.environ.get("TORCH_CUDA_ARCH_LIST"), l0sign_build.supported_architectures(nvcc)
            )
            options["L0SIGN_CUDA"] = "ON"
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["CMAKE_CUDA_ARCHITECTURES"] = ";".join(architectures)

        variant = "cuda" if nvcc else "cpu"
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{variant}"
        build_dir.mkdir(parents=True, exist_ok=True)
        with open(build_dir / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ninja itself does not mind a second one in the same directory
            defines = [f"-D{name}={value}" for name, value in options.items()]
            configure = ["cmake", "-S", ROOT, "-B", build_dir, "-G", "Ninja", *defines]
            jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
            build = ["cmake", "--build", build_dir, "--parallel", jobs]
            for command in (configure, build):
                subprocess.run(command, check=True, env=environ)
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(build_dir / "_C.so"), str(target), preserve_mode=False)


try:
    setup(ext_modules=[Extension("l0sign_cuda._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
except l0sign_build.BuildError as error:
    sys.exit(f"l0sign_cuda: {error}")
