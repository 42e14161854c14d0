"""What was built, what the build decides, and what a broken binary says."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import l0sign_cuda
from l0sign_cuda import _extension

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(l0sign_cuda.__file__).parent


def load_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backend = load_file(ROOT / "build_backend" / "l0sign_build.py")
check_binary = load_file(ROOT / ".ci" / "check_binary.py")
cuda_resources = load_file(ROOT / ".ci" / "cuda_resources.py")


def run_python(code, cwd, **environ):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True
    )


class TestBuildInfo:
    def test_fields(self):
        info = _extension.build_info()
        assert set(info) == {
            "version",
            "compiler",
            "torch_target",
            "torch_headers",
            "cpu_instruction_sets",
            "cuda_version",
            "cuda_architectures",
            "cuda_operators",
        }
        assert info["version"] == l0sign_cuda.__version__
        assert info["torch_target"] == "2.10"
        assert backend.is_supported(info["torch_headers"])
        assert info["compiler"].split()[0] in ("gcc", "clang")
        assert "portable" in info["cpu_instruction_sets"]

    def test_cuda_is_all_or_nothing(self):
        info = _extension.build_info()
        if info["cuda_version"] is None:
            assert info["cuda_architectures"] == info["cuda_operators"] == []
        else:
            assert info["cuda_architectures"] and "gate_noise" in info["cuda_operators"]
        assert _extension.cuda_operators() == frozenset(info["cuda_operators"])

    def test_cuda_operators_are_registered(self):
        for name in _extension.cuda_operators():
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"l0sign_cuda::{name}", "CUDA")

    def test_the_precision_of_products_is_torchs(self):
        before = torch.get_float32_matmul_precision()
        try:
            for precision in ("highest", "high", "medium"):
                torch.set_float32_matmul_precision(precision)
                assert _extension.load().tf32_allowed() == (precision != "highest")
        finally:
            torch.set_float32_matmul_precision(before)

    @pytest.mark.parametrize("before", ["highest", "high"])
    @pytest.mark.parametrize("precision", ["tf32", "ieee"])
    def test_torchs_newer_setting_of_the_precision_counts(self, before, precision, tmp_path):
        code = (
            "import torch; from l0sign_cuda import _extension as e; "
            f"torch.set_float32_matmul_precision('{before}'); "
            f"torch.backends.cuda.matmul.fp32_precision = '{precision}'; print(e.load().tf32_allowed())"
        )
        assert run_python(code, tmp_path).stdout.strip() == str(precision == "tf32")

    @pytest.mark.parametrize("capability", _extension.build_info()["cpu_instruction_sets"])
    def test_instruction_set_can_be_chosen(self, capability, tmp_path):
        code = "from l0sign_cuda import _extension as e; print(e.cpu_capability())"
        result = run_python(code, tmp_path, L0SIGN_CPU_CAPABILITY=capability)
        flags = Path("/proc/cpuinfo").read_text()
        if capability == "portable" or {"avx512": "avx512dq", "avx2": "avx2"}[capability] in flags:
            assert result.stdout.strip() == capability
        else:
            assert "L0SIGN_CPU_CAPABILITY" in result.stderr

    def test_loading_leaves_denormals_alone(self, tmp_path):
        code = """
from l0sign_cuda import _extension
_extension.load()
import sys
print(sys.float_info.min / 2 > 0)
"""
        assert run_python(code, tmp_path).stdout.strip() == "True"


class TestBinary:
    def test_symbols_exports_and_registers(self):
        builds = list((ROOT / "build").glob("cmake-*/_C.so"))
        if not builds or not all(map(shutil.which, ("nm", "objdump", "readelf"))):
            pytest.skip("needs a build directory and binutils")
        for module in builds:
            assert check_binary.faults_of(module.parent) == []

    def test_symbol_that_is_not_allowed_is_found(self):
        listing = "   U malloc@GLIBC_2.2.5\n   w torch_cuda\n   U torch_cuda\n   U _ZN2at4TensorE\n"
        assert check_binary.forbidden_symbols(listing, "*@GLIBC_*\nweak torch_cuda\n") == [
            "torch_cuda",
            "_ZN2at4TensorE",
        ]

    @pytest.mark.parametrize(
        ("name", "used", "faults"),
        [
            ("kernels_avx512", "%xmm0 %ymm1 %zmm2", 0),
            ("kernels_avx512", "%ymm1", 1),
            ("kernels_avx2", "%ymm1", 0),
            ("kernels_avx2", "%ymm1 %zmm1", 1),
            ("kernels_avx2", "%xmm1", 1),
            ("kernels_portable", "%xmm1", 0),
            ("kernels_portable", "%ymm1", 1),
            ("ops", "%zmm1", 1),
        ],
    )
    def test_register_faults(self, name, used, faults):
        assert len(check_binary.register_faults(name, used)) == faults


class TestLoadError:
    """A copy of the package with something wrong with its binary."""

    CODE = """
