# make plant   set up, then run the main job: plant a network on the embedded digits and write its report
# make test    set up, then run the tests that answer in minutes; make test-all runs every test. JOBS=2 processes each.
# The environment is made in .venv; VENV=DIR puts it elsewhere, PYTHON=python3.12 chooses the interpreter, TORCH="torch==2.13.0"
# pins torch. Nothing but Python (with venv) must be there; with a C++ compiler the CPU kernels are compiled, without one
# every op works through ATen and the build says so.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.11
# Where no GPU is visible the CUDA kernels are left out, which saves minutes; PLANTOPS_BUILD=cuda compiles them all the same.
PLANTOPS_BUILD ?= $(shell if ! nvidia-smi -L 2>/dev/null | grep -q GPU && command -v $${CXX:-c++} >/dev/null; then echo cpu; else echo auto; fi)
export PLANTOPS_BUILD
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

# Processes that share the tests, with one thread each.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: plant test test-all kernel-report lint format wheel setup clean help

help:
	@sed -n 's/^# //p' Makefile | head -5

$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
# torchvision, whose networks the tests grow, in one step with torch, so that the two fit.
	$(PIP) "setuptools>=77" wheel cmake ninja pybind11 "$(TORCH)" "torchvision>=0.26" numpy safetensors
	@touch $@

# Recompiled when a kernel or the build changes; the Python sources are used in place.
$(VENV)/build.stamp: $(VENV)/torch.stamp $(SOURCES)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PIP) --no-build-isolation --editable ".[cli,vision,data,plots,tensorboard,onnx,bench,dev]"
	@touch $@

setup: $(VENV)/build.stamp

plant: setup
	$(VENV)/bin/plantops plant --data digits --max-parameters 4200 --uniform 4,6 --controls

test: setup
	$(PYTEST)

test-all: test
	$(PYTEST) -m exhaustive

# Registers, stack and shared memory of every GPU kernel for every architecture. Needs Triton, but no GPU.
kernel-report: setup
	$(VENV)/bin/python tools/kernel_report.py --csv build/kernel_report.csv

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: setup
	rm -rf dist
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info plantops/_C*.so plantops/_C_build.json
