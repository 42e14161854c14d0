"""Checks what the compiler and the linker made: `python .ci/check_binary.py build/cmake-*`.

The module may need only the symbols of cmake/allowed_symbols.txt and export only its entry point; each
instruction-set object really holds its wide registers, and nothing else holds any.
"""

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

ALLOWED = Path(__file__).resolve().parent.parent / "cmake" / "allowed_symbols.txt"
REGISTERS = {"kernels_avx512": {"zmm"}, "kernels_avx2": {"ymm"}}  # what an object has to hold
TOLERATED = {"kernels_avx512": {"xmm", "ymm", "zmm"}, "kernels_avx2": {"xmm", "ymm"}}
NARROW = {"xmm"}


def forbidden_symbols(listing: str, allowed: str) -> list[str]:
    """Return the undefined symbols of an `nm` listing that the allow-list does not cover."""
    lines = [line.strip() for line in allowed.splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    strong = [pattern for pattern in patterns if not pattern.startswith("weak ")]
    weak = strong + [pattern.removeprefix("weak ") for pattern in patterns if pattern.startswith("weak ")]
    found = re.findall(r"^\s*([Uwv]) (\S+)$", listing, re.MULTILINE)
    return [
        name
        for kind, name in found
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in (strong if kind == "U" else weak))
    ]


def register_faults(name: str, disassembly: str) -> list[str]:
    """Compare the vector registers in the disassembly of an object with what its name promises."""
    used = set(re.findall(r"%([xyz]mm)\d", disassembly))
    needed, tolerated = REGISTERS.get(name, set()), TOLERATED.get(name, NARROW)
    faults = [f"{name}: no {register} register" for register in sorted(needed - used)]
    return faults + [f"{name}: {register} registers" for register in sorted(used - tolerated)]


def output_of(*command: str | Path) -> str:
    """Run a command and return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def faults_of(build: Path) -> list[str]:
    """Return everything that is wrong with the build in this directory."""
    module = build / "_C.so"
    needed = forbidden_symbols(
        output_of("nm", "-D", "--undefined-only", module), ALLOWED.read_text(encoding="utf-8")
    )
    faults = [f"_C needs the symbol {name}, which is not on the allow-list" for name in needed]
    exported = [line.split()[-1] for line in output_of("nm", "-D", "--defined-only", module).splitlines()]
    if exported != ["PyInit__C"]:
        faults.append(f"_C exports {exported}, not PyInit__C alone")
    if re.search(r"\((RPATH|RUNPATH)\)", output_of("readelf", "-d", module)):
        faults.append("_C has a run path")
    objects = [
        path
        for target in ("_C", "cpu_kernels")
        for path in sorted(build.glob(f"CMakeFiles/{target}.dir/csrc/**/*.cpp.o"))
    ]
    if "x86_64" in output_of("objdump", "-f", module).replace("x86-64", "x86_64"):
        names = {path.name.removesuffix(".cpp.o") for path in objects}
        faults += [f"{name} was not built" for name in sorted(REGISTERS.keys() - names)]
        for path in objects:
            faults += register_faults(path.name.removesuffix(".cpp.o"), output_of("objdump", "-d", path))
    return faults


def main() -> int:
    """Check every build directory named on the command line."""
    status = 0
    for build in map(Path, sys.argv[1:]):
        faults = faults_of(build)
        print(f"{build}: {'as it should be' if not faults else 'faults'}")
        for fault in faults:
            print(f"  {fault}")
        status |= bool(faults)
    return status


if __name__ == "__main__":
    sys.exit(main())
