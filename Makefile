# Every target works as the first command typed on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOOR := .venv-floor
FLOOR_STAMP := $(FLOOR)/.installed
# Address of another package index for torch and torchvision, for example one that holds CPU-only wheels.
TORCH_INDEX ?=

.PHONY: install demo test test-long test-floor lint format lock clean help

help:
	@echo "make install   create $(VENV) and install posereid from the lock file"
	@echo "make demo      install, then run the whole job on the embedded synthetic world (runs/demo/report.html)"
	@echo "make test      install, then run the tests"
	@echo "make test-long install, then 20 random kills of a training run and an hour of fuzzing the parsers"
	@echo "make test-floor  run the tests with the oldest supported version of every dependency ($(FLOOR))"
	@echo "make lint      install, then ruff (lint and format) and mypy"
	@echo "make lock      write requirements.lock and requirements-floor.lock anew from pyproject.toml"

install: $(STAMP)

# Another index is a wish to install again, whatever is there.
ifneq ($(TORCH_INDEX),)
.PHONY: $(STAMP)
endif

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"posereid needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Set PYTHON, for example: make install PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
else
	@# Torch from the given index at the locked versions, the rest from the lock without torch's CUDA libraries.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url "$(TORCH_INDEX)" $$(sed -nE 's/^(torch|torchvision)==([^ ]*).*/\1==\2/p' requirements.lock)
	awk '/^[a-z0-9]/ {keep = !/^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*)==/} keep' requirements.lock > $(VENV)/without-torch.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/without-torch.lock
endif
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/posereid demo

test: $(STAMP)
	$(BIN)/python -m pytest

# How long the fuzzing part of test-long takes.
FUZZ_SECONDS ?= 3600

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long -s
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

$(FLOOR_STAMP): requirements-floor.lock pyproject.toml
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-floor.lock
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

test-floor: $(FLOOR_STAMP)
	$(FLOOR)/bin/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --output-file requirements.lock
	uv pip compile pyproject.toml --group dev --resolution lowest-direct --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --output-file requirements-floor.lock

clean:
	rm -rf $(VENV) $(FLOOR) .mypy_cache .ruff_cache .pytest_cache
