"""Fixtures of all tests. Nothing is skipped silently: without the binary, tests of the fused backend fail."""

from __future__ import annotations

import os

import pytest
import torch

from l0sign_cuda import _extension

REQUIRE_CUDA = os.environ.get("REQUIRE_CUDA") == "1"
DEVICES = ["cpu", "cuda"] if REQUIRE_CUDA or torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and CUDA where there is a GPU; with REQUIRE_CUDA=1 a missing one is a failure."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.fail("REQUIRE_CUDA=1, but there is no CUDA device")
        if "l0_sign" not in _extension.cuda_operators():
            message = "this build has no CUDA kernels of the model's operators"
            pytest.fail(message) if REQUIRE_CUDA else pytest.skip(message)
    return torch.device(request.param)


@pytest.fixture(params=["fused", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both backends, for what holds of both."""
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
