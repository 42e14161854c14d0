"""What `import l0sign_cuda` brings, and what it leaves out until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import l0sign_cuda


def test_every_public_name_is_there():
    for name in l0sign_cuda.__all__:
        assert getattr(l0sign_cuda, name) is not None, name
    assert set(l0sign_cuda.__all__) <= set(dir(l0sign_cuda))


def test_submodules_are_there_when_asked_for():
    code = "import l0sign_cuda as l; l.data, l.optim, l.interactions.Survey, l.integrations"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'l0sign_cuda' has no attribute 'nothing'"):
        _ = l0sign_cuda.nothing


def test_importing_needs_no_extra():
    code = """
import sys
import l0sign_cuda
l0sign_cuda.L0SIGN(3), l0sign_cuda.functional.l0_sign
extras = {"sklearn", "pyarrow", "matplotlib", "safetensors", "rich", "yaml"}
assert not extras & sys.modules.keys(), extras & sys.modules.keys()
assert not {f"l0sign_cuda.{name}" for name in ("training", "estimator", "data", "cli")} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
