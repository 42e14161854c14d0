"""What ptxas reports of each CUDA kernel: `python .ci/cuda_resources.py build/cmake-*-cuda [--write]`.

Reads the reports that the build left beside the objects (cmake/keep_report.sh), checks that the kernels on
the matrix units have no stack, no spills and no more registers than their launch bounds allow, and compares
the table in docs/cuda-resources.md with them; --write writes it. Registers depend on the compiler: with
another nvcc than the table's only the limits are checked. The same nvcc too has given one kernel 202 and 216
of them, so that a few more or less are no fault.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "cuda-resources.md"
REGISTERS = 65536  # of a multiprocessor
TOLERANCE = 16  # registers by which a build may differ from the table
ARCHITECTURES = ("80", "90", "100", "120")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
KERNEL = re.compile(
    r"tile_(?:edges_|gates_)?(forward|backward)"
    r"<TileShape<\d+, \d+, \d+, (\d+), (\d+)>, \w+(?:, (\w+))?(?:, \w+)?>"
)
PRECISIONS = ("tf32x3", "tf32", "bf16", "fp16")  # of tile_config.h


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture."""

    name: str
    architecture: str
    registers: int
    stack: int
    spills: int


def parse(report: str, demangle: dict[str, str] | None = None) -> list[Kernel]:
    """Return the kernels of a ptxas report, under their demangled names where those are given."""
    kernels = []
    name = architecture = ""
    stack = spills = 0
    for line in report.splitlines():
        if found := ENTRY.search(line):
            name, architecture = found.groups()
        elif found := FRAME.search(line):
            stack, spills = int(found[1]), int(found[2]) + int(found[3])
        elif (found := USED.search(line)) and name:
            shown = (demangle or {}).get(name, name)
            kernels.append(Kernel(shown, architecture, int(found[1]), stack, spills))
            name = ""
    return kernels


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Return readable names, without namespaces and arguments."""
    names = list(names)
    output = subprocess.run(["c++filt", *names], check=True, capture_output=True, text=True).stdout
    return dict(zip(names, map(short_name, output.splitlines()), strict=True))


def short_name(name: str) -> str:
    """Return `f<T<1>, true>` for `void a::b::f<a::b::T<1>, (bool)1>(x)`."""
    name = re.sub(r"\((anonymous namespace)\)::|l0sign::cuda::|l0sign::|^void ", "", name)
    name = re.sub(r"\(int\)(\d+)", r"\1", name)
    name = re.sub(r"\(bool\)1|\(bool\)0", lambda found: "true" if found[0].endswith("1") else "false", name)
    name = re.sub(r"\(Precision\)(\d)", lambda found: PRECISIONS[int(found[1])], name)
    depth = 0
    for at, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:at]
    return name


def register_limit(name: str, threads: int) -> int | None:
    """Return the registers that the launch bounds of a kernel on the matrix units leave, None for others."""
    kernel = KERNEL.match(name)
    if kernel is None:
        return None
    # A forward with the messages' norms makes room for a block less.
    blocks = int(kernel[3]) if kernel[1] == "backward" else int(kernel[2]) - (kernel[4] == "true")
    return min(255, REGISTERS // (threads * blocks) // 8 * 8)


def tile_threads(config: str) -> int:
    """Return the threads of a block from the text of tile_config.h."""
    found = re.search(r"kTileWarps = (\d+);", config)
    if found is None:
        raise ValueError("tile_config.h: kTileWarps was not found")
    return 32 * int(found[1])


def faults_of(kernels: list[Kernel], threads: int) -> list[str]:
    """Return what breaks the limits."""
    faults = []
    specialised = [kernel for kernel in kernels if register_limit(kernel.name, threads) is not None]
    if not specialised:
        faults.append("no kernel on the matrix units is in the reports")
    for kernel in specialised:
        limit = register_limit(kernel.name, threads)
        where = f"{kernel.name} on sm_{kernel.architecture}"
        if kernel.stack or kernel.spills:
            faults.append(f"{where}: {kernel.stack} bytes of stack, {kernel.spills} bytes of spills")
        if limit is not None and kernel.registers > limit:
            faults.append(f"{where}: {kernel.registers} registers, the launch bounds leave {limit}")
    return faults


def table(kernels: list[Kernel], compiler: str, threads: int) -> str:
    """Return the page docs/cuda-resources.md."""
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"As ptxas reports them ({compiler}): registers a thread, and `+n` for n bytes of stack. Written by",
        "`.ci/cuda_resources.py`; CI fails where a row is missing, its stack is another, or its registers",
        f"differ by more than {TOLERANCE}. The limit follows from the launch bounds; the kernels that have",
        "one are those on the matrix units, and may have neither stack nor spills.",
        "",
        "| kernel | limit | " + " | ".join(f"sm_{name}" for name in ARCHITECTURES) + " |",
        "|---|---:|" + "---:|" * len(ARCHITECTURES),
    ]
    by_name: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    for name, found in sorted(by_name.items()):
        cells = [cell(found[key]) if key in found else "" for key in ARCHITECTURES]
        limit = register_limit(name, threads)
        lines.append(f"| `{name}` | {limit or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(kernel: Kernel) -> str:
    """Return the entry of one kernel on one architecture."""
    return f"{kernel.registers}+{kernel.stack}" if kernel.stack else str(kernel.registers)


def stale_rows(kept: str, page: str) -> list[str]:
    """Return the rows in which a kept page differs from the page of a build, beyond the tolerance."""
    old, new = _cells(kept), _cells(page)
    return [
        f"{name}: {' '.join(old.get(name, ['is not there']))}, now {' '.join(new.get(name, ['gone']))}"
        for name in sorted({*old, *new})
        if not _alike(old.get(name, []), new.get(name, []))
    ]


def _cells(page: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0].startswith("`")}


def _alike(old: list[str], new: list[str]) -> bool:
    """Whether the limits and stacks are equal, and the registers nearly so."""
    if len(old) != len(new) or old[0] != new[0]:
        return False
    for one, two in zip(old[1:], new[1:], strict=True):
        (registers, _, stack), (other, _, others_stack) = one.partition("+"), two.partition("+")
        if stack != others_stack or bool(registers) != bool(other):
            return False
        if registers and abs(int(registers) - int(other)) > TOLERANCE:
            return False
    return True


def compiler_of(page: str) -> str | None:
    """Return the compiler that a page was written with."""
    found = re.search(r"\((nvcc [^)]*)\)", page)
    return found[1] if found else None


def main() -> int:
    """Check the reports of a build directory, and the table."""
    build = Path(sys.argv[1])
    # A build directory keeps the reports of sources that are gone.
    sources = {path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    reports = sorted(build.glob("CMakeFiles/cuda_kernels.dir/**/*.report"))
    reports = [path for path in reports if path.name.partition(".cu")[0] + ".cu" in sources]
    texts = [path.read_text(encoding="utf-8") for path in reports]
    if not texts:
        print(f"{build}: no reports of ptxas; build with nvcc first")
        return 1
    names = demangled(sorted({name for text in texts for name, _ in ENTRY.findall(text)}))
    kernels = [kernel for text in texts for kernel in parse(text, names)]
    cache = (build / "CMakeCache.txt").read_text(encoding="utf-8")
    nvcc = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", cache, re.MULTILINE)
    version = subprocess.run(
        [nvcc[1] if nvcc else "nvcc", "--version"], capture_output=True, text=True
    ).stdout
    release = re.search(r"V([\d.]+)", version)
    compiler = f"nvcc {release[1] if release else 'of unknown version'}"
    threads = tile_threads((ROOT / "csrc" / "cuda" / "tile_config.h").read_text(encoding="utf-8"))

    faults = faults_of(kernels, threads)
    page = table(kernels, compiler, threads)
    if "--write" in sys.argv[2:]:
        TABLE.write_text(page, encoding="utf-8")
    kept = TABLE.read_text(encoding="utf-8") if TABLE.is_file() else ""
    built_for = {kernel.architecture for kernel in kernels}
    if compiler_of(kept) != compiler or built_for != set(ARCHITECTURES):
        print(
            f"{TABLE.name} is of {compiler_of(kept)} for all architectures, this is {compiler}: not compared"
        )
    elif stale := stale_rows(kept, page):
        faults.append(f"{TABLE.name} is stale: run python .ci/cuda_resources.py {build} --write")
        faults += stale
    print(f"{build}: {len(kernels)} kernels, {'as they should be' if not faults else 'faults'}")
    for fault in faults:
        print(f"  {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
