"""Fixtures of all tests. Nothing is skipped silently: without the binary, tests of the fused backend fail."""

from __future__ import annotations

import os

import pytest
import torch

from l0sign_cuda import _extension

REQUIRE_CUDA = os.environ.get("REQUIRE_CUDA") == "1"
DEVICES = ["cpu", "cuda"] if REQUIRE_CUDA or torch.cuda.is_available() else ["cpu"]


@pytest.fixture
def gpu() -> torch.device:
    """The GPU; without one a test is skipped, and with REQUIRE_CUDA=1 it fails."""
    missing = None
    if not torch.cuda.is_available():
        missing = "there is no CUDA device"
    elif "l0_sign" not in _extension.cuda_operators():
        missing = "this build has no CUDA kernels of the model's operators"
    if missing:
        pytest.fail(f"REQUIRE_CUDA=1, but {missing}") if REQUIRE_CUDA else pytest.skip(missing)
    return torch.device("cuda")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and CUDA where there is a GPU."""
    return torch.device("cpu") if request.param == "cpu" else request.getfixturevalue("gpu")


@pytest.fixture(params=["fused", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both backends, for what holds of both."""
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
