"""`l0sign doctor`: what it reports, with and without a binary, extras and a GPU."""

import json
import sys

import pytest
import torch

import l0sign_cuda
from l0sign_cuda import _extension, doctor


@pytest.fixture
def broken(monkeypatch):
    """Makes the binary fail to load, as a fresh process would see it."""

    def fail():
        raise OSError("libtorch.so: undefined symbol")

    monkeypatch.setattr(_extension, "_module", None)
    monkeypatch.setattr(_extension, "_error", None)
    monkeypatch.setattr(_extension, "_import", fail)


def test_report_of_a_working_binary():
    found = doctor.report()
    assert found["binary"] == {"available": True, "error": None, "build": _extension.build_info()}
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["l0sign_cuda"] == l0sign_cuda.__version__
    assert found["cpu"]["kernels"] == _extension.cpu_capability()
    assert found["cpu"]["kernels"] in found["cpu"]["built"]
    assert found["cpu"]["threads"] == torch.get_num_threads()


def test_text(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    for expected in (
        torch.__version__,
        "CPU kernels:",
        _extension.cpu_capability(),
        "GPU kernels:",
        "[train]:",
    ):
        assert expected in text


def test_json(capsys):
    assert doctor.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == doctor.report()


def test_broken_binary(broken, capsys):
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "BROKEN" in text and "libtorch.so: undefined symbol" in text and "Remedy: rebuild" in text
    assert "missing: the compiled module" in text


def test_broken_binary_as_json(broken, capsys):
    assert doctor.main(["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["binary"]["available"] is False
    assert found["cpu"]["kernels"] is None and found["gpu"]["kernels"] == []


class TestExtras:
    REQUIRES = (
        "torch>=2.10",
        'rich; extra == "train"',
        'missing-one>=2; extra == "train"',
        'tomli; python_version < "3.11" and extra == "train"',
        'other-one; extra == "report"',
    )

    def test_missing_ones_are_named_with_the_command(self, monkeypatch):
        monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: list(self.REQUIRES))
        monkeypatch.setattr(doctor, "_installed", lambda name: None if name.endswith("-one") else "1")
        monkeypatch.setattr(sys, "version_info", (3, 12, 0))
        found = doctor.report()["extras"]
        assert found["train"]["missing"] == ["missing-one"]
        assert found["train"]["install"] == 'pip install "l0sign-cuda[train]"'
        assert found["report"]["missing"] == ["other-one"]
        assert found["pyg"]["missing"] == []

    def test_requirement_of_an_older_python_only(self, monkeypatch):
        monkeypatch.setattr(sys, "version_info", (3, 10, 0))
        assert doctor._requirement(self.REQUIRES[3], "train") == "tomli"
        monkeypatch.setattr(sys, "version_info", (3, 11, 0))
        assert doctor._requirement(self.REQUIRES[3], "train") is None


class TestGpu:
    INFO = {  # noqa: RUF012 (never changed)
        "cuda_version": "13.0.88",
        "cuda_architectures": ["80-real", "90-real", "120"],
        "cuda_operators": ["gate_noise"],
    }

    @pytest.fixture
    def gpu(self, monkeypatch):
        def plug_in(major, minor):
            monkeypatch.setattr(torch.version, "cuda", "13.0")
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (major, minor))
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")

        return plug_in

    def test_kernels_run(self, gpu):
        gpu(9, 0)
        found = doctor._gpu(self.INFO)
        assert found["kernels"] == ["gate_noise"] and found["missing"] is None
        assert found["devices"] == [{"name": "Some GPU", "capability": "9.0"}]

    def test_gpu_that_the_build_does_not_cover(self, gpu):
        gpu(7, 5)
        found = doctor._gpu(self.INFO)
        assert found["kernels"] == []
        assert "7.5 (Some GPU)" in found["missing"] and "TORCH_CUDA_ARCH_LIST=7.5" in found["missing"]

    def test_build_without_cuda(self, gpu):
        gpu(9, 0)
        info = {"cuda_version": None, "cuda_architectures": [], "cuda_operators": []}
        assert "L0SIGN_CUDA=1" in doctor._gpu(info)["missing"]

    def test_torch_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        assert "a torch with CUDA" in doctor._gpu(self.INFO)["missing"]

    def test_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert doctor._gpu(self.INFO)["missing"] == "a GPU that torch can use"

    @pytest.mark.parametrize(
        ("architectures", "capability", "runs"),
        [
            (["80-real"], "8.0", True),
            (["80-real"], "8.9", True),
            (["86-real"], "8.0", False),
            (["80-real"], "9.0", False),
            (["80"], "9.0", True),
            (["90a-real"], "9.0", True),
            (["90a"], "10.0", False),
            (["100f-real"], "10.3", True),
            (["100f-real"], "12.0", False),
            ([], "8.0", False),
        ],
    )
    def test_runs_on(self, architectures, capability, runs):
        assert doctor.runs_on(architectures, capability) is runs
