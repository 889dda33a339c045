# Each target sets itself up in a local virtual environment; nothing outside this folder changes.
#   make demo   finds the same thing in two photographs, and what a phrase names in a third
#   make test   lint, types, contracts and every test
#   make bench  the benchmark tables of docs/benchmarks.md
#   make wheel  a release wheel in dist/
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# `make test TORCH=torch==2.13.0` names one build of torch; the default is the newest.
TORCH ?= torch
# Development builds compile one CUDA architecture: sm_80 code runs on 8.x, and newer chips compile
# the PTX beside it on first use.
DEV_CUDA_ARCHS ?= 80
JOBS ?= 2

BIN := $(VENV)/bin
SOURCES := $(shell find csrc kernels cmake python -type f -not -name '*.so' -not -path '*/__pycache__/*' 2>/dev/null) \
	CMakeLists.txt pyproject.toml
DEV_BUILD := PATCHWORD_CUDA_ARCHS="$(DEV_CUDA_ARCHS)" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	$(BIN)/pip install -q \
	-C cmake.define.PATCHWORD_EMULATED_LEVELS=ON -C cmake.define.PATCHWORD_SIMT=ON

.PHONY: demo test lint unit bench wheel docs clean

demo: $(VENV)/.demo
	$(BIN)/python -m patchword.demo

test: $(VENV)/.test lint unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports --no-cache

# The tests run against the installed package, from outside the source tree's python/ folder. One
# thread for each worker: tests that are about threads ask for theirs.
unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(JOBS) -q

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run

wheel: $(VENV)/.pip
	$(BIN)/pip install -q build
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python scripts/check_wheel.py dist

docs: $(VENV)/.bench
	$(BIN)/python scripts/render_benchmarks.py

$(VENV)/.pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "patchword needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.pip $(SOURCES)
	$(DEV_BUILD) ".[text]"
	touch $@

$(VENV)/.test: $(VENV)/.pip $(SOURCES)
	$(DEV_BUILD) ".[dev]"
	@# CUDA builds of torch bring their own Triton, CPU builds none; it also carries cuobjdump.
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install -q "triton>=3.8"
	touch $@ $(VENV)/.demo

$(VENV)/.bench: $(VENV)/.pip $(SOURCES)
	$(DEV_BUILD) ".[text,bench]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf build dist $(VENV) demo_output
