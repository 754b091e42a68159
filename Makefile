# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv from the committed lock first.
PYTHON ?= python3
BIN := .venv/bin
# One thread per test process: PyTorch processes with several threads each slow each other down. One process more than
# cores, because tests wait for other processes.
WORKERS := $(shell echo $$(($$(nproc 2> /dev/null || echo 2) + 1)))
PARALLEL := -n $(WORKERS) --maxprocesses 4 --dist loadfile --max-worker-restart 0

.PHONY: demo test test-slow test-oldest lint types lock clean

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: .venv/.installed
	$(BIN)/compress demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --durations=20

test-slow: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m slow

# The oldest torch and torchvision that are supported, in an environment of their own; the rest as in the lock
.venv-oldest/.installed: requirements-oldest.txt requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	grep -Ev '^(torch|torchvision|triton|setuptools|cuda-.*|nvidia-.*)==' requirements.lock > .venv-oldest/rest.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-oldest.txt -r .venv-oldest/rest.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

test-oldest: .venv-oldest/.installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest $(PARALLEL)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.installed
	$(BIN)/pyright compress exporters profiles

# Newest releases within the ranges of pyproject.toml -> requirements.lock
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet -e ".[dev]" setuptools
	(sed -n 1p requirements.lock; .venv-lock/bin/python -m pip freeze --all --exclude-editable | grep -v "^pip==") > requirements.lock.new
	mv requirements.lock.new requirements.lock && rm -rf .venv-lock

clean:
	rm -rf .venv .venv-oldest runs build *.egg-info .pytest_cache .ruff_cache