import l0sign_cuda
from l0sign_cuda import _extension
print(l0sign_cuda.__version__, _extension.is_available())
print(type(_extension.load_error()).__name__)
for attempt in range(2):
    try:
        _extension.build_info()
    except ImportError as error:
        assert error.__cause__ is _extension.load_error()
        print(error)
"""

    @pytest.fixture
    def copy(self, tmp_path):
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(PACKAGE, tmp_path / "l0sign_cuda", ignore=ignore)
        return tmp_path

    @staticmethod
    def binary():
        return Path(_extension.load().__file__)

    def run(self, copy, code=CODE):
        # -S: no finder of an editable install may lend the copy its binary.
        libraries = [str(copy), *(path for path in sys.path if path.endswith("-packages"))]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(libraries)}
        command = [sys.executable, "-S", "-c", code]
        result = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    def test_intact_copy_loads(self, copy):
        shutil.copy(self.binary(), copy / "l0sign_cuda")
        assert self.run(copy)[0] == f"{l0sign_cuda.__version__} True"

    def test_missing(self, copy):
        lines = self.run(copy)
        assert lines[:2] == [f"{l0sign_cuda.__version__} False", "ModuleNotFoundError"]
        assert "No module named 'l0sign_cuda._C'" in lines[2]
        assert "it was never built there" in lines[3] and "make build" in lines[3]
        assert lines[2:4] == lines[4:6]

    def test_built_for_another_python(self, copy):
        (copy / "l0sign_cuda" / "_C.cpython-27-none.so").touch()
        assert "there is only _C.cpython-27-none.so" in self.run(copy)[3]

    def test_broken(self, copy):
        (copy / "l0sign_cuda" / self.binary().name).write_bytes(b"no ELF file at all")
        lines = self.run(copy)
        assert lines[:2] == [f"{l0sign_cuda.__version__} False", "ImportError"]
        assert "cannot be used" in lines[2] and ".so" in lines[2]
        assert "pip install --force-reinstall --no-deps ." in lines[3]

    def test_built_for_another_version(self, copy):
        shutil.copy(self.binary(), copy / "l0sign_cuda")
        (copy / "l0sign_cuda" / "_version.py").write_text('__version__ = "99.0"\n')
        lines = self.run(copy)
        assert f"was built for l0sign_cuda {l0sign_cuda.__version__}, but this is 99.0" in lines[2]

    def test_torch_too_old(self, copy):
        shutil.copy(self.binary(), copy / "l0sign_cuda")
        lines = self.run(copy, "import torch; torch.__version__ = '2.9.1'\n" + self.CODE)
        assert "torch 2.9.1 is too old" in lines[2] and "torch>=2.10" in lines[3]

    def test_first_use_of_an_operator_tells(self, copy):
        code = """
import torch, l0sign_cuda
try:
    l0sign_cuda.functional.gate_noise(0, torch.tensor([0, 2]))
except ImportError as error:
    print(error)
