# Every target sets itself up: a fresh clone needs python3, a C++ compiler, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The one pin of torch is in pyproject.toml. It is installed first, so that building asks for no other.
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
SOURCES := $(shell find csrc cmake build_backend -type f -not -name '*.pyc')
CXX_SOURCES := $(filter %.h %.inc %.cpp %.cu,$(SOURCES))

.PHONY: setup build demo test test-fast test-cpp test-simt gpu-check gpu-bench bench bench-quick lint format clean
.DEFAULT_GOAL := build

setup: $(VENV)/.setup  ## the environment, with everything that development needs
build: $(VENV)/.build  ## the compiled module; compiles what changed

# The stamps lie in the environment: they go when it goes.
$(VENV)/.setup: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

$(VENV)/.build: $(VENV)/.setup $(SOURCES) CMakeLists.txt setup.py l0sign_cuda/_version.py
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

demo: build  ## trains SIGN and L0-SIGN on planted interactions, and shows what they found
	$(BIN)/l0sign demo

test: build
	$(BIN)/python -m pytest

bench: build  ## all contestants, on an idle machine: about 20 minutes; into benchmarks/results and docs/performance.md
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.layer
	$(BIN)/python -m benchmarks.model
	$(BIN)/python -m benchmarks.report

bench-quick: build  ## whether the benchmarks work; their figures mean nothing
	$(BIN)/python -m benchmarks.step --quick --contestants fused "fused, row-wise" official eager --out build/benchmarks
	$(BIN)/python -m benchmarks.layer --quick --out build/benchmarks
	$(BIN)/python -m benchmarks.model --quick --shapes A --out build/benchmarks
	$(BIN)/python -m benchmarks.gpu --device cpu --quick --shapes A --out build/benchmarks --contestants \
	  official 'official, plain torch' eager

test-fast: build
	$(BIN)/python -m pytest -m "not slow"

# Needs no torch to run: the kernels alone, under AddressSanitizer and UndefinedBehaviorSanitizer.
INSTRUCTION_SETS := portable $(shell grep -m 1 ^flags /proc/cpuinfo | grep -ow -e avx2 -e avx512dq)
test-cpp: build
	set -e; tag=$$($(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)'); \
	build=$$(ls -d build/cmake-$$tag-* | head -n 1); \
	$(BIN)/cmake --build $$build --target cpu_kernels_test rows_test; \
	$$build/rows_test; \
	for set in $(INSTRUCTION_SETS:avx512dq=avx512); do \
	  L0SIGN_CPU_CAPABILITY=$$set $$build/cpu_kernels_test; \
	done

# The CUDA kernels on the host, without nvcc or a GPU.
test-simt: build
	set -e; tag=$$($(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)'); \
	build=$$(ls -d build/cmake-$$tag-* | head -n 1); \
	$(BIN)/cmake --build $$build --target simt_test cuda_kernels_test cuda_risk_test cuda_rows_test; \
	$$build/simt_test; \
	$$build/cuda_kernels_test tiles & tiles=$$!; \
	$$build/cuda_risk_test; \
	$$build/cuda_rows_test; \
	$$build/cuda_kernels_test pairs lists; \
	wait $$tiles

# On a machine with a GPU, in the environment that is there: PYTHON needs torch, numpy, setuptools,
# cmake, ninja, pybind11 and pytest.
# Builds for that GPU alone. GPU_TESTS are the files whose tests take the fixture `device` or `gpu`.
GPU_TESTS = $(shell grep -l -E '^def test.*[(, ](device|gpu)[,)]' python_tests/test_*.py)
GPU_BUILD = TORCH_CUDA_ARCH_LIST=$$($(PYTHON) -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') \
  L0SIGN_CUDA=1 $(PYTHON) setup.py --quiet build_ext --inplace
# It comes with nvcc, which the build also finds where PATH does not.
SANITIZER ?= $(or $(shell command -v compute-sanitizer),$(wildcard /usr/local/cuda/bin/compute-sanitizer),compute-sanitizer)
# Only our kernels, by a part of their mangled names; before CUDA 12.3 the option was called --kernel-regex.
# In torch's cache tensors lie side by side in one allocation, where memcheck sees no write past an end.
SANITIZE = PYTHONPATH=. PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --error-exitcode 1 --kernel-name kns=l0sign

gpu-check:  ## builds, tests with the GPU, and looks for races and bad accesses: within 10 minutes
	$(SANITIZER) --version
	$(GPU_BUILD)
	REQUIRE_CUDA=1 $(PYTHON) -m pytest -q $(GPU_TESTS) -k 'cuda'
	$(SANITIZE) --tool memcheck --report-api-errors no $(PYTHON) python_tests/gpu_small.py
	$(SANITIZE) --tool racecheck $(PYTHON) python_tests/gpu_small.py

gpu-bench:  ## the contestants on the GPU, into benchmarks/results: within 10 minutes
	$(GPU_BUILD)
	$(PYTHON) -m benchmarks.gpu --minutes 7  # leaves some for the build and for what was begun

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:  ## everything that can be made again, but the environment
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo_out $(VENV)/.build
	find l0sign_cuda -name '*.so' -delete
