# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs, once.
# `make test-all` adds tests that take minutes, and those of several hosts, which need root.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# two files of tests at a time: while one waits for ranks to start, the other computes
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" python tools/demo.py

lint: $(VENV)/.installed
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

test: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -m "not slow and not hosts" $(SIDE_BY_SIDE)

test-all: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest

clean:
	rm -rf $(VENV) runs build *.egg-info