"""
        assert "the compiled part of l0sign_cuda cannot be used" in self.run(copy, code)[0]


@pytest.fixture
def torch_at(tmp_path):
    """Makes something that looks like an installed torch."""

    def make(folder, version="2.13.0+cpu"):
        package = tmp_path / folder / "torch"
        (package / "include/torch/csrc/stable").mkdir(parents=True)
        (package / "include/torch/csrc/stable/library.h").touch()
        (package / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\n")
        return package

    return make


class TestFindTorch:
    def test_finds_the_running_one(self):
        found = backend.find_torch()
        assert found.include == Path(torch.__file__).parent / "include"
        assert found.version == torch.__version__

    def test_first_path_wins(self, torch_at):
        first, second = torch_at("a", "2.11.0"), torch_at("b")
        found = backend.find_torch([str(first.parent), str(second.parent)], {})
        assert found == (first / "include", "2.11.0")

    def test_none(self, tmp_path):
        assert backend.find_torch([str(tmp_path)], {}) is None

    def test_override(self, torch_at):
        ours, other = torch_at("ours"), torch_at("other")
        found = backend.find_torch([str(other.parent)], {"L0SIGN_TORCH_DIR": str(ours)})
        assert found.include == ours / "include"

    def test_wrong_override(self, tmp_path):
        with pytest.raises(backend.BuildError, match=r"L0SIGN_TORCH_DIR=.*holds no torch"):
            backend.find_torch([], {"L0SIGN_TORCH_DIR": str(tmp_path)})

    @pytest.mark.parametrize(
        ("version", "supported"),
        [("2.10.0", True), ("2.13.0+cpu", True), ("3.0.0a0", True), ("2.9.1", False), ("1.13", False)],
    )
    def test_is_supported(self, version, supported):
        assert backend.is_supported(version) is supported

    def test_system_packages_only_where_they_are_seen(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        config = tmp_path / "pyvenv.cfg"
        config.write_text("include-system-site-packages = false\n")
        assert not any("dist-packages" in path for path in backend._environment_paths())
        config.write_text("include-system-site-packages = true\n")
        assert any("dist-packages" in path for path in backend._environment_paths())


class TestRequirements:
    HOOKS = ("get_requires_for_build_wheel", "get_requires_for_build_editable")

    @pytest.fixture
    def environment(self, monkeypatch):
        """Lets the hooks see only these site-packages."""

        def see(*paths):
            monkeypatch.delenv("L0SIGN_TORCH_DIR", raising=False)
            monkeypatch.setattr(backend, "_environment_paths", lambda: [str(path) for path in paths])
            monkeypatch.setattr(sys, "path", [str(ROOT / "build_backend")])
            monkeypatch.setattr(backend, "_setuptools", FakeSetuptools)

        return see

    @pytest.mark.parametrize("hook", HOOKS)
    def test_torch_is_asked_for_where_there_is_none(self, environment, tmp_path, hook):
        environment(tmp_path)
        assert getattr(backend, hook)() == ["from setuptools", "torch>=2.10"]

    @pytest.mark.parametrize("hook", HOOKS)
    def test_not_beside_an_installed_one(self, environment, torch_at, hook):
        environment(torch_at("site").parent)
        assert getattr(backend, hook)() == ["from setuptools"]

    @pytest.mark.parametrize("hook", HOOKS)
    def test_asked_for_instead_of_one_that_is_too_old(self, environment, torch_at, hook):
        environment(torch_at("site", "2.9.1").parent)
        assert getattr(backend, hook)() == ["from setuptools", "torch>=2.10"]

    def test_sdist_needs_none(self, environment, tmp_path):
        environment(tmp_path)
        assert backend.get_requires_for_build_sdist() == ["from setuptools"]

    def test_build_without_torch_says_what_to_do(self, environment, tmp_path):
        environment(tmp_path)
        with pytest.raises(backend.BuildError, match=r"Install torch>=2\.10.*L0SIGN_TORCH_DIR"):
            backend.require_torch()

    def test_torch_is_found_from_an_isolated_build(self, tmp_path):
        # As pip isolates a build: a sitecustomize takes site-packages out of sys.path.
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\nsys.path = [path for path in sys.path if not path.endswith('-packages')]\n"
        )
        code = """
import sys, importlib.util, l0sign_build
print(importlib.util.find_spec("torch"), l0sign_build.find_torch().include, "torch" in sys.modules)
"""
        path = os.pathsep.join([str(tmp_path), str(ROOT / "build_backend")])
        result = run_python(code, tmp_path, PYTHONPATH=path)
        include = Path(torch.__file__).parent / "include"
        assert result.stdout.split() == ["None", str(include), "False"], result.stderr


class FakeSetuptools:
    @staticmethod
    def get_requires_for_build_wheel(config_settings):
        return ["from setuptools"]

    get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel


class TestCuda:
    KNOWN = frozenset({75, 80, 86, 90, 100, 120})

    def test_default(self):
        assert backend.cuda_architectures(None, self.KNOWN) == ["80-real", "90-real", "100-real", "120"]
        assert backend.cuda_architectures(" ", self.KNOWN) == ["80-real", "90-real", "100-real", "120"]

    def test_default_of_an_older_nvcc_keeps_ptx_for_its_newest(self):
        assert backend.cuda_architectures(None, {70, 80, 90}) == ["80-real", "90"]

    @pytest.mark.parametrize(
        ("wanted", "architectures"),
        [
            ("8.0;9.0+PTX", ["80-real", "90"]),
            ("8.0 9.0", ["80-real", "90-real"]),
            ("8.6,12.0+PTX", ["86-real", "120"]),
            ("9.0a", ["90a-real"]),
            ("10.0f", ["100f-real"]),
            ("8.0;8.0;", ["80-real"]),
        ],
    )
    def test_arch_list(self, wanted, architectures):
        assert backend.cuda_architectures(wanted, self.KNOWN) == architectures

    @pytest.mark.parametrize("wanted", ["Hopper", "90", "8.0+SASS", "8.0;x"])
    def test_arch_list_that_is_not_understood(self, wanted):
        with pytest.raises(backend.BuildError, match=r"TORCH_CUDA_ARCH_LIST.*not understood"):
            backend.cuda_architectures(wanted, self.KNOWN)

    def test_arch_that_nvcc_does_not_know(self):
        with pytest.raises(backend.BuildError, match=r"cannot build for 5\.0; it knows \[75, 80"):
            backend.cuda_architectures("5.0", self.KNOWN)

    @pytest.fixture
    def toolkit(self, tmp_path):
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text("#!/bin/sh\necho sm_80\necho sm_90\n")
        nvcc.chmod(0o755)
        return nvcc

    def test_nvcc_is_found(self, toolkit):
        assert backend.find_nvcc({"PATH": str(toolkit.parent)}) == str(toolkit)
        assert backend.find_nvcc({"CUDA_HOME": str(toolkit.parent.parent), "PATH": ""}) == str(toolkit)
        assert backend.find_nvcc({"CUDACXX": str(toolkit), "PATH": "", "L0SIGN_CUDA": "1"}) == str(toolkit)
        assert backend.supported_architectures(str(toolkit)) == {80, 90}

    def test_off(self, toolkit):
        assert backend.find_nvcc({"PATH": str(toolkit.parent), "L0SIGN_CUDA": "0"}) is None

    def test_insisting_without_nvcc(self, monkeypatch):
        monkeypatch.setattr(backend.shutil, "which", lambda *args, **kwargs: None)
        assert backend.find_nvcc({}) is None
        with pytest.raises(backend.BuildError, match="L0SIGN_CUDA=1, but there is no nvcc"):
            backend.find_nvcc({"L0SIGN_CUDA": "1"})

    def test_choice_that_is_not_understood(self):
        with pytest.raises(backend.BuildError, match="L0SIGN_CUDA=yes is not understood"):
            backend.find_nvcc({"L0SIGN_CUDA": "yes"})


class TestCudaResources:
    NAME = "tile_backward<TileShape<1, 1, 2, 4, 3>, tf32x3, true, true>"
    REPORT = """
