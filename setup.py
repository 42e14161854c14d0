"""Drives the CMake build; all metadata is in pyproject.toml."""

import contextlib
import fcntl
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

import l0sign_build  # noqa: E402 (found through the line above)


def tool_path() -> str:
    """PATH, with the cmake and ninja that pip installed before any others."""
    directories = []
    for module, attribute in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):
        with contextlib.suppress(ImportError):
            directories.append(getattr(importlib.import_module(module), attribute))
    return os.pathsep.join([*directories, os.environ.get("PATH", "")])


class CMakeBuild(build_ext):
    """Builds with CMake and ninja in build/cmake-*, which stays: a rebuild compiles what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and put the module where setuptools expects it."""
        options = self.options()
        variant = "cuda" if options["L0SIGN_CUDA"] == "ON" else "cpu"
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{variant}"
        build_dir.mkdir(parents=True, exist_ok=True)
        environ = {**os.environ, "PATH": tool_path()}
        defines = [f"-D{name}={value}" for name, value in options.items()]
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        with open(build_dir / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ninja itself does not mind a second one in the same directory
            for command in (
                ["cmake", "-S", ROOT, "-B", build_dir, "-G", "Ninja", *defines],
                ["cmake", "--build", build_dir, "--parallel", jobs],
            ):
                if subprocess.run(command, env=environ).returncode != 0:
                    raise l0sign_build.BuildError("cmake failed; the reason stands above.")
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(build_dir / "_C.so"), str(target), preserve_mode=False)

    def options(self) -> dict[str, str]:
        """Everything that CMakeLists.txt is told."""
        import pybind11

        torch = l0sign_build.require_torch()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            # Named every time: that of an isolated build, left in the cache, went with its environment.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=tool_path()) or "ninja",
            "Python_EXECUTABLE": sys.executable,
            "L0SIGN_VERSION": self.distribution.get_version(),
            "L0SIGN_TORCH_INCLUDE": str(torch.include),
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
        return options


try:
    setup(ext_modules=[Extension("l0sign_cuda._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
except l0sign_build.BuildError as error:
    sys.exit(f"l0sign_cuda: {error}")