ptxas info    : Compiling entry function '_Zone' for 'sm_90'
ptxas info    : Function properties for _Zone
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
ptxas info    : Compiling entry function '_Ztwo' for 'sm_90'
    24 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers
"""

    def kernels(self, registers=168, stack=0, spill=0):
        report = self.REPORT.format(registers=registers, stack=stack, spill=spill)
        return cuda_resources.parse(report, {"_Zone": self.NAME, "_Ztwo": "general"})

    def test_report_is_read(self):
        one, two = self.kernels(registers=100, stack=16, spill=4)
        assert one == cuda_resources.Kernel(self.NAME, "90", 100, 16, 4)
        assert two == cuda_resources.Kernel("general", "90", 255, 24, 16)
        page = cuda_resources.table([one, two], "nvcc 13.0.88", 128)
        assert f"| `{self.NAME}` | 168 |  | 100+16 |  |  |" in page
        assert "| `general` |  |  | 255+24 |  |  |" in page
        assert cuda_resources.compiler_of(page) == "nvcc 13.0.88"

    def test_staleness(self):
        page = cuda_resources.table(self.kernels(), "nvcc 13.0.88", 128)
        assert cuda_resources.stale_rows(page, page) == []
        for wrong, stale in (({"registers": 152}, 0), ({"registers": 151}, 1), ({"stack": 8}, 1)):
            other = cuda_resources.table(self.kernels(**wrong), "nvcc 13.0.88", 128)
            assert len(cuda_resources.stale_rows(page, other)) == stale, wrong
        less = cuda_resources.table(self.kernels()[1:], "nvcc 13.0.88", 128)
        assert len(cuda_resources.stale_rows(page, less)) == len(cuda_resources.stale_rows(less, page)) == 1

    def test_limits(self):
        assert cuda_resources.faults_of(self.kernels(), 128) == []
        assert cuda_resources.register_limit("tile_forward<TileShape<1, 1, 2, 4, 3>, fp16, true>", 128) == 168
        assert (
            cuda_resources.register_limit("tile_forward<TileShape<1, 1, 2, 4, 3>, fp16, false>", 128) == 128
        )
        for wrong in ({"stack": 8}, {"spill": 4}, {"registers": 176}):
            assert len(cuda_resources.faults_of(self.kernels(**wrong), 128)) == 1, wrong
        assert cuda_resources.faults_of(self.kernels()[1:], 128)  # nothing was looked at

    def test_names(self):
        long = (
            "void l0sign::cuda::f<l0sign::cuda::T<(int)1, 2>, (l0sign::cuda::Precision)2, (bool)1>"
            "(l0sign::cuda::(anonymous namespace)::L<float>)"
        )
        assert cuda_resources.short_name(long) == "f<T<1, 2>, bf16, true>"

    def test_block_size_is_that_of_the_sources(self):
        config = (ROOT / "csrc" / "cuda" / "tile_config.h").read_text()
        assert cuda_resources.tile_threads(config) == 128
        with pytest.raises(ValueError, match="kTileWarps"):
            cuda_resources.tile_threads("")
